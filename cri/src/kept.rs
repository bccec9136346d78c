//! A record in memory that is never newer than the one on disk, unless the disk takes nothing more.
//!
//! What the ledger has of a sandbox and of a container is kept alike; who does what with it is in [`crate::daemon`]'s types.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::daemon::lock;
use crate::error::{Error, Result};
use crate::ledger::{ContainerRecord, Ledger, SandboxRecord};

/// What the ledger keeps.
pub trait Record: Clone {
    /// What it is of, in messages.
    const WHAT: &'static str;

    /// Whose it is.
    fn id(&self) -> &str;

    /// Writes it.
    ///
    /// # Errors
    /// The file system's.
    fn put(&self, ledger: &Ledger) -> io::Result<()>;

    /// Removes that of `id`.
    ///
    /// # Errors
    /// The file system's.
    fn remove(ledger: &Ledger, id: &str) -> io::Result<()>;
}

impl Record for SandboxRecord {
    const WHAT: &'static str = "pod sandbox";

    fn id(&self) -> &str {
        &self.id
    }

    fn put(&self, ledger: &Ledger) -> io::Result<()> {
        ledger.put_sandbox(self)
    }

    fn remove(ledger: &Ledger, id: &str) -> io::Result<()> {
        ledger.remove_sandbox(id)
    }
}

impl Record for ContainerRecord {
    const WHAT: &'static str = "container";

    fn id(&self) -> &str {
        &self.id
    }

    fn put(&self, ledger: &Ledger) -> io::Result<()> {
        ledger.put_container(self)
    }

    fn remove(ledger: &Ledger, id: &str) -> io::Result<()> {
        ledger.remove_container(id)
    }
}

/// A record that is on disk.
pub struct Kept<R> {
    /// It is removed, and must not come back; changed under the record's lock.
    forgotten: AtomicBool,
    record: Mutex<R>,
}

impl<R: Record> Kept<R> {
    /// As it is on disk, or is about to be.
    pub fn new(record: R) -> Self {
        Self { forgotten: AtomicBool::new(false), record: Mutex::new(record) }
    }

    /// A copy of the record.
    pub fn record(&self) -> R {
        lock(&self.record).clone()
    }

    /// What `look` sees in the record: for calls that need a few fields of many records.
    pub fn with<T>(&self, look: impl FnOnce(&R) -> T) -> T {
        look(&lock(&self.record))
    }

    /// Changes the record, on disk first.
    ///
    /// # Errors
    /// The record is removed or cannot be written; nothing has changed then.
    pub fn change(&self, ledger: &Ledger, change: impl FnOnce(&mut R)) -> Result<()> {
        let mut record = lock(&self.record);
        if self.forgotten.load(Ordering::Relaxed) {
            return Err(Error::NotFound(format!("{} {}", R::WHAT, record.id())));
        }
        let mut next = record.clone();
        change(&mut next);
        next.put(ledger).map_err(Error::failed(format!("record {} {}", R::WHAT, next.id())))?;
        *record = next;
        Ok(())
    }

    /// Changes the record on the way to its removal: on a disk that takes nothing more, in memory only. What a start then finds is
    /// older, and is let go of once more.
    pub fn change_anyway(&self, ledger: &Ledger, change: impl FnOnce(&mut R)) {
        let mut record = lock(&self.record);
        change(&mut record);
        if self.forgotten.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = record.put(ledger) {
            tracing::warn!(what = R::WHAT, id = record.id(), %error, "a change is not recorded");
        }
    }

    /// Removes the record for good: whoever still changes it, as the follower of a monitor that ends, does not bring it back.
    ///
    /// # Errors
    /// The file system's; nothing has changed then.
    pub fn forget(&self, ledger: &Ledger) -> io::Result<()> {
        let record = lock(&self.record);
        R::remove(ledger, record.id())?;
        self.forgotten.store(true, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::Sandbox;

    #[test]
    fn a_forgotten_record_does_not_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let sandbox = Sandbox::new(serde_json::from_value(serde_json::json!({
            "id": "a", "config": "", "handler": "", "created_at": 1, "boot": "b", "complete": true, "stopped": false, "ips": [],
            "cni_config": null, "cni_result": null, "pid_init": null}))
        .unwrap());
        sandbox.change(&ledger, |r| r.doomed = true).unwrap();
        assert_eq!(ledger.sandboxes().0.len(), 1);
        sandbox.forget(&ledger).unwrap();
        // As the follower of the pod's monitor does when it sees that go.
        sandbox.change_anyway(&ledger, |r| r.stopped = true);
        assert!(matches!(sandbox.change(&ledger, |r| r.stopped = true), Err(Error::NotFound(_))));
        assert!(ledger.sandboxes().0.is_empty());
    }
}
