//! Exit records: how a container ended, on disk before anyone is told.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

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

/// Writes `bytes` to `path` so that after a crash either the old or the new content is there, whole.
///
/// # Errors
/// The file system's.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_os_string();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    };
    let written = write();
    if written.is_err() {
        // A full disk leaves an empty file.
        let _ = fs::remove_file(&temporary);
    }
    written
}

impl ExitRecord {
    /// Writes the record.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        write_atomically(path, &serde_json::to_vec(self)?)
    }

    /// Reads a record; none when there is no (whole) file.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
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
        assert_eq!(ExitRecord::read(&path), Some(record));
        fs::write(&path, b"{\"code\":").unwrap();
        assert_eq!(ExitRecord::read(&path), None);
    }
}
