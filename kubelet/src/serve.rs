//! What the HTTPS server asks of this kubelet.

mod volumes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubelet_server::{ContainerRef, ExecOptions, LogFile, Node, NodeError, PodRef, StreamOptions};
use proto::cri;
use serde_json::Value;

use crate::cri::{CONTAINER_LABEL, CriError, NAME_LABEL, NAMESPACE_LABEL, UID_LABEL};
use crate::kubelet::Pods;
use crate::metrics::{self, Kind, Page, labels};
use crate::pleg::Health;
use crate::pod;
use crate::shared::Shared;
use crate::stats;
use crate::sync::resize::{IN_PROGRESS, PENDING};

const RUN_LIMIT: Duration = Duration::from_secs(120);

/// Pods by where they are in their lives, and resizes that wait or are under way.
fn working(pods: &[Pod], page: &mut Page) {
    let help = "Pods by where they are in their lives, whether they are wanted, and whether they are static.";
    let mut counts = BTreeMap::from([("sync", [0u32; 2]), ("terminating", [0; 2]), ("terminated", [0; 2])]);
    let (mut pending, mut under_way) = ([("deferred", 0u32), ("infeasible", 0)], 0u32);
    for pod in pods {
        let at = match (pod::is_over(pod), pod.metadata.deletion_timestamp.is_some()) {
            (true, _) => "terminated",
            (_, true) => "terminating",
            _ => "sync",
        };
        counts.entry(at).or_default()[usize::from(pod::is_static(pod))] += 1;
        for condition in pod.status.iter().flat_map(|s| s.conditions.iter().flatten()) {
            let reason = condition.reason.as_deref().unwrap_or_default();
            match condition.type_.as_str() {
                PENDING => {
                    pending.iter_mut().filter(|(r, _)| reason.eq_ignore_ascii_case(r)).for_each(|(_, n)| *n += 1)
                }
                IN_PROGRESS => under_way += 1,
                _ => {}
            }
        }
    }
    for (at, [others, fixed]) in counts {
        for (word, count) in [("", others), ("true", fixed)] {
            let of = labels(&[("config", "desired"), ("lifecycle", at), ("static", word)]);
            page.put("kubelet_working_pods", help, Kind::Gauge, &of, f64::from(count));
        }
    }
    for (reason, count) in pending {
        let of = labels(&[("reason", reason)]);
        let help = "Resizes that wait, by why.";
        page.put("kubelet_pod_pending_resizes", help, Kind::Gauge, &of, f64::from(count));
    }
    let help = "Resizes under way.";
    page.gauge("kubelet_pod_in_progress_resizes", help, f64::from(under_way));
}

/// The kubelet, seen from its server.
pub(crate) struct Served {
    /// Handles.
    pub(crate) shared: Arc<Shared>,
    /// The pods.
    pub(crate) pods: Pods,
    /// The state of the event stream.
    pub(crate) health: Health,
    /// How long certificates live.
    pub(crate) lives: crate::certificates::Lives,
    /// What volumes hold.
    pub(crate) volumes: stats::Volumes,
}

fn internal(e: CriError) -> NodeError {
    NodeError::Internal(e.to_string())
}

impl Served {
    /// What is counted when it is asked for.
    fn gauges(&self, page: &mut Page) {
        let pods = self.pods();
        let phase = |p: &Pod| p.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
        let running = pods.iter().filter(|p| phase(p) == "Running").count();
        page.gauge("kubelet_running_pods", "Pods that have a sandbox that is ready.", running as f64);
        let mut states = [("created", 0u32), ("exited", 0), ("running", 0)];
        for status in pods.iter().flat_map(|p| p.status.iter().flat_map(|s| s.container_statuses.iter().flatten())) {
            let state = status.state.clone().unwrap_or_default();
            let at = if state.running.is_some() { 2 } else { usize::from(state.terminated.is_some()) };
            states[at].1 += 1;
        }
        for (state, count) in states {
            let help = "Containers by their state.";
            let of = labels(&[("container_state", state)]);
            page.put("kubelet_running_containers", help, Kind::Gauge, &of, f64::from(count));
        }
        for (is_static, word) in [(true, "true"), (false, "")] {
            let of = labels(&[("static", word)]);
            let own = || pods.iter().filter(|p| pod::is_static(p) == is_static);
            let active = own().filter(|p| !matches!(phase(p).as_str(), "Succeeded" | "Failed")).count();
            let help = "Pods that the kubelet is told to run, by whether they are static.";
            page.put("kubelet_desired_pods", help, Kind::Gauge, &of, own().count() as f64);
            let help = "Pods that hold a place when new ones come, by whether they are static.";
            page.put("kubelet_active_pods", help, Kind::Gauge, &of, active as f64);
        }
        volumes::totals(&self.shared, &pods, page);
        volumes::certificates(&self.shared, page);
        working(&pods, page);
        let of = labels(&[("provider", "cri")]);
        let help = "Where the numbers of containers come from.";
        page.put("kubelet_metrics_provider", help, Kind::Gauge, &of, 1.0);
        let mirrors = if self.shared.client.is_some() { pods.iter().filter(|p| pod::is_static(p)).count() } else { 0 };
        let help = "Mirror pods that there shall be: one for each static pod that was let in.";
        page.gauge("kubelet_mirror_pods", help, mirrors as f64);
        let ephemeral =
            pods.iter().flat_map(|p| p.status.iter().flat_map(|s| s.ephemeral_container_statuses.iter().flatten()));
        let help = "Ephemeral containers of this node's pods.";
        page.gauge("kubelet_managed_ephemeral_containers", help, ephemeral.count() as f64);
        let of = labels(&[("node", &self.shared.node_name)]);
        let help = "The node's name, in the label.";
        page.put("kubelet_node_name", help, Kind::Gauge, &of, 1.0);
        let version = match gantry_cgroup::Host::detect().map(|h| h.version()) {
            Ok(gantry_cgroup::Version::V2) => 2.0,
            _ => 1.0,
        };
        page.gauge("kubelet_cgroup_version", "cgroup version on the hosts.", version);
        let help = "When the runtime's containers were last listed, in seconds since 1970.";
        page.gauge("kubelet_pleg_last_seen_seconds", help, self.health.seen() as f64);
        let (client, server) = self.lives.seconds();
        let help = "Seconds until the client certificate expires; +Inf where there is none.";
        page.gauge("kubelet_certificate_manager_client_ttl_seconds", help, client);
        let help = "Seconds until the serving certificate expires; +Inf where there is none.";
        page.gauge("kubelet_certificate_manager_server_ttl_seconds", help, server);
        let build = gantry_telemetry::build::git_version();
        let of =
            labels(&[("git_version", &build), ("platform", &format!("linux/{}", crate::node::facts::architecture()))]);
        let help = "Which program this is, in the labels.";
        page.put("kubernetes_build_info", help, Kind::Gauge, &of, 1.0);
    }

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
        if pod::named(&pod, &target.container).is_none() {
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
            // While a container waits for its restart, the one that ended last is the previous one.
            let back_off = || {
                let status = self.shared.statuses.get(pod::uid(&pod)).unwrap_or_default();
                let all = status.container_statuses.into_iter().chain(status.init_container_statuses).flatten();
                all.filter(|s| &s.name == name).any(|s| s.state.is_some_and(|s| s.waiting.is_some()))
            };
            let Some(found) = list.get(usize::from(previous && !back_off())) else {
                let text = if previous {
                    format!("previous terminated container {name:?} in pod {:?} not found", pod::name(&pod))
                } else {
                    let status = self.shared.statuses.get(pod::uid(&pod)).unwrap_or_default();
                    let all = status.container_statuses.into_iter().chain(status.init_container_statuses);
                    let all = all.chain(status.ephemeral_container_statuses).flatten();
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
            let tty = pod::named(&pod, &target.container).and_then(|c| c.tty) == Some(true);
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
            let mut page = Page::default();
            metrics::own::put(&mut page, false);
            metrics::put_process(&mut page);
            self.gauges(&mut page);
            volumes::of_claims(&self.shared, &self.volumes, self.pods(), &mut page).await;
            page.render() + &crate::config::gates::metric(&self.shared.config.feature_gates)
        })
    }

    fn cadvisor_metrics(&self) -> BoxFuture<'_, Result<String, NodeError>> {
        Box::pin(async {
            let cri = &self.shared.cri;
            let (containers, sandboxes, listed, descriptors) =
                tokio::join!(cri.container_stats(), cri.sandbox_stats(), cri.pod_metrics(), cri.metric_descriptors());
            let (containers, sandboxes) = (containers.map_err(internal)?, sandboxes.unwrap_or_default());
            // Not every runtime has these two.
            let (listed, descriptors) = (listed.unwrap_or_default(), descriptors.unwrap_or_default());
            let source = metrics::CadvisorSource {
                metrics: &listed,
                descriptors: &descriptors,
                containers: &containers,
                sandboxes: &sandboxes,
            };
            let (cpus, memory) = (crate::node::facts::cpus(), metrics::meminfo("MemTotal"));
            Ok(metrics::cadvisor(&source, metrics::node_usage(), cpus, memory))
        })
    }

    fn resource_metrics(&self) -> BoxFuture<'_, Result<String, NodeError>> {
        Box::pin(async {
            let (containers, sandboxes) =
                tokio::join!(self.shared.cri.container_stats(), self.shared.cri.sandbox_stats());
            let failed = containers.is_err();
            let mut starts = Vec::new();
            for pod in self.pods() {
                for status in pod.status.iter().filter_map(|s| s.container_statuses.as_ref()).flatten() {
                    let running = status.state.as_ref().and_then(|s| s.running.as_ref());
                    if let Some(at) = running.and_then(|r| r.started_at.as_ref()) {
                        let of = [pod::namespace(&pod).to_owned(), pod::name(&pod).to_owned(), status.name.clone()];
                        starts.push((of, at.0.as_second() as f64));
                    }
                }
            }
            let swap = metrics::meminfo("SwapTotal").saturating_sub(metrics::meminfo("SwapFree"));
            Ok(metrics::resource(
                metrics::node_usage(),
                swap,
                &containers.unwrap_or_default(),
                &sandboxes.unwrap_or_default(),
                &starts,
                failed,
            ))
        })
    }

    fn probe_metrics(&self) -> BoxFuture<'_, String> {
        Box::pin(async { metrics::probes() })
    }

    fn stats_summary(&self, only_cpu_and_memory: bool) -> BoxFuture<'_, Result<Value, NodeError>> {
        Box::pin(async move {
            let made = stats::summary(&self.shared, &self.volumes, self.pods(), only_cpu_and_memory).await;
            made.map_err(internal)
        })
    }

    fn requested(&self, method: &str, path: &str, long_running: bool, took: Duration) {
        let long = if long_running { "true" } else { "false" };
        let of = [("long_running", long), ("method", method), ("path", path), ("server_type", "readwrite")];
        metrics::own::HTTP_REQUESTS.count(&of);
        metrics::own::HTTP_SECONDS.observe(&of, took);
    }

    fn checkpoint<'a>(&'a self, target: &'a ContainerRef, timeout: i64) -> BoxFuture<'a, Result<String, NodeError>> {
        Box::pin(async move {
            let id = self.running(target).await?;
            let folder = self.shared.root.join("checkpoints");
            std::fs::create_dir_all(&folder)
                .map_err(|e| NodeError::Internal(format!("make the folder {}: {e}", folder.display())))?;
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
            let PodRef { namespace, name, .. } = &target.pod;
            let path = folder.join(format!("checkpoint-{name}_{namespace}-{}-{now}.tar", target.container));
            let location = path.to_string_lossy().into_owned();
            match self.shared.cri.checkpoint(&id, &location, timeout).await {
                Ok(()) => Ok(location),
                Err(e) if e.code == tonic::Code::Unimplemented => Err(NodeError::NotFound(e.to_string())),
                Err(e) => Err(internal(e)),
            }
        })
    }

    fn flagz(&self) -> String {
        let mut out = String::from(
            "\nkubelet flagz\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n\n",
        );
        for (name, value) in &self.shared.flags {
            out += &format!("{name}={value}\n");
        }
        out
    }

    fn statusz(&self) -> String {
        let up = self.shared.started.elapsed().as_secs();
        format!(
            "\nkubelet statusz\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n\n\
             Started: {}\nUp: {} hr {:02} min {:02} sec\nBinary version: {}\n\nPaths: /healthz /configz /flagz /metrics /pods /runningpods /stats/summary /logs /debug/pprof /debug/flags/v\n",
            (jiff::Timestamp::now() - self.shared.started.elapsed()).strftime("%a %b %e %H:%M:%S UTC %Y"),
            up / 3600,
            up / 60 % 60,
            up % 60,
            gantry_telemetry::build::git_version()
        )
    }

    fn set_verbosity(&self, verbosity: u32) -> Result<(), NodeError> {
        if !self.shared.config.enable_debug_flags_handler {
            return Err(NodeError::NotFound("flags endpoint is disabled".into()));
        }
        gantry_telemetry::log::set_level(crate::config::level_of(verbosity)).map_err(NodeError::Internal)
    }

    fn configz(&self) -> Value {
        crate::config::shown(&self.shared.config)
    }

    fn healthz(&self) -> Vec<(String, Result<(), String>)> {
        vec![("syncloop".to_owned(), self.shared.beat.check()), ("pleg".to_owned(), self.health.check())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_are_counted_by_where_they_are() {
        let pod = |extra: Value| -> Pod {
            let mut value = json!({"metadata": {"name": "p"}, "status": {"phase": "Running"}});
            for (key, more) in extra.as_object().unwrap() {
                let own = value[key].as_object_mut().unwrap();
                own.extend(more.as_object().unwrap().clone());
            }
            serde_json::from_value(value).unwrap()
        };
        let refused = json!([{"type": "PodResizePending", "status": "True", "reason": "Deferred"}]);
        let pods = [
            pod(json!({"status": {"conditions": refused}})),
            pod(json!({"metadata": {"annotations": {"kubernetes.io/config.source": "file"}}})),
            pod(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
            pod(json!({"status": {"phase": "Failed"}})),
        ];
        let mut page = Page::default();
        working(&pods, &mut page);
        let text = page.render();
        for line in [
            "kubelet_working_pods{config=\"desired\",lifecycle=\"sync\",static=\"\"} 1",
            "kubelet_working_pods{config=\"desired\",lifecycle=\"sync\",static=\"true\"} 1",
            "kubelet_working_pods{config=\"desired\",lifecycle=\"terminating\",static=\"\"} 1",
            "kubelet_working_pods{config=\"desired\",lifecycle=\"terminated\",static=\"\"} 1",
            "kubelet_pod_pending_resizes{reason=\"deferred\"} 1",
            "kubelet_pod_pending_resizes{reason=\"infeasible\"} 0",
            "kubelet_pod_in_progress_resizes 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
