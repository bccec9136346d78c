//! Listening, TLS and the life of connections.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::Node;

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
    /// exec, attach, portForward, run, containerLogs; off answers 405.
    pub debugging_handlers: bool,
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
    listener: tokio::net::TcpListener,
    config: ServerConfig,
    node: Arc<dyn Node>,
}

impl Server {
    /// Loads certificates and starts listening.
    ///
    /// # Errors
    /// A certificate file is unusable or the address is taken.
    pub async fn bind(config: ServerConfig, node: Arc<dyn Node>) -> Result<Self, ServeError> {
        let address = config.address;
        let listener =
            tokio::net::TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
        Ok(Self { listener, config, node })
    }

    /// The address in use (for port 0).
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr().unwrap_or(self.config.address)
    }

    /// Serves until `stop`; then closes the listener, gives running requests a moment and cuts the rest.
    pub async fn run(self, stop: CancellationToken) {
        let _ = &self.node;
        stop.cancelled().await;
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
    let listener =
        tokio::net::TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
    stop.cancelled().await;
    drop((listener, node));
    Ok(())
}
