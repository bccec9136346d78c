//! Container file systems: a writable directory over an image's layers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The file system of one container (or a read-only view of an image).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Container id.
    pub id: String,
    /// Image id, `sha256:...`.
    pub image_id: String,
    /// Digests of the uncompressed layers, lowest first; they stay in the store as long as this snapshot.
    pub diff_ids: Vec<String>,
    /// A view has no writable directory and is always mounted read-only.
    pub view: bool,
    /// A copy of the layers instead of an overlay over them; it stays what it was made as.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub native: bool,
    /// Seconds since the epoch.
    pub created: i64,
    /// Where it is (or is about to be) mounted.
    pub targets: Vec<PathBuf>,
    /// It was made for its target just now, and nobody has tried to mount it yet.
    #[serde(skip)]
    pub(crate) fresh: bool,
}

/// How to mount a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Mount read-only.
    pub read_only: bool,
    /// SELinux label for all files, empty for none.
    pub selinux_label: String,
    /// Pinned user namespace whose ids the files get (Linux 6.15): 0 in the image is 0 in there.
    pub user_namespace: Option<PathBuf>,
}

/// Disk use of one writable directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes allocated.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// What [`crate::Images::fsck`] found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Snapshots without a live container; removed.
    pub removed_snapshots: Vec<String>,
    /// Live containers without a snapshot.
    pub missing_snapshots: Vec<String>,
    /// Blobs that nothing referred to; removed.
    pub removed_blobs: Vec<String>,
    /// Layers that nothing referred to; removed.
    pub removed_layers: Vec<String>,
    /// Images whose layers or blobs are gone; removed from the list.
    pub broken_images: Vec<String>,
    /// What could not be repaired.
    pub faults: Vec<String>,
}
