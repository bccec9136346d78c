//! A connection to a systemd manager, over its private socket or the message bus.
//!
//! Synchronous and small: a runtime that lives for milliseconds has no use for an event loop.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::wire::{Call, Encoder, Kind, Message};
use crate::error::{Error, Result};

/// How long systemd may take for one answer.
const PATIENCE: Duration = Duration::from_secs(30);
const MANAGER: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";

/// A connection.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    unread: Vec<u8>,
    /// Ends of jobs that came while something else was waited for: the job's path and how it ended.
    ended: Vec<(String, String)>,
}

impl Bus {
    /// Connects to the manager of the system, or to that of the calling user.
    ///
    /// # Errors
    /// There is none, or it lets nobody in.
    pub(super) fn connect(user: bool) -> Result<Self> {
        let run = if user {
            let dir = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty());
            PathBuf::from(dir.ok_or_else(|| {
                Error::Systemd("XDG_RUNTIME_DIR is not set, so the user's systemd cannot be found".into())
            })?)
        } else {
            PathBuf::from("/run")
        };
        // The private socket is the shorter way: it needs no bus daemon, and systemd sends its signals without being asked.
        match Self::open(&run.join("systemd/private")) {
            Ok(bus) => Ok(bus),
            Err(private) => {
                let path = if user { run.join("bus") } else { run.join("dbus/system_bus_socket") };
                let mut bus = Self::open(&path).map_err(|error| Error::Systemd(format!("{error} ({private})")))?;
                bus.join()?;
                Ok(bus)
            }
        }
    }

    fn open(path: &Path) -> Result<Self> {
        let failed = |error| Error::Systemd(format!("cannot reach systemd at {}: {error}", path.display()));
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .map_err(failed)?;
        let mut bus = Self { stream, serial: 0, unread: Vec::new(), ended: Vec::new() };
        let uid: String = rustix::process::geteuid().as_raw().to_string().bytes().map(|b| format!("{b:02x}")).collect();
        bus.stream.write_all(format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").as_bytes()).map_err(failed)?;
        let line = bus.line()?;
        if !line.starts_with("OK") {
            return Err(Error::Systemd(format!(
                "systemd refuses user {uid}: {line}",
                uid = rustix::process::geteuid().as_raw()
            )));
        }
        Ok(bus)
    }

    fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&self.unread[..end]).into_owned();
                self.unread.drain(..end + 2);
                return Ok(line);
            }
            if self.unread.len() > 4096 {
                return Err(Error::Systemd("systemd's greeting is too long".into()));
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<()> {
        let mut block = [0; 4096];
        match self.stream.read(&mut block) {
            Ok(0) => Err(Error::Systemd("systemd closed the connection".into())),
            Ok(n) => {
                self.unread.extend(&block[..n]);
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                Err(Error::Systemd(format!("systemd does not answer within {} s", PATIENCE.as_secs())))
            }
            Err(e) => Err(Error::Systemd(format!("read from systemd: {e}"))),
        }
    }

    /// What a bus wants before it passes calls on and signals back.
    fn join(&mut self) -> Result<()> {
        let daemon = |member, signature| Call {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member,
            signature,
        };
        self.call(&daemon("Hello", ""), &Encoder::default())?;
        let mut rule = Encoder::default();
        rule.text(&format!("type='signal',sender='{MANAGER}',interface='{INTERFACE}',member='JobRemoved'"));
        self.call(&daemon("AddMatch", "s"), &rule)?;
        self.manager("Subscribe", "", &Encoder::default()).map(drop)
    }

    /// Calls a method of the manager.
    ///
    /// # Errors
    /// [`Error::Unit`] with the name of the error where systemd refuses.
    pub(super) fn manager(&mut self, member: &str, signature: &str, body: &Encoder) -> Result<Message> {
        self.call(&Call { destination: MANAGER, path: OBJECT, interface: INTERFACE, member, signature }, body)
    }

    /// A property of the manager that is a text.
    pub(super) fn manager_property(&mut self, name: &str) -> Result<String> {
        let mut body = Encoder::default();
        body.text(INTERFACE);
        body.text(name);
        let interface = "org.freedesktop.DBus.Properties";
        let call = Call { destination: MANAGER, path: OBJECT, interface, member: "Get", signature: "ss" };
        Ok(self.call(&call, &body)?.text(0).to_owned())
    }

    fn call(&mut self, call: &Call<'_>, body: &Encoder) -> Result<Message> {
        self.serial += 1;
        let serial = self.serial;
        let sent = self.stream.write_all(&call.message(serial, body));
        sent.map_err(|e| Error::Systemd(format!("call {} of systemd: {e}", call.member)))?;
        loop {
            let message = self.next()?;
            match message.kind {
                Kind::Return if message.reply_to == serial => return Ok(message),
                Kind::Error if message.reply_to == serial => {
                    let (name, text) = (message.error.clone(), message.text(0).to_owned());
                    return Err(Error::Unit { action: call.member.to_owned(), name, text });
                }
                _ => self.keep(&message),
            }
        }
    }

    fn keep(&mut self, message: &Message) {
        if message.kind == Kind::Signal && message.member == "JobRemoved" {
            self.ended.push((message.text(1).to_owned(), message.text(3).to_owned()));
        }
    }

    fn next(&mut self) -> Result<Message> {
        loop {
            if let Some(length) = Message::length(&self.unread)?
                && self.unread.len() >= length
            {
                let message = Message::parse(&self.unread[..length]);
                self.unread.drain(..length);
                return message;
            }
            self.fill()?;
        }
    }

    /// Waits for a job's end; says how it ended: `done`, `failed`, `canceled`, `timeout`, `dependency`, `skipped`.
    ///
    /// # Errors
    /// The connection ends before the job.
    pub(super) fn wait_for(&mut self, job: &str) -> Result<String> {
        loop {
            if let Some(at) = self.ended.iter().position(|(path, _)| path == job) {
                return Ok(self.ended.swap_remove(at).1);
            }
            let message = self.next()?;
            self.keep(&message);
        }
    }
}
