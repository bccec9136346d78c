//! CPU and memory: the class of a pod and its control groups.

pub(crate) mod allocatable;
pub(crate) mod cgroups;
pub(crate) mod managers;
pub(crate) mod memory;
pub(crate) mod pages;
pub(crate) mod qos;
pub(crate) mod users;
