//! Hearing of the OOM killer without asking again and again.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::fs::inotify;

use crate::error::{Error, Result};
use crate::group::Cgroup;

/// A descriptor that becomes readable when the OOM killer may have taken a process of a group, or the group was removed.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
    /// Version 1 signals while this stays open.
    _control: Option<File>,
}

impl OomWatch {
    /// What to poll.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Takes what made it readable away.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.fd, &mut [0; 4096]);
    }
}

impl Cgroup {
    /// Watches for the OOM killer; nothing where the host does not count memory.
    ///
    /// # Errors
    /// The group does not exist.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        let Some(folder) = self.folder("memory") else { return Ok(None) };
        let events = folder.join("memory.events");
        if events.exists() {
            let watch = || {
                let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
                inotify::add_watch(&fd, &events, inotify::WatchFlags::MODIFY)?;
                Ok::<_, rustix::io::Errno>(fd)
            };
            let fd = watch().map_err(std::io::Error::from).map_err(Error::io("watch", &events))?;
            return Ok(Some(OomWatch { fd, _control: None }));
        }
        let path = folder.join("memory.oom_control");
        let control = File::open(&path).map_err(Error::io("open", &path))?;
        let watch = || {
            let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let text = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
            OpenOptions::new()
                .write(true)
                .open(folder.join("cgroup.event_control"))
                .and_then(|mut f| f.write_all(text.as_bytes()))?;
            Ok::<_, std::io::Error>(fd)
        };
        let fd = watch().map_err(Error::io("watch", &path))?;
        Ok(Some(OomWatch { fd, _control: Some(control) }))
    }
}
