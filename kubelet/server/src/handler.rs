//! From a request to its answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{Request, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::access::{Access, Refusal};
use crate::log::LogOptions;
use crate::log_query::{self, LogQuery};
use crate::reply::{Reply, failure, json as json_reply, metrics, stream_of_text, text};
use crate::route::{self, Metrics, NoRoute, Route};
use crate::tls::Peer;
use crate::{
    ContainerRef, ExecOptions, LogFile, Node, NodeError, PodRef, StreamOptions, health, log, proxy, system_logs,
};

/// Everything that requests share.
pub(crate) struct Shared {
    pub(crate) node: Arc<dyn Node>,
    pub(crate) access: Access,
    pub(crate) debugging_handlers: bool,
    pub(crate) profiling: bool,
    pub(crate) system_logs: Option<PathBuf>,
    /// Whether `/logs/?query=` asks the journal.
    pub(crate) log_query: bool,
    /// When an idle stream is closed.
    pub(crate) streaming_idle: std::time::Duration,
    pub(crate) stop: CancellationToken,
}

type Query = Vec<(String, String)>;

/// Answers a request.
pub(crate) async fn handle(shared: &Shared, peer: &Peer, request: Request<Incoming>) -> Reply {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let user = match shared.access.authenticate(peer, request.headers()).await {
        Ok(user) => user,
        Err(refusal) => return refuse(refusal),
    };
    if let Err(refusal) = shared.access.authorize(&user, &method, &path).await {
        tracing::info!(user = %user.name, %method, %path, "request refused");
        return refuse(refusal);
    }
    let start = std::time::Instant::now();
    let reply = match route::find(&method, &path) {
        Ok(route) => {
            let (label, long) = route.label();
            let reply = serve(shared, route, request).await;
            shared.node.requested(method.as_str(), label, long, start.elapsed());
            reply
        }
        Err(NoRoute::NotFound) => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        Err(NoRoute::MethodNotAllowed) => text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"),
    };
    tracing::debug!(user = %user.name, %method, %path, status = reply.status().as_u16(), "request");
    reply
}

fn refuse(refusal: Refusal) -> Reply {
    match refusal {
        Refusal::Unauthorized => text(StatusCode::UNAUTHORIZED, "Unauthorized"),
        Refusal::Forbidden(reason) => text(StatusCode::FORBIDDEN, reason),
        Refusal::Failed(reason) => text(StatusCode::INTERNAL_SERVER_ERROR, reason),
    }
}

async fn serve(shared: &Shared, route: Route, request: Request<Incoming>) -> Reply {
    let node = &*shared.node;
    let query: Query =
        url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()).into_owned().collect();
    if route.is_debugging() && !shared.debugging_handlers {
        return text(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.\n");
    }
    match route {
        Route::Healthz(one) => health::healthz(node, one.as_deref(), query.iter().any(|(k, _)| k == "verbose")),
        Route::Pods => pod_list(node.pods()),
        Route::RunningPods => match node.running_pods().await {
            Ok(pods) => pod_list(pods),
            Err(e) => failure(&e),
        },
        Route::Metrics(which) => {
            let result = match which {
                Metrics::Kubelet => Ok(node.metrics().await),
                Metrics::Probes => Ok(node.probe_metrics().await),
                Metrics::Cadvisor => node.cadvisor_metrics().await,
                Metrics::Resource => node.resource_metrics().await,
                Metrics::Slis => Ok(health::slis(node)),
            };
            result.map_or_else(|e| failure(&e), metrics)
        }
        Route::StatsSummary => {
            let only = is_on(&query, &["only_cpu_and_memory"]);
            node.stats_summary(only).await.map_or_else(|e| failure(&e), |value| json_reply(&value))
        }
        Route::Configz => json_reply(&json!({ "kubeletconfig": node.configz() })),
        Route::ContainerLogs(target) => container_logs(node, &target, &query).await,
        Route::Exec(target) => {
            let options = ExecOptions {
                command: query.iter().filter(|(k, _)| k == "command").map(|(_, v)| v.clone()).collect(),
                streams: match streams(&query) {
                    Ok(streams) => streams,
                    Err(e) => return failure(&e),
                },
            };
            if options.command.is_empty() {
                return failure(&NodeError::BadRequest(
                    "you must specify at least one command for the container".into(),
                ));
            }
            match check_pod(node, &target.pod) {
                Ok(()) => tunnel(shared, request, node.exec_url(&target, &options).await).await,
                Err(e) => failure(&e),
            }
        }
        Route::Attach(target) => match streams(&query).and_then(|s| check_pod(node, &target.pod).map(|()| s)) {
            Ok(streams) => tunnel(shared, request, node.attach_url(&target, &streams).await).await,
            Err(e) => failure(&e),
        },
        Route::PortForward(target) => match ports(&query).and_then(|p| check_pod(node, &target).map(|()| p)) {
            Ok(ports) => tunnel(shared, request, node.port_forward_url(&target, &ports).await).await,
            Err(e) => failure(&e),
        },
        Route::Run(target) => {
            let command: Vec<String> = query
                .iter()
                .find(|(k, _)| k == "cmd")
                .map(|(_, v)| v.split(' ').map(str::to_owned).collect())
                .unwrap_or_default();
            if let Err(e) = check_pod(node, &target.pod) {
                return failure(&e);
            }
            match node.run(&target, &command).await {
                Ok(output) => text(StatusCode::OK, output),
                Err(e) => failure(&e),
            }
        }
        Route::Checkpoint(target) => checkpoint(node, &target, &query).await,
        Route::Flagz => text(StatusCode::OK, node.flagz()),
        Route::Statusz => text(StatusCode::OK, node.statusz()),
        Route::Verbosity => set_verbosity(shared, request).await,
        Route::Profile(_) if !shared.profiling => {
            text(StatusCode::METHOD_NOT_ALLOWED, "profiling endpoint is disabled.\n")
        }
        Route::Profile(name) => profile(&name),
        Route::SystemLogs(path) if path.is_empty() && shared.log_query => match LogQuery::from_query(&query) {
            Ok(Some(asked)) => {
                log_query::serve(shared.system_logs.as_deref().unwrap_or(Path::new("/var/log")), asked).await
            }
            Ok(None) => system_logs_of(shared, &path, request.uri().path()).await,
            Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
        },
        Route::SystemLogs(path) => system_logs_of(shared, &path, request.uri().path()).await,
    }
}

async fn system_logs_of(shared: &Shared, path: &str, url: &str) -> Reply {
    match &shared.system_logs {
        Some(root) => system_logs::serve(root, path, url).await,
        None => text(StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.\n"),
    }
}

async fn checkpoint(node: &dyn Node, target: &ContainerRef, query: &Query) -> Reply {
    let Some(pod) = find_pod(node, &target.pod) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    if !has_container(&pod, &target.container) {
        return text(StatusCode::NOT_FOUND, format!("container {} does not exist", target.container));
    }
    let timeout = match query.iter().rev().find(|(k, _)| k == "timeout").map(|(_, v)| v.parse::<i64>()) {
        Some(Err(_)) => return text(StatusCode::NOT_FOUND, "cannot parse value of timeout parameter"),
        Some(Ok(seconds)) => seconds,
        None => 0,
    };
    match node.checkpoint(target, timeout).await {
        Ok(path) => json_reply(&json!({"items": [path]})),
        Err(e) => {
            let what = format!("{}/{}/{}", target.pod.namespace, target.pod.name, target.container);
            text(e.status(), format!("checkpointing of {what} failed ({e})"))
        }
    }
}

/// `PUT /debug/flags/v` with a number, as upstream's.
async fn set_verbosity(shared: &Shared, request: Request<Incoming>) -> Reply {
    let body = http_body_util::Limited::new(request.into_body(), 64);
    let text_of = http_body_util::BodyExt::collect(body).await.ok().map(|b| b.to_bytes());
    let number = text_of.and_then(|b| std::str::from_utf8(&b).ok()?.trim().parse::<u32>().ok());
    let Some(number) = number else { return text(StatusCode::BAD_REQUEST, "the body must be a number\n") };
    match shared.node.set_verbosity(number) {
        Ok(()) => text(StatusCode::OK, format!("successfully set klog.logging.verbosity to {number}")),
        Err(e) => failure(&e),
    }
}

/// The list of profiles, or one of them. There is no Go runtime that could tell what most of them hold.
fn profile(name: &str) -> Reply {
    match name {
        "" => text(StatusCode::OK, "/debug/pprof/\n\ncmdline: the command line of this process\n"),
        "cmdline" => match std::fs::read("/proc/self/cmdline") {
            // Words are separated by NUL; there is none behind the last.
            Ok(line) => text(StatusCode::OK, line.strip_suffix(b"\0").unwrap_or(&line).to_vec()),
            Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("read /proc/self/cmdline: {e}\n")),
        },
        "allocs" | "block" | "goroutine" | "heap" | "mutex" | "profile" | "symbol" | "threadcreate" | "trace" => {
            let pid = std::process::id();
            let why = format!("this kubelet has no Go runtime to profile; try: perf record -g -p {pid}\n");
            text(StatusCode::NOT_IMPLEMENTED, why)
        }
        _ => text(StatusCode::NOT_FOUND, "Unknown profile\n"),
    }
}

pub(crate) fn pod_list(pods: Vec<Pod>) -> Reply {
    json_reply(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods}))
}

fn find_pod(node: &dyn Node, target: &PodRef) -> Option<Pod> {
    node.pods().into_iter().find(|pod| {
        let meta = &pod.metadata;
        meta.name.as_deref() == Some(&target.name)
            && meta.namespace.as_deref() == Some(&target.namespace)
            && target.uid.as_deref().is_none_or(|uid| meta.uid.as_deref() == Some(uid))
    })
}

fn check_pod(node: &dyn Node, target: &PodRef) -> Result<(), NodeError> {
    match find_pod(node, target) {
        Some(_) => Ok(()),
        None => Err(NodeError::NotFound("pod does not exist".into())),
    }
}

async fn container_logs(node: &dyn Node, target: &ContainerRef, query: &Query) -> Reply {
    let options = match LogOptions::from_query(query, Timestamp::now()) {
        Ok(options) => options,
        Err((status, body)) => return text(status, body),
    };
    let Some(pod) = find_pod(node, &target.pod) else {
        return text(StatusCode::NOT_FOUND, format!("pod {:?} does not exist\n", target.pod.name));
    };
    if !has_container(&pod, &target.container) {
        return text(
            StatusCode::NOT_FOUND,
            format!("container {:?} not found in pod {:?}\n", target.container, target.pod.name),
        );
    }
    let file: LogFile = match node.container_log(target, options.previous).await {
        Ok(file) => file,
        Err(e) => return failure(&e),
    };
    let path = file.path.clone();
    match log::stream(file, options).await {
        Ok(stream) => stream_of_text(stream),
        Err(e) => {
            let reason = format!("failed to open log file {:?}: {e}", path.display());
            text(StatusCode::BAD_REQUEST, reason)
        }
    }
}

fn has_container(pod: &Pod, name: &str) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        spec.containers.iter().any(|c| c.name == name)
            || spec.init_containers.iter().flatten().any(|c| c.name == name)
            || spec.ephemeral_containers.iter().flatten().any(|c| c.name == name)
    })
}

async fn tunnel(shared: &Shared, request: Request<Incoming>, target: Result<String, NodeError>) -> Reply {
    match target {
        Ok(url) => proxy::forward(request, &url, shared.streaming_idle, shared.stop.clone()).await,
        Err(e) => failure(&e),
    }
}

fn is_on(query: &Query, names: &[&str]) -> bool {
    query.iter().any(|(k, v)| names.contains(&k.as_str()) && matches!(v.as_str(), "1" | "true"))
}

/// The streams a client asks for, in the kubelet's own names or the apiserver's.
fn streams(query: &Query) -> Result<StreamOptions, NodeError> {
    let tty = is_on(query, &["tty"]);
    let streams = StreamOptions {
        stdin: is_on(query, &["input", "stdin"]),
        stdout: is_on(query, &["output", "stdout"]),
        // With a terminal there is one output only.
        stderr: is_on(query, &["error", "stderr"]) && !tty,
        tty,
    };
    if streams.stdin || streams.stdout || streams.stderr {
        Ok(streams)
    } else {
        Err(NodeError::BadRequest("you must specify at least 1 of stdin, stdout, stderr".into()))
    }
}

fn ports(query: &Query) -> Result<Vec<i32>, NodeError> {
    let values = query.iter().filter(|(k, _)| k == "port" || k == "ports").flat_map(|(_, v)| v.split(','));
    values
        .map(|text| match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(i32::from(port)),
            _ => Err(NodeError::BadRequest(format!("unable to parse {text:?} as a port"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
    }

    #[test]
    fn streams_are_read_in_both_spellings() {
        let of = |text: &str| streams(&query(text)).map(|s| (s.stdin, s.stdout, s.stderr, s.tty));
        assert_eq!(of("input=1&output=1&error=1"), Ok((true, true, true, false)));
        assert_eq!(of("stdin=true&stdout=true&tty=true&stderr=true"), Ok((true, true, false, true)));
        assert!(of("tty=1&error=1").is_err());
        assert!(of("output=0").is_err());
    }

    #[test]
    fn profiles_that_there_are_not_say_so() {
        for (name, status) in [("", 200), ("cmdline", 200), ("heap", 501), ("no-such", 404)] {
            assert_eq!(profile(name).status().as_u16(), status, "{name}");
        }
    }

    #[test]
    fn ports_are_numbers() {
        assert_eq!(ports(&query("port=80&port=443,8080")), Ok(vec![80, 443, 8080]));
        assert_eq!(ports(&query("")), Ok(vec![]));
        for bad in ["port=x", "port=0", "port=70000"] {
            assert!(ports(&query(bad)).is_err(), "{bad}");
        }
    }
}
