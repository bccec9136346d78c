//! The one error type of the image store.
//!
//! Every variant carries what was being done to what (reference, digest, host, path) and the reason, in the
//! registry's own words where there are any, because these texts end up in `kubectl describe pod`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong with an image, a layer, a registry or the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A pull failed; `cause` says why. Its text is part of this one's, so it is not a `source()`.
    #[error("pull {reference}: {cause}")]
    Pull {
        /// The reference as the caller wrote it.
        reference: String,
        /// Why.
        cause: Box<Error>,
    },
    /// An import failed; `cause` says why.
    #[error("import {path}: {cause}")]
    Import {
        /// The archive or layout folder.
        path: PathBuf,
        /// Why.
        cause: Box<Error>,
    },
    /// The text is not an image reference.
    #[error("invalid image reference {reference:?}: {reason}")]
    Reference {
        /// The text.
        reference: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// The registry answered with an error status.
    #[error("{reason} ({status}) from {host}{}", again_in(*retry_after))]
    Registry {
        /// host[:port] that answered.
        host: String,
        /// HTTP status.
        status: u16,
        /// The registry's error code such as `MANIFEST_UNKNOWN`, when it gave one.
        code: Option<String>,
        /// The registry's own message, or the status text.
        reason: String,
        /// How long the registry wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// No usable answer from the registry: name resolution, connect, TLS or a broken body.
    #[error("{doing} {host}: {reason}")]
    Network {
        /// host[:port] that was asked.
        host: String,
        /// What was being done, such as `connect to`.
        doing: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// The registry took longer than allowed.
    #[error("{doing} {host}: no progress within {seconds} s")]
    Timeout {
        /// host[:port] that was asked.
        host: String,
        /// What was being done.
        doing: &'static str,
        /// The limit that was hit, in seconds.
        seconds: u64,
    },
    /// Bytes do not hash to the digest that names them.
    #[error("{what} {expected}: digest mismatch: content is {actual}")]
    Digest {
        /// What was checked: blob, manifest, layer.
        what: &'static str,
        /// The digest asked for.
        expected: String,
        /// The digest of what came.
        actual: String,
    },
    /// Something is larger (or smaller) than allowed or announced.
    #[error("{what}: {actual} bytes where {limit} are allowed")]
    Size {
        /// What was measured.
        what: String,
        /// Bytes seen (at least).
        actual: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// A manifest, index or config is malformed or of an unknown kind.
    #[error("{what} {digest}: {reason}")]
    Malformed {
        /// manifest, index, config ...
        what: &'static str,
        /// Its digest or name.
        digest: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The index holds no image for this machine.
    #[error("no image for platform {wanted}; the index has: {offered}")]
    Platform {
        /// The platform of this machine.
        wanted: String,
        /// What the index offers, comma separated.
        offered: String,
    },
    /// A layer cannot be unpacked.
    #[error("layer {digest}: entry {entry:?}: {reason}")]
    Layer {
        /// Digest of the layer.
        digest: String,
        /// The tar entry.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An archive or layout given to import is not one.
    #[error("{reason}")]
    Archive {
        /// What is wrong with it.
        reason: String,
    },
    /// A hosts.toml or docker config.json cannot be used.
    #[error("registry configuration {path}: {reason}")]
    HostsConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No such image, snapshot or blob here.
    #[error("{what} {name:?} not found")]
    NotFound {
        /// image, snapshot, blob.
        what: &'static str,
        /// The name asked for.
        name: String,
    },
    /// The snapshot exists already with another image.
    #[error("snapshot {name:?} exists already for image {image}")]
    Exists {
        /// Snapshot (container) id.
        name: String,
        /// Image id it was made from.
        image: String,
    },
    /// The disk of the image store is full (or the quota is used up).
    #[error("image store {store} is full: {doing}: {source}")]
    NoSpace {
        /// Root folder of the store.
        store: PathBuf,
        /// What was being written.
        doing: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A file operation failed.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// Another process owns the store.
    #[error("image store {path} is in use by another process")]
    Locked {
        /// Root folder of the store.
        path: PathBuf,
    },
    /// The request itself makes no sense (empty id, id with a slash, ...).
    #[error("{0}")]
    Invalid(String),
    /// A background task died (a bug) or the process is shutting down.
    #[error("{doing}: task ended early: {reason}")]
    Task {
        /// What the task did.
        doing: &'static str,
        /// How it ended.
        reason: String,
    },
}

impl Error {
    /// Wraps an I/O error; a full disk becomes [`Error::NoSpace`] once [`Error::in_store`] names the store.
    pub(crate) fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
        Error::Io { doing, path: path.to_path_buf(), source: source.into() }
    }

    /// Turns "no space left" and "quota exceeded" below `store` into [`Error::NoSpace`].
    pub(crate) fn in_store(self, store: &Path) -> Error {
        match self {
            Error::Io { doing, path, source } if is_full(&source) => {
                Error::NoSpace { store: store.to_path_buf(), doing: format!("{doing} {}", path.display()), source }
            }
            Error::Pull { reference, cause } => Error::Pull { reference, cause: Box::new(cause.in_store(store)) },
            Error::Import { path, cause } => Error::Import { path, cause: Box::new(cause.in_store(store)) },
            other => other,
        }
    }

    /// The innermost error: what is below `pull ...:` and `import ...:`.
    pub fn root(&self) -> &Error {
        match self {
            Error::Pull { cause, .. } | Error::Import { cause, .. } => cause.root(),
            other => other,
        }
    }

    /// The image (or snapshot) does not exist, here or at the registry.
    pub fn is_not_found(&self) -> bool {
        match self.root() {
            Error::NotFound { .. } => true,
            Error::Registry { status, code, .. } => {
                *status == 404 || matches!(code.as_deref(), Some("MANIFEST_UNKNOWN" | "NAME_UNKNOWN"))
            }
            _ => false,
        }
    }

    /// The registry wants (other) credentials.
    pub fn is_auth(&self) -> bool {
        matches!(self.root(), Error::Registry { status: 401 | 403, .. })
    }

    /// How long the registry wants to be left alone, when it says so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.root() {
            Error::Registry { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Trying again later may work without anything being changed.
    pub fn is_transient(&self) -> bool {
        match self.root() {
            Error::Network { .. } | Error::Timeout { .. } => true,
            Error::Registry { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            _ => false,
        }
    }

    /// The caller's input is wrong: reference, archive, configuration.
    pub fn is_invalid(&self) -> bool {
        matches!(self.root(), Error::Reference { .. } | Error::Invalid(_) | Error::Archive { .. })
    }

    /// The content is bad: digest mismatch, malformed manifest, hostile layer.
    pub fn is_corrupt(&self) -> bool {
        matches!(self.root(), Error::Digest { .. } | Error::Malformed { .. } | Error::Layer { .. } | Error::Size { .. })
    }

    /// The store's disk is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self.root(), Error::NoSpace { .. })
    }
}

/// Whether the kernel says that the disk or quota is used up.
pub(crate) fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn again_in(pause: Option<Duration>) -> String {
    pause.map_or_else(String::new, |p| format!(", again in {} s", p.as_secs()))
}
