//! Listening, TLS and the life of connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::handler::{Shared, handle};
use crate::reply::{Reply, text};
use crate::route::{self, Route};
use crate::tls::{Certificates, Files};
use crate::{Node, TlsPolicy, health};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How long requests at work may go on when the server stops.
const GRACE: Duration = Duration::from_secs(2);

/// Who decides what an authenticated user may do.
#[derive(Clone)]
pub enum Authorization {
    /// Everything is allowed.
    AlwaysAllow,
    /// The apiserver decides by SubjectAccessReview.
    Webhook {
        /// Client with the kubelet's own identity.
        client: kube::Client,
        /// How long an "allowed" is remembered (5 min).
        allowed_ttl: Duration,
        /// How long a "denied" is remembered (30 s).
        denied_ttl: Duration,
    },
}

/// How to serve.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where to listen (`0.0.0.0:10250`).
    pub address: SocketAddr,
    /// The node's name, the object of authorization checks.
    pub node_name: String,
    /// PEM chain of the serving certificate; read again when it changes.
    pub cert_file: PathBuf,
    /// PEM key of the serving certificate.
    pub key_file: PathBuf,
    /// A file with certificate and key that wins over these two once it is there; it is written while the server runs.
    pub issued_file: Option<PathBuf>,
    /// PEM bundle of CAs whose client certificates are accepted; read again when it changes. `None`: no x509.
    pub client_ca_file: Option<PathBuf>,
    /// Requests without credentials are `system:anonymous` instead of 401.
    pub anonymous: bool,
    /// Client for TokenReview; `None`: bearer tokens are not accepted.
    pub token_webhook: Option<kube::Client>,
    /// How long a token's review is remembered (2 min).
    pub token_ttl: Duration,
    /// Who decides.
    pub authorization: Authorization,
    /// exec, attach, portForward, run, containerLogs, runningpods, configz, flagz, logs and all below /debug; off answers 405.
    pub debugging_handlers: bool,
    /// `/debug/pprof/`; off answers 405.
    pub profiling: bool,
    /// Versions, cipher suites and key exchanges.
    pub tls: TlsPolicy,
    /// A stream over which nothing has come for so long is closed (4 h); zero: never.
    pub streaming_idle: Duration,
    /// `/logs/?query=SERVICE` shows the service's journal.
    pub log_query: bool,
    /// `/logs/` serves this directory (`/var/log`); `None` answers 405.
    pub system_logs: Option<PathBuf>,
}

/// Why the server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate, key or CA file cannot be used.
    #[error("load {what} from {path}: {reason}", path = path.display())]
    Tls {
        /// `serving certificate`, `serving key` or `client CA`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// A bound server.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    certificates: Arc<Certificates>,
    config: ServerConfig,
    node: Arc<dyn Node>,
}

impl Server {
    /// Loads certificates and starts listening.
    ///
    /// # Errors
    /// A certificate file is unusable or the address is taken.
    pub async fn bind(config: ServerConfig, node: Arc<dyn Node>) -> Result<Self, ServeError> {
        let files = Files {
            cert: config.cert_file.clone(),
            key: config.key_file.clone(),
            issued: config.issued_file.clone(),
            ca: config.client_ca_file.clone(),
        };
        let certificates = Certificates::load(files, config.tls.clone())?;
        let (listener, address) = listen(config.address).await?;
        Ok(Self { listener, address, certificates: Arc::new(certificates), config, node })
    }

    /// The address in use (for port 0).
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`; then closes the listener, gives running requests a moment and cuts the rest.
    pub async fn run(self, stop: CancellationToken) {
        let Self { listener, certificates, config, node, .. } = self;
        let shared = Arc::new(Shared {
            node,
            access: Access::new(&config),
            debugging_handlers: config.debugging_handlers,
            profiling: config.profiling,
            system_logs: config.system_logs.clone(),
            log_query: config.log_query,
            streaming_idle: config.streaming_idle,
            stop: stop.clone(),
        });
        accept(listener, &stop, |stream| {
            let (shared, certificates, stop) = (shared.clone(), certificates.clone(), stop.clone());
            async move {
                let current = certificates.current();
                let handshake = TlsAcceptor::from(current.server.clone()).accept(stream);
                let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(e)) => return tracing::debug!(error = %e, "TLS handshake failed"),
                    Err(_) => return tracing::debug!("TLS handshake timed out"),
                };
                let peer = Arc::new(current.peer(stream.get_ref().1.peer_certificates()));
                serve_connection(stream, &stop, move |request| {
                    let (shared, peer) = (shared.clone(), peer.clone());
                    async move { handle(&shared, &peer, request).await }
                })
                .await;
            }
        })
        .await;
    }
}

/// Plain HTTP `/healthz` (127.0.0.1:10248) until `stop`.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve_healthz(
    address: SocketAddr,
    node: Arc<dyn Node>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let (listener, _) = listen(address).await?;
    accept(listener, &stop, |stream| {
        let (node, stop) = (node.clone(), stop.clone());
        async move {
            serve_connection(stream, &stop, move |request| {
                let node = node.clone();
                async move {
                    let verbose = request.uri().query().is_some_and(|q| q.split('&').any(|p| p.starts_with("verbose")));
                    match route::find(request.method(), request.uri().path()) {
                        Ok(Route::Healthz(one)) => health::healthz(&*node, one.as_deref(), verbose),
                        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
                    }
                }
            })
            .await;
        }
    })
    .await;
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Accepts connections until `stop`, then waits a moment for those at work.
async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    stop: &CancellationToken,
    serve: impl Fn(TcpStream) -> F,
) {
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                tasks.spawn(serve(stream));
            }
            Err(e) => {
                // Out of descriptors or the like: those in use must get a chance to end.
                tracing::warn!(error = %e, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    let _ = tokio::time::timeout(GRACE + Duration::from_secs(1), tasks.wait()).await;
}

pub(crate) async fn serve_connection<S, F>(
    stream: S,
    stop: &CancellationToken,
    handle: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let service = service_fn(move |request| {
        let reply = handle(request);
        async move { Ok::<_, Infallible>(reply.await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(IDLE_TIMEOUT));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => {
            if let Err(e) = result {
                tracing::debug!(error = %e, "connection ended");
            }
            return;
        }
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(GRACE, connection).await;
}
