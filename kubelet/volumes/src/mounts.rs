//! From a container's volumeMounts to the bind mounts that the runtime makes.

use std::path::PathBuf;

/// How mounts travel between the host and the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    #[default]
    Private,
    /// Later host mounts appear in the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// One bind mount of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// File or directory on the host; exists.
    pub host_path: PathBuf,
    /// Absolute path in the container.
    pub container_path: String,
    /// Mount read-only.
    pub read_only: bool,
    /// Make mounts below read-only, too (only with `read_only`).
    pub recursive_read_only: bool,
    /// Mount propagation.
    pub propagation: Propagation,
    /// The runtime may give the files the container's SELinux label.
    pub selinux_relabel: bool,
}
