//! Nodes through the Kubernetes API: watched, and this one's own annotations and condition written.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;

use crate::config::Backend;
use crate::node::{self, Peer};

/// What is known of the cluster.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// Every node that was listed, this one too.
    pub nodes: Vec<Peer>,
    /// The address that an administrator set for this node.
    pub overwritten: Option<std::net::IpAddr>,
    /// All nodes were listed once.
    pub complete: bool,
}

/// Watches nodes for ever and publishes what is known; a broken watch is begun anew after a growing wait, and what was known
/// stands meanwhile.
pub async fn watch(client: Client, own: String, known: watch::Sender<Cluster>) {
    let api: Api<Node> = Api::all(client);
    let mut wait = Duration::from_millis(200);
    loop {
        let mut nodes: HashMap<String, Node> = HashMap::new();
        let mut listed = false;
        let mut events = std::pin::pin!(watcher::watcher(api.clone(), watcher::Config::default()));
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => nodes.clear(),
                Ok(Event::InitApply(node) | Event::Apply(node)) => {
                    nodes.insert(node.metadata.name.clone().unwrap_or_default(), slim(node));
                }
                Ok(Event::Delete(node)) => drop(nodes.remove(&node.metadata.name.unwrap_or_default())),
                Ok(Event::InitDone) => listed = true,
                Err(error) => {
                    tracing::warn!(%error, "the watch of nodes broke; what is known stands until it is back");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(10));
                    continue;
                }
            }
            if !listed {
                continue;
            }
            wait = Duration::from_millis(200);
            let mut peers: Vec<Peer> = nodes.values().map(node::read).collect();
            peers.sort_by(|a, b| a.name.cmp(&b.name));
            let overwritten = nodes.get(&own).and_then(node::overwritten_ip);
            known.send_if_modified(|old| {
                let changed = !old.complete || old.nodes != peers || old.overwritten != overwritten;
                *old = Cluster { nodes: peers, overwritten, complete: true };
                changed
            });
        }
    }
}

/// What the overlay reads of a node; the rest would only take memory.
fn slim(mut node: Node) -> Node {
    node.status = None;
    node.metadata.managed_fields = None;
    node.metadata.labels = None;
    node
}

/// Writes this node's annotations and its NetworkUnavailable condition, where they say something else.
///
/// # Errors
/// The apiserver refuses or cannot be reached.
pub async fn publish(client: &Client, own: &Peer, backend: Backend, trouble: Option<&str>) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let node = api.get(&own.name).await.with_context(|| format!("get node {}", own.name))?;
    let annotations = node::annotations(own, backend);
    let there = node.metadata.annotations.clone().unwrap_or_default();
    let (status, reason, message) = match trouble {
        None => ("False", "OverlayIsUp", "gantry-overlay is running on this node"),
        Some(text) => ("True", "OverlayIsDown", text),
    };
    let conditions = node.status.and_then(|s| s.conditions).unwrap_or_default();
    let told = conditions
        .iter()
        .any(|c| c.type_ == "NetworkUnavailable" && c.status == status && c.reason.as_deref() == Some(reason));
    if told && annotations.iter().all(|(k, v)| there.get(k) == Some(v)) {
        return Ok(());
    }
    let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = json!({
        "type": "NetworkUnavailable", "status": status, "reason": reason, "message": message,
        "lastHeartbeatTime": now, "lastTransitionTime": now
    });
    // Through the status, as flannel does: its role gives no more.
    let patch = json!({"metadata": {"annotations": annotations}, "status": {"conditions": [condition]}});
    api.patch_status(&own.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .with_context(|| format!("write the annotations of node {}", own.name))?;
    tracing::info!(node = own.name, status, "published this node's address and tunnel end");
    Ok(())
}
