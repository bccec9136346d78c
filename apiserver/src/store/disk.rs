//! The redb file: objects by key, events by revision, and the numbers that must survive.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
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
    path: PathBuf,
    /// None after a failure: redb refuses everything from then on, until the file is opened anew.
    database: Option<Database>,
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> StoreError {
    move |error| StoreError::Disk(format!("{what}: {error}"))
}

impl Disk {
    pub(super) fn open(path: &Path) -> Result<(Self, State), StoreError> {
        let mut disk = Self { path: path.to_owned(), database: None };
        disk.reopen()?;
        disk.commit(&[], 0)?;
        let state = disk.load()?;
        Ok((disk, state))
    }

    /// Opens the file again where a failure (a full disk) has closed it. A transaction that was told as failed may be on
    /// disk all the same: answers its events, those after `revision`.
    pub(super) fn repair(&mut self, revision: u64) -> Result<Vec<Arc<Event>>, StoreError> {
        if self.database.is_some() {
            return Ok(Vec::new());
        }
        self.reopen()?;
        let missed = self.events_after(revision);
        if missed.is_err() {
            self.database = None;
        }
        missed
    }

    fn events_after(&self, revision: u64) -> Result<Vec<Arc<Event>>, StoreError> {
        let read = self.database()?.begin_read().map_err(failed("read the store"))?;
        let history = read.open_table(HISTORY).map_err(failed("read history"))?;
        let rows = history.range(revision + 1..).map_err(failed("read history"))?;
        rows.map(|row| {
            let (revision, value) = row.map_err(failed("read an event"))?;
            let (kind, key, after, before_revision, before) = value.value();
            let previous = if before.is_empty() { None } else { Some(entry(before_revision, before)?) };
            let entry = entry(revision.value(), after)?;
            Ok(Arc::new(Event { kind: kind_of(kind), key: key.to_owned(), entry, previous }))
        })
        .collect()
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        let database = Database::create(&self.path)
            .map_err(|error| StoreError::Disk(format!("open the store {}: {error}", self.path.display())))?;
        self.database = Some(database);
        Ok(())
    }

    fn database(&self) -> Result<&Database, StoreError> {
        self.database.as_ref().ok_or_else(|| StoreError::Disk(format!("the store {} is closed", self.path.display())))
    }

    fn load(&self) -> Result<State, StoreError> {
        let mut state = State::default();
        let read = self.database()?.begin_read().map_err(failed("read the store"))?;
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
            let kind = kind_of(kind);
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

    pub(super) fn commit(&mut self, events: &[Arc<Event>], compact_to: u64) -> Result<(), StoreError> {
        let written = self.write(events, compact_to);
        if written.is_err() {
            self.database = None;
        }
        written
    }

    fn write(&self, events: &[Arc<Event>], compact_to: u64) -> Result<(), StoreError> {
        let write = self.database()?.begin_write().map_err(failed("begin a transaction"))?;
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

fn kind_of(number: u8) -> EventKind {
    [EventKind::Added, EventKind::Modified, EventKind::Deleted][usize::from(number.min(2))]
}

fn entry(revision: u64, bytes: &[u8]) -> Result<Arc<Entry>, StoreError> {
    let value = serde_json::from_slice(bytes).map_err(failed("parse a stored object"))?;
    Ok(Arc::new(Entry { revision, value, bytes: Bytes::copy_from_slice(bytes) }))
}
