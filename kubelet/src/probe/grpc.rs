//! The gRPC probe: `grpc.health.v1.Health/Check`, as gRPC's health checking protocol has it.

use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

const PATH: &str = "/grpc.health.v1.Health/Check";
const SERVING: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct Ask {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

fn word(status: i32) -> String {
    match status {
        0 => "UNKNOWN".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => other.to_string(),
    }
}

/// Asks whether the service serves.
///
/// # Errors
/// It does not, or says nothing in time; the text is that of the event.
pub(super) async fn check(host: &str, port: u16, service: &str, limit: Duration) -> Result<(), String> {
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    let address = format!("{host}:{port}");
    let seconds = limit.as_secs_f32();
    let no_connection = |why: &str| format!("timeout: failed to connect service {address:?} within {seconds}s: {why}");
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .and_then(|e| e.user_agent(super::AGENT))
        .map_err(|e| format!("{address:?} is no address: {e}"))?;
    let work = async {
        let channel = endpoint.connect().await.map_err(|e| {
            let cause = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            format!("error: failed to connect service {address:?}: {cause}")
        })?;
        let mut client = Grpc::new(channel);
        client.ready().await.map_err(|e| no_connection(&e.to_string()))?;
        let request = Request::new(Ask { service: service.to_owned() });
        let codec = ProstCodec::<Ask, Answer>::default();
        match client.unary(request, PathAndQuery::from_static(PATH), codec).await {
            Ok(answer) if answer.get_ref().status == SERVING => Ok(()),
            Ok(answer) => Err(format!("service unhealthy (responded with {:?})", word(answer.get_ref().status))),
            Err(e) if e.code() == Code::Unimplemented => Err(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
                e.message()
            )),
            Err(e) => Err(format!("error: health rpc probe failed: {}", e.message())),
        }
    };
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(format!("timeout: health rpc did not complete within {seconds}s")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, StreamBody};
    use hyper::body::Frame;
    use hyper_util::rt::{TokioExecutor, TokioIo};

    /// A server of gRPC that answers the service `""` with SERVING, `down` with NOT_SERVING, others with NOT_FOUND.
    async fn server() -> u16 {
        use bytes::{BufMut, Bytes, BytesMut};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper::service::service_fn(async |request: http::Request<hyper::body::Incoming>| {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await?.to_bytes();
                    let ask: Ask = prost::Message::decode(body.slice(5..)).unwrap();
                    let (code, status) = match ask.service.as_str() {
                        _ if path != PATH => ("12", 0),
                        "" => ("0", 1),
                        "down" => ("0", 2),
                        _ => ("5", 0),
                    };
                    let answer = prost::Message::encode_to_vec(&Answer { status });
                    let mut frame = BytesMut::new();
                    frame.put_u8(0);
                    frame.put_u32(answer.len() as u32);
                    frame.put_slice(&answer);
                    let trailers =
                        http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]);
                    let frames = vec![
                        Ok::<Frame<Bytes>, hyper::Error>(Frame::data(frame.freeze())),
                        Ok(Frame::trailers(trailers)),
                    ];
                    let body = StreamBody::new(futures::stream::iter(frames));
                    let response = http::Response::builder().header("content-type", "application/grpc").body(body);
                    Ok::<_, hyper::Error>(response.unwrap())
                });
                tokio::spawn(async move {
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        port
    }

    #[tokio::test]
    async fn a_service_serves_or_the_event_says_why_not() {
        let port = server().await;
        let limit = Duration::from_secs(20);
        assert_eq!(check("127.0.0.1", port, "", limit).await, Ok(()));
        let down = check("127.0.0.1", port, "down", limit).await.unwrap_err();
        assert_eq!(down, "service unhealthy (responded with \"NOT_SERVING\")");
        let unknown = check("127.0.0.1", port, "other", limit).await.unwrap_err();
        assert!(unknown.starts_with("error: health rpc probe failed"), "{unknown}");
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = closed.local_addr().unwrap().port();
        drop(closed);
        let refused = check("127.0.0.1", port, "", limit).await.unwrap_err();
        assert!(refused.contains("failed to connect service"), "{refused}");
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let silent = check("127.0.0.1", port, "", Duration::from_millis(300)).await.unwrap_err();
        assert!(silent.starts_with("timeout: health rpc did not complete"), "{silent}");
    }
}
