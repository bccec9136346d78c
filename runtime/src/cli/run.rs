//! `run`: create, start, wait for the program, delete.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};

use gantry_sys::process::{reap_any, set_child_subreaper, wait};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

use super::Globals;
use super::args::Words;
use super::{create, delete, start};
use crate::error::{Context, Result};
use crate::fail;
use crate::init::{self, Create};
use crate::protect;
use crate::spec::Spec;

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let known = [&create::OPTIONS[..], &["detach,d", "keep", "no-subreaper"]].concat();
    let words = Words::anywhere(words, &known)?;
    if words.is_set("help") {
        println!(
            "usage: gantry-run run [options] ID\n  -d, --detach  do not wait\n  --keep        keep the container after its end\n  --no-subreaper, and the options of create"
        );
        return Ok(0);
    }
    let id = words.id()?;
    protect::reexec_sealed()?;
    let detach = words.is_set("detach");
    let bundle = PathBuf::from(words.value("bundle").unwrap_or("."));
    let socket = words.value("console-socket").map(Path::new);
    let wants_terminal = Spec::load(&bundle)?.process.is_some_and(|p| p.terminal);
    if wants_terminal && detach && socket.is_none() {
        fail!("a detached container with a terminal needs --console-socket");
    }
    let (console, own) = match (wants_terminal, socket) {
        (true, None) => {
            let (theirs, ours) = UnixStream::pair().context(|| "make a socket pair".to_owned())?;
            (Some(theirs), Some(ours))
        }
        _ => (init::console(socket)?, None),
    };
    if !detach && !words.is_set("no-subreaper") {
        set_child_subreaper(true).context(|| "become a subreaper".to_owned())?;
    }
    let ask = Create {
        id,
        bundle: &bundle,
        console,
        pid_file: words.value("pid-file").map(Path::new),
        preserved: words.number("preserve-fds")?.unwrap_or(0),
        no_pivot: words.is_set("no-pivot"),
    };
    let container = init::create(&globals.store, ask)?;
    let pid = container.state.pid;
    let started = start::start(&container);
    drop(container);
    if let Err(error) = started {
        let _ = delete::delete(&globals.store, id, true);
        return Err(error);
    }
    if detach {
        return Ok(0);
    }
    let code = in_foreground(pid, own.as_ref())?;
    if !words.is_set("keep") {
        delete::delete(&globals.store, id, true)?;
    }
    Ok(code)
}

/// Waits for a process, passing signals on; relays its terminal where `socket` brings one.
pub(super) fn in_foreground(pid: i32, socket: Option<&UnixStream>) -> Result<i32> {
    forward_signals(pid)?;
    if let Some(socket) = socket {
        init::relay(&receive_terminal(socket)?)?;
    }
    let exit = wait(pid).context(|| "wait for the program".to_owned())?;
    while reap_any().context(|| "reap".to_owned())?.is_some() {}
    Ok(exit.code())
}

fn receive_terminal(socket: &UnixStream) -> Result<OwnedFd> {
    use std::os::fd::AsFd;
    let (_, mut fds) =
        gantry_sys::fd::receive_with_fds(socket.as_fd(), &mut [0; 64]).context(|| "receive the terminal".to_owned())?;
    match fds.pop() {
        Some(fd) => Ok(fd),
        None => fail!("receive the terminal: no descriptor came"),
    }
}

static TARGET: AtomicI32 = AtomicI32::new(0);

/// A thread waits for the signals that end a program and passes them on. It starts after the last clone, so the rule that
/// the runtime has one thread when it clones holds.
fn forward_signals(pid: i32) -> Result<()> {
    TARGET.store(pid, Ordering::Relaxed);
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2] {
        signals.add(signal);
    }
    signals.thread_block().context(|| "block signals".to_owned())?;
    let forwarder = move || {
        while let Ok(signal) = signals.wait() {
            let _ = nix::sys::signal::kill(Pid::from_raw(TARGET.load(Ordering::Relaxed)), signal);
        }
    };
    std::thread::Builder::new().stack_size(64 * 1024).spawn(forwarder).context(|| "forward signals".to_owned())?;
    Ok(())
}
