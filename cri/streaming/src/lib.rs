//! Exec, attach and port-forward streams over SPDY/3.1 and WebSocket.
//!
//! [`Server`] listens where the kubelet can reach it, hands out single-use addresses and serves each once. What a session
//! does is the caller's: it implements [`Runtime`] and gets plain byte streams, whichever protocol the client spoke.

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod hostile_tests;
mod idle;
mod server;
mod session;
mod spdy;
mod status;
mod tls;
mod websocket;

use std::fmt;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

pub use server::Server;
pub use tls::tls;

/// Bytes from the client.
pub type Input = Box<dyn AsyncRead + Send + Unpin>;
/// Bytes to the client; dropping it tells the client that there is no more.
pub type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// Both directions of one forwarded connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A terminal's new size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// The streams of an exec or attach session, as far as the client asked for them.
pub struct Io {
    /// Standard input.
    pub stdin: Option<Input>,
    /// Standard output (of a terminal: everything).
    pub stdout: Option<Output>,
    /// Standard error.
    pub stderr: Option<Output>,
    /// Terminal sizes as they change.
    pub resize: mpsc::Receiver<TermSize>,
}

/// An exec session as CRI asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecRequest {
    /// Container id.
    pub container_id: String,
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// With a terminal.
    pub tty: bool,
    /// With standard input.
    pub stdin: bool,
    /// With standard output.
    pub stdout: bool,
    /// With standard error (never with a terminal).
    pub stderr: bool,
}

/// An attach session as CRI asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachRequest {
    /// Container id.
    pub container_id: String,
    /// The container has a terminal.
    pub tty: bool,
    /// With standard input.
    pub stdin: bool,
    /// With standard output.
    pub stdout: bool,
    /// With standard error (never with a terminal).
    pub stderr: bool,
}

/// Why a session failed, in words for the person at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamError(pub String);

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StreamError {}

/// What sessions do.
pub trait Runtime: Send + Sync + 'static {
    /// Runs a command to its end; answers its exit code. Dropping the future ends the command.
    fn exec(&self, request: ExecRequest, io: Io) -> BoxFuture<'_, Result<i32, StreamError>>;
    /// Joins a container's streams until it ends or the client leaves.
    fn attach(&self, request: AttachRequest, io: Io) -> BoxFuture<'_, Result<(), StreamError>>;
    /// Carries one connection to a port of a pod until either end closes.
    fn port_forward(&self, sandbox: &str, port: u16, stream: Box<dyn Duplex>)
    -> BoxFuture<'_, Result<(), StreamError>>;
}
