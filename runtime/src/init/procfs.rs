//! The host's procfs, and nothing that stands in its place.
//!
//! What is written to /proc changes the kernel's mind about a process or the machine. A file of a container or another
//! procfs file mounted over the right one would take the write (CVE-2019-16884, CVE-2025-52881): so the folder is checked to
//! be procfs once, and files are opened without crossing any mount or magic link.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::{Context, Result};

/// An open procfs.
#[derive(Debug)]
pub(crate) struct Procfs(OwnedFd);

const PROC_SUPER_MAGIC: i64 = 0x9fa0;

impl Procfs {
    /// Opens /proc.
    ///
    /// # Errors
    /// There is none, or something else is mounted there.
    pub(crate) fn open() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/proc", flags, Mode::empty()).context(|| "open /proc".to_owned())?;
        let kind = rustix::fs::fstatfs(&fd).context(|| "look at /proc".to_owned())?.f_type;
        if kind != PROC_SUPER_MAGIC {
            crate::fail!("/proc is no procfs");
        }
        Ok(Self(fd))
    }

    /// Writes a text to a file below.
    ///
    /// # Errors
    /// There is no such file, something is mounted over it, or the kernel refuses the text.
    pub(crate) fn write(&self, path: &str, text: &str) -> io::Result<()> {
        let open = |proc: &OwnedFd| {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
            rustix::fs::openat2(proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)
        };
        let fd = match open(&self.0) {
            // Inside another container parts of /proc are covered; a procfs of our own has nothing mounted on it.
            Err(rustix::io::Errno::XDEV) => open(&gantry_sys::mount::new_filesystem("proc", None, &[], 0)?)?,
            other => other?,
        };
        File::from(fd).write_all(text.as_bytes())
    }
}

impl AsFd for Procfs {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_procfs_itself_are_written() {
        let proc = Procfs::open().unwrap();
        proc.write("self/comm", "renamed").unwrap();
        assert!(proc.write("self/root/tmp/x", "x").is_err(), "through a magic link");
        assert!(proc.write("../etc/hostname", "x").is_err());
        assert!(proc.write("self/no-such", "x").is_err());
    }
}
