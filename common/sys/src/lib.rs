//! The kernel interface: the only crate with unsafe code.
//!
//! Each module wraps one kernel subject that the standard library, nix and rustix leave out, behind functions that
//! cannot be misused: descriptors are owned values, sizes are checked, and what is only sound in a single-threaded
//! process checks that first. Nothing here knows a container, a pod or a program.

pub mod bpf;
pub mod capability;
pub mod ethtool;
pub mod fd;
pub mod kernel;
pub mod memory;
pub mod mount;
pub mod mountinfo;
pub mod namespaces;
pub mod netlink;
pub mod process;
pub mod pty;
pub mod root;
pub mod seccomp;
pub mod signal;
