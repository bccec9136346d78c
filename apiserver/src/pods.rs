//! log, exec, attach and portforward: passed on to the pod's kubelet, upgraded connections byte by byte.

use api_machinery::status::{self, Status};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::time::Duration;
use tokio::net::TcpStream;

use crate::http_util::{Answer, full};
use crate::router::{Api, Call};

const CONNECT: Duration = Duration::from_secs(10);

/// Passes a request on.
pub async fn proxy(api: &Api, call: &Call, mut request: Request<Incoming>) -> Answer {
    let pod = api.store.get(&call.key(&call.name)).ok_or_else(|| status::not_found(call.resource, &call.name))?;
    let pod = &pod.value;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(status::bad_request(format!("pod {} does not have a host assigned", call.name)));
    }
    let address = kubelet_address(api, node)?;
    let (container, query) = onward_query(call, request.uri().query().unwrap_or(""));
    let path = if call.part == "portforward" {
        format!("/portForward/{}/{}", call.namespace, call.name)
    } else {
        let container = choose_container(call, pod, container)?;
        let verb = if call.part == "log" { "containerLogs" } else { call.part.as_str() };
        format!("/{verb}/{}/{}/{container}", call.namespace, call.name)
    };
    let uri = if query.is_empty() { path } else { format!("{path}?{query}") };

    let unreachable = |why: String| status::internal(format!("error dialing backend: {why}"));
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect(&address))
        .await
        .map_err(|_| unreachable(format!("connect to {address}: timed out")))?
        .map_err(|error| unreachable(format!("connect to {address}: {error}")))?;
    let connector = tokio_rustls::TlsConnector::from(api.kubelet_tls.clone());
    let name = ServerName::try_from("kubelet").map_err(|error| unreachable(error.to_string()))?;
    let stream = tokio::time::timeout(CONNECT, connector.connect(name, stream))
        .await
        .map_err(|_| unreachable(format!("TLS with {address}: timed out")))?
        .map_err(|error| unreachable(format!("TLS with {address}: {error}")))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(error.to_string()))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a kubelet ended");
        }
    });
    let upgrading = request.headers().contains_key(header::UPGRADE);
    let mut onward =
        Request::builder().method(if call.part == "log" { Method::GET } else { request.method().clone() }).uri(&uri);
    if let Some(headers) = onward.headers_mut() {
        for (key, value) in request.headers() {
            if !matches!(*key, header::AUTHORIZATION | header::HOST | header::CONTENT_LENGTH | header::ACCEPT_ENCODING)
            {
                headers.append(key.clone(), value.clone());
            }
        }
        headers.insert(header::HOST, HeaderValue::from_str(&address).map_err(status::internal)?);
    }
    let onward = onward.body(Empty::<bytes::Bytes>::new()).map_err(status::internal)?;
    let response = sender.send_request(onward).await.map_err(|error| unreachable(error.to_string()))?;
    let (parts, body) = response.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS && upgrading {
        let client = hyper::upgrade::on(&mut request);
        let answer = Response::from_parts(parts.clone(), body);
        tokio::spawn(async move {
            let (client, kubelet) = match tokio::try_join!(client, hyper::upgrade::on(answer)) {
                Ok(both) => both,
                Err(error) => return tracing::debug!(%error, "an upgrade failed"),
            };
            let (mut client, mut kubelet) = (TokioIo::new(client), TokioIo::new(kubelet));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut kubelet).await {
                tracing::debug!(%error, "a stream ended");
            }
        });
        return Ok(Response::from_parts(parts, full("")));
    }
    let mut out = Response::new(body.map_err(std::io::Error::other).boxed_unsync());
    *out.status_mut() = parts.status;
    for name in [header::CONTENT_TYPE] {
        if let Some(value) = parts.headers.get(&name) {
            out.headers_mut().insert(name, value.clone());
        }
    }
    Ok(out)
}

fn kubelet_address(api: &Api, node: &str) -> Result<String, Status> {
    let missing = || status::internal(format!("no address of node {node:?} is known"));
    let found = api.store.get(&format!("/core/nodes/{node}")).ok_or_else(missing)?;
    let state = &found.value["status"];
    let of = |kind: &str| {
        state["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|a| a["type"] == kind)
            .and_then(|a| a["address"].as_str())
    };
    let host = of("InternalIP").or_else(|| of("Hostname")).ok_or_else(missing)?;
    let port = state["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap_or(10250);
    Ok(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

fn choose_container(call: &Call, pod: &serde_json::Value, asked: String) -> Result<String, Status> {
    let names: Vec<&str> = ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| pod["spec"][*list].as_array().into_iter().flatten())
        .filter_map(|c| c["name"].as_str())
        .collect();
    if asked.is_empty() {
        let default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"]
            .as_str()
            .filter(|name| names.contains(name));
        return Ok(default.or(names.first().copied()).unwrap_or_default().to_owned());
    }
    if names.contains(&asked.as_str()) {
        Ok(asked)
    } else {
        Err(status::bad_request(format!("container {asked} is not valid for pod {}", call.name)))
    }
}

/// The container that is asked for, and the query as kubelets take it.
fn onward_query(call: &Call, text: &str) -> (String, String) {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let mut container = String::new();
    for (key, value) in url::form_urlencoded::parse(text.as_bytes()) {
        match &*key {
            "container" => container = value.into_owned(),
            "stdin" | "stdout" | "stderr" | "tty" if call.part != "log" => {
                let name = match &*key {
                    "stdin" => "input",
                    "stdout" => "output",
                    "stderr" => "error",
                    other => other,
                };
                if value == "true" || value == "1" {
                    query.append_pair(name, "1");
                }
            }
            _ => drop(query.append_pair(&key, &value)),
        }
    }
    (container, query.finish())
}
