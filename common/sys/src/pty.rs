//! Pseudo terminals.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

use crate::process::check;

/// Rows and columns of a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Lines of text.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// Opens a new terminal pair below a devpts mount whose multiplexer is `ptmx` (`/dev/pts/ptmx`, `/dev/ptmx`).
/// Answers (master, terminal), both close-on-exec.
///
/// # Errors
/// There is no devpts there, or too many terminals are open.
pub fn open(ptmx: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    // An image may have put a fifo there, or another device: the open must not wait, and only the multiplexer is taken.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let master = rustix::fs::open(ptmx, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&master)?;
    let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if !device || stat.st_rdev != rustix::fs::makedev(5, 2) {
        return Err(io::Error::other(format!("{} is no terminal multiplexer", ptmx.display())));
    }
    rustix::fs::fcntl_setfl(&master, OFlags::RDWR)?;
    let unlock = 0_i32;
    // SAFETY: TIOCSPTLCK reads one int, which lives across the call.
    check(i64::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) }))?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags and answers a new descriptor that nothing else owns. It needs no path, so
    // nothing in the container can exchange the terminal under us.
    let peer = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    check(i64::from(peer))?;
    // SAFETY: as above.
    Ok((master, unsafe { OwnedFd::from_raw_fd(peer) }))
}

/// Sets the size of a terminal; its foreground programs get SIGWINCH.
///
/// # Errors
/// `terminal` is no terminal.
pub fn resize(terminal: impl AsFd, size: Size) -> io::Result<()> {
    let fd: BorrowedFd<'_> = terminal.as_fd();
    let window = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives across the call.
    check(i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const window) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_to_the_terminal_comes_out_of_the_master() {
        let (master, terminal) = open(Path::new("/dev/ptmx")).unwrap();
        resize(&master, Size { rows: 10, columns: 20 }).unwrap();
        rustix::io::write(&terminal, b"hi").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(rustix::io::read(&master, &mut buffer).unwrap(), 2);
    }
}
