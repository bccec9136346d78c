//! Ways into a group for a process that is about to be made.
//!
//! Moving another process takes a lock that waits until every processor of the machine has passed a quiet point, which costs
//! milliseconds. A process that is cloned into its version 2 group, and one that moves its own only thread in version 1, need
//! no such wait.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};
use crate::group::Cgroup;

/// Open files of a group: opened by who may, used by the new process, whatever its own rights are.
#[derive(Debug)]
pub struct Entry {
    unified: Option<OwnedFd>,
    tasks: Vec<(PathBuf, File)>,
}

impl Entry {
    /// The version 2 folder, for `CLONE_INTO_CGROUP`.
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// Moves the calling process, which must have one thread only, into the version 1 groups.
    ///
    /// # Errors
    /// A controller refuses.
    pub fn enter(&self) -> Result<()> {
        for (path, file) in &self.tasks {
            let mut file = file;
            file.write_all(b"0").map_err(Error::io("move a process into", path))?;
        }
        Ok(())
    }
}

impl Cgroup {
    /// Opens the ways into this group.
    ///
    /// # Errors
    /// It does not exist, or this process may not put others into it.
    pub fn entry(&self) -> Result<Entry> {
        let unified = self.unified_folder();
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let open = |folder: &PathBuf| {
            let fd = rustix::fs::open(folder, flags, Mode::empty()).map_err(std::io::Error::from);
            fd.map_err(Error::io("open cgroup", folder))
        };
        let mut tasks = Vec::new();
        for folder in self.folders().into_iter().filter(|f| Some(f) != unified.as_ref()) {
            let path = folder.join("tasks");
            let file = OpenOptions::new().write(true).open(&path).map_err(Error::io("open", &path))?;
            tasks.push((path, file));
        }
        Ok(Entry { unified: unified.as_ref().map(open).transpose()?, tasks })
    }
}
