//! Terminals: made inside the container and handed to the engine.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

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
