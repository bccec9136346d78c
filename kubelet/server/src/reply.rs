//! Bodies and responses.

use std::io;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use http::{Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;

/// The body of every response.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;
/// What every handler returns.
pub(crate) type Reply = Response<Body>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn streamed(stream: BoxStream<'static, io::Result<Bytes>>) -> Body {
    StreamBody::new(stream.map(|part| part.map(Frame::data))).boxed_unsync()
}

fn with_type(status: StatusCode, kind: &'static str, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    reply
}

pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = with_type(status, "text/plain; charset=utf-8", full(body));
    reply.headers_mut().insert("x-content-type-options", header::HeaderValue::from_static("nosniff"));
    reply
}

pub(crate) fn stream_of_text(stream: BoxStream<'static, io::Result<Bytes>>) -> Reply {
    with_type(StatusCode::OK, "text/plain", streamed(stream))
}

pub(crate) fn html(body: impl Into<Bytes>) -> Reply {
    with_type(StatusCode::OK, "text/html; charset=utf-8", full(body))
}

pub(crate) fn metrics(body: String) -> Reply {
    with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", full(body))
}

pub(crate) fn json(value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(bytes) => with_type(StatusCode::OK, "application/json", full(bytes)),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("encode the answer: {e}")),
    }
}

/// The answer to an error of the kubelet.
pub(crate) fn failure(e: &crate::NodeError) -> Reply {
    text(e.status(), e.to_string())
}
