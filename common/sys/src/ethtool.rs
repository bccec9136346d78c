//! Offloads of network devices that only ethtool(8)'s request reaches.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `ETHTOOL_GTXCSUM` and `ETHTOOL_STXCSUM`.
const GET_TX_CHECKSUM: u32 = 0x16;
const SET_TX_CHECKSUM: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

fn request(socket: impl AsFd, device: &str, value: &mut Value) -> io::Result<()> {
    // SAFETY: an ifreq of zeroes is a valid value of it.
    let mut asked: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= asked.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in asked.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    asked.ifr_ifru.ifru_data = (&raw mut *value).cast();
    // SAFETY: the request and the value that it points to live across the call; both commands read and write no more than the
    // value's eight bytes.
    crate::process::check(i64::from(unsafe {
        libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCETHTOOL as libc::Ioctl, &raw mut asked)
    }))
}

/// Whether the kernel leaves checksums of what a device sends to the device. `socket` is any of its network namespace.
///
/// # Errors
/// There is no such device, or it has no checksums to compute.
pub fn tx_checksum(socket: impl AsFd, device: &str) -> io::Result<bool> {
    let mut value = Value { command: GET_TX_CHECKSUM, data: 0 };
    request(socket, device, &mut value)?;
    Ok(value.data != 0)
}

/// Sets it.
///
/// # Errors
/// There is no such device, it cannot be set, or the caller lacks CAP_NET_ADMIN.
pub fn set_tx_checksum(socket: impl AsFd, device: &str, on: bool) -> io::Result<()> {
    request(socket, device, &mut Value { command: SET_TX_CHECKSUM, data: u32::from(on) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(tx_checksum(&socket, "none-such").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert!(set_tx_checksum(&socket, "a-name-that-is-too-long", true).is_err());
        assert!(tx_checksum(&socket, "lo").is_ok());
    }
}
