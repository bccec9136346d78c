//! A connection to a bus or to one service's private socket.

use std::collections::VecDeque;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::wire::{Call, Encoder, Kind, Message};

/// Signals that came while an answer was waited for; older ones go when nobody asks for them.
const MOST_SIGNALS: usize = 1000;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// Who is at the other end, for errors.
    peer: String,
    patience: Duration,
    serial: u32,
    unread: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    signals: VecDeque<Message>,
}

impl Connection {
    /// Connects to a socket and authenticates. `peer` names the other end in errors; `patience` is how long one answer may
    /// take.
    ///
    /// # Errors
    /// Nobody is there, or lets this user in.
    pub fn open(path: &Path, peer: &str, patience: Duration) -> Result<Self> {
        let failed = |e: std::io::Error| Error::Connection(format!("cannot reach {peer} at {}: {e}", path.display()));
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_write_timeout(Some(patience)).map_err(failed)?;
        let mut new = Self {
            stream,
            peer: peer.to_owned(),
            patience,
            serial: 0,
            unread: Vec::new(),
            fds: VecDeque::new(),
            signals: VecDeque::new(),
        };
        let number = rustix::process::geteuid().as_raw();
        let uid: String = number.to_string().bytes().map(|b| format!("{b:02x}")).collect();
        let greeting = format!("\0AUTH EXTERNAL {uid}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n");
        new.stream.write_all(greeting.as_bytes()).map_err(failed)?;
        let end = Instant::now() + patience;
        let line = new.line(end)?;
        if !line.starts_with("OK") {
            return Err(Error::Connection(format!("{peer} refuses user {number}: {line}")));
        }
        // One that passes no descriptors says so with an error; its answers are read all the same.
        new.line(end)?;
        Ok(new)
    }

    /// What a bus daemon wants before it passes calls on.
    ///
    /// # Errors
    /// It refuses.
    pub fn hello(&mut self) -> Result<()> {
        self.daemon("Hello", "", &Encoder::default())
    }

    /// Asks a bus daemon for signals that match a rule.
    ///
    /// # Errors
    /// It refuses.
    pub fn subscribe(&mut self, rule: &str) -> Result<()> {
        let mut body = Encoder::default();
        body.text(rule);
        self.daemon("AddMatch", "s", &body)
    }

    fn daemon(&mut self, member: &str, signature: &str, body: &Encoder) -> Result<()> {
        let (name, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
        self.call(&Call { destination: name, path, interface: name, member, signature }, body).map(drop)
    }

    fn line(&mut self, end: Instant) -> Result<String> {
        loop {
            if let Some(at) = self.unread.windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&self.unread[..at]).into_owned();
                self.unread.drain(..at + 2);
                return Ok(line);
            }
            if self.unread.len() > 4096 {
                return Err(Error::Connection(format!("{}'s greeting is too long", self.peer)));
            }
            self.fill(end)?;
        }
    }

    fn fill(&mut self, end: Instant) -> Result<()> {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let failed = |peer: &str, e: std::io::Error| Error::Connection(format!("read from {peer}: {e}"));
        self.stream.set_read_timeout(Some(left)).map_err(|e| failed(&self.peer, e))?;
        let mut block = [0; 4096];
        match gantry_sys::fd::receive_with_fds(self.stream.as_fd(), &mut block) {
            Ok((0, _)) => Err(Error::Connection(format!("{} closed the connection", self.peer))),
            Ok((n, fds)) => {
                self.unread.extend(&block[..n]);
                self.fds.extend(fds);
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                Err(Error::Late(format!("{} does not answer within {} s", self.peer, self.patience.as_secs())))
            }
            Err(e) => Err(failed(&self.peer, e)),
        }
    }

    /// Calls a method and waits for its answer; signals that come meanwhile are kept.
    ///
    /// # Errors
    /// [`Error::Refused`] where the other end answers with an error.
    pub fn call(&mut self, call: &Call<'_>, body: &Encoder) -> Result<Message> {
        self.serial += 1;
        let serial = self.serial;
        let sent = self.stream.write_all(&call.message(serial, body));
        sent.map_err(|e| Error::Connection(format!("call {} of {}: {e}", call.member, self.peer)))?;
        let end = Instant::now() + self.patience;
        loop {
            let message = self.next(end)?;
            match message.kind {
                Kind::Return if message.reply_to == serial => return Ok(message),
                Kind::Error if message.reply_to == serial => {
                    return Err(Error::Refused {
                        member: call.member.to_owned(),
                        text: message.text(0).to_owned(),
                        name: message.error,
                    });
                }
                Kind::Signal => self.keep(message),
                _ => {}
            }
        }
    }

    fn keep(&mut self, message: Message) {
        if self.signals.len() >= MOST_SIGNALS {
            self.signals.pop_front();
        }
        self.signals.push_back(message);
    }

    fn next(&mut self, end: Instant) -> Result<Message> {
        loop {
            if let Some(length) = Message::length(&self.unread)?
                && self.unread.len() >= length
            {
                let message = Message::parse(&self.unread[..length]);
                self.unread.drain(..length);
                let mut message = message?;
                let count = usize::try_from(message.fd_count).unwrap_or(usize::MAX).min(self.fds.len());
                message.fds = self.fds.drain(..count).collect();
                return Ok(message);
            }
            self.fill(end)?;
        }
    }

    /// The next signal.
    ///
    /// # Errors
    /// [`Error::Late`] when none comes within `limit`.
    pub fn signal(&mut self, limit: Duration) -> Result<Message> {
        if let Some(kept) = self.signals.pop_front() {
            return Ok(kept);
        }
        let end = Instant::now() + limit;
        loop {
            let message = self.next(end)?;
            if message.kind == Kind::Signal {
                return Ok(message);
            }
        }
    }

    /// Asks a bus daemon for a name that others call this end by.
    ///
    /// # Errors
    /// It refuses, or the name is taken.
    pub fn own(&mut self, name: &str) -> Result<()> {
        let mut body = Encoder::default();
        body.text(name);
        // 4: fail at once if somebody else has it.
        body.u32(4);
        let (daemon, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
        let call = Call { destination: daemon, path, interface: daemon, member: "RequestName", signature: "su" };
        match self.call(&call, &body)?.number(0) {
            Some(1 | 4) => Ok(()),
            _ => Err(Error::Connection(format!("the name {name} is taken"))),
        }
    }

    /// The next call of this end's methods; signals that come meanwhile are kept.
    ///
    /// # Errors
    /// [`Error::Late`] when none comes within `limit`.
    pub fn called(&mut self, limit: Duration) -> Result<Message> {
        let end = Instant::now() + limit;
        loop {
            let message = self.next(end)?;
            match message.kind {
                Kind::Call => return Ok(message),
                Kind::Signal => self.keep(message),
                _ => {}
            }
        }
    }

    /// Answers a call.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn answer(&mut self, call: &Message, signature: &str, body: &Encoder, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.serial += 1;
        let names = Call { destination: &call.sender, path: "", interface: "", member: "", signature };
        let count = u32::try_from(fds.len()).unwrap_or(u32::MAX);
        let bytes = names.answer(self.serial, call.serial, count, body);
        let sent = gantry_sys::fd::send_with_fds(self.stream.as_fd(), &bytes, fds);
        sent.map_err(|e| Error::Connection(format!("answer {}: {e}", call.member)))
    }

    /// Sends a signal to whoever wants it.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn emit(&mut self, names: &Call<'_>, body: &Encoder) -> Result<()> {
        self.serial += 1;
        let bytes = names.signal(self.serial, body);
        let sent = self.stream.write_all(&bytes);
        sent.map_err(|e| Error::Connection(format!("send {}: {e}", names.member)))
    }
}
