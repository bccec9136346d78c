//! Images: registries, content store, unpacking, snapshots.

pub mod build;
mod config;
mod error;
mod image;
mod snapshot;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

pub use config::{Config, Limits, Timeouts};
pub use error::{Error, Result};
pub use image::{Auth, FsUsage, Image, ImageConfig, Phase, Progress, ProgressSink};
pub use snapshot::{MountOptions, Report, Snapshot, Usage};

/// The image store; cheap to clone.
#[derive(Clone)]
pub struct Images {
    config: Arc<Config>,
}

fn not_yet<T>() -> Result<T> {
    Err(Error::Invalid("not here yet".into()))
}

impl Images {
    /// Opens (or creates) the store and repairs what a crash left: half-made downloads, layers, snapshots. Blocking.
    pub fn open(config: Config) -> Result<Images> {
        Ok(Images { config: Arc::new(config) })
    }

    /// Pulls `reference` and unpacks it for this machine's platform.
    pub async fn pull(&self, reference: &str, auth: Option<Auth>, progress: Option<ProgressSink>) -> Result<Image> {
        let _ = (reference, auth, progress);
        not_yet()
    }

    /// Imports an OCI layout folder, an OCI archive or a `docker save` archive (optionally gzip or zstd). `name` names
    /// the image when it holds exactly one; else the names inside are used.
    pub async fn import(&self, path: &Path, name: Option<&str>, progress: Option<ProgressSink>) -> Result<Vec<Image>> {
        let _ = (path, name, progress);
        not_yet()
    }

    /// Writes the image as an OCI archive (tar) to `path`.
    pub async fn export(&self, reference: &str, path: &Path) -> Result<()> {
        let _ = (reference, path);
        not_yet()
    }

    /// All images, in order of id.
    pub fn list(&self) -> Vec<Image> {
        Vec::new()
    }

    /// The image with this reference (normalised), id (also shortened to 12 or more hex digits) or digest.
    pub fn get(&self, name: &str) -> Option<Image> {
        let _ = name;
        None
    }

    /// Removes the image with all its names; frees what nothing else uses before it returns. False when there was none.
    pub async fn remove(&self, name: &str) -> Result<bool> {
        let _ = name;
        not_yet()
    }

    /// Bytes and inodes used by images (blobs and layers), from accounting.
    pub fn fs_usage(&self) -> FsUsage {
        FsUsage { bytes: 0, inodes: 0, mountpoint: self.config.root.clone(), timestamp: 0 }
    }

    /// Makes the writable directory of a container over an image. The same container and image again is fine.
    pub fn prepare(&self, container_id: &str, image_id: &str) -> Result<Snapshot> {
        let _ = (container_id, image_id);
        not_yet()
    }

    /// Like [`Images::prepare`] but read-only, without a writable directory (image volumes).
    pub fn prepare_view(&self, id: &str, image_id: &str) -> Result<Snapshot> {
        let _ = (id, image_id);
        not_yet()
    }

    /// Mounts the snapshot at `target` (created when missing). Mounted there already is fine.
    pub fn mount(&self, container_id: &str, target: &Path, options: &MountOptions) -> Result<()> {
        let _ = (container_id, target, options);
        not_yet()
    }

    /// Unmounts the snapshot from wherever it is mounted. Not mounted is fine, unknown too.
    pub fn unmount(&self, container_id: &str) -> Result<()> {
        let _ = container_id;
        not_yet()
    }

    /// Unmounts and deletes the snapshot, and layers that only it used. Unknown is fine.
    pub fn remove_snapshot(&self, container_id: &str) -> Result<()> {
        let _ = container_id;
        not_yet()
    }

    /// All snapshots, in order of id.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        Vec::new()
    }

    /// Disk use of the container's writable directory (walks it).
    pub fn snapshot_usage(&self, container_id: &str) -> Result<Usage> {
        let _ = container_id;
        not_yet()
    }

    /// Compares the ledger with the disk, given the containers that exist, and repairs: snapshots of no live container
    /// are removed, unreferenced blobs and layers too.
    pub fn fsck(&self, live: &HashSet<String>) -> Report {
        let _ = live;
        Report::default()
    }
}
