//! `start`: let a created container's program go.

use std::io::Read;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};

use super::Globals;
use super::args::Words;
use crate::error::{Context, Result};
use crate::fail;
use crate::hooks;
use crate::state::{Container, Status};

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let words = Words::anywhere(words, &[])?;
    start(&globals.store.open(words.id()?)?).map(|()| 0)
}

pub(super) fn start(container: &Container) -> Result<()> {
    match container.status() {
        Status::Created => {}
        Status::Stopped => fail!("cannot start a container that has stopped"),
        status => fail!("cannot start a container in the {} state", status.name()),
    }
    let what = || "start the container's program".to_owned();
    let pidfd = gantry_sys::process::pidfd_open(container.state.pid).context(what)?;
    let path = container.fifo();
    // Without blocking: a first process that dies now would never open the other end.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fifo = rustix::fs::open(&path, flags, Mode::empty()).context(what)?;
    let mut fds =
        [PollFd::from_borrowed_fd(fifo.as_fd(), PollFlags::IN), PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    while let Err(e) = poll(&mut fds, None) {
        if e != rustix::io::Errno::INTR {
            return Err(e).context(what);
        }
    }
    let mut byte = [0];
    if std::fs::File::from(fifo).read(&mut byte).unwrap_or(0) == 0 {
        fail!("the container's first process has ended before start");
    }
    std::fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
    if let Some(h) = &container.state.spec.hooks {
        // The container runs: a poststart hook that fails is told of, no more.
        if let Err(error) = hooks::run("poststart", &h.poststart, &container.public(Status::Running)) {
            super::warn(&error.to_string());
        }
    }
    Ok(())
}
