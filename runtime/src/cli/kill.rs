//! `kill`: send a signal.

use std::os::fd::AsFd;

use nix::sys::signal::Signal;

use super::Globals;
use super::args::Words;
use crate::cgroups;
use crate::error::{Context, Error, Result};
use crate::fail;
use crate::state::{Container, Status};

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let words = Words::anywhere(words, &["all,a", "help,h"])?;
    if words.is_set("help") {
        say!(
            "usage: gantry-run kill [--all] ID [SIGNAL]   SIGNAL: a name with or without SIG, or a number (default TERM)"
        );
        return Ok(0);
    }
    let (id, signal) = match words.rest() {
        [id] => (id, "TERM"),
        [id, signal] => (id, signal.as_str()),
        _ => fail!("usage: gantry-run kill [--all] ID [SIGNAL]"),
    };
    let signal = number(signal)?;
    let container = globals.store.open(id)?;
    if words.is_set("all") {
        return all(&container, signal).map(|()| 0);
    }
    if matches!(container.status(), Status::Stopped | Status::Creating) {
        fail!("container not running");
    }
    let pidfd = gantry_sys::process::pidfd_open(container.state.pid).context(|| "container not running".to_owned())?;
    // The number could have come to mean another process before the descriptor was opened.
    if !container.is_alive() {
        fail!("container not running");
    }
    gantry_sys::process::pidfd_send_signal(pidfd.as_fd(), signal).context(|| format!("send signal {signal}"))?;
    // A frozen process takes even SIGKILL only when it thaws.
    if signal == libc::SIGKILL
        && let Some(group) = cgroups::find(&container.state.place.cgroup)?.filter(gantry_cgroup::Cgroup::is_frozen)
    {
        group.thaw().context(|| "thaw the container".to_owned())?;
    }
    Ok(0)
}

/// Sends a signal to every process of a container, also when the first is gone.
fn all(container: &Container, signal: i32) -> Result<()> {
    let Some(group) = cgroups::find(&container.state.place.cgroup)? else { return Ok(()) };
    if signal == libc::SIGKILL {
        if group.is_frozen() {
            group.thaw().context(|| "thaw the container".to_owned())?;
        }
        return group.kill().context(|| "kill the container's processes".to_owned());
    }
    for pid in group.procs().context(|| "list the container's processes".to_owned())? {
        if let Ok(pidfd) = gantry_sys::process::pidfd_open(pid) {
            let _ = gantry_sys::process::pidfd_send_signal(pidfd.as_fd(), signal);
        }
    }
    Ok(())
}

/// The number of a signal by name (`KILL`, `SIGKILL`, `sigkill`, `RTMIN+3`) or number.
pub(super) fn number(text: &str) -> Result<i32> {
    let unknown = || Error::new(format!("unknown signal {text:?}"));
    if let Ok(n) = text.parse::<i32>() {
        return if (0..=64).contains(&n) { Ok(n) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    for (base, number, sign) in [("RTMIN", 34, 1), ("RTMAX", 64, -1)] {
        if let Some(offset) = name.strip_prefix(base) {
            let offset = offset.trim_start_matches(['+', '-']);
            let offset: i32 = if offset.is_empty() { 0 } else { offset.parse().map_err(|_| unknown())? };
            let n = number + sign * offset;
            return if (34..=64).contains(&n) { Ok(n) } else { Err(unknown()) };
        }
    }
    match name {
        "CLD" => return Ok(libc::SIGCHLD),
        "POLL" => return Ok(libc::SIGIO),
        "IOT" => return Ok(libc::SIGABRT),
        _ => {}
    }
    format!("SIG{name}").parse::<Signal>().map(|s| s as i32).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_named_as_engines_name_them() {
        for (text, want) in
            [("KILL", 9), ("SIGTERM", 15), ("sigusr1", 10), ("9", 9), ("RTMIN+3", 37), ("SIGRTMAX-1", 63), ("0", 0)]
        {
            assert_eq!(number(text).unwrap(), want, "{text}");
        }
        for text in ["", "NOPE", "65", "RTMIN+99", "-1"] {
            assert!(number(text).is_err(), "{text}");
        }
    }
}
