//! Creates the Node object and keeps its status true: looked at every 10 s, sent when it changed or after 5 min.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use proto::cri::StatusResponse;
use serde_json::json;

use super::facts;
use crate::cri::CriError;
use crate::eviction::Condition;
use crate::metrics::own;
use crate::pleg::Health;
use crate::shared::Shared;

const LIMIT: Duration = Duration::from_secs(15);
/// While something is wrong it is looked at more often, so that a node becomes Ready soon after its runtime.
const HURRY: Duration = Duration::from_secs(1);

/// Registers, then reports for ever.
pub(crate) async fn keep(shared: Arc<Shared>, labels: BTreeMap<String, String>, health: Health) {
    let Some(client) = shared.client.clone() else { return };
    let api: Api<Node> = Api::all(client);
    let mut sent: Option<(NodeStatus, Instant)> = None;
    let mut registered = !shared.config.register_node;
    let mut was_ready = None;
    let mut startup = Startup::default();
    // A kubelet that begins anew goes on with what it said before: conditions keep the times of their last change.
    let known = tokio::time::timeout(LIMIT, api.get_opt(&shared.node_name)).await;
    let known = known.ok().and_then(Result::ok).flatten().and_then(|node| node.status);
    let (mut pressure, mut devices) = (shared.pressure.subscribe(), shared.managers.changes());
    loop {
        let before = sent.as_ref().map(|(s, _)| s).or(known.as_ref());
        let status = status(&shared, &health, before).await;
        let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        let due = sent.as_ref().is_none_or(|(old, at)| {
            !same(old, &status) || at.elapsed() >= shared.config.node_status_report_frequency.0
        });
        let mut fine = true;
        if due {
            let work = async {
                if !registered {
                    startup.offered();
                    register(&shared, &api, &labels).await?;
                    registered = true;
                }
                startup.registered();
                let patch = json!({"status": status});
                api.patch_status(&shared.node_name, &PatchParams::default(), &Patch::Strategic(&patch)).await.map(drop)
            };
            match tokio::time::timeout(LIMIT, work).await {
                Ok(Ok(())) => {
                    sent = Some((status, Instant::now()));
                    if ready {
                        startup.ready(&shared);
                    }
                    if was_ready != Some(ready) {
                        let reason = if ready { "NodeReady" } else { "NodeNotReady" };
                        let text = format!("Node {} status is now: {reason}", shared.node_name);
                        shared.events.node(&shared.node_name, !ready, reason, text);
                        was_ready = Some(ready);
                    }
                }
                Ok(Err(e)) => {
                    if matches!(&e, kube::Error::Api(s) if s.code == 404) {
                        // Somebody deleted the node: it is made again.
                        registered = !shared.config.register_node;
                    }
                    tracing::warn!(error = %e, "node status not sent, will try again");
                    fine = false;
                }
                Err(_) => {
                    tracing::warn!("node status not sent: the apiserver gave no answer in time");
                    fine = false;
                }
            }
        }
        let every = shared.config.node_status_update_frequency.0;
        tokio::select! {
            () = tokio::time::sleep(if fine && ready { every } else { HURRY.min(every) }) => {}
            _ = pressure.changed() => {}
            _ = devices.changed() => {}
        }
    }
}

/// How long the steps of the node's start took, each taken down once.
#[derive(Default)]
struct Startup {
    offered: Option<Instant>,
    registered: Option<Instant>,
    told: bool,
}

impl Startup {
    fn offered(&mut self) {
        self.offered.get_or_insert_with(Instant::now);
    }

    fn registered(&mut self) {
        self.registered.get_or_insert_with(Instant::now);
    }

    fn ready(&mut self, shared: &Shared) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let (now, started) = (Instant::now(), shared.started);
        let registered = self.registered.unwrap_or(now);
        let offered = self.offered.unwrap_or(registered);
        let span = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
        own::STARTUP_OFFER.set(span(started, offered));
        own::STARTUP_REGISTER.set(span(offered, registered));
        own::STARTUP_READY.set(span(registered, now));
        // All but this is about nodes that have just come up: the machine may have run for months.
        let up = jiff::Timestamp::now().as_second() - crate::metrics::boot_time();
        own::STARTUP.set(up as f64);
        own::STARTUP_BEFORE.set((up as f64 - span(started, now)).max(0.0));
    }
}

async fn register(shared: &Shared, api: &Api<Node>, labels: &BTreeMap<String, String>) -> Result<(), kube::Error> {
    let name = &shared.node_name;
    let mut all = labels.clone();
    for (key, value) in [
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", facts::architecture()),
        ("kubernetes.io/hostname", name),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", facts::architecture()),
    ] {
        all.insert(key.to_owned(), value.to_owned());
    }
    // Told to the controller that attaches volumes, so that the kubelet need not.
    let annotations = shared.config.enable_controller_attach_detach.then(|| {
        BTreeMap::from([("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned())])
    });
    if api.get_opt(name).await?.is_some() {
        let patch = json!({"metadata": {"labels": all, "annotations": annotations}});
        return api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop);
    }
    let mut taints = shared.config.register_with_taints.clone();
    if shared.external_cloud {
        // Until the cloud's own controller has written the node's facts, nothing is to be put on it.
        taints.push(Taint {
            key: "node.cloudprovider.kubernetes.io/uninitialized".to_owned(),
            value: Some("true".to_owned()),
            effect: "NoSchedule".to_owned(),
            time_added: None,
        });
    }
    let some = |text: &String| Some(text.clone()).filter(|t| !t.is_empty());
    let node = Node {
        metadata: ObjectMeta { name: Some(name.clone()), labels: Some(all), annotations, ..Default::default() },
        spec: Some(NodeSpec {
            taints: (!taints.is_empty()).then_some(taints),
            provider_id: some(&shared.config.provider_id),
            pod_cidr: some(&shared.config.pod_cidr),
            ..Default::default()
        }),
        ..Default::default()
    };
    api.create(&PostParams::default(), &node).await?;
    tracing::info!(node = %name, "node registered");
    Ok(())
}

/// Whether two statuses say the same but for the time of the last look.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let still = |s: &NodeStatus| {
        let mut s = s.clone();
        for condition in s.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        s
    };
    still(a) == still(b)
}

async fn status(shared: &Arc<Shared>, health: &Health, before: Option<&NodeStatus>) -> NodeStatus {
    let (mut capacity, mut allocatable) = facts::resources(&shared.config, &shared.root);
    for (name, (all, usable)) in shared.managers.totals() {
        capacity.insert(name.clone(), Quantity(all.to_string()));
        allocatable.insert(name, Quantity(usable.to_string()));
    }
    let mut addresses: Vec<NodeAddress> =
        shared.node_ips.iter().map(|ip| NodeAddress { type_: "InternalIP".into(), address: ip.clone() }).collect();
    addresses.push(NodeAddress { type_: "Hostname".into(), address: shared.node_name.clone() });
    let version = shared.cri.version().await.ok();
    let runtime = version.map_or_else(String::new, |v| format!("{}://{}", v.runtime_name, v.runtime_version));
    let answer = shared.cri.status().await;
    let volumes = shared.clone();
    let in_use = tokio::task::spawn_blocking(move || volumes.volumes.in_use()).await.unwrap_or_default();
    NodeStatus {
        runtime_handlers: answer.as_ref().ok().map(handlers),
        features: answer.as_ref().ok().and_then(|a| {
            let supplemental_groups_policy = Some(a.features.as_ref()?.supplemental_groups_policy);
            Some(NodeFeatures { supplemental_groups_policy })
        }),
        volumes_in_use: Some(in_use),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        addresses: Some(addresses),
        conditions: Some(conditions(shared, health, before, answer)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: shared.config.port }),
        }),
        node_info: Some(facts::system_info(&runtime)),
        images: Some(images(shared).await),
        ..Default::default()
    }
}

async fn images(shared: &Shared) -> Vec<ContainerImage> {
    let mut list = shared.cri.image_list().await.unwrap_or_default();
    list.sort_by(|a, b| (b.size, &a.id).cmp(&(a.size, &b.id)));
    let most = usize::try_from(shared.config.node_status_max_images).unwrap_or(usize::MAX);
    let named = list.into_iter().take(most).map(|image| ContainerImage {
        names: Some(image.repo_digests.into_iter().chain(image.repo_tags).take(5).collect()),
        size_bytes: i64::try_from(image.size).ok(),
    });
    named.collect()
}

/// What the runtime's handlers can do.
fn handlers(answer: &StatusResponse) -> Vec<NodeRuntimeHandler> {
    let one = |h: &proto::cri::RuntimeHandler| NodeRuntimeHandler {
        name: Some(h.name.clone()),
        features: h.features.as_ref().map(|f| NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(f.recursive_read_only_mounts),
            user_namespaces: Some(f.user_namespaces),
        }),
    };
    answer.runtime_handlers.iter().map(one).collect()
}

/// One problem stands alone, several are a list: as upstream writes them.
fn together(problems: &[String]) -> String {
    match problems {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

fn conditions(
    shared: &Shared,
    health: &Health,
    before: Option<&NodeStatus>,
    answer: Result<StatusResponse, CriError>,
) -> Vec<NodeCondition> {
    let now = Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default());
    let mut problems = Vec::new();
    if shared.shutdown.active() {
        problems.push("node is shutting down".to_owned());
    }
    if let Err(e) = health.check() {
        problems.push(e);
    }
    match answer {
        Ok(status) => {
            let status = status.status.unwrap_or_default();
            for (kind, title) in [
                ("RuntimeReady", "container runtime not ready"),
                ("NetworkReady", "container runtime network not ready"),
            ] {
                match status.conditions.iter().find(|c| c.r#type == kind) {
                    Some(c) if c.status => {}
                    Some(c) => {
                        problems.push(format!("{title}: {kind}=false reason:{} message:{}", c.reason, c.message))
                    }
                    None => problems.push(format!("{title}: the runtime does not tell {kind}")),
                }
            }
        }
        Err(e) => problems.push(format!("container runtime is down: {e}")),
    }
    let pressure = shared.pressure.get();
    let mut out = Vec::new();
    let mut put = |type_: &str, status: bool, reason: &str, message: &str| {
        let status = if status { "True" } else { "False" };
        let old = before.and_then(|b| b.conditions.as_ref()?.iter().find(|c| c.type_ == type_ && c.status == status));
        out.push(NodeCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: Some(old.and_then(|c| c.last_transition_time.clone()).unwrap_or_else(|| now.clone())),
        });
    };
    for condition in Condition::ALL {
        let bad = pressure.contains(&condition);
        let (reason, message) = condition.words(bad);
        put(condition.name(), bad, reason, message);
    }
    if problems.is_empty() {
        put("Ready", true, "KubeletReady", "kubelet is posting ready status");
    } else {
        put("Ready", false, "KubeletNotReady", &together(&problems));
    }
    out
}
