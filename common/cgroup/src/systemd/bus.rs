//! A connection to a systemd manager, over its private socket or the message bus.
//!
//! Synchronous and small: a runtime that lives for milliseconds has no use for an event loop.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use gantry_dbus::{Call, Connection, Encoder, Message};

use crate::error::{Error, Result};

/// How long systemd may take for one answer.
const PATIENCE: Duration = Duration::from_secs(30);
const MANAGER: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";

/// A connection.
#[derive(Debug)]
pub(super) struct Bus {
    connection: Connection,
    /// Ends of jobs that came while something else was waited for: the job's path and how it ended.
    ended: Vec<(String, String)>,
}

impl From<gantry_dbus::Error> for Error {
    fn from(error: gantry_dbus::Error) -> Self {
        match error {
            gantry_dbus::Error::Connection(text) | gantry_dbus::Error::Late(text) => Self::Systemd(text),
            gantry_dbus::Error::Refused { member, name, text } => Self::Unit { action: member, name, text },
        }
    }
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
        let open = |path: PathBuf| Connection::open(&path, "systemd", PATIENCE);
        match open(run.join("systemd/private")) {
            Ok(connection) => Ok(Self { connection, ended: Vec::new() }),
            Err(private) => {
                let path = if user { run.join("bus") } else { run.join("dbus/system_bus_socket") };
                let connection = open(path).map_err(|error| Error::Systemd(format!("{error} ({private})")))?;
                let mut bus = Self { connection, ended: Vec::new() };
                bus.join()?;
                Ok(bus)
            }
        }
    }

    /// What a bus wants before it passes calls on and signals back.
    fn join(&mut self) -> Result<()> {
        self.connection.hello()?;
        let rule = format!("type='signal',sender='{MANAGER}',interface='{INTERFACE}',member='JobRemoved'");
        self.connection.subscribe(&rule)?;
        self.manager("Subscribe", "", &Encoder::default()).map(drop)
    }

    /// Calls a method of the manager.
    ///
    /// # Errors
    /// [`Error::Unit`] with the name of the error where systemd refuses.
    pub(super) fn manager(&mut self, member: &str, signature: &str, body: &Encoder) -> Result<Message> {
        let call = Call { destination: MANAGER, path: OBJECT, interface: INTERFACE, member, signature };
        Ok(self.connection.call(&call, body)?)
    }

    /// A property of the manager that is a text.
    pub(super) fn manager_property(&mut self, name: &str) -> Result<String> {
        let mut body = Encoder::default();
        body.text(INTERFACE);
        body.text(name);
        let interface = "org.freedesktop.DBus.Properties";
        let call = Call { destination: MANAGER, path: OBJECT, interface, member: "Get", signature: "ss" };
        Ok(self.connection.call(&call, &body)?.text(0).to_owned())
    }

    /// Waits for a job's end; says how it ended: `done`, `failed`, `canceled`, `timeout`, `dependency`, `skipped`.
    ///
    /// # Errors
    /// The connection ends before the job.
    pub(super) fn wait_for(&mut self, job: &str) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.ended.iter().position(|(path, _)| path == job) {
                return Ok(self.ended.swap_remove(at).1);
            }
            let signal = self.connection.signal(end.saturating_duration_since(Instant::now()))?;
            if signal.member == "JobRemoved" {
                self.ended.push((signal.text(1).to_owned(), signal.text(3).to_owned()));
            }
        }
    }
}
