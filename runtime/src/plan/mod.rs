//! Decisions, without a system call: what each part of a configuration becomes.

pub(crate) mod capabilities;
pub(crate) mod devices;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod process;
pub(crate) mod rdt;
pub(crate) mod resources;
