//! The part that pull and import share: from a manifest to unpacked layers and an entry in the list.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::{Image, Phase, Progress, ProgressSink};
use crate::manifest::{Config, Manifest};
use crate::store::content::Follow;
use crate::store::state::Record;
use crate::store::{DigestSet, Lease, Store};

/// One lock per digest, so that two pulls of the same thing do the work once.
#[derive(Default)]
pub(crate) struct Keyed {
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Keyed {
    /// Waits for and takes the lock of `key`.
    pub(crate) async fn lock(&self, key: String) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, l| l.strong_count() > 0);
            match locks.get(&key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(tokio::sync::Mutex::new(()));
                    locks.insert(key, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

/// Sets a flag when dropped: work on another thread ends when the one who wanted it is gone.
pub(crate) struct StopOnDrop(pub(crate) Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    doing: &'static str,
    f: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(f).await {
        Ok(result) => result,
        Err(e) => Err(Error::Task { doing, reason: e.to_string() }),
    }
}

/// Reports progress, not more often than a person can read.
pub(crate) struct Tracker {
    sink: Option<ProgressSink>,
    inner: Mutex<(Progress, Option<Instant>)>,
}

impl Tracker {
    pub(crate) fn new(reference: &str, sink: Option<ProgressSink>) -> Tracker {
        let progress = Progress {
            reference: reference.to_string(),
            phase: Phase::Resolving,
            layers_done: 0,
            layers_total: 0,
            bytes_done: 0,
            bytes_total: 0,
        };
        let tracker = Tracker { sink, inner: Mutex::new((progress, None)) };
        tracker.update(true, |_| {});
        tracker
    }

    /// Changes the numbers; tells the caller when `force`d or the last time is long enough ago.
    pub(crate) fn update(&self, force: bool, change: impl FnOnce(&mut Progress)) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut inner.0);
        let Some(sink) = &self.sink else { return };
        let now = Instant::now();
        if force || inner.1.is_none_or(|last| now.duration_since(last) >= Duration::from_millis(100)) {
            inner.1 = Some(now);
            let copy = inner.0.clone();
            drop(inner);
            sink(&copy);
        }
    }
}

/// Makes sure layer `diff_id` is unpacked, from its blob, which must be in the store. The unpacking itself holds the
/// lease: when the caller is cancelled it stops soon and what it made is collected.
pub(crate) async fn unpack_layer(
    store: &Arc<Store>,
    slots: &Arc<tokio::sync::Semaphore>,
    lease: &Arc<Lease>,
    blob: &Digest,
    diff_id: &Digest,
) -> Result<()> {
    let slot = slots
        .clone()
        .acquire_owned()
        .await
        .map_err(|e| Error::Task { doing: "unpack layer", reason: e.to_string() })?;
    let stop = Arc::new(AtomicBool::new(false));
    let guard = StopOnDrop(stop.clone());
    let (store, lease, diff_id) = (store.clone(), lease.clone(), diff_id.clone());
    let path = store.blobs.path(blob);
    let result = blocking("unpack layer", move || {
        let blob = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        let info = store.layers.unpack(blob, &diff_id, &store.config.limits, &stop)?;
        store.layer_added(&diff_id, info);
        drop((lease, slot));
        Ok(())
    })
    .await;
    drop(guard);
    result
}

/// A layer that is unpacked while its blob comes.
pub(crate) struct Following {
    task: tokio::task::JoinHandle<Result<()>>,
    _stop: StopOnDrop,
}

impl Following {
    /// Begins with it when one of `seats` is free. They are not the slots of complete blobs: a registry that drips would keep
    /// others from unpacking. None: it is to be unpacked when it is complete.
    pub(crate) fn start(
        store: &Arc<Store>,
        seats: &Arc<tokio::sync::Semaphore>,
        lease: &Arc<Lease>,
        blob: Follow,
        diff_id: &Digest,
    ) -> Option<Following> {
        let seat = seats.clone().try_acquire_owned().ok()?;
        let stop = Arc::new(AtomicBool::new(false));
        let guard = StopOnDrop(stop.clone());
        let (store, lease, diff_id) = (store.clone(), lease.clone(), diff_id.clone());
        let task = tokio::task::spawn_blocking(move || {
            let info = store.layers.unpack(blob, &diff_id, &store.config.limits, &stop)?;
            store.layer_added(&diff_id, info);
            drop((lease, seat));
            Ok(())
        });
        Some(Following { task, _stop: guard })
    }

    /// Its end, which comes when the blob is complete or given up.
    pub(crate) async fn end(self) -> Result<()> {
        self.task.await.map_err(|e| Error::Task { doing: "unpack layer", reason: e.to_string() })?
    }
}

/// What goes into the list.
pub(crate) struct Finished<'a> {
    pub(crate) manifest: &'a Manifest,
    pub(crate) manifest_digest: Digest,
    pub(crate) manifest_type: String,
    /// Indexes on the way, and whatever else is to be kept.
    pub(crate) extra_blobs: Vec<Digest>,
    pub(crate) config: Config,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) tags: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
}

/// Adds the image to the list. The work holds the lease, so that a caller who is cancelled cannot leave an entry without
/// its layers. One that a registry has is usable before it would outlive a power failure (`wait` is false): it can be had again.
pub(crate) async fn finish(store: &Arc<Store>, lease: &Arc<Lease>, f: Finished<'_>, wait: bool) -> Result<Image> {
    let mut blobs: DigestSet = f.extra_blobs.into_iter().collect();
    blobs.insert(f.manifest_digest.clone());
    blobs.insert(f.manifest.config.digest.clone());
    if store.config.keep_layer_blobs {
        let state = store.state();
        // A layer that was unpacked already was not downloaded again.
        blobs.extend(f.manifest.layers.iter().map(|l| l.digest.clone()).filter(|d| state.blobs.contains_key(d)));
    }
    let record = Record {
        id: f.manifest.config.digest.to_string(),
        tags: f.tags,
        digests: f.digests,
        manifest: f.manifest_digest,
        manifest_type: f.manifest_type,
        blobs,
        diff_ids: f.diff_ids,
        created: f.config.created,
        pulled_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs().cast_signed()),
        os: f.config.os,
        architecture: f.config.architecture,
        config: f.config.config.unwrap_or_default(),
        unsynced: String::new(),
    };
    let (store, lease) = (store.clone(), lease.clone());
    blocking("record image", move || {
        let record = store.add(record, wait)?;
        flush_soon(&store);
        let image = store.state().image(&record, &store.current().pinned);
        drop(lease);
        Ok(image)
    })
    .await
}

/// Makes images durable that were added without waiting for it, behind the caller's back.
pub(crate) fn flush_soon(store: &Arc<Store>) {
    let unsynced = store.unsynced();
    if unsynced.is_empty() {
        return;
    }
    let store = Arc::downgrade(store);
    // Not one of the runtime's threads, which are waited for when the program ends; and it does not keep the store open.
    let thread = std::thread::Builder::new().name("flush".to_owned()).stack_size(256 << 10);
    let flush = move || {
        let flushed = unsynced.flush().map_err(|e| e.to_string()).and_then(|()| match store.upgrade() {
            Some(store) => store.synced(&unsynced).map_err(|e| e.to_string()),
            None => Ok(()),
        });
        if let Err(error) = flushed {
            tracing::warn!(%error, "images that came last would not outlive a power failure");
        }
    };
    if let Err(error) = thread.spawn(flush) {
        tracing::warn!(%error, "images that came last are not flushed yet");
    }
}

/// How long work that is given up is waited for.
const STRAGGLERS: Duration = Duration::from_secs(20);

/// Gives up a lease off the async threads, as that may delete files, and waits until layers that were just being unpacked are let
/// go of, too: whoever is told of a failure finds nothing left of it.
pub(crate) async fn release(lease: Arc<Lease>, ended: tokio::sync::oneshot::Receiver<()>) {
    let _ = blocking("release lease", move || {
        drop(lease);
        Ok(())
    })
    .await;
    if tokio::time::timeout(STRAGGLERS, ended).await.is_err() {
        tracing::warn!("a layer that is not wanted any more is still being unpacked");
    }
}
