//! One try of a probe: a command, an HTTP request, a TCP connection, a gRPC health check.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::http::{BODY_LIMIT, http_get};
use super::{AGENT, Target, grpc};
use crate::shared::Shared;

/// How a try ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Well; perhaps with the text of a warning.
    Success(Option<String>),
    /// Badly, with the text of the event.
    Failure(String),
    /// Nobody knows: the probe itself could not be done. It counts neither way.
    Unknown(String),
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
            // The runtime is away or refuses: that says nothing of the container.
            Err(e) => return Outcome::Unknown(e.to_string()),
        }
    } else if let Some(get) = &probe.http_get {
        match http_get(get, &target.container, &target.ip, AGENT, limit).await {
            Ok(answer) if !(200..400).contains(&answer.status) => {
                Err(format!("HTTP probe failed with statuscode: {}", answer.status))
            }
            Ok(answer) => {
                let warning =
                    answer.elsewhere.map(|host| format!("Probe terminated redirects at another host: {host}"));
                return Outcome::Success(warning);
            }
            Err(why) => Err(why),
        }
    } else if let Some(tcp) = &probe.tcp_socket {
        let host = tcp.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| target.ip.clone());
        match port_number(&tcp.port, &target.container) {
            Some(port) => connect(&host, port, limit).await.map(drop),
            None => Err(format!("no port {:?} in container {}", tcp.port, target.container.name)),
        }
    } else if let Some(ask) = &probe.grpc {
        match u16::try_from(ask.port) {
            Ok(port) => grpc::check(&target.ip, port, ask.service.as_deref().unwrap_or_default(), limit).await,
            Err(_) => Err(format!("invalid port number: {}", ask.port)),
        }
    } else {
        Err("missing probe handler: it has none of exec, httpGet, tcpSocket and grpc".to_owned())
    };
    result.map_or_else(Outcome::Failure, |()| Outcome::Success(None))
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

/// Connects.
///
/// # Errors
/// Nobody answers in time.
pub(super) async fn connect(host: &str, port: u16, limit: Duration) -> Result<TcpStream, String> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let at = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    match timeout(limit, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) => Err(format!("dial tcp {at}: {e}")),
        Err(_) => Err(format!("dial tcp {at}: i/o timeout")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_have_numbers_and_names() {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "http", "containerPort": 8080}]})).unwrap();
        let port = |p: IntOrString| port_number(&p, &container);
        assert_eq!(port(IntOrString::Int(80)), Some(80));
        assert_eq!(port(IntOrString::String("http".into())), Some(8080));
        assert_eq!((port(IntOrString::String("x".into())), port(IntOrString::Int(0))), (None, None));
    }
}
