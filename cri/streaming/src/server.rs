//! The listener and its single-use tokens: a URL is worth one stream within a minute.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::any;

use crate::{AttachRequest, ExecRequest, Runtime, session};

const TOKEN_LIFE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(crate) enum Request {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward,
}

#[derive(Clone)]
struct Shared {
    tokens: Arc<Mutex<HashMap<String, (Instant, Request)>>>,
    runtime: Arc<dyn Runtime>,
}

/// The streaming server.
pub struct Server {
    listener: std::net::TcpListener,
    addr: SocketAddr,
    shared: Shared,
}

impl Server {
    /// Binds the listener; port 0 lets the kernel choose.
    pub fn bind(addr: SocketAddr, runtime: Arc<dyn Runtime>) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        Ok(Self { listener, addr, shared: Shared { tokens: Arc::default(), runtime } })
    }

    /// A URL that serves this exec once.
    pub fn exec_url(&self, req: ExecRequest) -> String {
        self.url("exec", Request::Exec(req))
    }

    /// A URL that serves this attach once.
    pub fn attach_url(&self, req: AttachRequest) -> String {
        self.url("attach", Request::Attach(req))
    }

    /// A URL for port-forwarding; opening it answers 501 for now.
    pub fn port_forward_url(&self, _sandbox: &str, _ports: &[u16]) -> String {
        self.url("portforward", Request::PortForward)
    }

    fn url(&self, verb: &str, req: Request) -> String {
        let token = format!("{:032x}", rand::random::<u128>());
        let mut tokens = self.shared.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, (made, _)| made.elapsed() < TOKEN_LIFE);
        tokens.insert(token.clone(), (Instant::now(), req));
        format!("http://{}/{verb}/{token}", self.addr)
    }

    /// Serves until the listener fails; the shared handle goes on making URLs.
    pub async fn serve(self: Arc<Self>) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener.try_clone()?)?;
        let app = Router::new().route("/{verb}/{token}", any(open)).with_state(self.shared.clone());
        axum::serve(listener, app).await
    }
}

async fn open(
    State(shared): State<Shared>,
    Path((_, token)): Path<(String, String)>,
    ws: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let found = shared.tokens.lock().unwrap_or_else(PoisonError::into_inner).remove(&token);
    let Some((_, req)) = found.filter(|(made, _)| made.elapsed() < TOKEN_LIFE) else {
        return (StatusCode::NOT_FOUND, "this stream's token is unknown, used or expired").into_response();
    };
    if matches!(req, Request::PortForward) {
        return (StatusCode::NOT_IMPLEMENTED, "port-forward is not supported yet").into_response();
    }
    let Ok(ws) = ws else {
        return (StatusCode::NOT_IMPLEMENTED, "only WebSocket streams are supported; SPDY/3.1 is not yet")
            .into_response();
    };
    let ws = ws.protocols(["v5.channel.k8s.io", "v4.channel.k8s.io"]);
    if ws.selected_protocol().is_none() {
        return (StatusCode::BAD_REQUEST, "offer v5.channel.k8s.io or v4.channel.k8s.io").into_response();
    }
    ws.on_upgrade(move |socket| session::run(socket, req, shared.runtime))
}
