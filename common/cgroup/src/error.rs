//! What can go wrong with a control group, always with the file or the limit it was about.

use std::io;
use std::path::{Path, PathBuf};

/// The result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a cgroup file or folder failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A limit was refused by the kernel.
    #[error("cannot set {} to {value:?}: {source}", path.display())]
    Limit {
        /// The limit's file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A limit was asked for whose controller the host does not have.
    #[error("cannot set {limit}: this host has no {controller} cgroup controller")]
    NoController {
        /// The limit.
        limit: String,
        /// The controller that it needs.
        controller: String,
    },
    /// A value that no kernel takes.
    #[error("{0}")]
    Invalid(String),
    /// No cgroup file system is mounted, or its mounts do not make sense.
    #[error("cgroup file systems: {0}")]
    Host(String),
    /// systemd cannot be reached, or did not do what it was asked for.
    #[error("{0}")]
    Systemd(String),
    /// systemd answered a call with an error.
    #[error("systemd refuses {action}: {text} ({name})")]
    Unit {
        /// The method that was called.
        action: String,
        /// The error's D-Bus name.
        name: String,
        /// systemd's own words.
        text: String,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether systemd has a unit of that name already.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Unit { name, .. } if name.ends_with(".UnitExists"))
    }

    /// Whether this process may not do that with the group.
    pub fn is_denied(&self) -> bool {
        let denied = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
        matches!(self, Self::Io { source, .. } | Self::Limit { source, .. } if denied.contains(&source.kind()))
    }

    /// Whether the group (or file) does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } | Self::Limit { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
