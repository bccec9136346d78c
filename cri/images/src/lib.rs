//! Images: registries, content store, unpacking, snapshots.
//!
//! [`Images`] is the whole interface. Below it: `reference` and `manifest` are pure, `registry` talks to the network,
//! `unpack` turns hostile archives into directories, `store` owns the disk. Nothing here knows CRI.

pub mod build;
mod config;
mod digest;
mod error;
mod export;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod hostile_tests;
mod image;
mod import;
mod install;
mod manifest;
mod pull;
mod reference;
mod registry;
mod snapshot;
mod store;
mod unpack;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use config::{Config, Limits, Proxy, Snapshotter, Timeouts};
pub use digest::Digest;
pub use error::{Error, Result};
pub use image::{Auth, FsUsage, Image, ImageConfig, Phase, Progress, ProgressSink};
pub use reference::Reference;
pub use snapshot::{MountOptions, Report, Snapshot, Usage};

use install::{Keyed, blocking};
use store::Store;
use tokio::sync::Semaphore;

/// The image store; cheap to clone.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    keyed: Keyed,
    slots: Arc<Semaphore>,
    seats: Arc<Semaphore>,
}

impl Images {
    /// Opens (or creates) the store and repairs what a crash left: half-made downloads, layers, snapshots. Blocking.
    pub fn open(config: Config) -> Result<Images> {
        let root = config.root.clone();
        let seats = || Arc::new(Semaphore::new(config.max_concurrent_unpacks.max(1)));
        let (slots, seats) = (seats(), seats());
        let store = Arc::new(Store::open(config).map_err(|e| e.in_store(&root))?);
        install::flush_soon(&store);
        Ok(Images { inner: Arc::new(Inner { store, keyed: Keyed::default(), slots, seats }) })
    }

    fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    fn root(&self) -> &Path {
        &self.inner.store.config.root
    }

    /// From now on other registry settings, logins and pinned images count; everything else stays as it was opened with.
    pub fn reload(&self, config_path: PathBuf, docker_config: Option<PathBuf>, pinned: Vec<String>) {
        self.store().change(|config| {
            config.config_path = config_path;
            config.docker_config = docker_config;
            config.pinned = pinned;
        });
    }

    /// Pulls `reference` and unpacks it for this machine's platform. Dropping the future gives up and leaves nothing.
    pub async fn pull(&self, reference: &str, auth: Option<Auth>, progress: Option<ProgressSink>) -> Result<Image> {
        let inner = &self.inner;
        let pull = pull::Pull { store: &inner.store, keyed: &inner.keyed, slots: &inner.slots, seats: &inner.seats };
        pull.run(reference, auth, progress).await
    }

    /// Imports an OCI layout folder, an OCI archive or a `docker save` archive (optionally gzip or zstd). `name` names
    /// the image when it holds exactly one; else the names inside are used.
    pub async fn import(&self, path: &Path, name: Option<&str>, progress: Option<ProgressSink>) -> Result<Vec<Image>> {
        import::import(self.store(), &self.inner.keyed, &self.inner.slots, path, name, progress).await
    }

    /// Writes the image as an OCI archive (tar) to `path`. Needs the compressed layers, see
    /// [`Config::keep_layer_blobs`].
    pub async fn export(&self, reference: &str, path: &Path) -> Result<()> {
        let (store, name, path): (_, _, PathBuf) = (self.store().clone(), reference.to_string(), path.into());
        blocking("export image", move || export::export(&store, &name, &path)).await
    }

    /// All images, in order of id.
    pub fn list(&self) -> Vec<Image> {
        let pinned = self.store().current().pinned.clone();
        let state = self.store().state();
        state.images.values().map(|r| state.image(r, &pinned)).collect()
    }

    /// The image with this reference (normalised), id (also shortened to 12 or more hex digits) or digest.
    pub fn get(&self, name: &str) -> Option<Image> {
        let current = self.store().current();
        let state = self.store().state();
        state.find(name).map(|r| state.image(r, &current.pinned))
    }

    /// The annotations of an image's manifest; none when there is no such image. Blocking, but short.
    pub fn annotations(&self, name: &str) -> Result<BTreeMap<String, String>> {
        #[derive(serde::Deserialize)]
        struct Annotated {
            #[serde(default)]
            annotations: Option<BTreeMap<String, String>>,
        }
        let store = self.store();
        let Some(digest) = store.state().find(name).map(|r| r.manifest.clone()) else { return Ok(BTreeMap::new()) };
        let bytes = store.blobs.read(&digest, store.config.limits.manifest_bytes)?;
        let read = serde_json::from_slice::<Annotated>(&bytes);
        let reason = |e: serde_json::Error| e.to_string();
        let bad = |reason| Error::Malformed { what: "manifest", digest: digest.to_string(), reason };
        Ok(read.map_err(reason).map_err(bad)?.annotations.unwrap_or_default())
    }

    /// The directories of an image's layers, the lowest first, as long as the image is there. What is in them is not to be trusted.
    pub fn layers(&self, name: &str) -> Vec<PathBuf> {
        let found = self.store().state().find(name).map(|r| r.diff_ids.clone()).unwrap_or_default();
        found.iter().map(|diff_id| self.store().layers.fs(diff_id)).collect()
    }

    /// Removes the image with all its names; frees what nothing else uses before it returns. False when there was none.
    /// Containers keep the layers they use until their snapshot is removed.
    pub async fn remove(&self, name: &str) -> Result<bool> {
        let store = self.store().clone();
        let Some(id) = self.store().state().find(name).map(|r| r.id.clone()) else { return Ok(false) };
        blocking("remove image", move || store.remove(&id)).await.map_err(|e| e.in_store(self.root()))
    }

    /// Bytes and inodes used by images (blobs and layers), from accounting: costs no walk.
    pub fn fs_usage(&self) -> FsUsage {
        let state = self.store().state();
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        FsUsage {
            bytes: state.blobs.values().sum::<u64>() + state.unpacked().map(|l| l.bytes).sum::<u64>(),
            inodes: state.blobs.len() as u64 + state.unpacked().map(|l| l.inodes + 2).sum::<u64>(),
            mountpoint: self.root().to_path_buf(),
            timestamp: i64::try_from(timestamp).unwrap_or(i64::MAX),
        }
    }

    /// Makes the writable directory of a container over an image. The same container and image again is fine. Blocking;
    /// short, unless the store makes copies.
    pub fn prepare(&self, container_id: &str, image_id: &str) -> Result<Snapshot> {
        self.store().prepare(container_id, image_id, false, None).map_err(|e| e.in_store(self.root()))
    }

    /// Like [`Images::prepare`] but read-only, without a writable directory (image volumes).
    pub fn prepare_view(&self, id: &str, image_id: &str) -> Result<Snapshot> {
        self.store().prepare(id, image_id, true, None).map_err(|e| e.in_store(self.root()))
    }

    /// Like [`Images::prepare`], for one that is mounted at `target` next: what is written down of it is written once.
    pub fn prepare_at(&self, container_id: &str, image_id: &str, target: &Path) -> Result<Snapshot> {
        self.store().prepare(container_id, image_id, false, Some(target)).map_err(|e| e.in_store(self.root()))
    }

    /// Like [`Images::prepare_view`], for one that is mounted at `target` next.
    pub fn prepare_view_at(&self, id: &str, image_id: &str, target: &Path) -> Result<Snapshot> {
        self.store().prepare(id, image_id, true, Some(target)).map_err(|e| e.in_store(self.root()))
    }

    /// Mounts the snapshot at `target` (created when missing). Mounted there already is fine. Blocking, but short.
    pub fn mount(&self, container_id: &str, target: &Path, options: &MountOptions) -> Result<()> {
        self.store().mount(container_id, target, options).map_err(|e| e.in_store(self.root()))
    }

    /// Unmounts the snapshot from wherever it is mounted. Not mounted is fine, unknown too.
    pub fn unmount(&self, container_id: &str) -> Result<()> {
        self.store().unmount(container_id)
    }

    /// Unmounts the snapshot and removes it, and layers that only it used, for good; their files are deleted after that (see
    /// [`Images::settled`]). Unknown is fine. Blocking, but short.
    pub fn remove_snapshot(&self, container_id: &str) -> Result<()> {
        self.store().remove_snapshot(container_id)
    }

    /// Waits until the files of all snapshots removed so far are deleted, at most `limit`; false when that is not enough.
    /// Blocking.
    pub fn settled(&self, limit: std::time::Duration) -> bool {
        self.store().trash.settled(limit)
    }

    /// All snapshots, in order of id.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.store().state().snapshots.values().cloned().collect()
    }

    /// Disk use of the container's writable directory (walks it). Blocking.
    pub fn snapshot_usage(&self, container_id: &str) -> Result<Usage> {
        self.store().snapshot_usage(container_id)
    }

    /// Writes what a container has changed in its root as a tar, in the form of an OCI layer. Blocking.
    pub fn write_changes(&self, container_id: &str, to: impl std::io::Write) -> Result<()> {
        self.store().write_changes(container_id, to)
    }

    /// Puts what [`Images::write_changes`] wrote into a container's snapshot that is not mounted. Blocking.
    pub fn apply_changes(&self, container_id: &str, from: &Path) -> Result<()> {
        self.store().apply_changes(container_id, from)
    }

    /// A folder for what belongs to a container's snapshot, and goes with it.
    pub fn beside(&self, container_id: &str) -> PathBuf {
        self.store().beside(container_id)
    }

    /// Compares the ledger with the disk and tells what does not agree, in words. Blocking.
    pub fn check(&self, live: &HashSet<String>) -> Vec<String> {
        self.store().check(live)
    }

    /// Compares the ledger with the disk and repairs. `live` are the ids of all snapshots (containers and views) that
    /// are wanted: others are unmounted and removed, unreferenced blobs and layers too. Blocking.
    pub fn fsck(&self, live: &HashSet<String>) -> Report {
        self.store().fsck(live)
    }
}
