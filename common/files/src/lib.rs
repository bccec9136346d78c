//! Files that are there whole or not at all: what a program writes down so that it can be killed at any moment.
//!
//! The small programs have this too, so nothing but the standard library is needed here.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whomever the umask lets: 0666 without its bits.
    Umask,
    /// Its owner alone (0600): keys, and what gives access.
    Owner,
}

/// What a file outlives once it is written. The program's death it always does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlives {
    /// Nothing more: after a power failure it may be empty. For what a boot forgets anyway or can be found out again.
    Program,
    /// A power failure leaves the old content or the new.
    Crash,
    /// A power failure leaves the new content, as the name is on the disk, too.
    CrashAtOnce,
}

/// Writes `bytes` to `path` so that whoever reads it finds either the old or the new content, whole. One writer at a time: it
/// goes to [`temporary`] first, which is gone again where this fails.
///
/// # Errors
/// The file system's; the old content is still there.
pub fn replace(path: &Path, bytes: &[u8], access: Access, outlives: Outlives) -> io::Result<()> {
    let new = temporary(path);
    let replaced = write(&new, bytes, access, outlives).and_then(|()| fs::rename(&new, path));
    if replaced.is_err() {
        // A full disk leaves an empty file.
        let _ = fs::remove_file(&new);
    }
    replaced?;
    match path.parent().filter(|_| outlives == Outlives::CrashAtOnce) {
        Some(folder) if folder == Path::new("") => File::open(".")?.sync_all(),
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn write(path: &Path, bytes: &[u8], access: Access, outlives: Outlives) -> io::Result<()> {
    let mode = match access {
        Access::Umask => 0o666,
        Access::Owner => 0o600,
    };
    let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    if outlives == Outlives::Program { Ok(()) } else { file.sync_all() }
}

/// Where [`replace`] writes the file before it gets its name, and what a crash may leave: `.tmp` behind that.
pub fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or(OsStr::new("")).to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

/// Removes a file; one that is not there is fine.
///
/// # Errors
/// The file system's.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_replaced_whole_and_read_by_whom_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let write = |text: &str, access, outlives| replace(&path, text.as_bytes(), access, outlives).unwrap();
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        write("a longer text", Access::Owner, Outlives::Crash);
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode()), ("a longer text", 0o600));
        for outlives in [Outlives::Program, Outlives::Crash, Outlives::CrashAtOnce] {
            write("text", Access::Umask, outlives);
            assert_eq!(fs::read_to_string(&path).unwrap(), "text");
        }
        assert_ne!(mode() & 0o400, 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn what_cannot_be_replaced_stays_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"text", Access::Umask, Outlives::Crash).is_err());
        assert!(path.is_dir() && !temporary(&path).exists());
        assert!(replace(&dir.path().join("nowhere/file"), b"text", Access::Umask, Outlives::Crash).is_err());
    }

    #[test]
    fn removing_twice_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists() && remove(dir.path()).is_err());
    }
}
