//! Descriptors: closing ranges, passing over sockets, sealed memory files.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::process::check;

/// Marks every descriptor from `first` on close-on-exec: a program started next inherits none of them.
///
/// # Errors
/// The kernel is older than 5.11.
pub fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    // SAFETY: plain integers; marking does not close anything that an owner still holds.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
}

/// Closes every descriptor from `first` on but `keep`: what a program inherited and does not know of. To be called before it
/// opens anything else.
///
/// # Errors
/// The kernel is older than 5.9.
pub fn close_inherited(first: RawFd, keep: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let close = |from: RawFd, to: u32| {
        // SAFETY: plain integers; the caller owns nothing in this range, and what nobody owns nobody uses.
        check(unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) })
    };
    match keep.map(|k| k.as_raw_fd()).filter(|k| *k >= first) {
        None => close(first, u32::MAX),
        Some(keep) => {
            if keep > first {
                close(first, keep as u32 - 1)?;
            }
            close(keep + 1, u32::MAX)
        }
    }
}

/// Takes ownership of a descriptor that this process inherited by number (for example from a service manager).
///
/// # Errors
/// No such descriptor is open.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only reads flags.
    check(i64::from(unsafe { libc::fcntl(number, libc::F_GETFD) }))?;
    // SAFETY: the descriptor is open (checked above); callers take inherited descriptors once, at start.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends bytes and descriptors over a unix socket in one message.
///
/// # Errors
/// The peer is gone, or not all bytes could be sent at once.
pub fn send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives up to `buffer.len()` bytes and up to 16 descriptors (close-on-exec). No bytes: the peer is gone.
///
/// # Errors
/// The kernel's.
pub fn receive_with_fds(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 16]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just installed these descriptors for us; nothing else owns them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, fds))
}

/// A memory file that can still be written and sealed.
///
/// # Errors
/// The kernel's.
pub fn memory_file(name: &str) -> io::Result<File> {
    use rustix::fs::MemfdFlags;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels from 6.3 on ask that a memory file says whether it may be run.
    let fd =
        rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC).or_else(|_| rustix::fs::memfd_create(name, flags))?;
    Ok(File::from(fd))
}

/// Seals a memory file: nobody can write, grow or shrink it again.
///
/// # Errors
/// It is no memory file, or is mapped writable.
pub fn seal(file: &File) -> io::Result<()> {
    use rustix::fs::SealFlags;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    Ok(rustix::fs::fcntl_add_seals(file, seals)?)
}

/// Whether a file is a memory file that nobody can write.
pub fn is_sealed(file: &File) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok_and(|s| s.contains(rustix::fs::SealFlags::WRITE))
}

/// Whether a file was reached through a read-only mount.
pub fn is_on_read_only_mount(file: &File) -> bool {
    rustix::fs::fstatvfs(file).is_ok_and(|s| s.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_travel_over_a_socket() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut file = memory_file("test").unwrap();
        file.write_all(b"hello").unwrap();
        send_with_fds(a.as_fd(), b"x", &[file.as_fd()]).unwrap();
        let mut buffer = [0; 8];
        let (n, mut fds) = receive_with_fds(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((n, fds.len()), (1, 1));
        let mut other = File::from(fds.remove(0));
        other.rewind().unwrap();
        let mut text = String::new();
        other.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_sealed_file_cannot_be_written() {
        let mut file = memory_file("test").unwrap();
        file.write_all(b"x").unwrap();
        assert!(!is_sealed(&file));
        seal(&file).unwrap();
        assert!(is_sealed(&file));
        assert!(file.write_all(b"y").is_err());
    }
}
