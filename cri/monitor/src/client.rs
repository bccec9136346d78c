//! The caller's side: one connection per request, blocking with a time-out. Cheap enough to call from a worker thread.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::frame;
use crate::protocol::{Answer, Request};

/// Why a request to a monitor failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The monitor is not there or went away.
    #[error("talk to the pod's monitor at {socket}: {source}")]
    Gone {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The monitor says why it did not.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// The monitor is there and does not answer in time.
    pub fn is_slow(&self) -> bool {
        let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
        matches!(self, Self::Gone { source, .. } if kinds.contains(&source.kind()))
    }
}

/// How long an answer may take. A monitor does one thing after another, so anything may wait for a runtime at work; but whoever
/// kills can do so without it, and a start of the daemon looks for more than one.
fn patience(request: &Request) -> Duration {
    Duration::from_secs(if matches!(request, Request::Kill { .. } | Request::Look { .. }) { 30 } else { 120 })
}

/// Knows where one pod's monitor listens.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// A connection on which further answers come ([`Request::Exec`], [`Request::Subscribe`]).
#[derive(Debug)]
pub struct Connection {
    socket: PathBuf,
    stream: UnixStream,
}

impl Client {
    /// A client of the monitor that listens at `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Where the monitor listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends a request and waits for its first answer.
    ///
    /// # Errors
    /// The monitor is gone, slower than [`patience`], or refuses.
    pub fn call(&self, request: &Request) -> Result<Answer, Error> {
        self.open(request, &[]).map(|(_, answer, _)| answer)
    }

    /// Whether the monitor is gone for good. One that does not answer within `limit` is not: it may be at work, or held by a file
    /// system.
    pub fn is_gone(&self, limit: Duration) -> bool {
        let Ok(mut connection) = self.send(&Request::Ping, &[]) else { return true };
        if connection.timeout(Some(limit)).is_err() {
            return false;
        }
        match connection.next() {
            Ok(answer) => answer.is_none(),
            Err(error) => !error.is_slow(),
        }
    }

    /// Whether the monitor answers within `limit`.
    pub fn answers(&self, limit: Duration) -> bool {
        let asked = self.send(&Request::Ping, &[]).and_then(|mut connection| {
            connection.timeout(Some(limit))?;
            connection.next()
        });
        matches!(asked, Ok(Some(_)))
    }

    /// As [`Client::call`], sends descriptors along and keeps the connection.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn open(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Connection, Answer, Vec<OwnedFd>), Error> {
        let mut connection = self.send(request, fds)?;
        connection.timeout(Some(patience(request)))?;
        let (answer, fds) = connection.next()?.ok_or_else(|| self.gone(io::ErrorKind::UnexpectedEof.into()))?;
        connection.timeout(None)?;
        match answer {
            Answer::Failed { message } => Err(Error::Refused(message)),
            answer => Ok((connection, answer, fds)),
        }
    }

    /// Sends a request without waiting.
    ///
    /// # Errors
    /// The monitor is gone.
    pub fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Connection, Error> {
        let stream = UnixStream::connect(&self.socket).map_err(|e| self.gone(e))?;
        stream.set_write_timeout(Some(Duration::from_secs(30))).map_err(|e| self.gone(e))?;
        frame::send(&stream, request, fds).map_err(|e| self.gone(e))?;
        Ok(Connection { socket: self.socket.clone(), stream })
    }

    fn gone(&self, source: io::Error) -> Error {
        Error::Gone { socket: self.socket.clone(), source }
    }
}

impl Connection {
    /// The next answer; none when the monitor hung up. Blocks.
    ///
    /// # Errors
    /// The connection broke or timed out.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<(Answer, Vec<OwnedFd>)>, Error> {
        frame::receive(&self.stream).map_err(|source| Error::Gone { socket: self.socket.clone(), source })
    }

    /// Bounds [`Connection::next`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn timeout(&self, limit: Option<Duration>) -> Result<(), Error> {
        self.stream.set_read_timeout(limit).map_err(|source| Error::Gone { socket: self.socket.clone(), source })
    }

    /// A second handle, to hang up from elsewhere ([`Connection::hang_up`]).
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.clone(), stream: self.stream.try_clone()? })
    }

    /// Says that nothing more is asked, and still hears: a running exec is killed, its end is told.
    pub fn no_more_requests(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Hangs up in both directions; a blocked [`Connection::next`] returns.
    pub fn hang_up(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Connection {
    /// The bare socket, for callers that read frames in their own way.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }
}
