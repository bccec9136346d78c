//! Deleting trees of any depth with a bounded number of open files.
//!
//! What must go is first renamed into `trash/`, so it vanishes at once and for good, then emptied. Directories deeper
//! than a bound are moved up to `trash/` instead of being descended into: an image with thousands of nested
//! directories can be removed like any other.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Directories held open at a time.
const MAX_DEPTH: usize = 32;

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// The folder that swallows what is to be deleted.
#[derive(Debug, Clone)]
pub(crate) struct Trash {
    dir: PathBuf,
}

impl Trash {
    /// Makes the folder and deletes what a crash left in it.
    pub(crate) fn open(dir: PathBuf) -> Result<Trash> {
        std::fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        let trash = Trash { dir };
        trash.empty()?;
        Ok(trash)
    }

    /// Moves `path` into the trash; deletes nothing yet. A missing path is fine.
    pub(crate) fn take(&self, path: &Path) -> Result<()> {
        loop {
            let to = self.dir.join(format!("t{}", SERIAL.fetch_add(1, Ordering::Relaxed)));
            match renameat(CWD, path, CWD, &to) {
                Ok(()) => return Ok(()),
                Err(Errno::NOENT) => return Ok(()),
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR | Errno::ISDIR) => {}
                Err(e) => return Err(Error::io("move to trash", path, e)),
            }
        }
    }

    /// Deletes all that is in the trash. Safe to run from several threads.
    pub(crate) fn empty(&self) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        loop {
            let top = openat(CWD, &self.dir, flags, Mode::empty()).map_err(|e| Error::io("open", &self.dir, e))?;
            let moved = clear(top.as_fd(), top.as_fd(), 0).map_err(|e| Error::io("empty", &self.dir, e))?;
            if !moved {
                return Ok(());
            }
        }
    }
}

/// Empties `dir`; true when something was moved up to `top` and another round is needed.
fn clear(dir: BorrowedFd<'_>, top: BorrowedFd<'_>, depth: usize) -> Result<bool, Errno> {
    let mut moved = false;
    let mut names: Vec<(CString, FileType)> = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push((name.to_owned(), entry.file_type()));
        }
    }
    for (name, kind) in names {
        if kind != FileType::Directory {
            match unlinkat(dir, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR) => {}
                Err(e) => return Err(e),
            }
        }
        if depth >= MAX_DEPTH {
            let up = format!("d{}", SERIAL.fetch_add(1, Ordering::Relaxed));
            match renameat(dir, &name, top, up) {
                Ok(()) => moved = true,
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
            continue;
        }
        match open_dir(dir, &name) {
            Ok(fd) => moved |= clear(fd.as_fd(), top, depth + 1)?,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e),
        }
        match unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Another thread is at work in the same trash.
            Err(Errno::NOTEMPTY) => moved = true,
            Err(e) => return Err(e),
        }
    }
    Ok(moved)
}

fn open_dir(at: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
}
