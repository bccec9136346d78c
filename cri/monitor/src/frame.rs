//! Frames on a unix socket: four bytes of length (little endian), then JSON; descriptors ride on the length.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use gantry_sys::fd::{receive_with_fds, send_with_fds};
use serde::Serialize;
use serde::de::DeserializeOwned;

const LARGEST: usize = 4 << 20;

/// Sends one message with descriptors.
///
/// # Errors
/// The peer is gone or does not take it within the socket's write time-out.
pub fn send(mut socket: &UnixStream, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    send_with_fds(socket.as_fd(), &(body.len() as u32).to_le_bytes(), fds)?;
    socket.write_all(&body)
}

/// Receives one message with its descriptors; none at the end of the stream.
///
/// # Errors
/// The peer is gone in the middle of a frame, sends nonsense, or is slower than the socket's read time-out.
pub fn receive<T: DeserializeOwned>(mut socket: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut length = [0; 4];
    let (got, fds) = loop {
        match receive_with_fds(socket.as_fd(), &mut length) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if got == 0 {
        return Ok(None);
    }
    socket.read_exact(&mut length[got..])?;
    let length = u32::from_le_bytes(length) as usize;
    if length > LARGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes is too large")));
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_together() {
        let (a, b) = UnixStream::pair().unwrap();
        send(&a, &"hello", &[a.as_fd()]).unwrap();
        send(&a, &"again", &[]).unwrap();
        let (text, fds): (String, _) = receive(&b).unwrap().unwrap();
        assert_eq!((text.as_str(), fds.len()), ("hello", 1));
        let (text, fds): (String, _) = receive(&b).unwrap().unwrap();
        assert_eq!((text.as_str(), fds.len()), ("again", 0));
        drop((a, fds));
    }
}
