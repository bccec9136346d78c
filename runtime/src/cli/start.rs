//! `start`: let a created container's program go.

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
    let path = container.fifo();
    // Without blocking: where the first process is gone nobody has the other end open, and this tells.
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let written = rustix::fs::open(&path, flags, Mode::empty()).and_then(|fifo| rustix::io::write(&fifo, b"0"));
    match written {
        Err(rustix::io::Errno::NXIO | rustix::io::Errno::PIPE) => {
            fail!("the container's first process has ended before start")
        }
        other => other.context(what)?,
    };
    std::fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
    if let Some(h) = &container.state.hooks {
        // The container runs: a poststart hook that fails is told of, no more.
        if let Err(error) = hooks::run("poststart", &h.poststart, &container.public(Status::Running)) {
            super::warn(&error.to_string());
        }
    }
    Ok(())
}
