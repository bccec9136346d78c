//! A netlink socket: requests with their acknowledgements, dumps, and subscriptions to what changes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, poll};
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
    limit: Duration,
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

    /// A socket that hears what changes in nf_tables. Poll its descriptor, then [`Socket::heard`] and [`crate::nft::changed`].
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn subscribe_nft() -> io::Result<Self> {
        // Group 7 is NFNLGRP_NFTABLES; groups are bits from 1.
        Self::open(Some(NETFILTER), 1 << 6)
    }

    // NETLINK_ROUTE is protocol 0, which is no protocol.
    fn open(protocol: Option<rustix::net::Protocol>, groups: u32) -> io::Result<Self> {
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        set_socket_timeout(&fd, Timeout::Recv, Some(LIMIT))?;
        Ok(Self { fd, sequence: 0, buffer: Vec::new(), limit: LIMIT })
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
        if count == 0 {
            return Ok(());
        }
        let mut bytes = Vec::new();
        let first = self.sequence + 1;
        for mut message in messages {
            message.add_flags(ACK);
            self.sequence += 1;
            bytes.extend(message.finish(self.sequence).map_err(|e| (0, e))?);
        }
        let mut failed = None;
        let mut answered = 0;
        let send = self.send(&bytes);
        send.map_err(|e| (0, e))?;
        let end = self.end();
        while answered < count {
            let received = self.receive(end).map_err(|e| (answered, e))?;
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
        self.send(&message.finish(sequence)?)?;
        let end = self.end();
        loop {
            let received = self.receive(end)?;
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
            bytes.extend(message.finish(self.sequence).map_err(|e| (i, e))?);
        }
        self.send(&bytes).map_err(|e| (0, e))?;
        let wanted = last.saturating_sub(2);
        let end = self.end();
        loop {
            let received = self.receive(end).map_err(|e| (0, e))?;
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
            match self.fill(RecvFlags::DONTWAIT) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => Messages(&self.buffer[..n]).for_each(|m| each(&m)),
                Err(rustix::io::Errno::NOBUFS) => whole = false,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(whole),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Waits until something can be heard on a subscription. False when the time is over.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left = rustix::event::Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&left)) {
                Ok(count) => return Ok(count > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.fd, bytes, SendFlags::empty())?;
        Ok(())
    }

    /// When an answer that has not come whole is given up.
    fn end(&self) -> Instant {
        Instant::now() + self.limit
    }

    fn receive(&mut self, end: Instant) -> io::Result<usize> {
        loop {
            // Whatever comes, it is not the answer.
            if Instant::now() > end {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not end its answer over netlink"));
            }
            match self.fill(RecvFlags::empty()) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => return Ok(n),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer over netlink"));
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Receives one datagram into the buffer. Nobody zeroes it before: most answers touch one of its pages.
    fn fill(&mut self, flags: RecvFlags) -> rustix::io::Result<usize> {
        self.buffer.clear();
        self.buffer.reserve(BUFFER);
        rustix::net::recv(&self.fd, spare_capacity(&mut self.buffer), flags).map(|(n, _)| n)
    }

    /// The kernel looks at what dumps ask for, such as the device of an address dump, and refuses what it does not know.
    /// Kernels before 4.20 cannot, and give everything.
    pub(crate) fn strict(&mut self, on: bool) {
        const GET_STRICT_CHK: i32 = 12;
        let _ = gantry_sys::netlink::set_option(&self.fd, GET_STRICT_CHK, on);
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
    // The smallest number has no opposite; a kernel that answers it has failed all the same.
    (code < 0).then(|| io::Error::from_raw_os_error(code.checked_neg().unwrap_or(i32::MAX)))
}

#[cfg(any(test, feature = "fuzzing"))]
impl Socket {
    /// A socket to something that is not the kernel, which answers within this time.
    pub(crate) fn over(fd: OwnedFd, limit: Duration) -> Self {
        set_socket_timeout(&fd, Timeout::Recv, Some(limit)).expect("a socket takes a time-out");
        Self { fd, sequence: 0, buffer: Vec::new(), limit }
    }

    /// A socket whose kernel answers with these datagrams, whatever is asked, and ends then. The other end comes along.
    pub(crate) fn answered<'a>(datagrams: impl IntoIterator<Item = &'a [u8]>) -> (Self, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        let (own, kernel) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket pair");
        for datagram in datagrams {
            rustix::net::send(&kernel, datagram, SendFlags::empty()).expect("there is room");
        }
        rustix::net::shutdown(&kernel, rustix::net::Shutdown::Write).expect("it can be ended");
        (Self::over(own, Duration::from_secs(1)), kernel)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A socket to something that is not the kernel.
    fn pair(limit: Duration) -> (Socket, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        let (own, kernel) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (Socket::over(own, limit), kernel)
    }

    /// Bytes that often are messages: right lengths and sequence numbers, wrong anything else.
    fn datagram() -> impl Strategy<Value = Vec<u8>> {
        let message = (prop_oneof![Just(2u16), Just(3), 16..30u16, 0xa00..0xa20u16, any::<u16>()], 0..3u32, body());
        let whole = prop::collection::vec(message, 1..4).prop_map(|messages| {
            let mut bytes = Vec::new();
            for (kind, sequence, body) in messages {
                bytes.extend((16 + body.len() as u32).to_ne_bytes());
                bytes.extend(kind.to_ne_bytes());
                bytes.extend([0; 2]);
                bytes.extend(sequence.to_ne_bytes());
                bytes.extend([0; 4]);
                bytes.extend(body);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            bytes
        });
        prop_oneof![3 => whole, 1 => prop::collection::vec(any::<u8>(), 1..200)]
    }

    /// A fixed header and attributes, some with attributes in them.
    fn body() -> impl Strategy<Value = Vec<u8>> {
        let attribute = |value: Vec<u8>, kind: u16| {
            let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let leaf = (prop::collection::vec(any::<u8>(), 0..20), 0..40u16).prop_map(move |(v, k)| attribute(v, k));
        let tree = leaf.prop_recursive(3, 12, 4, move |inner| {
            (prop::collection::vec(inner, 0..4), 0..40u16).prop_map(move |(v, k)| attribute(v.concat(), k))
        });
        let header = prop::collection::vec(any::<u8>(), 0..20);
        (header, prop::collection::vec(tree, 0..5)).prop_map(|(header, rest)| [header, rest.concat()].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn whatever_the_kernel_answers_every_reader_ends(datagrams in prop::collection::vec(datagram(), 0..4)) {
            for read in crate::fuzzing::READERS {
                let start = Instant::now();
                let (mut socket, _kernel) = Socket::answered(datagrams.iter().map(Vec::as_slice));
                read(&mut socket);
                prop_assert!(start.elapsed() < Duration::from_secs(10));
            }
        }
    }

    #[test]
    fn any_number_below_zero_is_an_error() {
        for code in [-17, i32::MIN] {
            let mut answer = [0; 20];
            answer[..2].copy_from_slice(&20u16.to_ne_bytes());
            answer[4..6].copy_from_slice(&ERROR.to_ne_bytes());
            answer[8..12].copy_from_slice(&1u32.to_ne_bytes());
            answer[16..].copy_from_slice(&code.to_ne_bytes());
            let (mut socket, _kernel) = Socket::answered([&answer[..]]);
            let error = socket.request(crate::link::delete(1)).unwrap_err();
            assert!(code != -17 || error.kind() == io::ErrorKind::AlreadyExists, "{error}");
        }
    }

    #[test]
    fn an_answer_that_never_ends_is_given_up() {
        let (mut socket, kernel) = pair(Duration::from_millis(300));
        let babble =
            std::thread::spawn(move || while rustix::net::send(&kernel, &[0; 64], SendFlags::NOSIGNAL).is_ok() {});
        let error = socket.links().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(socket);
        babble.join().unwrap();
    }
}
