//! Exec, attach and port-forward sessions: byte streams of the streaming server joined with those of a pod's monitor.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use cri_streaming::{AttachRequest, Duplex, ExecRequest, Io, Runtime, Server, StreamError, TermSize};
use futures::FutureExt;
use futures::future::BoxFuture;
use gantry_monitor::protocol::{Answer, Request};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::mpsc;

use crate::container::exec::{self, Exec};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::sandbox;

/// How long output may still come after a process has ended: descendants may hold its pipes open for ever.
const DRAIN: Duration = Duration::from_secs(2);

/// Sessions of this daemon's containers.
struct Sessions {
    daemon: Weak<Daemon>,
}

/// Starts the streaming server.
///
/// # Errors
/// The configured address is wrong, taken, or beyond the loopback device without TLS; the certificate cannot be used.
pub async fn start(daemon: &Arc<Daemon>) -> io::Result<()> {
    let address = &daemon.config.streaming_address;
    let parsed = address.parse().map_err(|e| io::Error::other(format!("streaming_address {address:?}: {e}")))?;
    let idle = daemon.config.streaming_idle();
    let (certificate, key) = (&daemon.config.streaming_tls_cert_file, &daemon.config.streaming_tls_key_file);
    let tls = match (certificate.as_os_str().is_empty(), key.as_os_str().is_empty()) {
        (true, true) => None,
        (false, false) => Some(cri_streaming::tls(certificate, key)?),
        _ => return Err(io::Error::other("streaming_tls_cert_file and streaming_tls_key_file go together")),
    };
    let sessions = Arc::new(Sessions { daemon: Arc::downgrade(daemon) });
    let bound = Server::bind(parsed, sessions, idle, tls).await;
    let server = bound.map_err(|e| io::Error::new(e.kind(), format!("streaming_address {address:?}: {e}")))?;
    tokio::spawn(server.clone().serve());
    let _ = daemon.streaming.set(server);
    Ok(())
}

fn told(error: impl std::fmt::Display) -> StreamError {
    StreamError(error.to_string())
}

impl Sessions {
    fn daemon(&self) -> Result<Arc<Daemon>, StreamError> {
        self.daemon.upgrade().ok_or_else(|| told("the daemon is going down"))
    }
}

impl Runtime for Sessions {
    fn exec(&self, request: ExecRequest, io: Io) -> BoxFuture<'_, Result<i32, StreamError>> {
        async move {
            let daemon = self.daemon()?;
            let started = exec::exec(&daemon, &request.container_id, request.cmd, request.tty, request.stdin).await;
            run(started.map_err(told)?, io).await
        }
        .boxed()
    }

    fn attach(&self, request: AttachRequest, io: Io) -> BoxFuture<'_, Result<(), StreamError>> {
        async move { attach(&self.daemon()?, &request.container_id, io).await }.boxed()
    }

    fn port_forward(
        &self,
        sandbox: &str,
        port: u16,
        stream: Box<dyn Duplex>,
    ) -> BoxFuture<'_, Result<(), StreamError>> {
        let sandbox = sandbox.to_owned();
        async move { forward(&self.daemon()?, &sandbox, port, stream).await }.boxed()
    }
}

/// Ends a command whose session is given up: its connection to the monitor is what keeps it.
struct HangUp(gantry_monitor::client::Connection);

impl Drop for HangUp {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}

async fn run(exec: Exec, io: Io) -> Result<i32, StreamError> {
    let _hang_up = HangUp(exec.connection.try_clone().map_err(told)?);
    let ended = exec::exit_code(exec.connection);
    let mut carrying = Vec::new();
    if let Some(terminal) = exec.terminal {
        carrying.extend(join_terminal(terminal, io).map_err(told)?);
    } else {
        if let (Some(from), Some(fd)) = (io.stdin, exec.input) {
            let to = Sender::from_owned_fd(fd).map_err(told)?;
            tokio::spawn(copy(from, to));
        }
        for (to, fd) in [(io.stdout, exec.output), (io.stderr, exec.error)] {
            if let Some(fd) = fd {
                let from = Receiver::from_owned_fd(fd).map_err(told)?;
                carrying.push(tokio::spawn(drain(from, to)));
            }
        }
    }
    let code = ended.await.map_err(told)?;
    for carry in &mut carrying {
        if tokio::time::timeout(DRAIN, &mut *carry).await.is_err() {
            carry.abort();
        }
    }
    Ok(code)
}

/// Copies until either end closes.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Copies output; what nobody wants is read all the same, or its writer would stop.
async fn drain(mut from: impl AsyncRead + Unpin, to: Option<cri_streaming::Output>) {
    match to {
        Some(to) => copy(from, to).await,
        None => drop(tokio::io::copy(&mut from, &mut tokio::io::sink()).await),
    }
}

/// Both directions of a terminal's master, and a handle that sets its size. Not a pipe, but read and written like one.
fn terminal(fd: OwnedFd) -> io::Result<(Receiver, Sender, Arc<OwnedFd>)> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    let (from, to) = (fd.try_clone()?, fd.try_clone()?);
    Ok((Receiver::from_owned_fd_unchecked(from)?, Sender::from_owned_fd_unchecked(to)?, Arc::new(fd)))
}

/// Joins a session with a terminal; the tasks that carry output come back.
fn join_terminal(fd: OwnedFd, io: Io) -> io::Result<Vec<tokio::task::JoinHandle<()>>> {
    let (from, to, handle) = terminal(fd)?;
    if let Some(stdin) = io.stdin {
        tokio::spawn(copy(stdin, to));
    }
    tokio::spawn(resize(Arc::downgrade(&handle), io.resize));
    Ok(vec![tokio::spawn(async move {
        // Reading ends with EIO once the terminal's last user has gone.
        drain(from, io.stdout).await;
        drop(handle);
    })])
}

async fn resize(terminal: Weak<OwnedFd>, mut sizes: mpsc::Receiver<TermSize>) {
    while let Some(size) = sizes.recv().await {
        let Some(terminal) = terminal.upgrade() else { return };
        let size = gantry_sys::pty::Size { rows: size.rows, columns: size.columns };
        let _ = gantry_sys::pty::resize(terminal.as_ref(), size);
    }
}

async fn attach(daemon: &Arc<Daemon>, id: &str, io: Io) -> Result<(), StreamError> {
    use std::os::fd::AsFd;
    let container = daemon.container(id).map_err(told)?;
    let client = daemon.monitor(&container.sandbox);
    let (out_near, out_far) = std::io::pipe().map_err(told)?;
    let (err_near, err_far) = std::io::pipe().map_err(told)?;
    let id = container.id.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let request = Request::Attach { id, streams: [true, true] };
        client.open(&request, &[out_far.as_fd(), err_far.as_fd()])
    });
    let (connection, answer, mut fds) = opened.await.map_err(told)?.map_err(told)?;
    let _hang_up = HangUp(connection);
    let Answer::Attached { terminal: terminal_comes, .. } = answer else {
        return Err(told("the monitor gave an unexpected answer"));
    };
    let mut held = None;
    if let Some(fd) = fds.pop() {
        let to = if terminal_comes {
            let (_, to, handle) = terminal(fd).map_err(told)?;
            tokio::spawn(resize(Arc::downgrade(&handle), io.resize));
            held = Some(handle);
            to
        } else {
            Sender::from_owned_fd(fd).map_err(told)?
        };
        if let Some(from) = io.stdin {
            let once = container.record().config.0.stdin_once;
            let (daemon, container) = (daemon.clone(), container.clone());
            tokio::spawn(async move {
                copy(from, to).await;
                // The first client that says it has no more input says so for the container.
                if once {
                    let close = Request::CloseStdin { id: container.id.clone() };
                    if let Err(error) = crate::monitors::call(&daemon, &container.sandbox, close).await {
                        tracing::debug!(container = %container.id, %error, "close standard input");
                    }
                }
            });
        }
    }
    let out = drain(Receiver::from_owned_fd(out_near.into()).map_err(told)?, io.stdout);
    let err = drain(Receiver::from_owned_fd(err_near.into()).map_err(told)?, io.stderr);
    tokio::join!(out, err);
    drop(held);
    Ok(())
}

async fn forward(daemon: &Arc<Daemon>, id: &str, port: u16, mut stream: Box<dyn Duplex>) -> Result<(), StreamError> {
    let sandbox = daemon.sandbox(id).map_err(told)?;
    let host_network = sandbox::options(&sandbox.record()).network() == proto::cri::NamespaceMode::Node;
    let path = (!host_network).then(|| daemon.sandbox_dir(&sandbox.id).join("ns/net"));
    let connect = move || {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let connect = move || std::net::TcpStream::connect_timeout(&address, Duration::from_secs(10));
        match path {
            Some(path) => gantry_sys::namespaces::within_network(&path, connect),
            None => connect(),
        }
    };
    let socket = tokio::task::spawn_blocking(connect).await.map_err(told)?;
    let socket = socket.map_err(|e| told(format!("connect to port {port} in the pod: {e}")))?;
    socket.set_nonblocking(true).map_err(told)?;
    let mut socket = TcpStream::from_std(socket).map_err(told)?;
    tokio::io::copy_bidirectional(&mut socket, &mut stream).await.map(drop).map_err(told)
}

/// The container of a session, which must run.
///
/// # Errors
/// There is none, or it does not run.
pub fn running(daemon: &Daemon, id: &str) -> crate::error::Result<Arc<crate::daemon::Container>> {
    let container = daemon.container(id)?;
    if container.state() != proto::cri::ContainerState::ContainerRunning {
        return Err(Error::State(format!("container {} is not running", container.id)));
    }
    Ok(container)
}

/// An address that the rpcs answer.
///
/// # Errors
/// The server does not run, or too many addresses wait.
pub fn url(daemon: &Daemon, make: impl FnOnce(&Server) -> io::Result<String>) -> crate::error::Result<String> {
    let server = daemon.streaming.get().ok_or_else(|| Error::Failed("the streaming server does not run".to_owned()))?;
    make(server).map_err(Error::failed("open a streaming session"))
}
