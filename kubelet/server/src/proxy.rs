//! Handing an upgraded connection on to the runtime's streaming server: SPDY and WebSocket alike, since after the
//! handshake only bytes are copied.

use std::time::Duration;

use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::reply::{Reply, text};

/// How long the runtime may take to accept and to answer the handshake.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether a request asks to switch protocols.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    let tokens = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    headers.contains_key(header::UPGRADE) && { tokens }.any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// Forwards the request to `target` and, when both sides switch protocols, copies bytes until one ends (or `stop`).
pub(crate) async fn forward(mut request: Request<Incoming>, target: &str, stop: CancellationToken) -> Reply {
    if !is_upgrade(request.headers()) {
        return text(StatusCode::BAD_REQUEST, "Upgrade request required");
    }
    let client_side = hyper::upgrade::on(&mut request);
    let mut answer = match dial(&request, target).await {
        Ok(answer) => answer,
        Err(e) => {
            tracing::warn!(error = %e, target, "streaming server not reached");
            return text(StatusCode::INTERNAL_SERVER_ERROR, format!("error dialing backend: {e}"));
        }
    };
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return answer.map(|body| body.map_err(std::io::Error::other).boxed_unsync());
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
            match tokio::io::copy_bidirectional(&mut client, &mut runtime).await {
                Ok((up, down)) => tracing::debug!(up, down, "stream ended"),
                Err(e) => tracing::debug!(error = %e, "stream broken off"),
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

async fn dial(request: &Request<Incoming>, target: &str) -> Result<http::Response<Incoming>, String> {
    let url = url::Url::parse(target).map_err(|e| format!("bad streaming URL {target:?}: {e}"))?;
    if url.scheme() != "http" {
        return Err(format!("streaming URL {target:?}: scheme {:?} is not supported", url.scheme()));
    }
    let host = url.host_str().ok_or_else(|| format!("streaming URL {target:?} has no host"))?;
    let port = url.port_or_known_default().unwrap_or(80);
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let connect = TcpStream::connect((address, port));
    let stream = tokio::time::timeout(DIAL_TIMEOUT, connect)
        .await
        .map_err(|_| format!("connect to {host}:{port}: timed out"))?
        .map_err(|e| format!("connect to {host}:{port}: {e}"))?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<bytes::Bytes>>(TokioIo::new(stream))
            .await
            .map_err(|e| format!("connect to {host}:{port}: {e}"))?;
    tokio::spawn(connection.with_upgrades());
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let mut onward = Request::builder()
        .method(request.method())
        .uri(path)
        .header(header::HOST, format!("{host}:{port}"))
        .body(Empty::new())
        .map_err(|e| format!("bad streaming URL {target:?}: {e}"))?;
    for (name, value) in request.headers() {
        // The runtime must not see the caller's credentials, and no body is sent on.
        let dropped =
            [header::HOST, header::AUTHORIZATION, header::COOKIE, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
        if !dropped.contains(name) {
            onward.headers_mut().append(name, value.clone());
        }
    }
    tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(onward))
        .await
        .map_err(|_| "the streaming server did not answer in time".to_owned())?
        .map_err(|e| format!("ask the streaming server: {e}"))
}
