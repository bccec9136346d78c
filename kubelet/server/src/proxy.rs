//! Handing an upgraded connection on to the runtime's streaming server: SPDY and WebSocket alike, since after the
//! handshake only bytes are copied.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::dial::{dial, machine_roots};
use crate::reply::{Reply, text};

/// Whether a request asks to switch protocols.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    let tokens = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    headers.contains_key(header::UPGRADE) && { tokens }.any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// Forwards the request to `target` and, when both sides switch protocols, copies bytes until one ends (or `stop`).
/// A stream over which nothing has come for `idle` is closed; zero: never.
pub(crate) async fn forward(
    mut request: Request<Incoming>,
    target: &str,
    idle: Duration,
    stop: CancellationToken,
) -> Reply {
    if !is_upgrade(request.headers()) {
        return text(StatusCode::BAD_REQUEST, "Upgrade request required");
    }
    let client_side = hyper::upgrade::on(&mut request);
    let mut answer = match dial(&request, target, machine_roots).await {
        Ok(answer) => answer,
        Err(e) => {
            tracing::warn!(error = %e, target, "streaming server not reached");
            return text(StatusCode::INTERNAL_SERVER_ERROR, format!("error dialing backend: {e}"));
        }
    };
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return answer.map(|body| body.map_err(io::Error::other).boxed_unsync());
    }
    let runtime_side = hyper::upgrade::on(&mut answer);
    let (parts, _) = answer.into_parts();
    tokio::spawn(async move {
        let copy = async {
            let (client, runtime) = match tokio::try_join!(client_side, runtime_side) {
                Ok(sides) => sides,
                Err(e) => return tracing::debug!(error = %e, "upgrade not finished"),
            };
            let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
            let seen = Seen::default();
            let mut client = Watched { stream: &mut client, seen: seen.clone() };
            let copying = tokio::io::copy_bidirectional(&mut client, &mut runtime);
            tokio::select! {
                ended = copying => match ended {
                    Ok((up, down)) => tracing::debug!(up, down, "stream ended"),
                    Err(e) => tracing::debug!(error = %e, "stream broken off"),
                },
                () = seen.idle_for(idle) => tracing::info!(?idle, "idle stream closed"),
            }
        };
        tokio::select! {
            () = copy => {}
            () = stop.cancelled() => {}
        }
    });
    let mut reply: Reply = http::Response::new(crate::reply::full(""));
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in &parts.headers {
        if name != header::CONTENT_LENGTH && name != header::TRANSFER_ENCODING {
            reply.headers_mut().append(name, value.clone());
        }
    }
    reply
}

/// Counts what goes over a stream, so that an idle one is noticed.
#[derive(Clone, Default)]
struct Seen(Arc<AtomicU64>);

impl Seen {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends when nothing was seen for so long.
    async fn idle_for(&self, limit: Duration) {
        if limit.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let before = self.0.load(Ordering::Relaxed);
            tokio::time::sleep(limit).await;
            if self.0.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

/// One side of a stream; both directions pass it.
struct Watched<'a, S> {
    stream: &'a mut S,
    seen: Seen,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<'_, S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.stream).poll_read(cx, buf);
        if polled.is_ready() {
            self.seen.add();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.seen.add();
        Pin::new(&mut *self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}
