//! Volumes, environment and files that a pod's containers see.
//!
//! The kubelet asks for everything below `pods/<uid>` here: volume contents, mounts of a container, its environment,
//! `/etc/hosts` and the termination log. Nothing in this crate knows CRI or talks to the apiserver itself; objects come
//! through [`Objects`].

mod atomic;
mod backed;
mod certificate;
mod claim;
mod contents;
mod context;
mod csi;
mod downward;
mod empty_dir;
mod env_file;
mod environment;
mod error;
mod expand;
mod fs_group;
mod host_path;
mod hosts;
mod kind;
mod layout;
mod mount_table;
mod mounts;
mod notes;
mod objects;
mod payload;
mod resize;
mod service_links;
mod subpath;
mod teardown;
#[cfg(test)]
mod testing;
mod token;
mod trust;
mod usage;
mod volumes;

pub use context::{Allocatable, PodContext};
pub use csi::{DriverNode, Drivers};
pub use environment::{Places, environment};
pub use error::{EnvError, VolumeError};
pub use expand::expand;
pub use hosts::{render_hosts, write_hosts};
pub use layout::Layout;
pub use mounts::{DeviceSpec, ImageFiles, MountSpec, Propagation, Recursive};
pub use notes::Note;
pub use objects::{ObjectError, Objects, Standalone, Token};
pub use resize::{Resize, status_patch};
pub use usage::{Health, Usage};
pub use volumes::Volumes;
