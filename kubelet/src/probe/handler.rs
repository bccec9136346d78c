//! One try of a probe: a command, an HTTP request, a TCP connection.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Target;
use crate::shared::Shared;
use crate::tls;

/// As much of an answer as is read.
const BODY_LIMIT: usize = 10 << 10;

/// How a try ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Well.
    Success,
    /// Badly, with the text of the event.
    Failure(String),
}

/// Tries once.
pub(crate) async fn probe(shared: &Shared, target: &Target, probe: &Probe, limit: Duration) -> Outcome {
    let result = if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        match shared.cri.exec_sync(&target.id, &command, limit).await {
            Ok(r) if r.exit_code == 0 => Ok(()),
            Ok(r) => Err(String::from_utf8_lossy(&[r.stdout, r.stderr].concat()).chars().take(BODY_LIMIT).collect()),
            Err(e) if e.code == tonic::Code::DeadlineExceeded => {
                Err(format!("command timed out: {:?} timed out after {}s", command.join(" "), limit.as_secs()))
            }
            Err(e) => Err(e.to_string()),
        }
    } else if let Some(get) = &probe.http_get {
        http_get(get, &target.container, &target.ip, limit).await.and_then(|status| {
            if (200..400).contains(&status) {
                Ok(())
            } else {
                Err(format!("HTTP probe failed with statuscode: {status}"))
            }
        })
    } else if let Some(tcp) = &probe.tcp_socket {
        let host = tcp.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| target.ip.clone());
        match port_number(&tcp.port, &target.container) {
            Some(port) => connect(&host, port, limit).await.map(drop),
            None => Err(format!("no port {:?} in container {}", tcp.port, target.container.name)),
        }
    } else {
        Err("this kind of probe is not supported (exec, httpGet and tcpSocket are)".to_owned())
    };
    result.map_or_else(Outcome::Failure, |()| Outcome::Success)
}

/// The number of a port given by number or by name.
pub(crate) fn port_number(port: &IntOrString, container: &Container) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok().filter(|&p| p > 0),
        IntOrString::String(name) => match name.parse() {
            Ok(number) => Some(number),
            Err(_) => {
                let found = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name))?;
                u16::try_from(found.container_port).ok()
            }
        },
    }
}

async fn connect(host: &str, port: u16, limit: Duration) -> Result<TcpStream, String> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let at = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    match timeout(limit, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) => Err(format!("dial tcp {at}: {e}")),
        Err(_) => Err(format!("dial tcp {at}: i/o timeout")),
    }
}

/// Sends the request; gives the status code.
///
/// # Errors
/// Nothing answered in time.
pub(crate) async fn http_get(
    get: &HTTPGetAction,
    container: &Container,
    ip: &str,
    limit: Duration,
) -> Result<u16, String> {
    let port = port_number(&get.port, container)
        .ok_or_else(|| format!("no port {:?} in container {}", get.port, container.name))?;
    let host = get.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| ip.to_owned());
    let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let path = get.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let what = format!("Get \"{scheme}://{host}:{port}{path}\"");
    let work = async {
        let stream = connect(&host, port, limit).await?;
        let mut request = http::Request::get(&path).header("Connection", "close").header("Accept", "*/*");
        let headers = get.http_headers.iter().flatten();
        let named = |name: &str| get.http_headers.iter().flatten().any(|h| h.name.eq_ignore_ascii_case(name));
        if !named("host") {
            request = request.header("Host", format!("{host}:{port}"));
        }
        if !named("user-agent") {
            request = request.header("User-Agent", "kube-probe/1.36");
        }
        for header in headers {
            request = request.header(&header.name, &header.value);
        }
        let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|e| e.to_string())?;
        if scheme == "https" {
            let stream = tls::connect_unverified(stream, &host).await.map_err(|e| e.to_string())?;
            exchange(stream, request).await
        } else {
            exchange(stream, request).await
        }
    };
    match timeout(limit, work).await {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(e)) => Err(format!("{what}: {e}")),
        Err(_) => Err(format!("{what}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)")),
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: http::Request<Empty<bytes::Bytes>>,
) -> Result<u16, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        // Read on, so that a server does not log a broken connection; an endless answer is cut.
        let _ = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
        Ok(status)
    };
    tokio::pin!(connection);
    tokio::pin!(talk);
    let mut open = true;
    loop {
        tokio::select! {
            status = &mut talk => return status,
            _ = &mut connection, if open => open = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn ports_have_numbers_and_names() {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "http", "containerPort": 8080}]})).unwrap();
        let port = |p: IntOrString| port_number(&p, &container);
        assert_eq!(port(IntOrString::Int(80)), Some(80));
        assert_eq!(port(IntOrString::String("http".into())), Some(8080));
        assert_eq!((port(IntOrString::String("x".into())), port(IntOrString::Int(0))), (None, None));
    }

    #[tokio::test]
    async fn an_answer_is_a_status_and_silence_is_a_timeout() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut first, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            let n = first.read(&mut buffer).await.unwrap();
            assert!(String::from_utf8_lossy(&buffer[..n]).to_lowercase().contains("user-agent: kube-probe/"));
            first.write_all(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            let _second = listener.accept().await.unwrap();
            std::future::pending::<()>().await;
        });
        let get = HTTPGetAction { port: IntOrString::Int(i32::from(port)), ..Default::default() };
        let container = Container::default();
        let once = || http_get(&get, &container, "127.0.0.1", Duration::from_millis(500));
        assert_eq!(once().await, Ok(503));
        assert!(once().await.unwrap_err().contains("context deadline exceeded"));
    }
}
