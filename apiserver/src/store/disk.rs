//! The redb file: objects by key, events by revision, and the numbers that must survive.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::StoreError;
use super::state::{Entry, Event, EventKind, State};

const OBJECTS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("objects");
/// Revision to kind, key, the object after and the revision and object before (empty: none).
type Row<'a> = (u8, &'a str, &'a [u8], u64, &'a [u8]);
const HISTORY: TableDefinition<'_, u64, Row<'_>> = TableDefinition::new("history");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");

pub(super) struct Disk {
    database: Database,
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> StoreError {
    move |error| StoreError::Disk(format!("{what}: {error}"))
}

impl Disk {
    pub(super) fn open(path: &Path) -> Result<(Self, State), StoreError> {
        let database = Database::create(path)
            .map_err(|error| StoreError::Disk(format!("open the store {}: {error}", path.display())))?;
        let disk = Self { database };
        disk.commit(&[], 0)?;
        let state = disk.load()?;
        Ok((disk, state))
    }

    fn load(&self) -> Result<State, StoreError> {
        let mut state = State::default();
        let read = self.database.begin_read().map_err(failed("read the store"))?;
        let numbers = read.open_table(NUMBERS).map_err(failed("read the store's numbers"))?;
        let number = |name| -> Result<u64, StoreError> {
            Ok(numbers.get(name).map_err(failed("read the store's numbers"))?.map_or(0, |guard| guard.value()))
        };
        state.revision = number("revision")?;
        state.compacted = number("compacted")?;
        let objects = read.open_table(OBJECTS).map_err(failed("read objects"))?;
        for row in objects.iter().map_err(failed("read objects"))? {
            let (key, value) = row.map_err(failed("read an object"))?;
            let (revision, bytes) = value.value();
            state.objects.insert(key.value().to_owned(), entry(revision, bytes)?);
        }
        let history = read.open_table(HISTORY).map_err(failed("read history"))?;
        let mut last: HashMap<String, Arc<Entry>> = HashMap::new();
        for row in history.iter().map_err(failed("read history"))? {
            let (revision, value) = row.map_err(failed("read an event"))?;
            let (kind, key, after, before_revision, before) = value.value();
            let previous = match last.get(key) {
                Some(known) if known.revision == before_revision => Some(Arc::clone(known)),
                _ if before.is_empty() => None,
                _ => Some(entry(before_revision, before)?),
            };
            let kind = [EventKind::Added, EventKind::Modified, EventKind::Deleted][usize::from(kind.min(2))];
            let known = state.objects.get(key).filter(|now| now.revision == revision.value()).cloned();
            let entry = match known {
                Some(known) => known,
                None => entry(revision.value(), after)?,
            };
            last.insert(key.to_owned(), Arc::clone(&entry));
            state.history.push_back(Arc::new(Event { kind, key: key.to_owned(), entry, previous }));
        }
        Ok(state)
    }

    pub(super) fn commit(&self, events: &[Arc<Event>], compact_to: u64) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(failed("begin a transaction"))?;
        {
            let mut objects = write.open_table(OBJECTS).map_err(failed("open objects"))?;
            let mut history = write.open_table(HISTORY).map_err(failed("open history"))?;
            let mut numbers = write.open_table(NUMBERS).map_err(failed("open numbers"))?;
            for event in events {
                let key = event.key.as_str();
                let (revision, bytes) = (event.entry.revision, &event.entry.bytes[..]);
                let kind = match event.kind {
                    EventKind::Deleted => {
                        objects.remove(key).map_err(failed("delete an object"))?;
                        2
                    }
                    kind => {
                        objects.insert(key, (revision, bytes)).map_err(failed("write an object"))?;
                        u8::from(kind == EventKind::Modified)
                    }
                };
                let (before, old) = event.previous.as_ref().map_or((0, &[][..]), |e| (e.revision, &e.bytes[..]));
                history.insert(revision, (kind, key, bytes, before, old)).map_err(failed("write an event"))?;
            }
            if let Some(event) = events.last() {
                numbers.insert("revision", event.entry.revision).map_err(failed("write the revision"))?;
            }
            if compact_to > 0 {
                history.retain_in(..=compact_to, |_, _| false).map_err(failed("forget events"))?;
                numbers.insert("compacted", compact_to).map_err(failed("write the compaction"))?;
            }
        }
        write.commit().map_err(failed("commit"))
    }
}

fn entry(revision: u64, bytes: &[u8]) -> Result<Arc<Entry>, StoreError> {
    let value = serde_json::from_slice(bytes).map_err(failed("parse a stored object"))?;
    Ok(Arc::new(Entry { revision, value, bytes: Bytes::copy_from_slice(bytes) }))
}
