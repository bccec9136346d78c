//! What the tests share: a node that answers as it is told, a runtime's streaming server, and clients of the server.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use gantry_kube::pki::{self, Pair, Usage};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kubelet_server::{
    Authorization, ContainerRef, ExecOptions, LogFile, Node, NodeError, PodRef, Server, ServerConfig, StreamOptions,
    TlsPolicy,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

pub(crate) struct TestNode {
    pub(crate) log: PathBuf,
    pub(crate) exited: CancellationToken,
    pub(crate) streaming: String,
    pub(crate) asked: Mutex<Vec<String>>,
    pub(crate) sick: Mutex<bool>,
}

impl Node for TestNode {
    fn pods(&self) -> Vec<Pod> {
        let pod = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u1"}, "spec": {"containers": [{"name": "app"}]}});
        vec![serde_json::from_value(pod).unwrap()]
    }

    fn running_pods(&self) -> BoxFuture<'_, Result<Vec<Pod>, NodeError>> {
        async { Ok(self.pods()) }.boxed()
    }

    fn container_log<'a>(&'a self, _: &'a ContainerRef, previous: bool) -> BoxFuture<'a, Result<LogFile, NodeError>> {
        async move {
            if previous {
                return Err(NodeError::BadRequest(
                    "previous terminated container \"app\" in pod \"web\" not found".into(),
                ));
            }
            let exited = self.exited.clone();
            Ok(LogFile { path: self.log.clone(), exited: async move { exited.cancelled().await }.boxed() })
        }
        .boxed()
    }

    fn exec_url<'a>(
        &'a self,
        target: &'a ContainerRef,
        options: &'a ExecOptions,
    ) -> BoxFuture<'a, Result<String, NodeError>> {
        self.asked
            .lock()
            .unwrap()
            .push(format!("exec {} {:?} {:?}", target.container, options.command, options.streams.tty));
        async { Ok(format!("{}/exec/token1?x=y", self.streaming)) }.boxed()
    }

    fn attach_url<'a>(&'a self, _: &'a ContainerRef, _: &'a StreamOptions) -> BoxFuture<'a, Result<String, NodeError>> {
        async { Err(NodeError::Internal("no attach here".into())) }.boxed()
    }

    fn port_forward_url<'a>(&'a self, _: &'a PodRef, ports: &'a [i32]) -> BoxFuture<'a, Result<String, NodeError>> {
        self.asked.lock().unwrap().push(format!("forward {ports:?}"));
        async { Ok(format!("{}/refuse", self.streaming)) }.boxed()
    }

    fn run<'a>(&'a self, _: &'a ContainerRef, command: &'a [String]) -> BoxFuture<'a, Result<Vec<u8>, NodeError>> {
        async move { Ok(command.join("|").into_bytes()) }.boxed()
    }

    fn metrics(&self) -> BoxFuture<'_, String> {
        async { "kubelet_node_name 1\n".to_owned() }.boxed()
    }

    fn cadvisor_metrics(&self) -> BoxFuture<'_, Result<String, NodeError>> {
        async { Err(NodeError::Internal("no stats".into())) }.boxed()
    }

    fn resource_metrics(&self) -> BoxFuture<'_, Result<String, NodeError>> {
        async { Ok("node_cpu_usage_seconds_total 1\n".into()) }.boxed()
    }

    fn probe_metrics(&self) -> BoxFuture<'_, String> {
        async { String::new() }.boxed()
    }

    fn stats_summary(&self, only: bool) -> BoxFuture<'_, Result<Value, NodeError>> {
        async move { Ok(json!({"only": only})) }.boxed()
    }

    fn flagz(&self) -> String {
        "v=2\n".into()
    }

    fn statusz(&self) -> String {
        "kubelet statusz\n".into()
    }

    fn set_verbosity(&self, verbosity: u32) -> Result<(), NodeError> {
        self.asked.lock().unwrap().push(format!("verbosity {verbosity}"));
        Ok(())
    }

    fn configz(&self) -> Value {
        json!({"maxPods": 110})
    }

    fn healthz(&self) -> Vec<(String, Result<(), String>)> {
        vec![("syncloop".into(), if *self.sick.lock().unwrap() { Err("stuck".into()) } else { Ok(()) })]
    }
}

pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) node: Arc<TestNode>,
    pub(crate) address: std::net::SocketAddr,
    pub(crate) ca: Pair,
    pub(crate) other_ca: Pair,
    pub(crate) stop: CancellationToken,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) async fn bench(change: impl FnOnce(&mut ServerConfig)) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let ca = pki::new_ca("test").unwrap();
    let server = pki::issue(&ca, "system:node:n1", &[], &Usage::Server(vec!["127.0.0.1".into()])).unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("ca.crt"), &ca.cert).unwrap();
    fs::write(at("server.crt"), &server.cert).unwrap();
    fs::write(at("server.key"), &server.key).unwrap();
    fs::create_dir(at("pod")).unwrap();
    fs::write(at("pod/0.log"), line(1) + &line(2)).unwrap();
    fs::create_dir(at("varlog")).unwrap();
    fs::write(at("varlog/syslog"), "system line\n").unwrap();
    let node = Arc::new(TestNode {
        log: at("pod/0.log"),
        exited: CancellationToken::new(),
        streaming: format!("http://{}", echo_server().await),
        asked: Mutex::default(),
        sick: Mutex::new(false),
    });
    let mut config = ServerConfig {
        address: "127.0.0.1:0".parse().unwrap(),
        node_name: "n1".into(),
        cert_file: at("server.crt"),
        key_file: at("server.key"),
        issued_file: Some(at("issued.pem")),
        client_ca_file: Some(at("ca.crt")),
        anonymous: false,
        token_webhook: None,
        token_ttl: Duration::from_secs(120),
        authorization: Authorization::AlwaysAllow,
        debugging_handlers: true,
        profiling: true,
        tls: TlsPolicy::default(),
        streaming_idle: Duration::from_secs(3600),
        log_query: true,
        system_logs: Some(at("varlog")),
    };
    change(&mut config);
    let server = Server::bind(config, node.clone()).await.unwrap();
    let (address, stop) = (server.local_addr(), CancellationToken::new());
    tokio::spawn(server.run(stop.clone()));
    Bench { dir, node, address, ca, other_ca: pki::new_ca("other").unwrap(), stop }
}

pub(crate) fn line(n: usize) -> String {
    format!("2026-01-01T00:00:00.{n:09}Z stdout F line {n}\n")
}

/// A runtime's streaming server: `/exec/...` upgrades and echoes, all else is refused.
pub(crate) async fn echo_server() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(|mut request: Request<Incoming>| async move {
                if !request.uri().path().starts_with("/exec/") || request.headers().contains_key("authorization") {
                    let refused = Response::builder().status(StatusCode::NOT_FOUND);
                    return Ok::<_, std::convert::Infallible>(
                        refused.body(Full::new(Bytes::from("unknown token"))).unwrap(),
                    );
                }
                let protocol = request.headers().get("upgrade").unwrap().clone();
                let version = request.headers().get("x-stream-protocol-version").cloned();
                let query = request.uri().query().unwrap_or_default().to_owned();
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let mut stream = TokioIo::new(upgrade.await.unwrap());
                    stream.write_all(format!("hello {query}\n").as_bytes()).await.unwrap();
                    let mut buffer = [0; 1024];
                    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                        stream.write_all(&buffer[..n]).await.unwrap();
                    }
                });
                let mut reply =
                    Response::builder().status(101).header("upgrade", protocol).header("connection", "Upgrade");
                if let Some(version) = version {
                    reply = reply.header("x-stream-protocol-version", version);
                }
                Ok(reply.body(Full::new(Bytes::new())).unwrap())
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades(),
            );
        }
    });
    address
}

pub(crate) enum As<'a> {
    Nobody,
    User(&'a str, &'a str),
    Stranger,
    Token(&'a str),
}

impl Bench {
    pub(crate) async fn connect(
        &self,
        who: &As<'_>,
        h2: bool,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.cert.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let client = |pair: &Pair| {
            (
                vec![CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap(),
            )
        };
        let mut config = match who {
            As::Nobody | As::Token(_) => builder.with_no_client_auth(),
            As::User(name, group) => {
                let (cert, key) = client(&pki::issue(&self.ca, name, &[(*group).to_owned()], &Usage::Client).unwrap());
                builder.with_client_auth_cert(cert, key).unwrap()
            }
            As::Stranger => {
                let (cert, key) = client(&pki::issue(&self.other_ca, "admin", &[], &Usage::Client).unwrap());
                builder.with_client_auth_cert(cert, key).unwrap()
            }
        };
        if h2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        // The stranger shows its certificate although the server does not list its CA.
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    pub(crate) async fn send(&self, who: As<'_>, request: http::request::Builder) -> Response<Incoming> {
        let stream = self.connect(&who, false).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let request = match who {
            As::Token(token) => request.header("authorization", format!("Bearer {token}")),
            _ => request,
        };
        sender.send_request(request.header("host", "n1").body(Empty::<Bytes>::new()).unwrap()).await.unwrap()
    }

    pub(crate) async fn get(&self, who: As<'_>, path: &str) -> (u16, String) {
        self.ask(who, "GET", path).await
    }

    pub(crate) async fn ask(&self, who: As<'_>, method: &str, path: &str) -> (u16, String) {
        let reply = self.send(who, Request::builder().method(method).uri(path)).await;
        let status = reply.status().as_u16();
        let body = tokio::time::timeout(Duration::from_secs(10), reply.into_body().collect()).await.unwrap().unwrap();
        (status, String::from_utf8(body.to_bytes().to_vec()).unwrap())
    }
}

pub(crate) const ADMIN: As<'static> = As::User("admin", "system:masters");
