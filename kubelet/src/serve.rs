//! What the HTTPS server asks of this kubelet.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubelet_server::{ContainerRef, ExecOptions, LogFile, Node, NodeError, PodRef, StreamOptions};
use proto::cri;
use serde_json::{Value, json};

use crate::cri::{CONTAINER_LABEL, CriError, NAME_LABEL, NAMESPACE_LABEL, UID_LABEL};
use crate::kubelet::Pods;
use crate::metrics;
use crate::pleg::Health;
use crate::pod;
use crate::shared::Shared;

const RUN_LIMIT: Duration = Duration::from_secs(120);

/// The kubelet, seen from its server.
pub(crate) struct Served {
    /// Handles.
    pub(crate) shared: Arc<Shared>,
    /// The pods.
    pub(crate) pods: Pods,
    /// The state of the event stream.
    pub(crate) health: Health,
}

fn internal(e: CriError) -> NodeError {
    NodeError::Internal(e.to_string())
}

impl Served {
    fn find(&self, target: &PodRef) -> Result<Arc<Pod>, NodeError> {
        let missing =
            || NodeError::NotFound(format!("pod {:?} not found in namespace {:?}", target.name, target.namespace));
        let named = |p: &Arc<Pod>| pod::name(p) == target.name && pod::namespace(p) == target.namespace;
        // Who reads the apiserver knows the uid of the mirror, not of the static pod itself.
        let fits = |p: &Arc<Pod>| target.uid.as_deref().is_none_or(|uid| uid == pod::uid(p) || pod::is_static(p));
        let mut found: Vec<Arc<Pod>> = self.pods.list().into_iter().filter(|p| named(p) && fits(p)).collect();
        found.sort_by_key(|p| p.metadata.deletion_timestamp.is_some());
        found.into_iter().next().ok_or_else(missing)
    }

    /// The container's instances, newest first.
    async fn instances(&self, target: &ContainerRef) -> Result<(Arc<Pod>, Vec<cri::Container>), NodeError> {
        let pod = self.find(&target.pod)?;
        if !pod::all_containers(&pod).any(|c| c.name == target.container) {
            return Err(NodeError::BadRequest(format!(
                "container {:?} not found in pod {:?}",
                target.container,
                format!("{}_{}", pod::name(&pod), pod::namespace(&pod))
            )));
        }
        let mut list = self.shared.cri.containers(Some(pod::uid(&pod))).await.map_err(internal)?;
        list.retain(|c| c.labels.get(CONTAINER_LABEL) == Some(&target.container));
        list.sort_by_key(|c| std::cmp::Reverse((c.metadata.as_ref().map_or(0, |m| m.attempt), c.created_at)));
        Ok((pod, list))
    }

    async fn running(&self, target: &ContainerRef) -> Result<String, NodeError> {
        let (pod, list) = self.instances(target).await?;
        let found = list.into_iter().find(|c| c.state() == cri::ContainerState::ContainerRunning);
        found.map(|c| c.id).ok_or_else(|| {
            let name = format!("{}_{}", pod::name(&pod), pod::namespace(&pod));
            NodeError::NotFound(format!(
                "container not found ({:?}): it does not run in pod {name:?}",
                target.container
            ))
        })
    }
}

impl Node for Served {
    fn pods(&self) -> Vec<Pod> {
        let mut pods: Vec<Pod> = self
            .pods
            .list()
            .into_iter()
            .map(|p| {
                let mut pod = (*p).clone();
                if let Some(status) = self.shared.statuses.get(pod::uid(&p)) {
                    pod.status = Some(status);
                }
                pod
            })
            .collect();
        pods.sort_by_key(pod::key);
        pods
    }

    fn running_pods(&self) -> BoxFuture<'_, Result<Vec<Pod>, NodeError>> {
        Box::pin(async {
            let sandboxes = self.shared.cri.sandboxes(None).await.map_err(internal)?;
            let label = |s: &cri::PodSandbox, key: &str| s.labels.get(key).cloned();
            let ready = sandboxes.iter().filter(|s| s.state() == cri::PodSandboxState::SandboxReady);
            let pods = ready.filter(|s| s.labels.contains_key(UID_LABEL)).map(|s| Pod {
                metadata: ObjectMeta {
                    name: label(s, NAME_LABEL),
                    namespace: label(s, NAMESPACE_LABEL),
                    uid: label(s, UID_LABEL),
                    ..Default::default()
                },
                ..Default::default()
            });
            Ok(pods.collect())
        })
    }

    fn container_log<'a>(
        &'a self,
        target: &'a ContainerRef,
        previous: bool,
    ) -> BoxFuture<'a, Result<LogFile, NodeError>> {
        Box::pin(async move {
            let (pod, list) = self.instances(target).await?;
            let name = &target.container;
            let Some(found) = list.get(usize::from(previous)) else {
                let text = if previous {
                    format!("previous terminated container {name:?} in pod {:?} not found", pod::name(&pod))
                } else {
                    let status = self.shared.statuses.get(pod::uid(&pod)).unwrap_or_default();
                    let all = status.container_statuses.into_iter().chain(status.init_container_statuses).flatten();
                    let reason = all
                        .filter(|s| &s.name == name)
                        .find_map(|s| s.state?.waiting?.reason)
                        .unwrap_or_else(|| "ContainerCreating".into());
                    format!("container {name:?} in pod {:?} is waiting to start: {reason}", pod::name(&pod))
                };
                return Err(NodeError::BadRequest(text));
            };
            let status = self.shared.cri.container_status(&found.id).await.map_err(internal)?;
            let attempt = found.metadata.as_ref().map_or(0, |m| m.attempt);
            let path = if status.log_path.is_empty() {
                pod::log_dir(&self.shared.facts.log_root, &pod).join(name).join(format!("{attempt}.log"))
            } else {
                PathBuf::from(&status.log_path)
            };
            let (cri, id) = (self.shared.cri.clone(), found.id.clone());
            let ended =
                matches!(status.state(), cri::ContainerState::ContainerExited | cri::ContainerState::ContainerUnknown);
            let exited: BoxFuture<'static, ()> = if ended {
                Box::pin(std::future::ready(()))
            } else {
                Box::pin(async move {
                    loop {
                        tokio::time::sleep(Duration::from_millis(500)).await;
                        match cri.container_status(&id).await {
                            Ok(s) if s.state() == cri::ContainerState::ContainerExited => return,
                            Err(e) if e.is_not_found() => return,
                            _ => {}
                        }
                    }
                })
            };
            Ok(LogFile { path, exited })
        })
    }

    fn exec_url<'a>(
        &'a self,
        target: &'a ContainerRef,
        options: &'a ExecOptions,
    ) -> BoxFuture<'a, Result<String, NodeError>> {
        Box::pin(async move {
            let request = cri::ExecRequest {
                container_id: self.running(target).await?,
                cmd: options.command.clone(),
                tty: options.streams.tty,
                stdin: options.streams.stdin,
                stdout: options.streams.stdout,
                stderr: options.streams.stderr && !options.streams.tty,
            };
            self.shared.cri.exec(request).await.map_err(internal)
        })
    }

    fn attach_url<'a>(
        &'a self,
        target: &'a ContainerRef,
        options: &'a StreamOptions,
    ) -> BoxFuture<'a, Result<String, NodeError>> {
        Box::pin(async move {
            let pod = self.find(&target.pod)?;
            let tty = pod::all_containers(&pod).find(|c| c.name == target.container).and_then(|c| c.tty) == Some(true);
            let request = cri::AttachRequest {
                container_id: self.running(target).await?,
                stdin: options.stdin,
                tty,
                stdout: options.stdout,
                stderr: options.stderr && !tty,
            };
            self.shared.cri.attach(request).await.map_err(internal)
        })
    }

    fn port_forward_url<'a>(
        &'a self,
        target: &'a PodRef,
        ports: &'a [i32],
    ) -> BoxFuture<'a, Result<String, NodeError>> {
        Box::pin(async move {
            let pod = self.find(target)?;
            let sandboxes = self.shared.cri.sandboxes(Some(pod::uid(&pod))).await.map_err(internal)?;
            let ready = sandboxes.into_iter().find(|s| s.state() == cri::PodSandboxState::SandboxReady);
            let Some(sandbox) = ready else {
                return Err(NodeError::NotFound(format!("pod {:?} does not run", target.name)));
            };
            let request = cri::PortForwardRequest { pod_sandbox_id: sandbox.id, port: ports.to_vec() };
            self.shared.cri.port_forward(request).await.map_err(internal)
        })
    }

    fn run<'a>(&'a self, target: &'a ContainerRef, command: &'a [String]) -> BoxFuture<'a, Result<Vec<u8>, NodeError>> {
        Box::pin(async move {
            let id = self.running(target).await?;
            let result = self.shared.cri.exec_sync(&id, command, RUN_LIMIT).await.map_err(internal)?;
            let output = [result.stdout, result.stderr].concat();
            if result.exit_code == 0 {
                return Ok(output);
            }
            let text = String::from_utf8_lossy(&output).into_owned();
            Err(NodeError::Internal(format!("command exited with {}: {text}", result.exit_code)))
        })
    }

    fn metrics(&self) -> BoxFuture<'_, String> {
        Box::pin(async {
            let pods = self.pods();
            let running = pods.iter().filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"));
            let statuses = pods.iter().filter_map(|p| p.status.as_ref()?.container_statuses.as_ref()).flatten();
            let containers = statuses.filter(|s| s.state.as_ref().is_some_and(|s| s.running.is_some())).count();
            let healthy = u8::from(self.health.check().is_ok());
            format!(
                "# TYPE kubelet_running_pods gauge\nkubelet_running_pods {}\n# TYPE kubelet_running_containers gauge\n\
                 kubelet_running_containers{{container_state=\"running\"}} {containers}\n# TYPE kubelet_node_name gauge\n\
                 kubelet_node_name{{node=\"{}\"}} 1\n# TYPE kubelet_pleg_healthy gauge\nkubelet_pleg_healthy {healthy}\n",
                running.count(),
                self.shared.node_name
            ) + &crate::config::gates::metric(&self.shared.config.feature_gates)
        })
    }

    fn cadvisor_metrics(&self) -> BoxFuture<'_, Result<String, NodeError>> {
        Box::pin(async {
            let stats = self.shared.cri.container_stats().await.map_err(internal)?;
            Ok(metrics::containers(&stats, None, &[], true))
        })
    }

    fn resource_metrics(&self) -> BoxFuture<'_, Result<String, NodeError>> {
        Box::pin(async {
            let stats = self.shared.cri.container_stats().await.map_err(internal)?;
            let mut starts = Vec::new();
            for pod in self.pods() {
                for status in pod.status.iter().filter_map(|s| s.container_statuses.as_ref()).flatten() {
                    let running = status.state.as_ref().and_then(|s| s.running.as_ref());
                    if let Some(at) = running.and_then(|r| r.started_at.as_ref()) {
                        let (namespace, name) = (pod::namespace(&pod), pod::name(&pod));
                        let labels = format!("container=\"{}\",namespace=\"{namespace}\",pod=\"{name}\"", status.name);
                        starts.push((labels, at.0.as_second() as f64));
                    }
                }
            }
            Ok(metrics::containers(&stats, Some(metrics::node_usage()), &starts, false))
        })
    }

    fn probe_metrics(&self) -> BoxFuture<'_, String> {
        Box::pin(async { metrics::probes() })
    }

    fn stats_summary(&self, only_cpu_and_memory: bool) -> BoxFuture<'_, Result<Value, NodeError>> {
        Box::pin(async move {
            let stats = self.shared.cri.container_stats().await.map_err(internal)?;
            let sandboxes = self.shared.cri.sandbox_stats().await.unwrap_or_default();
            let now = jiff::Timestamp::now().to_string();
            let (cpu, memory) = metrics::node_usage();
            let mut pods = Vec::new();
            for pod in self.pods() {
                let uid = pod::uid(&pod);
                let own = stats
                    .iter()
                    .filter(|s| s.attributes.as_ref().and_then(|a| a.labels.get(UID_LABEL)).is_some_and(|u| u == uid));
                let containers: Vec<Value> = own.map(|s| container_summary(s, &now, only_cpu_and_memory)).collect();
                let mut entry = json!({
                    "podRef": {"name": pod::name(&pod), "namespace": pod::namespace(&pod), "uid": uid},
                    "startTime": pod.status.as_ref().and_then(|s| s.start_time.clone()),
                    "containers": containers,
                });
                let sandbox = sandboxes
                    .iter()
                    .find(|s| s.attributes.as_ref().and_then(|a| a.metadata.as_ref()).is_some_and(|m| m.uid == uid));
                if let Some(linux) = sandbox.and_then(|s| s.linux.as_ref()) {
                    entry["cpu"] = usage_cpu(linux.cpu.as_ref(), &now);
                    entry["memory"] = usage_memory(linux.memory.as_ref(), &now);
                    if let Some(net) = linux
                        .network
                        .as_ref()
                        .and_then(|n| n.default_interface.as_ref())
                        .filter(|_| !only_cpu_and_memory)
                    {
                        let n = |v: &Option<cri::UInt64Value>| v.as_ref().map(|v| v.value);
                        entry["network"] = json!({"time": now, "name": net.name, "rxBytes": n(&net.rx_bytes), "rxErrors": n(&net.rx_errors),
                            "txBytes": n(&net.tx_bytes), "txErrors": n(&net.tx_errors)});
                    }
                }
                pods.push(entry);
            }
            let mut node = json!({
                "nodeName": self.shared.node_name,
                "startTime": now,
                "cpu": {"time": now, "usageCoreNanoSeconds": (cpu * 1e9) as u64},
                "memory": {"time": now, "workingSetBytes": memory, "availableBytes": metrics::meminfo("MemAvailable")},
            });
            if !only_cpu_and_memory && let Ok(disk) = nix::sys::statvfs::statvfs(&self.shared.root) {
                let unit = disk.fragment_size();
                node["fs"] = json!({"time": now, "capacityBytes": disk.blocks() * unit, "availableBytes": disk.blocks_available() * unit,
                        "usedBytes": (disk.blocks() - disk.blocks_free()) * unit, "inodes": disk.files(), "inodesFree": disk.files_free()});
            }
            Ok(json!({"node": node, "pods": pods}))
        })
    }

    fn configz(&self) -> Value {
        crate::config::shown(&self.shared.config)
    }

    fn healthz(&self) -> Vec<(String, Result<(), String>)> {
        vec![("syncloop".to_owned(), Ok(())), ("pleg".to_owned(), self.health.check())]
    }
}

fn usage_cpu(cpu: Option<&cri::CpuUsage>, now: &str) -> Value {
    let value = |v: Option<&cri::UInt64Value>| v.map(|v| v.value);
    json!({"time": now, "usageNanoCores": value(cpu.and_then(|c| c.usage_nano_cores.as_ref())),
        "usageCoreNanoSeconds": value(cpu.and_then(|c| c.usage_core_nano_seconds.as_ref()))})
}

fn usage_memory(memory: Option<&cri::MemoryUsage>, now: &str) -> Value {
    let of = |get: fn(&cri::MemoryUsage) -> Option<&cri::UInt64Value>| memory.and_then(get).map(|v| v.value);
    json!({"time": now, "workingSetBytes": of(|m| m.working_set_bytes.as_ref()), "usageBytes": of(|m| m.usage_bytes.as_ref()),
        "rssBytes": of(|m| m.rss_bytes.as_ref()), "availableBytes": of(|m| m.available_bytes.as_ref())})
}

fn container_summary(stats: &cri::ContainerStats, now: &str, only: bool) -> Value {
    let name = stats.attributes.as_ref().and_then(|a| a.labels.get(CONTAINER_LABEL)).cloned().unwrap_or_default();
    let mut out = json!({"name": name, "cpu": usage_cpu(stats.cpu.as_ref(), now), "memory": usage_memory(stats.memory.as_ref(), now)});
    if let Some(layer) = stats.writable_layer.as_ref().filter(|_| !only) {
        out["rootfs"] = json!({"time": now, "usedBytes": layer.used_bytes.as_ref().map(|v| v.value),
            "inodesUsed": layer.inodes_used.as_ref().map(|v| v.value)});
    }
    out
}
