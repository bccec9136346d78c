//! Volumes, environment and files that a pod's containers see.
//!
//! The kubelet asks for everything below `pods/<uid>` here: volume contents, mounts of a container, its environment,
//! `/etc/hosts` and the termination log. Nothing in this crate knows CRI or talks to the apiserver itself; objects come
//! through [`Objects`].

mod context;
mod downward;
mod environment;
mod error;
mod expand;
mod hosts;
mod layout;
mod mounts;
mod objects;
mod service_links;
#[cfg(test)]
mod testing;
mod usage;
mod volumes;

pub use context::{Allocatable, PodContext};
pub use environment::environment;
pub use error::{EnvError, VolumeError};
pub use expand::expand;
pub use hosts::{render_hosts, write_hosts};
pub use layout::Layout;
pub use mounts::{MountSpec, Propagation};
pub use objects::{ObjectError, Objects, Token};
pub use usage::Usage;
pub use volumes::Volumes;
