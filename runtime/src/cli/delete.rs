//! `delete`: forget a container and all that was made for it.

use super::Globals;
use super::args::Words;
use crate::cgroups;
use crate::error::{Context, Error, Result};
use crate::fail;
use crate::hooks;
use crate::state::{Status, Store};

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let words = Words::anywhere(words, &["force,f", "help,h"])?;
    if words.is_set("help") {
        println!("usage: gantry-run delete [--force] ID   --force: kill it first; no such container is fine then");
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
        Status::Stopped | Status::Creating => {}
        _ if force => {}
        status => fail!("cannot delete container {id} that is not stopped: {}", status.name()),
    }
    let mut faults: Vec<String> = Vec::new();
    let mut note = |outcome: Result<()>| faults.extend(outcome.err().map(|e| e.to_string()));
    let group = cgroups::find(&container.state.cgroup)?.filter(gantry_cgroup::Cgroup::exists);
    if let Some(group) = &group {
        if group.is_frozen() {
            note(group.thaw().context(|| "thaw".to_owned()));
        }
        note(group.kill().context(|| "kill the container's processes".to_owned()));
    } else if container.is_alive() {
        let pid = nix::unistd::Pid::from_raw(container.state.pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
    if let Some(group) = &group {
        note(group.destroy().context(|| "remove the cgroup".to_owned()));
    }
    let hooks_of = container.state.spec.hooks.clone();
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
