//! Deleting trees of any depth with a bounded number of open files.
//!
//! What must go is first renamed into `trash/`, so it vanishes at once and for good, then emptied: by whoever wants the space
//! now, or by a thread that lives as long as there is something to delete. Directories deeper than a bound are moved up to
//! `trash/` instead of being descended into: an image with thousands of nested directories can be removed like any other.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Directories held open at a time.
const MAX_DEPTH: usize = 32;
/// Removals that may wait to be deleted before whoever removes more has to help.
const MAX_WAITING: usize = 64;
/// Pause before what could not be deleted is tried again, when nothing else is removed meanwhile.
const RETRY: Duration = Duration::from_secs(30);

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// The folder that swallows what is to be deleted.
#[derive(Debug, Clone)]
pub(crate) struct Trash {
    dir: PathBuf,
    shared: Arc<Shared>,
}

/// What the deleting thread and those who remove tell each other.
#[derive(Debug, Default)]
struct Shared {
    work: Mutex<Work>,
    changed: Condvar,
    /// The store is being closed: what is left is deleted by the next start.
    closing: AtomicBool,
}

#[derive(Debug, Default)]
struct Work {
    /// The thread is there.
    running: bool,
    /// Removals since the thread last began a round.
    waiting: usize,
}

impl Trash {
    /// Makes the folder and deletes what a crash left in it.
    pub(crate) fn open(dir: PathBuf) -> Result<Trash> {
        std::fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        let trash = Trash { dir, shared: Arc::default() };
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
            let sweep = Sweep { top: top.as_fd(), closing: &self.shared.closing };
            let moved = sweep.clear(top.as_fd(), 0).map_err(|e| Error::io("empty", &self.dir, e))?;
            if !moved {
                return Ok(());
            }
        }
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.shared.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has all that is in the trash deleted, without waiting for it; with too much of it waiting already the caller helps.
    pub(crate) fn empty_soon(&self) {
        let mut work = self.work();
        work.waiting += 1;
        let behind = work.waiting > MAX_WAITING;
        if !work.running {
            let trash = self.clone();
            let thread = std::thread::Builder::new().name("trash".to_owned()).stack_size(256 << 10);
            work.running = thread.spawn(move || trash.sweep_until_clean()).is_ok();
        }
        let alone = !work.running;
        drop(work);
        self.shared.changed.notify_all();
        if (behind || alone)
            && let Err(error) = self.empty()
        {
            tracing::warn!(%error, "removed files still take space");
        }
    }

    /// The thread: one round after another until nothing was removed meanwhile.
    fn sweep_until_clean(&self) {
        loop {
            self.work().waiting = 0;
            let failed = self.empty().err();
            let mut work = self.work();
            let closing = self.shared.closing.load(Ordering::Relaxed);
            if let (Some(error), false) = (&failed, closing) {
                tracing::warn!(%error, "removed files still take space; tried again");
                let idle = |work: &mut Work| work.waiting == 0 && !self.shared.closing.load(Ordering::Relaxed);
                let waited = self.shared.changed.wait_timeout_while(work, RETRY, idle);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
            } else if closing || work.waiting == 0 {
                work.running = false;
                drop(work);
                self.shared.changed.notify_all();
                return;
            }
        }
    }

    /// Waits until all that was removed so far is deleted, at most `limit`; false when that is not enough.
    pub(crate) fn settled(&self, limit: Duration) -> bool {
        let work = self.work();
        let waited = self.shared.changed.wait_timeout_while(work, limit, |work| work.running);
        !waited.unwrap_or_else(PoisonError::into_inner).0.running
    }

    /// Ends the thread, wherever it is.
    pub(crate) fn close(&self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        // Under the lock, so that the thread cannot just be between looking and waiting.
        drop(self.work());
        self.shared.changed.notify_all();
        self.settled(Duration::from_secs(5));
    }
}

/// One way through the trash.
struct Sweep<'a> {
    top: BorrowedFd<'a>,
    closing: &'a AtomicBool,
}

impl Sweep<'_> {
    /// Empties `dir`; true when something was moved up to the top and another round is needed.
    fn clear(&self, dir: BorrowedFd<'_>, depth: usize) -> Result<bool, Errno> {
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
            if self.closing.load(Ordering::Relaxed) {
                return Err(Errno::CANCELED);
            }
            if kind != FileType::Directory {
                match unlinkat(dir, &name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    Err(Errno::ISDIR) => {}
                    Err(e) => return Err(e),
                }
            }
            if depth >= MAX_DEPTH {
                let up = format!("d{}", SERIAL.fetch_add(1, Ordering::Relaxed));
                match renameat(dir, &name, self.top, up) {
                    Ok(()) => moved = true,
                    Err(Errno::NOENT) => {}
                    Err(e) => return Err(e),
                }
                continue;
            }
            match open_dir(dir, &name) {
                Ok(fd) => moved |= self.clear(fd.as_fd(), depth + 1)?,
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
}

fn open_dir(at: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn fill(trash: &Trash, root: &Path, name: &str) {
        let victim = root.join(name);
        fs::create_dir_all(victim.join("a/b/c")).unwrap();
        fs::write(victim.join("a/b/file"), "x").unwrap();
        trash.take(&victim).unwrap();
        assert!(!victim.exists());
    }

    #[test]
    fn what_is_removed_is_deleted_behind_the_callers_back() {
        let t = tempfile::tempdir().unwrap();
        let trash = Trash::open(t.path().join("trash")).unwrap();
        // More than may wait, so that the caller has to help at times.
        for n in 0..2 * MAX_WAITING {
            fill(&trash, t.path(), &format!("victim{n}"));
            trash.empty_soon();
        }
        assert!(trash.settled(Duration::from_secs(60)));
        assert_eq!(fs::read_dir(t.path().join("trash")).unwrap().count(), 0);
    }

    #[test]
    fn a_closed_trash_is_emptied_by_the_next_start() {
        let t = tempfile::tempdir().unwrap();
        let trash = Trash::open(t.path().join("trash")).unwrap();
        trash.close();
        fill(&trash, t.path(), "victim");
        trash.empty_soon();
        trash.close();
        assert_eq!(fs::read_dir(t.path().join("trash")).unwrap().count(), 1);
        Trash::open(t.path().join("trash")).unwrap();
        assert_eq!(fs::read_dir(t.path().join("trash")).unwrap().count(), 0);
    }
}
