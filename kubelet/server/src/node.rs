//! What the server asks of the kubelet.

use std::path::PathBuf;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::NodeError;

/// A pod as a URL names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The uid, when the URL has one; it must then match.
    pub uid: Option<String>,
}

/// A container as a URL names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRef {
    /// Its pod.
    pub pod: PodRef,
    /// Its name.
    pub container: String,
}

/// Which streams of a process a client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error; off with a terminal.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// A command to execute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// Program and arguments; not empty.
    pub command: Vec<String>,
    /// Its streams.
    pub streams: StreamOptions,
}

/// A container's log on disk.
pub struct LogFile {
    /// The live file in CRI format, for example `/var/log/pods/ns_name_uid/app/0.log`; rotated files lie beside it as
    /// `0.log.<timestamp>` (or `.gz`).
    pub path: PathBuf,
    /// Ready when the container has exited (at once if it has already): a follower then drains the log and ends.
    pub exited: BoxFuture<'static, ()>,
}

/// The kubelet, seen from its server. Implementations bound their own waits.
pub trait Node: Send + Sync + 'static {
    /// Pods bound to this node as the kubelet sees them, with their status.
    fn pods(&self) -> Vec<Pod>;

    /// Pods that the runtime runs (may lack most of the spec).
    fn running_pods(&self) -> BoxFuture<'_, Result<Vec<Pod>, NodeError>>;

    /// The log of a container, or of its previous instance.
    fn container_log<'a>(
        &'a self,
        target: &'a ContainerRef,
        previous: bool,
    ) -> BoxFuture<'a, Result<LogFile, NodeError>>;

    /// The CRI streaming URL for executing a command.
    fn exec_url<'a>(
        &'a self,
        target: &'a ContainerRef,
        options: &'a ExecOptions,
    ) -> BoxFuture<'a, Result<String, NodeError>>;

    /// The CRI streaming URL for attaching to a container.
    fn attach_url<'a>(
        &'a self,
        target: &'a ContainerRef,
        options: &'a StreamOptions,
    ) -> BoxFuture<'a, Result<String, NodeError>>;

    /// The CRI streaming URL for forwarding ports of a pod (`ports` may be empty: SPDY clients name them later).
    fn port_forward_url<'a>(&'a self, target: &'a PodRef, ports: &'a [i32])
    -> BoxFuture<'a, Result<String, NodeError>>;

    /// Runs a command to its end and gives its output (stdout, then stderr).
    fn run<'a>(&'a self, target: &'a ContainerRef, command: &'a [String]) -> BoxFuture<'a, Result<Vec<u8>, NodeError>>;

    /// The kubelet's own metrics, Prometheus text.
    fn metrics(&self) -> BoxFuture<'_, String>;

    /// Container metrics under cAdvisor's names, Prometheus text.
    fn cadvisor_metrics(&self) -> BoxFuture<'_, Result<String, NodeError>>;

    /// What metrics-server reads, Prometheus text.
    fn resource_metrics(&self) -> BoxFuture<'_, Result<String, NodeError>>;

    /// Probe results, Prometheus text.
    fn probe_metrics(&self) -> BoxFuture<'_, String>;

    /// The stats summary document.
    fn stats_summary(&self, only_cpu_and_memory: bool) -> BoxFuture<'_, Result<Value, NodeError>>;

    /// A request to `path` (its first part) was answered after `took`; streams and followed logs are `long_running`.
    fn requested(&self, method: &str, path: &str, long_running: bool, took: Duration) {
        let _ = (method, path, long_running, took);
    }

    /// The effective KubeletConfiguration (the server wraps it in `{"kubeletconfig": ...}`).
    fn configz(&self) -> Value;

    /// Writes the state of a running container to a file and gives its path; the runtime may take `timeout` seconds (0: as
    /// long as it likes).
    fn checkpoint<'a>(&'a self, target: &'a ContainerRef, timeout: i64) -> BoxFuture<'a, Result<String, NodeError>> {
        let _ = (target, timeout);
        Box::pin(async { Err(NodeError::NotFound("checkpoints are not supported".into())) })
    }

    /// The flags in effect, one `name=value` a line.
    fn flagz(&self) -> String;

    /// Version, start and paths, for people.
    fn statusz(&self) -> String;

    /// Logs as much as upstream's verbosity says.
    ///
    /// # Errors
    /// It is switched off, or the log cannot be changed.
    fn set_verbosity(&self, verbosity: u32) -> Result<(), NodeError>;

    /// Health checks by name (`syncloop`, `pleg`, ...); an error says what is wrong. `ping` and `log` are the server's.
    fn healthz(&self) -> Vec<(String, Result<(), String>)>;
}
