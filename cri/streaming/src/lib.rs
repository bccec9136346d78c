//! Exec, attach and port-forward streams: what the kubelet and the apiserver pass upgraded bytes through to.
//!
//! Served today: exec and attach over WebSocket (`v5.channel.k8s.io`, `v4.channel.k8s.io`). SPDY/3.1 and
//! port-forward requests are refused with an error that says so.

mod server;
mod session;

pub use server::Server;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// Why a stream could not be served.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StreamError(pub String);

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TermSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A command to run in a container.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// The container's id.
    pub container_id: String,
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// Whether the command gets a terminal.
    pub tty: bool,
    /// Whether the client sends standard input.
    pub stdin: bool,
    /// Whether the client wants standard output.
    pub stdout: bool,
    /// Whether the client wants standard error.
    pub stderr: bool,
}

/// A container's main process to attach to.
#[derive(Debug, Clone, Default)]
pub struct AttachRequest {
    /// The container's id.
    pub container_id: String,
    /// Whether the container has a terminal.
    pub tty: bool,
    /// Whether the client sends standard input.
    pub stdin: bool,
    /// Whether the client wants standard output.
    pub stdout: bool,
    /// Whether the client wants standard error.
    pub stderr: bool,
}

/// A readable end.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// A writable end.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Both directions of one forwarded connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The streams of one exec or attach; those that were not asked for are absent.
pub struct Io {
    /// What the client types.
    pub stdin: Option<Reader>,
    /// Where output goes.
    pub stdout: Option<Writer>,
    /// Where error output goes; absent with a terminal.
    pub stderr: Option<Writer>,
    /// New terminal sizes.
    pub resize: mpsc::Receiver<TermSize>,
}

/// What the server calls for a stream; implemented by gantry-cri.
pub trait Runtime: Send + Sync + 'static {
    /// Runs the command and returns its exit code.
    fn exec(&self, req: ExecRequest, io: Io) -> BoxFuture<'_, Result<i32, StreamError>>;
    /// Connects to the container's main process until either side ends.
    fn attach(&self, req: AttachRequest, io: Io) -> BoxFuture<'_, Result<(), StreamError>>;
    /// Joins `stream` with `port` inside the sandbox.
    fn port_forward(
        &self,
        sandbox_id: &str,
        port: u16,
        stream: Box<dyn Duplex>,
    ) -> BoxFuture<'_, Result<(), StreamError>>;
}
