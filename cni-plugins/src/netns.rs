//! The container's network namespace. A plugin has one thread, so it may go in and must come back.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use gantry_net::Socket;
use gantry_net::link::BorrowedFdKey;
use gantry_sys::namespaces::{Kind, enter, is_pinned};

use crate::spec::{Code, Context, Error, Request, Result};

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
    host: File,
    /// Where it was opened.
    pub path: PathBuf,
}

impl Netns {
    /// Opens the namespace of a request.
    ///
    /// # Errors
    /// It is not there (code 3), or no network namespace (code 4).
    pub fn open(request: &Request) -> Result<Self> {
        let path = request.netns.as_deref().unwrap_or(Path::new(""));
        Self::find(path)?.ok_or_else(|| {
            let text = format!("failed to open netns \"{}\": no such file", path.display());
            Error::new(Code::UnknownContainer, text)
        })
    }

    /// Opens the namespace of a request that may be gone: then there is none.
    ///
    /// # Errors
    /// The path is something else, or cannot be opened.
    pub fn open_if_there(request: &Request) -> Result<Option<Self>> {
        request.netns.as_deref().map_or(Ok(None), Self::find)
    }

    fn find(path: &Path) -> Result<Option<Self>> {
        // Not waiting: the path may be anything, also a pipe that nobody writes to.
        let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = match open {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => {
                let text = format!("failed to open netns \"{}\": {e}", path.display());
                return Err(Error::new(Code::InvalidEnvironment, text));
            }
        };
        let host = File::open("/proc/thread-self/ns/net").doing(|| "open the own network namespace".into())?;
        if !is_pinned(path) {
            let text = format!("\"{}\" is not a network namespace", path.display());
            // A pinned namespace whose mount is gone leaves an empty file: the namespace has vanished.
            let vanished = file.metadata().is_ok_and(|m| m.is_file() && m.len() == 0);
            return if vanished { Ok(None) } else { Err(Error::new(Code::InvalidEnvironment, text)) };
        }
        let netns = Self { file, host, path: path.to_owned() };
        // A namespace of another kind shows itself before anything is made for it.
        netns.within(|| Ok(()))?;
        Ok(Some(netns))
    }

    /// Does something inside.
    ///
    /// # Errors
    /// The namespace cannot be entered, or what `work` says.
    pub fn within<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        enter(&self.file, Kind::Network).map_err(|e| {
            let text = format!("enter network namespace \"{}\": {e}", self.path.display());
            Error::new(Code::InvalidEnvironment, text)
        })?;
        let outcome = work();
        enter(&self.host, Kind::Network).doing(|| "return to the own network namespace".into())?;
        outcome
    }

    /// A netlink socket inside, which stays there.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn socket(&self) -> Result<Socket> {
        self.within(|| Socket::route().doing(|| "open a netlink socket".into()))
    }

    /// As a place for new devices.
    pub fn place(&self) -> BorrowedFdKey<'_> {
        BorrowedFdKey(self.file.as_fd())
    }

    /// The path as text, as results name it.
    pub fn text(&self) -> String {
        self.path.display().to_string()
    }
}

/// Reads a small file that a configuration names, which may be anything.
///
/// # Errors
/// It cannot be read, is no text, or has more than 1 MiB.
pub fn read_small(path: &Path) -> Result<String> {
    const LIMIT: u64 = 1 << 20;
    let read = || {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let mut text = String::new();
        file.take(LIMIT + 1).read_to_string(&mut text)?;
        if text.len() as u64 > LIMIT { Err(io::Error::other("it has more than 1 MiB")) } else { Ok(text) }
    };
    io::Result::doing(read(), || format!("read {}", path.display()))
}

/// Lets the host forward packets of IPv4 or IPv6.
///
/// # Errors
/// The sysctl is read-only.
pub fn let_forward(socket: &mut Socket, four: bool) -> Result<()> {
    if socket.forwards(four).unwrap_or(false) {
        return Ok(());
    }
    set_sysctl(if four { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" }, "1")
}

/// Writes a sysctl of the current network namespace, unless it has the value already.
///
/// # Errors
/// It does not exist or is read-only.
pub fn set_sysctl(name: &str, value: &str) -> Result<()> {
    let path = gantry_sys::namespaces::sysctl_path(name).doing(|| format!("sysctl {name}"))?;
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).doing(|| format!("set sysctl {name} to {value}"))
}
