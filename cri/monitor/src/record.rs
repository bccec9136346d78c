//! Exit records: how a container ended, on disk before anyone is told.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use gantry_files::{Access, Outlives};
use serde::{Deserialize, Serialize};

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code, 128 + signal when killed.
    pub code: i32,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// The kernel killed a process of it for the memory limit.
    pub oom_killed: bool,
}

impl ExitRecord {
    /// Writes the record. The monitor's death does not take it away; [`sync`] makes it outlive a power failure, too.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        gantry_files::replace(path, &serde_json::to_vec(self)?, Access::Umask, Outlives::Program)
    }

    /// Reads a record; none when there is no (whole) file.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

/// Waits until the record at `path` would outlive a power failure; one that is gone meanwhile is fine.
///
/// # Errors
/// The file system's.
pub fn sync(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Ok(file) => file.sync_data(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_written_and_a_torn_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let record = ExitRecord { code: 137, finished_at: 5, oom_killed: true };
        record.write(&path).unwrap();
        sync(&path).unwrap();
        sync(&dir.path().join("gone")).unwrap();
        assert_eq!(ExitRecord::read(&path), Some(record));
        fs::write(&path, b"{\"code\":").unwrap();
        assert_eq!(ExitRecord::read(&path), None);
    }
}
