//! The OCI configuration of a container, decided from CRI and image settings without touching the host.

pub mod capabilities;
pub mod cdi;
pub mod refuse;
pub mod seccomp;
pub mod spec;
pub mod user;
