//! Terminals: made inside the container, handed to the engine, or relayed to the caller's own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use gantry_sys::pty::Size;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, tcgetattr, tcgetwinsize, tcsetattr};

use crate::error::{Context, Result};

/// Hands a terminal's master to whoever listens on `socket`.
pub(crate) fn hand_over(socket: &UnixStream, master: &OwnedFd) -> Result<()> {
    gantry_sys::fd::send_with_fds(socket.as_fd(), b"/dev/ptmx\0", &[master.as_fd()])
        .context(|| "send the terminal over the console socket".to_owned())
}

/// Connects to a console socket.
pub(crate) fn connect(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path).context(|| format!("connect to console socket {}", path.display()))
}

/// Copies between the caller's terminal and a container's until the container's end closes. The caller's terminal is raw
/// meanwhile.
pub(crate) fn relay(master: &OwnedFd) -> Result<()> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let before = tcgetattr(&stdin).ok();
    if let Some(settings) = &before {
        let mut raw = settings.clone();
        raw.make_raw();
        let _ = tcsetattr(&stdin, OptionalActions::Now, &raw);
        if let Ok(size) = tcgetwinsize(&stdin) {
            let _ = gantry_sys::pty::resize(master, Size { rows: size.ws_row, columns: size.ws_col });
        }
    }
    let outcome = copy(master, stdin.as_fd(), stdout.as_fd());
    if let Some(settings) = before {
        let _ = tcsetattr(&stdin, OptionalActions::Now, &settings);
    }
    outcome.context(|| "relay the terminal".to_owned())
}

fn copy(master: &OwnedFd, stdin: std::os::fd::BorrowedFd<'_>, stdout: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    let mut typing = true;
    loop {
        let from_master = PollFd::from_borrowed_fd(master.as_fd(), PollFlags::IN);
        let from_stdin = PollFd::from_borrowed_fd(stdin, PollFlags::IN);
        let mut fds = [from_master, from_stdin];
        let watched = if typing { &mut fds[..] } else { &mut fds[..1] };
        match poll(watched, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if !fds[0].revents().is_empty() {
            // EIO is how a terminal says that its last user has gone.
            match rustix::io::read(master, &mut buffer) {
                Ok(0) | Err(rustix::io::Errno::IO) => return Ok(()),
                Ok(n) => write_all(stdout, &buffer[..n])?,
                Err(e) => return Err(e.into()),
            }
        }
        if typing && !fds[1].revents().is_empty() {
            match rustix::io::read(stdin, &mut buffer)? {
                0 => typing = false,
                n => write_all(master.as_fd(), &buffer[..n])?,
            }
        }
    }
}

fn write_all(to: std::os::fd::BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = rustix::io::write(to, bytes)?;
        bytes = &bytes[n..];
    }
    Ok(())
}
