//! A netlink socket: requests with their acknowledgements, dumps, and subscriptions to what changes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::message::{ACK, Message, Messages, Received, u32_at};

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The kernel answers at once; longer means that the answer was lost.
const LIMIT: Duration = Duration::from_secs(10);
/// The kernel writes dumps in pieces of at most 32 KiB.
const BUFFER: usize = 64 * 1024;

/// A socket of one netlink protocol.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket for links, addresses, routes, neighbours and traffic control, in the thread's network namespace.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn route() -> io::Result<Self> {
        Self::open(None, 0)
    }

    /// A socket for nf_tables and conntrack, in the thread's network namespace.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn netfilter() -> io::Result<Self> {
        Self::open(Some(NETFILTER), 0)
    }

    /// A socket that hears what changes; `groups` are bits of `RTMGRP_*`. Poll its descriptor, then [`Socket::heard`].
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn subscribe(groups: u32) -> io::Result<Self> {
        Self::open(None, groups)
    }

    // NETLINK_ROUTE is protocol 0, which is no protocol.
    fn open(protocol: Option<rustix::net::Protocol>, groups: u32) -> io::Result<Self> {
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        set_socket_timeout(&fd, Timeout::Recv, Some(LIMIT))?;
        Ok(Self { fd, sequence: 0, buffer: Vec::new() })
    }

    /// Sends a request and waits until the kernel has done it.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn request(&mut self, message: Message) -> io::Result<()> {
        self.batch(vec![message]).map_err(|(_, e)| e)
    }

    /// Sends requests in one system call and waits until the kernel has done the last; the kernel does them in order and
    /// goes on after a failure.
    ///
    /// # Errors
    /// The first failure: which request, and the kernel's errno.
    pub fn batch(&mut self, messages: Vec<Message>) -> Result<(), (usize, io::Error)> {
        let count = messages.len();
        let mut bytes = Vec::new();
        let first = self.sequence + 1;
        for mut message in messages {
            message.add_flags(ACK);
            self.sequence += 1;
            bytes.extend(message.finish(self.sequence));
        }
        let mut failed = None;
        let mut answered = 0;
        let send = self.send(&bytes);
        send.map_err(|e| (0, e))?;
        while answered < count {
            let received = self.receive().map_err(|e| (answered, e))?;
            for message in Messages(&self.buffer[..received]) {
                let index = message.sequence.wrapping_sub(first) as usize;
                if message.kind != ERROR || index >= count {
                    continue;
                }
                answered += 1;
                if let Some(error) = errno(&message) {
                    failed.get_or_insert((index, error));
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Sends a request for one object or for all of a kind and gives each answer to `each`.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn query(&mut self, mut message: Message, mut each: impl FnMut(&Received<'_>)) -> io::Result<()> {
        message.add_flags(ACK);
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(&message.finish(sequence))?;
        loop {
            let received = self.receive()?;
            for message in Messages(&self.buffer[..received]).filter(|m| m.sequence == sequence) {
                match message.kind {
                    // A dump ends with DONE, a single answer with the acknowledgement.
                    DONE | ERROR => return errno(&message).map_or(Ok(()), Err),
                    _ => each(&message),
                }
            }
        }
    }

    /// Sends a whole nf_tables transaction: one datagram from begin to end, done or refused as a whole.
    ///
    /// # Errors
    /// The first refused message by its place, and the kernel's errno.
    pub(crate) fn transaction(&mut self, messages: Vec<Message>) -> Result<(), (usize, io::Error)> {
        let first = self.sequence + 1;
        let mut bytes = Vec::new();
        let last = messages.len();
        for (i, mut message) in messages.into_iter().enumerate() {
            // Only what stands between begin and end is acknowledged; the last change tells that all was done.
            if i + 2 == last {
                message.add_flags(ACK);
            }
            self.sequence += 1;
            bytes.extend(message.finish(self.sequence));
        }
        self.send(&bytes).map_err(|e| (0, e))?;
        let wanted = last.saturating_sub(2);
        loop {
            let received = self.receive().map_err(|e| (0, e))?;
            for message in Messages(&self.buffer[..received]).filter(|m| m.kind == ERROR) {
                let index = message.sequence.wrapping_sub(first) as usize;
                if index >= last {
                    continue;
                }
                match errno(&message) {
                    Some(error) => {
                        let failure = Err((index, error));
                        self.drain();
                        return failure;
                    }
                    None if index == wanted => return Ok(()),
                    None => {}
                }
            }
        }
    }

    /// Gives each message that has arrived to `each`, without waiting. False when the kernel had to drop some: then all
    /// must be looked at anew.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn heard(&mut self, mut each: impl FnMut(&Received<'_>)) -> io::Result<bool> {
        let mut whole = true;
        loop {
            self.buffer.resize(BUFFER, 0);
            match rustix::net::recv(&self.fd, self.buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((n, _)) => Messages(&self.buffer[..n]).for_each(|m| each(&m)),
                Err(rustix::io::Errno::NOBUFS) => whole = false,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(whole),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.fd, bytes, SendFlags::empty())?;
        Ok(())
    }

    fn receive(&mut self) -> io::Result<usize> {
        self.buffer.resize(BUFFER, 0);
        loop {
            match rustix::net::recv(&self.fd, self.buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((n, _)) => return Ok(n),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer over netlink"));
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Forgets what is left of an answer.
    fn drain(&mut self) {
        let _ = self.heard(|_| {});
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn errno(message: &Received<'_>) -> Option<io::Error> {
    let code = u32_at(message.body, 0)?.cast_signed();
    (code < 0).then(|| io::Error::from_raw_os_error(-code))
}
