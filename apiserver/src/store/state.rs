//! What the store holds in memory: newest objects, recent events and who watches.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;

use super::{Page, StoreError};

/// One object at one revision, parsed and encoded once.
#[derive(Debug, PartialEq)]
pub struct Entry {
    /// The revision that wrote it.
    pub revision: u64,
    /// The object.
    pub value: Value,
    /// Its JSON.
    pub bytes: Bytes,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It came to be.
    Added,
    /// It changed.
    Modified,
    /// It went; the entry is its last form with the revision of the deletion.
    Deleted,
}

/// One change.
#[derive(Debug, PartialEq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key.
    pub key: String,
    /// The object after it.
    pub entry: Arc<Entry>,
    /// The object before it.
    pub previous: Option<Arc<Entry>>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) revision: u64,
    /// Events up to and including this revision are forgotten.
    pub(super) compacted: u64,
    pub(super) objects: BTreeMap<String, Arc<Entry>>,
    pub(super) history: VecDeque<Arc<Event>>,
    pub(super) watchers: Vec<(String, mpsc::Sender<Arc<Event>>)>,
}

impl State {
    pub(super) fn apply(&mut self, event: &Arc<Event>) {
        self.revision = event.entry.revision;
        match event.kind {
            EventKind::Deleted => drop(self.objects.remove(&event.key)),
            _ => drop(self.objects.insert(event.key.clone(), Arc::clone(&event.entry))),
        }
    }

    pub(super) fn publish(&mut self, events: Vec<Arc<Event>>, compact_to: u64) {
        for event in events {
            self.apply(&event);
            self.watchers.retain(|(prefix, sender)| {
                // A watcher that lags too far loses its channel: its stream ends, and the client starts over.
                !sender.is_closed() && (!event.key.starts_with(prefix) || sender.try_send(Arc::clone(&event)).is_ok())
            });
            self.history.push_back(event);
        }
        if compact_to > self.compacted {
            self.compacted = compact_to;
            while self.history.front().is_some_and(|event| event.entry.revision <= compact_to) {
                self.history.pop_front();
            }
        }
    }

    fn check(&self, asked: u64) -> Result<(), StoreError> {
        if asked < self.compacted {
            return Err(StoreError::Compacted { asked, oldest: self.compacted });
        }
        Ok(())
    }

    pub(super) fn since(&self, prefix: &str, revision: u64) -> Result<Vec<Arc<Event>>, StoreError> {
        self.check(revision)?;
        let start = self.history.partition_point(|event| event.entry.revision <= revision);
        Ok(self.history.range(start..).filter(|event| event.key.starts_with(prefix)).cloned().collect())
    }

    pub(super) fn range(&self, prefix: &str, after: &str, limit: usize, revision: u64) -> Result<Page, StoreError> {
        let revision = if revision == 0 { self.revision } else { revision };
        // The first event of a key after the revision knows what stood there at the revision.
        let mut undone: BTreeMap<&str, Option<&Arc<Entry>>> = BTreeMap::new();
        if revision < self.revision {
            self.check(revision)?;
            let start = self.history.partition_point(|event| event.entry.revision <= revision);
            for event in self.history.range(start..).filter(|event| event.key.starts_with(prefix)) {
                undone.entry(&event.key).or_insert(event.previous.as_ref());
            }
        }
        let from = if after > prefix { after } else { prefix };
        let newest = self
            .objects
            .range::<str, _>((std::ops::Bound::Included(from), std::ops::Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| !undone.contains_key(key.as_str()))
            .map(|(key, entry)| (key.as_str(), entry));
        let mut all: Vec<(&str, &Arc<Entry>)> = newest.collect();
        if !undone.is_empty() {
            all.extend(undone.iter().filter_map(|(key, entry)| entry.map(|entry| (*key, entry))));
            all.sort_by_key(|(key, _)| *key);
        }
        all.retain(|(key, _)| after.is_empty() || *key > after);
        let taken = if limit == 0 { all.len() } else { limit.min(all.len()) };
        let remaining = all.len() - taken;
        let items = all.into_iter().take(taken).map(|(key, entry)| (key.to_owned(), Arc::clone(entry))).collect();
        Ok(Page { items, revision, remaining })
    }
}
