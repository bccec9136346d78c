//! What is on disk: blobs, layers, the image list, snapshots; one process owns it.

mod changes;
mod choose;
pub(crate) mod content;
mod differences;
pub(crate) mod layers;
mod lease;
pub(crate) mod mounts;
mod native;
pub(crate) mod overlay;
pub(crate) mod snapshots;
pub(crate) mod state;
pub(crate) mod trash;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::config::Config;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::snapshot::Report;
use crate::unpack::tree::Form;
use content::{Blobs, write_atomic};
use layers::{LayerInfo, Layers};
pub(crate) use lease::Lease;
use snapshots::Snapshots;
use state::{Garbage, Record, State};
use trash::Trash;

/// The store behind [`crate::Images`].
pub(crate) struct Store {
    /// As it was opened with.
    pub(crate) config: Config,
    /// The same with what was changed since.
    current: RwLock<Arc<Config>>,
    pub(crate) blobs: Blobs,
    pub(crate) layers: Layers,
    /// Copies of whole images.
    views: Layers,
    /// Of what new snapshots are made: overlays, or copies.
    form: Form,
    pub(crate) snapshots: Snapshots,
    pub(crate) trash: Trash,
    list_path: PathBuf,
    state: Mutex<State>,
    /// The root, open: what it takes to flush the file system and to hear of writes that failed since the start.
    root: Arc<File>,
    /// This boot.
    boot: String,
    /// Held for the life of the store so that no second process opens it.
    _lock: File,
}

impl Store {
    /// Opens or creates the store and removes what a crash left half-made.
    pub(crate) fn open(config: Config) -> Result<Store> {
        let root = config.root.clone();
        fs::create_dir_all(&root).map_err(|e| Error::io("create", &root, e))?;
        let lock = lock(&root)?;
        let trash = Trash::open(root.join("trash"))?;
        let blobs = Blobs::open(&root)?;
        let form = choose::choose(config.snapshotter, &root, &trash)?;
        let layers = Layers::open(&root, trash.clone(), form)?;
        let views = layers.beside(&root, "views")?;
        let empty = root.join("empty");
        fs::create_dir_all(&empty).map_err(|e| Error::io("create", &empty, e))?;
        let snapshots = Snapshots::open(&root, trash.clone())?;
        let list_path = root.join("images.json");
        let mut state = State {
            images: load(&list_path)?,
            snapshots: snapshots.load()?,
            blobs: blobs.list()?.into_iter().collect(),
            layers: layers.list()?.into_iter().collect(),
            views: views.list()?.into_iter().collect(),
            leases: HashMap::new(),
        };
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        for id in state.lost(&boot) {
            tracing::warn!(image = %id, "image that came just before the machine went down, dropped from the list");
            state.images.remove(&id);
        }
        for id in state.broken() {
            tracing::warn!(image = %id, "image with missing layers or blobs, dropped from the list");
            state.images.remove(&id);
        }
        let current = RwLock::new(Arc::new(config.clone()));
        let store = Store {
            config,
            current,
            blobs,
            layers,
            views,
            form,
            snapshots,
            trash,
            list_path,
            state: Mutex::new(state),
            root: Arc::new(File::open(&root).map_err(|e| Error::io("open", &root, e))?),
            boot,
            _lock: lock,
        };
        {
            let mut state = store.state();
            store.save(&state)?;
            store.collect(&mut state)?;
            if form == Form::Overlay {
                store.layers.convert(&mut state.layers, || store.flush())?;
            }
        }
        store.trash.empty()?;
        Ok(store)
    }

    /// Settings that may be changed while it is open are read here, each time.
    pub(crate) fn current(&self) -> Arc<Config> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes settings.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Config)) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut current));
    }

    /// The state; a panic elsewhere does not take the store down, as each change is complete before it is stored.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, state: &State) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(&state.images).map_err(|e| Error::io("encode", &self.list_path, e))?;
        write_atomic(&self.list_path, &bytes)
    }

    /// Adds (or extends) an image; its names move over from images that had them. All its files are in place. With `wait` they
    /// would outlive a power failure when this returns; without, the image is used at once and its record says that a start
    /// after a power failure must not trust it, until [`Store::synced`] is told.
    pub(crate) fn add(&self, mut record: Record, wait: bool) -> Result<Record> {
        if wait {
            self.flush()?;
        } else {
            record.unsynced.clone_from(&self.boot);
        }
        let mut state = self.state();
        let before = state.images.clone();
        let merged = state.insert(record);
        if let Err(e) = self.save(&state) {
            state.images = before;
            return Err(e);
        }
        Ok(merged)
    }

    /// Writes everything of the file system to the disk.
    fn flush(&self) -> Result<()> {
        flush(&self.root).map_err(|e| Error::io("flush", &self.config.root, e))
    }

    /// Images that were added without waiting until they would outlive a power failure.
    pub(crate) fn unsynced(&self) -> Unsynced {
        let state = self.state();
        let waiting = state.images.values().filter(|r| !r.unsynced.is_empty());
        Unsynced { images: waiting.map(|r| (r.id.clone(), r.blobs.clone())).collect(), root: self.root.clone() }
    }

    /// Records that these have been flushed.
    pub(crate) fn synced(&self, flushed: &Unsynced) -> Result<()> {
        let mut state = self.state();
        let old = state.images.clone();
        for (id, blobs) in &flushed.images {
            // One that was extended meanwhile has its own turn.
            if let Some(record) = state.images.get_mut(id)
                && record.blobs == *blobs
            {
                record.unsynced.clear();
            }
        }
        let saved = self.save(&state);
        if saved.is_err() {
            state.images = old;
        }
        saved
    }

    /// Removes an image from the list, then what only it used. Blocking until all is freed.
    pub(crate) fn remove(&self, id: &str) -> Result<bool> {
        {
            let mut state = self.state();
            let Some(record) = state.images.remove(id) else { return Ok(false) };
            if let Err(e) = self.save(&state) {
                state.images.insert(record.id.clone(), record);
                return Err(e);
            }
            self.collect(&mut state)?;
        }
        self.trash.empty()?;
        Ok(true)
    }

    /// Takes everything unreferenced out of sight; the caller empties the trash outside the lock.
    pub(crate) fn collect(&self, state: &mut State) -> Result<Garbage> {
        let garbage = state.garbage();
        for digest in &garbage.blobs {
            self.trash.take(&self.blobs.path(digest))?;
            state.blobs.remove(digest);
        }
        for diff_id in &garbage.layers {
            self.layers.discard(diff_id)?;
            state.layers.remove(diff_id);
        }
        for image in &garbage.views {
            self.views.discard(image)?;
            state.views.remove(image);
        }
        Ok(garbage)
    }

    /// Protects digests (of blobs or layers) from collection until the lease is dropped.
    pub(crate) fn lease(self: &Arc<Self>) -> Lease {
        Lease::new(self.clone())
    }

    /// Records a finished blob.
    pub(crate) fn blob_added(&self, digest: &Digest, size: u64) {
        self.state().blobs.insert(digest.clone(), size);
    }

    /// Records a finished layer.
    pub(crate) fn layer_added(&self, diff_id: &Digest, info: LayerInfo) {
        self.state().layers.insert(diff_id.clone(), info);
    }

    /// Takes over what is on disk.
    fn listed(&self, state: &mut State) -> Result<()> {
        let (blobs, layers, views) = (self.blobs.list()?, self.layers.list()?, self.views.list()?);
        state.blobs = blobs.into_iter().collect();
        state.layers = layers.into_iter().collect();
        state.views = views.into_iter().collect();
        Ok(())
    }

    /// Compares ledger and disk without changing anything, see [`crate::Images::check`].
    pub(crate) fn check(&self, live: &HashSet<String>) -> Vec<String> {
        let mut found = Vec::new();
        let mut state = self.state();
        let known: HashSet<&String> = state.snapshots.keys().collect();
        found.extend(live.iter().filter(|id| !known.contains(id)).map(|id| format!("snapshot {id} is missing")));
        found.extend(
            known.iter().filter(|id| !live.contains(**id)).map(|id| format!("snapshot {id} is of no container")),
        );
        match self.listed(&mut state) {
            // Blobs and layers that are being fetched right now are leased, and no garbage.
            Ok(()) => {}
            Err(e) => found.push(e.to_string()),
        }
        found.extend(state.broken().into_iter().map(|id| format!("image {id} lacks layers or blobs")));
        let garbage = state.garbage();
        found.extend(garbage.blobs.iter().map(|d| format!("blob {d} is of no image")));
        found.extend(garbage.layers.iter().map(|d| format!("layer {d} is of no image")));
        found.extend(garbage.views.iter().map(|d| format!("copy of image {d} is of no container")));
        found.sort();
        found
    }

    /// Compares ledger and disk and repairs, see [`crate::Images::fsck`].
    pub(crate) fn fsck(&self, live: &HashSet<String>) -> Report {
        let mut report = Report::default();
        let known: Vec<String> = self.state().snapshots.keys().cloned().collect();
        for id in live {
            if !known.contains(id) {
                report.missing_snapshots.push(id.clone());
            }
        }
        for id in known.iter().filter(|id| !live.contains(*id)) {
            match self.remove_snapshot(id) {
                Ok(()) => report.removed_snapshots.push(id.clone()),
                Err(e) => report.faults.push(e.to_string()),
            }
        }
        let mut state = self.state();
        self.fsck_disk(&mut state, &mut report);
        match self.collect(&mut state) {
            Ok(garbage) => {
                report.removed_blobs = garbage.blobs.iter().map(Digest::to_string).collect();
                report.removed_layers = garbage.layers.iter().map(Digest::to_string).collect();
            }
            Err(e) => report.faults.push(e.to_string()),
        }
        drop(state);
        if let Err(e) = self.trash.empty() {
            report.faults.push(e.to_string());
        }
        report.missing_snapshots.sort();
        report
    }

    fn fsck_disk(&self, state: &mut State, report: &mut Report) {
        if let Err(e) = self.listed(state) {
            report.faults.push(e.to_string());
            return;
        }
        let broken = state.broken();
        if broken.is_empty() {
            return;
        }
        for id in &broken {
            state.images.remove(id);
        }
        if let Err(e) = self.save(state) {
            report.faults.push(e.to_string());
        }
        report.broken_images = broken;
    }
}

/// Images to be flushed, and what it takes; does not keep the store open.
pub(crate) struct Unsynced {
    /// By id, with the blobs they had then.
    images: BTreeMap<String, DigestSet>,
    root: Arc<File>,
}

impl Unsynced {
    /// Nothing is to be done.
    pub(crate) fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Writes them, and all else of the file system, to the disk. Blocking.
    pub(crate) fn flush(&self) -> std::io::Result<()> {
        flush(&self.root)
    }
}

fn flush(root: &File) -> std::io::Result<()> {
    Ok(rustix::fs::syncfs(root)?)
}

impl Drop for Store {
    fn drop(&mut self) {
        self.trash.close();
    }
}

fn lock(root: &Path) -> Result<File> {
    let path = root.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| Error::io("open", &path, e))?;
    // A killed owner is gone at once, but a child that it was just starting holds the lock until it runs its program.
    let deadline = std::time::Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if std::time::Instant::now() < deadline => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Locked { path: root.to_path_buf() }),
            Err(e) => return Err(Error::io("lock", &path, e)),
        }
    }
}

/// How long the lock of an owner that may have just ended is waited for.
const LOCK_PATIENCE: std::time::Duration = std::time::Duration::from_secs(8);

fn load(path: &Path) -> Result<std::collections::BTreeMap<String, Record>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Default::default()),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    serde_json::from_slice(&bytes).map_err(|e| Error::io("decode", path, e))
}

/// Sets shared by several digest lists.
pub(crate) type DigestSet = BTreeSet<Digest>;
