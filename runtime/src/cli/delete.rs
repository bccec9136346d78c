//! `delete`: forget a container and all that was made for it.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Globals;
use super::args::Words;
use crate::cgroups;
use crate::error::{Context, Error, Result};
use crate::fail;
use crate::hooks;
use crate::rdt::Group;
use crate::state::{Container, Status, Store};

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let words = Words::anywhere(words, &["force,f", "help,h"])?;
    if words.is_set("help") {
        say!("usage: gantry-run delete [--force] ID   --force: kill it first; no such container is fine then");
        return Ok(0);
    }
    delete(&globals.store, words.id()?, words.is_set("force")).map(|()| 0)
}

/// Deletes a container; every step runs even when one before it failed, and the faults come back together.
pub(super) fn delete(store: &Store, id: &str, force: bool) -> Result<()> {
    let container = match store.open(id) {
        Ok(container) => container,
        // A `create` that was killed early leaves a folder without a state: there is nothing else to undo then.
        Err(error) if force => return store.remove_remains(id).map(drop).map_err(|_| error),
        Err(error) => {
            return if store.ids().iter().any(|i| i == id) || !store.remove_remains(id)? { Err(error) } else { Ok(()) };
        }
    };
    match container.status() {
        // A created container has run nothing yet: like runc, that counts as stopped.
        Status::Stopped | Status::Creating | Status::Created => {}
        _ if force => {}
        status => fail!("cannot delete container {id} that is not stopped: {}", status.name()),
    }
    let mut faults: Vec<String> = Vec::new();
    let mut note = |outcome: Result<()>| faults.extend(outcome.err().map(|e| e.to_string()));
    let group = cgroups::find(&container.state.place.cgroup)?;
    // Nobody is left in a PID namespace whose first process has ended.
    let empty = container.state.own_pids && container.state.pid != 0 && !container.is_alive();
    if !empty || cgroups::remove(group.as_ref(), &container.state.place).is_err() {
        if let Some(group) = group.as_ref().filter(|g| g.exists()) {
            if group.is_frozen() {
                note(group.thaw().context(|| "thaw".to_owned()));
            }
            note(group.kill().context(|| "kill the container's processes".to_owned()));
        }
        note(end_first_process(&container));
        note(cgroups::remove(group.as_ref(), &container.state.place));
    }
    note(container.state.rdt.as_ref().map_or(Ok(()), Group::remove));
    let hooks_of = container.state.hooks.clone();
    let state = container.public(Status::Stopped);
    // With something left to undo the container stays known, so that a second delete can finish the work.
    if faults.is_empty() {
        faults.extend(container.remove().err().map(|e| e.to_string()));
    }
    if let Some(h) = hooks_of
        && let Err(error) = hooks::run("poststop", &h.poststop, &state)
    {
        super::warn(&error.to_string());
    }
    if faults.is_empty() { Ok(()) } else { Err(Error::new(format!("delete container {id}: {}", faults.join("; ")))) }
}

/// Kills the first process where it is not gone with its cgroup, and waits for its end.
fn end_first_process(container: &Container) -> Result<()> {
    let Ok(pidfd) = gantry_sys::process::pidfd_open(container.state.pid) else { return Ok(()) };
    // Looked at after the descriptor was opened: from here on the number cannot come to mean another process.
    if !container.is_alive() {
        return Ok(());
    }
    let _ = gantry_sys::process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
    let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
    match poll(&mut fds, Some(&patience)) {
        Ok(0) => fail!("process {} does not die", container.state.pid),
        _ => Ok(()),
    }
}
