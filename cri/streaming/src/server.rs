//! The HTTP server: single-use addresses, protocol choice, upgrade.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    UPGRADE,
};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::idle::Idle;
use crate::session::{self, Wanted};
use crate::{AttachRequest, ExecRequest, Runtime, websocket};

/// How long an address is good for, as upstream's.
const LIFETIME: Duration = Duration::from_secs(60);
/// How long a client may take to begin: the handshake, then the head of its request.
const BEGINNING: Duration = Duration::from_secs(30);
/// Addresses that may wait at once.
const MOST_WAITING: usize = 1000;

/// What an address is for.
#[derive(Clone, Debug)]
pub(crate) enum Pending {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(String),
}

struct Shared {
    runtime: Arc<dyn Runtime>,
    waiting: Mutex<HashMap<String, (Pending, Instant)>>,
    /// In milliseconds.
    idle: AtomicU64,
    tls: Option<TlsAcceptor>,
}

/// The streaming server; cheap to clone.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: Arc<TcpListener>,
}

fn milliseconds(of: Duration) -> u64 {
    u64::try_from(of.as_millis()).unwrap_or(u64::MAX)
}

impl Server {
    /// Listens on `address` (port 0: any free one). A session that carries nothing for as long as `idle` is ended.
    ///
    /// # Errors
    /// The address cannot be had, or can be reached from elsewhere and there is no TLS.
    pub async fn bind(
        address: SocketAddr,
        runtime: Arc<dyn Runtime>,
        idle: Duration,
        tls: Option<Arc<ServerConfig>>,
    ) -> io::Result<Self> {
        if tls.is_none() && !address.ip().is_loopback() {
            return Err(io::Error::other(format!(
                "{address} is no loopback address: it wants a certificate and a key"
            )));
        }
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            runtime,
            waiting: Mutex::default(),
            idle: AtomicU64::new(milliseconds(idle)),
            tls: tls.map(TlsAcceptor::from),
        });
        Ok(Self { shared, address, listener: Arc::new(listener) })
    }

    /// Changes how long a session may carry nothing; those that are open keep what they began with.
    pub fn set_idle(&self, idle: Duration) {
        self.shared.idle.store(milliseconds(idle), Ordering::Relaxed);
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// An address for one exec session.
    ///
    /// # Errors
    /// Too many addresses wait to be used.
    pub fn exec_url(&self, request: ExecRequest) -> io::Result<String> {
        self.url("exec", Pending::Exec(request))
    }

    /// An address for one attach session.
    ///
    /// # Errors
    /// As [`Server::exec_url`].
    pub fn attach_url(&self, request: AttachRequest) -> io::Result<String> {
        self.url("attach", Pending::Attach(request))
    }

    /// An address for one port-forward session to a sandbox.
    ///
    /// # Errors
    /// As [`Server::exec_url`].
    pub fn port_forward_url(&self, sandbox: &str) -> io::Result<String> {
        self.url("portforward", Pending::PortForward(sandbox.to_owned()))
    }

    fn url(&self, verb: &str, pending: Pending) -> io::Result<String> {
        let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (_, since)| since.elapsed() < LIFETIME);
        if waiting.len() >= MOST_WAITING {
            return Err(io::Error::other("too many streaming sessions wait to be opened"));
        }
        let token = format!("{:032x}", rand::random::<u128>());
        let scheme = if self.shared.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/{verb}/{token}", self.address);
        waiting.insert(token, (pending, Instant::now()));
        Ok(url)
    }

    /// Serves until the task is dropped.
    pub async fn serve(self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let shared = self.shared.clone();
                    tokio::spawn(async move { accepted(shared, stream).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept on the streaming server");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn accepted(shared: Arc<Shared>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = shared.tls.clone() else { return connection(shared, stream).await };
    match tokio::time::timeout(BEGINNING, tls.accept(stream)).await {
        Ok(Ok(stream)) => connection(shared, stream).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake on the streaming server"),
        Err(_) => tracing::debug!("no TLS handshake on the streaming server in time"),
    }
}

async fn connection(shared: Arc<Shared>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(&shared, request)) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(BEGINNING)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%error, "streaming connection");
    }
}

/// Which protocol a session is carried by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Spdy { structured: bool },
    WebSocket,
    Tunnel,
}

fn answer(shared: &Arc<Shared>, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let refuse = |status: StatusCode, why: &str| {
        let mut response = Response::new(Full::new(Bytes::from(format!("{why}\n"))));
        *response.status_mut() = status;
        response
    };
    let token = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let forward = request.uri().path().starts_with("/portforward/");
    let (carrier, headers) = match choose(request.headers(), forward) {
        Ok(chosen) => chosen,
        Err(why) => return refuse(StatusCode::BAD_REQUEST, &why),
    };
    let found = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&token);
    let Some((pending, _)) = found.filter(|(_, since)| since.elapsed() < LIFETIME) else {
        return refuse(StatusCode::NOT_FOUND, "no such session: addresses are good for one use within a minute");
    };
    let (runtime, idle) = (shared.runtime.clone(), Duration::from_millis(shared.idle.load(Ordering::Relaxed)));
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(socket) => serve(carrier, Idle::new(TokioIo::new(socket), idle), runtime, pending).await,
            Err(error) => tracing::debug!(%error, "upgrade"),
        }
    });
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    response
}

async fn serve(
    carrier: Carrier,
    socket: Idle<TokioIo<hyper::upgrade::Upgraded>>,
    runtime: Arc<dyn Runtime>,
    pending: Pending,
) {
    let served = match (carrier, Wanted::of(&pending), pending) {
        (Carrier::Spdy { .. }, None, Pending::PortForward(sandbox)) => {
            session::forward_over_spdy(socket, runtime, sandbox).await
        }
        (_, None, Pending::PortForward(sandbox)) => {
            session::forward_over_spdy(websocket::tunnel(socket).await, runtime, sandbox).await
        }
        (Carrier::Spdy { structured }, Some(wanted), pending) => {
            session::over_spdy(socket, runtime, pending, wanted, structured).await
        }
        (_, Some(wanted), pending) => websocket::session(socket, runtime, pending, wanted).await,
        (_, None, _) => Ok(()),
    };
    if let Err(error) = served {
        tracing::debug!(%error, "streaming session");
    }
}

/// The protocol for a request, and the headers that accept it.
fn choose(headers: &HeaderMap, forward: bool) -> Result<(Carrier, HeaderMap), String> {
    let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut accept = HeaderMap::new();
    accept.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if text(&UPGRADE).eq_ignore_ascii_case("websocket") {
        let known: &[&'static str] =
            if forward { &["SPDY/3.1+portforward.k8s.io"] } else { &["v5.channel.k8s.io", "v4.channel.k8s.io"] };
        let offered: Vec<&str> = headers
            .get_all(SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .map(str::trim)
            .collect();
        let Some(chosen) = known.iter().find(|k| offered.contains(k)) else {
            return Err(format!("none of the WebSocket protocols {offered:?} is served here: want one of {known:?}"));
        };
        let key = text(&SEC_WEBSOCKET_KEY);
        if key.is_empty() {
            return Err("Sec-WebSocket-Key is missing".to_owned());
        }
        let derived = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
        accept.insert(UPGRADE, HeaderValue::from_static("websocket"));
        accept.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
        if let Ok(value) = HeaderValue::from_str(&derived) {
            accept.insert(SEC_WEBSOCKET_ACCEPT, value);
        }
        return Ok((if forward { Carrier::Tunnel } else { Carrier::WebSocket }, accept));
    }
    if !text(&UPGRADE).to_ascii_uppercase().starts_with("SPDY/3.1") {
        return Err("unable to upgrade: want Upgrade: websocket or SPDY/3.1".to_owned());
    }
    let version = HeaderName::from_static("x-stream-protocol-version");
    let known: &[&'static str] = if forward {
        &["portforward.k8s.io"]
    } else {
        &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]
    };
    let offered: Vec<&str> = headers
        .get_all(&version)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .collect();
    // A client that names no version speaks the first one.
    let fallback = known[known.len() - 1];
    let chosen = known.iter().find(|k| offered.contains(k)).copied().or(offered.is_empty().then_some(fallback));
    let Some(chosen) = chosen else {
        return Err(format!("none of the protocols {offered:?} is served here: want one of {known:?}"));
    };
    accept.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    accept.insert(version, HeaderValue::from_static(chosen));
    Ok((Carrier::Spdy { structured: chosen == "v4.channel.k8s.io" }, accept))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&str, &str)]) -> HeaderMap {
        let pair = |(n, v): &(&str, &str)| (n.parse::<HeaderName>().unwrap(), v.parse::<HeaderValue>().unwrap());
        all.iter().map(pair).collect()
    }

    #[test]
    fn the_newest_protocol_that_both_know_is_chosen() {
        let spdy = |v: &str| choose(&headers(&[("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", v)]), false);
        let (carrier, accept) = spdy("v2.channel.k8s.io, v4.channel.k8s.io").unwrap();
        assert_eq!(carrier, Carrier::Spdy { structured: true });
        assert_eq!(accept["x-stream-protocol-version"], "v4.channel.k8s.io");
        assert!(spdy("v9.channel.k8s.io").is_err());
        let ws =
            [("upgrade", "websocket"), ("sec-websocket-key", "x"), ("sec-websocket-protocol", "v5.channel.k8s.io")];
        assert_eq!(choose(&headers(&ws), false).unwrap().0, Carrier::WebSocket);
        assert!(choose(&headers(&ws), true).is_err(), "exec's protocol does not forward ports");
        assert!(choose(&headers(&[]), false).unwrap_err().contains("upgrade"));
    }
}
