//! The store: every object by key with a revision, its history for watches, on disk in redb.
//!
//! One writer thread decides and commits: it takes what waits, checks each write against the newest state, and makes one
//! transaction with one fsync of all of them (group commit). Only what is on disk becomes visible, to readers and watchers
//! at once. Reads come from memory; older revisions are had by undoing the events since then.

mod disk;
mod state;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, RwLock, mpsc as std_mpsc};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use state::State;
pub use state::{Entry, Event, EventKind};

/// How many events watches can go back.
pub const HISTORY: usize = 20_000;
/// How many events a slow watcher may lag behind before its watch ends.
const WATCHER_QUEUE: usize = 10_000;
const BATCH: usize = 512;

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The key exists already.
    #[error("the key exists")]
    Exists,
    /// The key has another revision than the writer saw, or is gone.
    #[error("the object has changed")]
    Changed,
    /// The revision is older than the history.
    #[error("revision {asked} is older than {oldest}")]
    Compacted {
        /// What was asked for.
        asked: u64,
        /// The oldest that can be had.
        oldest: u64,
    },
    /// The disk failed.
    #[error("{0}")]
    Disk(String),
}

/// What a write wants.
#[derive(Debug)]
enum Change {
    Create(Value),
    Replace(u64, Value),
    Delete(u64),
    Compact(u64),
}

struct Request {
    key: String,
    change: Change,
    done: oneshot::Sender<Result<Arc<Entry>, StoreError>>,
}

/// A handle to the store; clones share it.
#[derive(Clone)]
pub struct Store {
    state: Arc<RwLock<State>>,
    writer: std_mpsc::Sender<Request>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Store").field("revision", &self.revision()).finish()
    }
}

/// One page of a list.
#[derive(Debug)]
pub struct Page {
    /// Keys and what stands there, by key.
    pub items: Vec<(String, Arc<Entry>)>,
    /// The revision of the list.
    pub revision: u64,
    /// How many keys come after the last one.
    pub remaining: usize,
}

/// What a new watch gets: the events that it missed, and those to come.
pub type Watching = (Vec<Arc<Event>>, mpsc::Receiver<Arc<Event>>);

impl Store {
    /// Opens (or makes) the store in a file.
    ///
    /// # Errors
    /// The file cannot be opened or read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let (mut disk, state) = disk::Disk::open(path)?;
        let state = Arc::new(RwLock::new(state));
        let (writer, requests) = std_mpsc::channel();
        let shared = Arc::clone(&state);
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || write_loop(&mut disk, &shared, &requests))
            .map_err(|error| StoreError::Disk(format!("start the writer thread: {error}")))?;
        Ok(Self { state, writer })
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.read().revision
    }

    /// What stands at a key.
    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.read().objects.get(key).cloned()
    }

    /// The keys that start with `prefix` and come after `after`, as of `revision` (0: newest), at most `limit` (0: all).
    ///
    /// # Errors
    /// The revision is compacted.
    pub fn range(&self, prefix: &str, after: &str, limit: usize, revision: u64) -> Result<Page, StoreError> {
        self.read().range(prefix, after, limit, revision)
    }

    /// Number of objects below a prefix.
    pub fn count(&self, prefix: &str) -> usize {
        self.read().objects.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix)).count()
    }

    /// Events of a prefix after `revision`: those so far, then the channel of those to come.
    ///
    /// # Errors
    /// The revision is compacted.
    pub fn watch(&self, prefix: &str, revision: u64) -> Result<Watching, StoreError> {
        let mut state = self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let past = state.since(prefix, revision)?;
        let (sender, receiver) = mpsc::channel(WATCHER_QUEUE);
        state.watchers.push((prefix.to_owned(), sender));
        Ok((past, receiver))
    }

    async fn submit(&self, key: &str, change: Change) -> Result<Arc<Entry>, StoreError> {
        let (done, answer) = oneshot::channel();
        let gone = || StoreError::Disk("the store's writer has stopped".into());
        self.writer.send(Request { key: key.to_owned(), change, done }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Stores a new object; answers once it is on disk.
    ///
    /// # Errors
    /// The key exists, or the disk failed.
    pub async fn create(&self, key: &str, object: Value) -> Result<Arc<Entry>, StoreError> {
        self.submit(key, Change::Create(object)).await
    }

    /// Replaces the object of exactly that revision.
    ///
    /// # Errors
    /// The key has another revision, or the disk failed.
    pub async fn replace(&self, key: &str, revision: u64, object: Value) -> Result<Arc<Entry>, StoreError> {
        self.submit(key, Change::Replace(revision, object)).await
    }

    /// Deletes the object of exactly that revision; answers what it was, with the revision of its deletion.
    ///
    /// # Errors
    /// The key has another revision, or the disk failed.
    pub async fn delete(&self, key: &str, revision: u64) -> Result<Arc<Entry>, StoreError> {
        self.submit(key, Change::Delete(revision)).await
    }

    /// Forgets events up to and including a revision.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn compact(&self, revision: u64) -> Result<(), StoreError> {
        match self.submit("", Change::Compact(revision)).await {
            Err(StoreError::Changed) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn write_loop(disk: &mut disk::Disk, shared: &RwLock<State>, requests: &std_mpsc::Receiver<Request>) {
    while let Ok(first) = requests.recv() {
        let mut batch = vec![first];
        batch.extend(requests.try_iter().take(BATCH - 1));
        let known = shared.read().unwrap_or_else(std::sync::PoisonError::into_inner).revision;
        match disk.repair(known) {
            Ok(missed) => {
                if !missed.is_empty() {
                    shared.write().unwrap_or_else(std::sync::PoisonError::into_inner).publish(missed, 0);
                }
                write_batch(disk, shared, batch);
            }
            Err(error) => {
                for request in batch {
                    let _ = request.done.send(Err(StoreError::Disk(error.to_string())));
                }
            }
        }
    }
}

fn write_batch(disk: &mut disk::Disk, shared: &RwLock<State>, batch: Vec<Request>) {
    let mut events: Vec<Arc<Event>> = Vec::new();
    let mut answers = Vec::new();
    let mut compact_to = 0;
    {
        let state = shared.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut revision = state.revision;
        for request in batch {
            let pending = events.iter().rev().find(|event| event.key == request.key);
            let current = match pending {
                Some(event) if event.kind == EventKind::Deleted => None,
                Some(event) => Some(Arc::clone(&event.entry)),
                None => state.objects.get(&request.key).cloned(),
            };
            match decide(&request.key, request.change, current, revision + 1) {
                Ok(Decision::Event(event)) => {
                    revision += 1;
                    let event = Arc::new(event);
                    answers.push((request.done, Ok(Arc::clone(&event.entry))));
                    events.push(event);
                }
                Ok(Decision::Compact(to)) => {
                    compact_to = compact_to.max(to.min(revision));
                    answers.push((request.done, Err(StoreError::Changed)));
                }
                Err(error) => answers.push((request.done, Err(error))),
            }
        }
        let surplus = (state.history.len() + events.len()).saturating_sub(HISTORY);
        if surplus > HISTORY / 10 {
            compact_to = compact_to.max(state.history.get(surplus - 1).map_or(0, |event| event.entry.revision));
        }
    }
    let stored = if events.is_empty() && compact_to == 0 { Ok(()) } else { disk.commit(&events, compact_to) };
    match stored {
        Ok(()) => {
            let mut state = shared.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            state.publish(events, compact_to);
            drop(state);
            for (done, answer) in answers {
                let _ = done.send(answer);
            }
        }
        Err(error) => {
            tracing::error!(%error, "the store could not commit");
            for (done, answer) in answers {
                let _ = done.send(answer.and_then(|_| Err(StoreError::Disk(error.to_string()))));
            }
        }
    }
}

enum Decision {
    Event(Event),
    Compact(u64),
}

fn decide(key: &str, change: Change, current: Option<Arc<Entry>>, revision: u64) -> Result<Decision, StoreError> {
    let seal = |mut object: Value| {
        object["metadata"]["resourceVersion"] = Value::String(revision.to_string());
        let bytes = Bytes::from(object.to_string());
        Arc::new(Entry { revision, value: object, bytes })
    };
    let (kind, entry) = match (change, &current) {
        (Change::Compact(to), _) => return Ok(Decision::Compact(to)),
        (Change::Create(_), Some(_)) => return Err(StoreError::Exists),
        (Change::Create(object), None) => (EventKind::Added, seal(object)),
        (Change::Replace(seen, object), Some(now)) if now.revision == seen => (EventKind::Modified, seal(object)),
        (Change::Delete(seen), Some(now)) if now.revision == seen => (EventKind::Deleted, seal(now.value.clone())),
        _ => return Err(StoreError::Changed),
    };
    Ok(Decision::Event(Event { kind, key: key.to_owned(), entry, previous: current }))
}
