//! Errors as users see them in a pod's events and container statuses.

use std::io;

/// Why a volume could not be set up, mounted into a container or torn down. The text is that of `FailedMount` events.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Contents could not be prepared.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {reason}")]
    SetUp {
        /// Name of the volume in the pod's spec.
        volume: String,
        /// What went wrong.
        reason: String,
    },
    /// A volume that is in use could not grow.
    #[error("NodeExpandVolume failed for volume {volume:?} : {reason}")]
    Resize {
        /// Name of the persistent volume.
        volume: String,
        /// What went wrong.
        reason: String,
    },
    /// A driver did not take a volume away.
    #[error("UnmountVolume.TearDown failed for volume {volume:?} : {reason}")]
    TearDown {
        /// Name of the persistent volume, or of the volume in the pod's spec.
        volume: String,
        /// What went wrong.
        reason: String,
    },
    /// A container's mount cannot be made of the pod's volumes (unknown volume, bad sub-path).
    #[error("failed to prepare mount {mount_path:?} of volume {volume:?} for container {container:?}: {reason}")]
    Mount {
        /// Name of the container.
        container: String,
        /// Name of the volume.
        volume: String,
        /// Path in the container.
        mount_path: String,
        /// What went wrong.
        reason: String,
    },
    /// Something of a pod could not be unmounted or removed.
    #[error("failed to {action} {path}: {source}")]
    Path {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A directory on the way to a deletion holds a mount that could not be removed, so nothing below it is deleted.
    #[error("refusing to delete {path}: it is a mount point")]
    Mounted {
        /// The mount point.
        path: String,
    },
    /// The pod has no uid or one that cannot be a directory name.
    #[error("pod {pod:?} has an unusable uid {uid:?}")]
    BadUid {
        /// namespace/name
        pod: String,
        /// The uid as given.
        uid: String,
    },
}

impl VolumeError {
    /// The reason of the event that tells it of a pod.
    pub fn event(&self) -> &'static str {
        match self {
            Self::Resize { .. } => "VolumeResizeFailed",
            _ => "FailedMount",
        }
    }
}

/// Why a container's environment could not be made; the text of `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// The ConfigMap does not exist.
    #[error("configmap {name:?} not found")]
    ConfigMapNotFound {
        /// Its name.
        name: String,
    },
    /// The Secret does not exist.
    #[error("secret {name:?} not found")]
    SecretNotFound {
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The missing key.
        key: String,
    },
    /// The object could not be read.
    #[error("couldn't get {kind} {namespace}/{name}: {reason}")]
    Unavailable {
        /// `configmap`, `secret` or `services`.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// A fieldRef or resourceFieldRef that means nothing.
    #[error("{0}")]
    Field(String),
}
