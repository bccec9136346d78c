//! Options of netlink sockets (netlink(7)), which rustix does not have.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

const SOL_NETLINK: i32 = 270;

/// Sets a switch of a netlink socket (`NETLINK_*`).
///
/// # Errors
/// The kernel does not know it, or it is no netlink socket.
pub fn set_option(socket: &impl AsFd, option: i32, on: bool) -> io::Result<()> {
    let value = i32::from(on);
    // SAFETY: the kernel reads one int, which lives across the call.
    crate::process::check(i64::from(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            SOL_NETLINK,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    }))
}
