//! What kube-controller-manager's node-lifecycle and taint-eviction controllers do, until controllers of their own exist:
//! taints by the conditions of nodes, conditions of nodes whose kubelet is silent, and the end of pods that do not tolerate
//! that.
//!
//! Silence is measured by when this server last saw a sign of life change, not by the times that kubelets write: clocks
//! differ, and a server that was down has heard nobody meanwhile.

mod decide;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::decide::Fate;
use crate::http_util::now;
use crate::jumps::Jumps;
use crate::router::Api;
use crate::store::{Entry, StoreError};

/// Between looks at who is silent.
const PERIOD: Duration = Duration::from_secs(5);
/// How long a kubelet may be silent (`--node-monitor-grace-period`).
const GRACE: Duration = Duration::from_secs(50);
/// How long one may be that was never heard of.
const FIRST_GRACE: Duration = Duration::from_secs(60);
/// How long pods tolerate a node by default: nobody is sent away so long after the clock was set ahead.
const TOLERATED: Duration = Duration::from_secs(300);

/// A sign of life and when it was new.
struct Heard {
    sign: String,
    at: Instant,
    /// It has changed since this server looks.
    twice: bool,
}

/// Looks after nodes until the server stops.
pub async fn run(api: Arc<Api>) {
    let mut heard: HashMap<String, Heard> = HashMap::new();
    let mut jumps = Jumps::new(TOLERATED);
    loop {
        let revision = api.store.revision();
        let nodes = api.store.range("/core/nodes/", "", 0, 0).map(|page| page.items).unwrap_or_default();
        heard.retain(|key, _| nodes.iter().any(|(own, _)| own == key));
        let mut drive = false;
        for (key, entry) in &nodes {
            let node = look(&api, key, entry, &mut heard).await;
            let taints = node["spec"]["taints"].as_array().into_iter().flatten();
            drive |= taints.filter(|t| t["effect"] == "NoExecute").count() > 0 || decide::is_silent(&node);
        }
        let may_evict = jumps.believable();
        if drive {
            pods(&api, may_evict).await;
        }
        let Ok((past, mut events)) = api.store.watch("/core/nodes/", revision) else { continue };
        if !past.is_empty() {
            // What the pass itself wrote makes one more pass, which then finds nothing to do.
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        }
        tokio::select! {
            () = api.stop.cancelled() => return,
            _ = events.recv() => {}
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Brings one node's conditions and taints up to date; gives it as it shall be.
async fn look(api: &Api, key: &str, entry: &Entry, heard: &mut HashMap<String, Heard>) -> Value {
    let name = entry.value["metadata"]["name"].as_str().unwrap_or_default();
    let lease = api.store.get(&format!("/coordination.k8s.io/leases/kube-node-lease/{name}"));
    let sign = decide::sign(&entry.value, lease.as_ref().map(|l| &l.value));
    let known =
        heard.entry(key.to_owned()).or_insert_with(|| Heard { sign: sign.clone(), at: Instant::now(), twice: false });
    if known.sign != sign {
        *known = Heard { sign, at: Instant::now(), twice: true };
    }
    let mut node = entry.value.clone();
    if known.at.elapsed() >= if known.twice { GRACE } else { FIRST_GRACE } {
        decide::silence(&mut node, &now());
    }
    decide::taint(&mut node, &now());
    // Whoever changed the node meanwhile makes another pass.
    if node != entry.value && api.store.replace(key, entry.revision, node.clone()).await.is_ok() {
        tracing::info!(node = name, taints = %node["spec"]["taints"], "taints and conditions of the node changed");
    }
    node
}

/// Takes readiness from pods whose kubelet is silent, and ends those that do not tolerate their node, if `may_evict`.
async fn pods(api: &Api, may_evict: bool) {
    let list = |prefix: &str| api.store.range(prefix, "", 0, 0).map(|page| page.items).unwrap_or_default();
    let nodes: HashMap<String, Arc<Entry>> = list("/core/nodes/")
        .into_iter()
        .map(|(_, entry)| (entry.value["metadata"]["name"].as_str().unwrap_or_default().to_owned(), entry))
        .collect();
    let second = jiff::Timestamp::now().as_second();
    for (key, entry) in list("/core/pods/") {
        let pod = &entry.value;
        let Some(node) = pod["spec"]["nodeName"].as_str().and_then(|name| nodes.get(name)) else { continue };
        let over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        // A static pod is its kubelet's; what the apiserver has is a picture of it.
        let mirror = pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string();
        let taints = node.value["spec"]["taints"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut new = pod.clone();
        let mut changed = decide::is_silent(&node.value) && decide::unready(&mut new, &now());
        let going = pod["metadata"]["deletionTimestamp"].is_string();
        if may_evict
            && !over
            && !mirror
            && !going
            && matches!(decide::fate(pod, taints, second), Fate::Goes(at) if at <= second)
        {
            evict(&mut new);
            changed = true;
            tracing::info!(pod = key, "the pod does not tolerate its node; it is deleted");
        }
        if changed
            && let Err(error) = api.store.replace(&key, entry.revision, new).await
            && !matches!(error, StoreError::Changed)
        {
            tracing::warn!(pod = key, %error, "a pod of a node that is not well not written");
        }
    }
}

/// Marks a pod as going, and says why.
fn evict(pod: &mut Value) {
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    if let Some(list) = pod["status"]["conditions"].as_array_mut() {
        list.retain(|c| c["type"] != "DisruptionTarget");
        list.push(json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": now()}));
    }
    crate::delete::mark_deleted(pod);
}
