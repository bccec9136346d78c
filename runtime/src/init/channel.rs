//! Messages between the runtime and the process it made, over a socket pair: one message, one packet.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use gantry_sys::fd::{receive_with_fds, send_with_fds};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::error::{Context, Error, Result};

/// What is said.
#[derive(Debug)]
pub(crate) enum Message {
    /// Runtime: go on. Child: the point that was waited for is reached.
    Go,
    /// Child: a warning for people.
    Warning(String),
    /// Child: this went wrong, and it ends.
    Failed(String),
    /// Child: the descriptor that answers filtered system calls.
    Listener(OwnedFd),
}

/// One end of the channel.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
}

const LIMIT: usize = 8192;

impl Channel {
    /// Both ends, closed on exec.
    pub(crate) fn pair() -> Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .context(|| "make a socket pair".to_owned())?;
        Ok((Self { socket: a }, Self { socket: b }))
    }

    pub(crate) fn send(&self, message: &Message) -> io::Result<()> {
        let text = |tag: u8, text: &str| {
            let mut bytes = vec![tag];
            bytes.extend_from_slice(&text.as_bytes()[..text.len().min(LIMIT - 1)]);
            bytes
        };
        match message {
            // Plain writes: a system call filter that is loaded by now lets these through where it lets anything.
            Message::Go => self.write(b"G"),
            Message::Warning(w) => self.write(&text(b'W', w)),
            Message::Failed(e) => self.write(&text(b'E', e)),
            Message::Listener(fd) => send_with_fds(self.socket.as_fd(), b"L", &[fd.as_fd()]),
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        rustix::io::write(&self.socket, bytes)?;
        Ok(())
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// The other end is gone.
    pub(crate) fn receive(&self) -> Result<Message> {
        let mut buffer = [0; LIMIT];
        let received = loop {
            match receive_with_fds(self.socket.as_fd(), &mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Said once, when the other end goes with something unread: its last words are still to be read here.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
                other => break other,
            }
        };
        let (n, mut fds) = received.context(|| "hear from the other process".to_owned())?;
        let text = || String::from_utf8_lossy(&buffer[1..n]).into_owned();
        match (buffer.first().filter(|_| n > 0), fds.pop()) {
            (Some(b'G'), _) => Ok(Message::Go),
            (Some(b'W'), _) => Ok(Message::Warning(text())),
            (Some(b'E'), _) => Ok(Message::Failed(text())),
            (Some(b'L'), Some(fd)) => Ok(Message::Listener(fd)),
            _ => Err(Error::new("the container's first process ended before it was set up")),
        }
    }

    /// Waits until the other side says to go on.
    pub(crate) fn wait_go(&self) -> Result<()> {
        match self.receive()? {
            Message::Go => Ok(()),
            other => Err(Error::new(format!("unexpected message {other:?}"))),
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_heard_of_one_who_did_not_listen() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&Message::Go).unwrap();
        theirs.send(&Message::Failed("why".to_owned())).unwrap();
        drop(theirs);
        assert!(matches!(ours.receive().unwrap(), Message::Failed(why) if why == "why"));
        assert!(ours.receive().is_err());
    }
}
