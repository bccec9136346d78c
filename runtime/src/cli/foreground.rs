//! Waiting for a program in the foreground: signals go on to it, and its terminal is relayed to the caller's own.
//!
//! One loop and no thread: after joining a PID namespace the kernel refuses to make threads.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use gantry_sys::process::{pidfd_open, pidfd_send_signal, reap_any, wait};
use gantry_sys::pty::{Size, resize};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::error::{Context, Result};
use crate::fail;
use crate::init;
use crate::spec::Bundle;

/// Where the program's terminal goes: to whom `socket` names, or, without one, to this process, whose end of a new pair is the
/// second answer.
///
/// # Errors
/// Nobody would get the terminal of a detached program, or the socket cannot be reached.
pub(super) fn console(
    bundle: &Bundle,
    socket: Option<&Path>,
    detach: bool,
) -> Result<(Option<UnixStream>, Option<UnixStream>)> {
    if socket.is_some() || !bundle.spec.process.as_ref().is_some_and(|p| p.terminal) {
        return Ok((init::console(socket)?, None));
    }
    if detach {
        fail!("a detached container with a terminal needs --console-socket");
    }
    let (theirs, ours) = UnixStream::pair().context(|| "make a socket pair".to_owned())?;
    Ok((Some(theirs), Some(ours)))
}

/// Waits for a process; answers the code it leaves with. `socket` brings its terminal where it has one.
pub(super) fn wait_for(pid: i32, socket: Option<&UnixStream>) -> Result<i32> {
    let master = socket.map(receive_terminal).transpose()?;
    let pidfd = pidfd_open(pid).context(|| "watch the program".to_owned())?;
    let signals = catch_signals()?;
    let raw = master.as_ref().and_then(|_| Raw::set());
    if let Some(master) = &master {
        follow_size(master);
    }
    relay(&pidfd, &signals, master.as_ref()).context(|| "wait for the program".to_owned())?;
    drop(raw);
    let exit = wait(pid).context(|| "wait for the program".to_owned())?;
    while reap_any().context(|| "reap".to_owned())?.is_some() {}
    Ok(exit.code())
}

fn receive_terminal(socket: &UnixStream) -> Result<OwnedFd> {
    let (_, mut fds) =
        gantry_sys::fd::receive_with_fds(socket.as_fd(), &mut [0; 64]).context(|| "receive the terminal".to_owned())?;
    match fds.pop() {
        Some(fd) => Ok(fd),
        None => fail!("receive the terminal: no descriptor came"),
    }
}

fn catch_signals() -> Result<SignalFd> {
    let mut signals = SigSet::all();
    // These tell of faults in this program itself, or of its children, which the pidfd does.
    for own in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT, Signal::SIGCHLD] {
        signals.remove(own);
    }
    signals.thread_block().context(|| "block signals".to_owned())?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context(|| "catch signals".to_owned())
}

/// The caller's terminal in raw mode, until dropped.
struct Raw(Termios);

impl Raw {
    fn set() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

fn follow_size(master: &OwnedFd) {
    if let Ok(size) = tcgetwinsize(io::stdin()) {
        let _ = resize(master, Size { rows: size.ws_row, columns: size.ws_col });
    }
}

/// Passes signals and terminal bytes on until the program ends; then what its terminal still holds.
fn relay(pidfd: &OwnedFd, signals: &SignalFd, master: Option<&OwnedFd>) -> io::Result<()> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let mut buffer = [0; 16 * 1024];
    let (mut typing, mut showing) = (master.is_some(), master.is_some());
    loop {
        let watch = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = vec![watch(pidfd.as_fd()), watch(signals.as_fd())];
        let shown = master.filter(|_| showing).map(|m| (fds.push(watch(m.as_fd())), fds.len() - 1).1);
        let typed = master.filter(|_| typing).map(|_| (fds.push(watch(stdin.as_fd())), fds.len() - 1).1);
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[1] {
            pass_signals_on(pidfd, signals, master);
        }
        if let (Some(master), true) = (master, shown.is_some_and(|i| ready[i])) {
            showing = show(master, stdout.as_fd(), &mut buffer)?;
        } else if ready[0] {
            // Nothing is left to show, and the program has ended.
            return Ok(());
        }
        if let (Some(master), true) = (master, typed.is_some_and(|i| ready[i])) {
            let n = rustix::io::read(&stdin, &mut buffer)?;
            typing = n > 0 && write_all(master.as_fd(), &buffer[..n]).is_ok();
        }
    }
}

/// Shows one piece of the terminal's output; false when its last user has gone (which a terminal says by EIO).
fn show(master: &OwnedFd, stdout: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<bool> {
    match rustix::io::read(master, &mut *buffer) {
        Ok(0) | Err(rustix::io::Errno::IO) => Ok(false),
        Ok(n) => write_all(stdout, &buffer[..n]).map(|()| true),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

fn pass_signals_on(pidfd: &OwnedFd, signals: &SignalFd, master: Option<&OwnedFd>) {
    while let Ok(Some(signal)) = signals.read_signal() {
        let number = signal.ssi_signo as i32;
        match master {
            Some(master) if number == libc::SIGWINCH => follow_size(master),
            _ => {
                let _ = pidfd_send_signal(pidfd.as_fd(), number);
            }
        }
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
