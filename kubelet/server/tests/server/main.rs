//! The server from outside: TLS, who may do what, logs, upgrades.

mod bench;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use gantry_kube::pki::{self, Usage};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kubelet_server::{Authorization, Server, ServerConfig, TlsPolicy, serve_healthz};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use bench::{ADMIN, As, bench, line};

#[tokio::test]
async fn only_known_users_are_served() {
    let b = bench(|_| {}).await;
    assert_eq!(b.get(As::Nobody, "/pods").await, (401, "Unauthorized".into()));
    assert_eq!(b.get(As::Stranger, "/pods").await, (401, "Unauthorized".into()));
    assert_eq!(b.get(As::Token("x"), "/pods").await, (401, "Unauthorized".into()));
    let (status, body) = b.get(ADMIN, "/pods").await;
    assert_eq!(status, 200);
    let list: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&list["kind"], &list["items"][0]["metadata"]["name"]), (&json!("PodList"), &json!("web")));
    let open = bench(|config| config.anonymous = true).await;
    assert_eq!(open.get(As::Nobody, "/pods").await.0, 200);
    assert_eq!(open.get(As::Stranger, "/pods").await.0, 401, "wrong credentials are not none");
}

/// An apiserver that knows one token and lets only masters (and `reader` on metrics) do things.
async fn reviewer(asked: Arc<Mutex<Vec<Value>>>) -> kube::Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let asked = asked.clone();
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let asked = asked.clone();
                async move {
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let mut review: Value = serde_json::from_slice(&body).unwrap();
                    asked.lock().unwrap().push(review.clone());
                    let spec = review["spec"].clone();
                    review["status"] = if review["kind"] == "TokenReview" {
                        json!({"authenticated": spec["token"] == "good", "user": {"username": "reader", "groups": ["g"]}})
                    } else {
                        let master = spec["groups"].as_array().unwrap().contains(&json!("system:masters"));
                        let metrics =
                            spec["user"] == "reader" && spec["resourceAttributes"]["subresource"] == "metrics";
                        json!({"allowed": master || metrics})
                    };
                    let reply = Response::builder().status(201).header("content-type", "application/json");
                    Ok::<_, std::convert::Infallible>(reply.body(Full::new(Bytes::from(review.to_string()))).unwrap())
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    let _ = rustls::crypto::ring::default_provider().install_default();
    kube::Client::try_from(kube::Config::new(format!("http://{address}").parse().unwrap())).unwrap()
}

#[tokio::test]
async fn the_apiserver_decides_and_is_remembered() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let client = reviewer(asked.clone()).await;
    let b = bench(|config| {
        config.token_webhook = Some(client.clone());
        config.authorization = Authorization::Webhook {
            client,
            allowed_ttl: Duration::from_secs(300),
            denied_ttl: Duration::from_secs(30),
        };
    })
    .await;
    assert_eq!(b.get(ADMIN, "/pods").await.0, 200);
    let first = asked.lock().unwrap()[0]["spec"].clone();
    assert_eq!(
        first["resourceAttributes"],
        json!({"name": "n1", "resource": "nodes", "subresource": "pods", "verb": "get", "version": "v1"})
    );
    assert_eq!(first["groups"], json!(["system:masters", "system:authenticated"]));
    let (status, body) = b.get(As::Token("good"), "/pods").await;
    assert_eq!(
        (status, body.as_str()),
        (403, "Forbidden (user=reader, verb=get, resource=nodes, subresource(s)=[pods proxy])\n")
    );
    assert_eq!(b.get(As::Token("good"), "/metrics/resource").await.0, 200);
    assert_eq!(b.get(As::Token("bad"), "/metrics/resource").await.0, 401);
    let n = asked.lock().unwrap().len();
    assert_eq!(b.get(As::Token("good"), "/metrics/resource").await.0, 200);
    assert_eq!(b.get(As::Token("good"), "/pods").await.0, 403);
    assert_eq!(b.get(As::Token("bad"), "/pods").await.0, 401);
    assert_eq!(asked.lock().unwrap().len(), n, "answers are remembered");
    let (_, body) = b.ask(As::Token("good"), "POST", "/run/ns/web/app?cmd=a").await;
    assert!(body.contains("verb=create") && body.contains("subresource(s)=[proxy]"), "{body}");
}

#[tokio::test]
async fn every_path_answers() {
    let b = bench(|_| {}).await;
    for (method, path, status, body) in [
        ("GET", "/healthz", 200, "ok"),
        ("GET", "/healthz/ping", 200, "ok"),
        ("GET", "/healthz/none", 404, "404 page not found\n"),
        ("GET", "/metrics", 200, "kubelet_node_name 1\n"),
        ("GET", "/metrics/resource", 200, "node_cpu_usage_seconds_total 1\n"),
        ("GET", "/metrics/cadvisor", 500, "no stats"),
        ("GET", "/metrics/probes", 200, ""),
        ("GET", "/stats/summary?only_cpu_and_memory=true", 200, "{\"only\":true}"),
        ("GET", "/configz", 200, "{\"kubeletconfig\":{\"maxPods\":110}}"),
        ("POST", "/run/ns/web/app?cmd=ls%20-l", 200, "ls|-l"),
        ("POST", "/run/ns/none/app?cmd=ls", 404, "pod does not exist"),
        ("GET", "/logs/syslog", 200, "system line\n"),
        ("GET", "/logs/none", 404, "404 page not found\n"),
        ("GET", "/logs/..%2fca.crt", 403, "403 Forbidden\n"),
        ("GET", "/logs/?query=syslog&tailLines=1", 200, "system line\n"),
        ("GET", "/logs/?query=a&boot=1", 400, "boot: it must be less than 1\n"),
        ("GET", "/flagz", 200, "v=2\n"),
        ("GET", "/statusz", 200, "kubelet statusz\n"),
        ("PUT", "/debug/flags/v", 400, "the body must be a number\n"),
        (
            "POST",
            "/checkpoint/ns/web/app?timeout=5",
            404,
            "checkpointing of ns/web/app failed (checkpoints are not supported)",
        ),
        ("POST", "/checkpoint/ns/web/none", 404, "container none does not exist"),
        ("GET", "/none", 404, "404 page not found\n"),
        ("DELETE", "/pods", 405, "405: Method Not Allowed"),
        ("GET", "/exec/ns/web/app?command=ls&output=1", 400, "Upgrade request required"),
        ("GET", "/exec/ns/web/app?command=ls", 400, "you must specify at least 1 of stdin, stdout, stderr"),
        ("GET", "/exec/ns/web/other/app?command=ls&output=1", 404, "pod does not exist"),
        ("GET", "/attach/ns/web/app?output=1", 500, "no attach here"),
        ("GET", "/portForward/ns/web?port=x", 400, "unable to parse \"x\" as a port"),
    ] {
        assert_eq!(b.ask(ADMIN, method, path).await, (status, body.to_owned()), "{method} {path}");
    }
    let slis = b.get(ADMIN, "/metrics/slis").await.1;
    assert!(slis.contains("kubernetes_healthcheck{name=\"syncloop\",type=\"healthz\"} 1\n"), "{slis}");
    assert!(b.get(ADMIN, "/logs/").await.1.contains("<a href=\"syslog\">syslog</a>"));
    *b.node.sick.lock().unwrap() = true;
    assert_eq!(b.get(ADMIN, "/healthz").await.0, 500);
    let closed = bench(|config| config.debugging_handlers = false).await;
    for path in ["/containerLogs/ns/web/app", "/runningpods/", "/logs/", "/debug/pprof/heap", "/configz", "/flagz"] {
        assert_eq!(closed.get(ADMIN, path).await, (405, "Debug endpoints are disabled.\n".into()), "{path}");
    }
    assert_eq!(closed.get(ADMIN, "/pods").await.0, 200);
    let half = bench(|config| {
        config.system_logs = None;
        config.profiling = false;
    })
    .await;
    assert_eq!(half.get(ADMIN, "/logs/").await, (405, "logs endpoint is disabled.\n".into()));
    assert_eq!(half.get(ADMIN, "/debug/pprof/cmdline").await, (405, "profiling endpoint is disabled.\n".into()));
}

#[tokio::test]
async fn logs_are_read_with_upstreams_errors() {
    let b = bench(|_| {}).await;
    for (path, status, body) in [
        ("/containerLogs/ns/web/app", 200, "line 1\nline 2\n"),
        ("/containerLogs/ns/web/app?tailLines=1", 200, "line 2\n"),
        ("/containerLogs/ns/web/app?limitBytes=3", 200, "lin"),
        ("/containerLogs/ns/web/app?tailLines=1&timestamps=true", 200, "2026-01-01T00:00:00.000000002Z line 2\n"),
        ("/containerLogs/ns/none/app", 404, "pod \"none\" does not exist\n"),
        ("/containerLogs/ns/web/none", 404, "container \"none\" not found in pod \"web\"\n"),
        (
            "/containerLogs/ns/web/app?previous=true",
            400,
            "previous terminated container \"app\" in pod \"web\" not found",
        ),
        ("/containerLogs/ns/web/app?tailLines=x", 400, "{\"message\": \"Unable to decode query.\"}"),
        ("/containerLogs/ns/web/app?sinceSeconds=-1", 422, "{\"message\": \"Invalid request.\"}"),
    ] {
        assert_eq!(b.get(ADMIN, path).await, (status, body.to_owned()), "{path}");
    }
    fs::remove_file(&b.node.log).unwrap();
    assert_eq!(b.get(ADMIN, "/containerLogs/ns/web/app").await.0, 400);
}

#[tokio::test]
async fn a_followed_log_arrives_as_it_is_written() {
    let b = bench(|_| {}).await;
    let request = Request::builder().uri("/containerLogs/ns/web/app?follow=true&tailLines=1");
    let mut body = b.send(ADMIN, request).await.into_body();
    let mut next = async || {
        let frame = tokio::time::timeout(Duration::from_secs(3), body.frame()).await.expect("in time");
        frame.map(|f| String::from_utf8(f.unwrap().into_data().unwrap().to_vec()).unwrap())
    };
    assert_eq!(next().await.as_deref(), Some("line 2\n"));
    append(&b.node.log, &line(3));
    assert_eq!(next().await.as_deref(), Some("line 3\n"));
    fs::rename(&b.node.log, b.dir.path().join("pod/0.log.20260101-000000")).unwrap();
    append(&b.dir.path().join("pod/0.log.20260101-000000"), &line(4));
    assert_eq!(next().await.as_deref(), Some("line 4\n"));
    append(&b.node.log, &line(5));
    assert_eq!(next().await.as_deref(), Some("line 5\n"));
    b.node.exited.cancel();
    assert_eq!(next().await, None);
}

fn append(path: &Path, text: &str) {
    fs::OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[tokio::test]
async fn upgrades_pass_to_the_runtime() {
    let b = bench(|_| {}).await;
    for (method, protocol) in [("POST", "SPDY/3.1"), ("GET", "websocket")] {
        let request = Request::builder()
            .method(method)
            .uri("/exec/ns/web/u1/app?command=sh&command=-c&input=1&output=1&tty=1")
            .header("connection", "Upgrade")
            .header("upgrade", protocol)
            .header("x-stream-protocol-version", "v4.channel.k8s.io")
            .header("authorization", "Bearer mine");
        let reply = b.send(ADMIN, request).await;
        assert_eq!(reply.status(), 101);
        assert_eq!(reply.headers()["upgrade"], protocol);
        assert_eq!(reply.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
        let mut stream = TokioIo::new(hyper::upgrade::on(reply).await.unwrap());
        let mut hello = [0; 10];
        stream.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello x=y\n");
        let big = vec![7; 200_000];
        let (mut read, mut write) = tokio::io::split(&mut stream);
        let mut back = vec![0; big.len()];
        let (sent, got) = tokio::join!(write.write_all(&big), read.read_exact(&mut back));
        sent.unwrap();
        got.unwrap();
        assert_eq!(back, big);
        stream.shutdown().await.unwrap();
    }
    assert_eq!(b.node.asked.lock().unwrap()[0], "exec app [\"sh\", \"-c\"] true");
    let refused = Request::builder()
        .method("POST")
        .uri("/portForward/ns/web?port=80")
        .header("connection", "keep-alive, Upgrade")
        .header("upgrade", "SPDY/3.1");
    let reply = b.send(ADMIN, refused).await;
    assert_eq!(reply.status(), 404, "the runtime's answer is passed on");
    assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), "unknown token");
    assert_eq!(b.node.asked.lock().unwrap().last().unwrap(), "forward [80]");
}

#[tokio::test]
async fn http2_works() {
    let b = bench(|_| {}).await;
    let stream = b.connect(&ADMIN, true).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://n1/metrics").body(Empty::<Bytes>::new()).unwrap();
    let reply = sender.send_request(request).await.unwrap();
    assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), "kubelet_node_name 1\n");
}

#[tokio::test]
async fn changed_certificates_are_used() {
    let b = bench(|_| {}).await;
    assert_eq!(b.get(As::Stranger, "/pods").await.0, 401);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    fs::write(b.dir.path().join("ca.crt"), format!("{}{}", b.ca.cert, b.other_ca.cert)).unwrap();
    assert_eq!(b.get(As::Stranger, "/pods").await.0, 200);
    fs::write(b.dir.path().join("ca.crt"), "no certificate").unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(b.get(ADMIN, "/pods").await.0, 200, "a broken file changes nothing");
}

#[tokio::test]
async fn an_issued_certificate_wins_once_it_is_there() {
    let b = bench(|_| {}).await;
    let shown = async || {
        let stream = b.connect(&As::Nobody, false).await.unwrap();
        let first = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        pki::facts_of_der(&first).unwrap().common_name
    };
    assert_eq!(shown().await, "system:node:n1");
    let issued = pki::issue(&b.ca, "issued", &[], &Usage::Server(vec!["127.0.0.1".into()])).unwrap();
    let new = b.dir.path().join("new.pem");
    fs::write(&new, format!("{}{}", issued.cert, issued.key)).unwrap();
    fs::rename(&new, b.dir.path().join("issued.pem")).unwrap();
    for _ in 0..200 {
        if shown().await == "issued" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the issued certificate is not used");
}

#[tokio::test]
async fn bad_files_stop_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let b = bench(|_| {}).await;
    let config = |cert: &Path, ca: Option<&Path>| ServerConfig {
        address: "127.0.0.1:0".parse().unwrap(),
        node_name: "n1".into(),
        cert_file: cert.into(),
        key_file: b.dir.path().join("server.key"),
        issued_file: None,
        client_ca_file: ca.map(Into::into),
        anonymous: false,
        token_webhook: None,
        token_ttl: Duration::ZERO,
        authorization: Authorization::AlwaysAllow,
        debugging_handlers: true,
        profiling: true,
        tls: TlsPolicy::default(),
        streaming_idle: Duration::from_secs(3600),
        log_query: false,
        system_logs: None,
    };
    let none = dir.path().join("none.crt");
    let e = Server::bind(config(&none, None), b.node.clone()).await.err().unwrap().to_string();
    assert!(e.starts_with(&format!("load serving certificate from {}", none.display())), "{e}");
    let e = Server::bind(config(&b.dir.path().join("server.crt"), Some(&none)), b.node.clone()).await.err().unwrap();
    assert!(e.to_string().starts_with("load client CA from"), "{e}");
}

#[tokio::test]
async fn plain_healthz_serves_health_only() {
    let b = bench(|_| {}).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let server = tokio::spawn(serve_healthz(free, b.node.clone(), b.stop.clone()));
    let get = async |path: &str| {
        let stream = loop {
            match TcpStream::connect(free).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(path).header("host", "n1").body(Empty::<Bytes>::new()).unwrap();
        let reply = sender.send_request(request).await.unwrap();
        let status = reply.status().as_u16();
        (status, String::from_utf8(reply.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    };
    assert_eq!(get("/healthz").await, (200, "ok".into()));
    assert_eq!(get("/healthz?verbose").await.1, "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n");
    assert_eq!(get("/pods").await.0, 404);
    b.stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), server).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn tools_on_the_machine_read_over_a_socket_of_roots() {
    use std::os::unix::fs::PermissionsExt;
    let b = bench(|_| {}).await;
    let path = b.dir.path().join("kubelet.sock");
    fs::write(&path, "what a killed kubelet left").unwrap();
    let (node, stop, at) = (b.node.clone(), b.stop.clone(), path.clone());
    let served = tokio::spawn(async move { kubelet_server::serve_local(&at, node, stop).await });
    let ask = async |method: &str, what: &str| {
        let stream = loop {
            match tokio::net::UnixStream::connect(&path).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request =
            Request::builder().method(method).uri(what).header("host", "n1").body(Empty::<Bytes>::new()).unwrap();
        let reply = sender.send_request(request).await.unwrap();
        let status = reply.status().as_u16();
        (status, String::from_utf8(reply.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    };
    let (status, body) = ask("GET", "/pods").await;
    assert!(status == 200 && body.contains("PodList"), "{body}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(ask("GET", "/exec/ns/web/app").await.0, 404, "only to read");
    assert_eq!(ask("POST", "/run/ns/web/app").await.0, 405);
    b.stop.cancel();
    served.await.unwrap().unwrap();
    assert!(!path.exists());
}
