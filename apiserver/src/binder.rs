//! A small scheduler: each pending pod gets a ready node that fits, as soon as pods or nodes change.

use std::sync::Arc;
use std::time::Duration;

use gantry_kube::quantity::Quantity;
use gantry_kube::selector::expression_of;
use serde_json::{Value, json};

use crate::http_util::now;
use crate::router::Api;
use crate::store::Entry;

/// Binds pods until the server stops.
pub async fn run(api: Arc<Api>) {
    loop {
        let revision = api.store.revision();
        pass(&api).await;
        let (Ok((pods, mut pod_events)), Ok((nodes, mut node_events))) =
            (api.store.watch("/core/pods/", revision), api.store.watch("/core/nodes/", revision))
        else {
            continue;
        };
        if !pods.is_empty() || !nodes.is_empty() {
            // What the pass itself wrote makes one more pass, which then finds nothing to do.
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        }
        tokio::select! {
            () = api.stop.cancelled() => return,
            _ = pod_events.recv() => {}
            _ = node_events.recv() => {}
            () = tokio::time::sleep(Duration::from_secs(30)) => {}
        }
    }
}

async fn pass(api: &Arc<Api>) {
    let list = |prefix: &str| api.store.range(prefix, "", 0, 0).map(|page| page.items).unwrap_or_default();
    let nodes: Vec<Arc<Entry>> = list("/core/nodes/").into_iter().map(|(_, entry)| entry).collect();
    let pods = list("/core/pods/");
    let mut placed: Vec<Value> = pods
        .iter()
        .map(|(_, entry)| &entry.value)
        .filter(|pod| pod["spec"]["nodeName"].is_string() && !ended(pod))
        .cloned()
        .collect();
    for (key, entry) in &pods {
        let pod = &entry.value;
        let scheduler = pod["spec"]["schedulerName"].as_str().unwrap_or("default-scheduler");
        let gated = pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty());
        let bound = pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
        if bound
            || scheduler != "default-scheduler"
            || gated
            || ended(pod)
            || pod["metadata"]["deletionTimestamp"].is_string()
        {
            continue;
        }
        let mut reasons: Vec<String> = Vec::new();
        let mut best: Option<(usize, &Value)> = None;
        for node in nodes.iter().map(|entry| &entry.value) {
            match refusal(pod, node, &placed) {
                Some(why) => reasons.push(why),
                None => {
                    let load =
                        placed.iter().filter(|other| other["spec"]["nodeName"] == node["metadata"]["name"]).count();
                    if best.is_none_or(|(least, _)| load < least) {
                        best = Some((load, node));
                    }
                }
            }
        }
        let mut new = pod.clone();
        let name = format!(
            "{}/{}",
            pod["metadata"]["namespace"].as_str().unwrap_or_default(),
            pod["metadata"]["name"].as_str().unwrap_or_default()
        );
        let (kind, reason, message) = match best {
            Some((_, node)) => {
                let node = node["metadata"]["name"].as_str().unwrap_or_default();
                new["spec"]["nodeName"] = json!(node);
                set_condition(&mut new, json!({"type": "PodScheduled", "status": "True"}));
                ("Normal", "Scheduled", format!("Successfully assigned {name} to {node}"))
            }
            None => {
                let message = unschedulable(nodes.len(), &reasons);
                set_condition(
                    &mut new,
                    json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}),
                );
                ("Warning", "FailedScheduling", message)
            }
        };
        if new == *pod {
            continue;
        }
        if api.store.replace(key, entry.revision, new.clone()).await.is_ok() {
            if best.is_some() {
                placed.push(new);
            }
            event(api, pod, kind, reason, &message).await;
        }
    }
}

fn ended(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

fn set_condition(pod: &mut Value, mut condition: Value) {
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let Some(list) = pod["status"]["conditions"].as_array_mut() else { return };
    let old = list.iter().position(|own| own["type"] == condition["type"]);
    condition["lastProbeTime"] = Value::Null;
    match old {
        Some(at) => {
            let same = list[at]["status"] == condition["status"];
            condition["lastTransitionTime"] = if same { list[at]["lastTransitionTime"].clone() } else { json!(now()) };
            if list[at] != condition {
                list[at] = condition;
            }
        }
        None => {
            condition["lastTransitionTime"] = json!(now());
            list.push(condition);
        }
    }
}

fn unschedulable(nodes: usize, reasons: &[String]) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut counts: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let texts: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    format!("0/{nodes} nodes are available: {}.", texts.join(", "))
}

/// Why a node does not fit a pod.
fn refusal(pod: &Value, node: &Value, placed: &[Value]) -> Option<String> {
    let spec = &pod["spec"];
    let tolerates = |taint: &Value| {
        spec["tolerations"].as_array().into_iter().flatten().any(|t| {
            let key = t["key"].as_str().unwrap_or_default();
            let effect = t["effect"].as_str().unwrap_or_default();
            let exists = t["operator"] == "Exists";
            (effect.is_empty() || taint["effect"] == effect)
                && ((key.is_empty() && exists) || taint["key"] == key)
                && (exists || t["value"].as_str().unwrap_or_default() == taint["value"].as_str().unwrap_or_default())
        })
    };
    if node["spec"]["unschedulable"] == true
        && !tolerates(&json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}))
    {
        return Some("node(s) were unschedulable".into());
    }
    for taint in node["spec"]["taints"].as_array().into_iter().flatten() {
        if matches!(taint["effect"].as_str(), Some("NoSchedule" | "NoExecute")) && !tolerates(taint) {
            let text = |field: &str| taint[field].as_str().unwrap_or_default().to_owned();
            return Some(format!("node(s) had untolerated taint {{{}: {}}}", text("key"), text("value")));
        }
    }
    let ready = node["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Ready" && c["status"] == "True");
    if !ready {
        return Some("node(s) were not ready".into());
    }
    let labels = &node["metadata"]["labels"];
    let selected = spec["nodeSelector"].as_object().into_iter().flatten().all(|(key, value)| labels[key] == *value);
    let required =
        &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    let holds =
        |expression: &Value| expression_of(expression).is_ok_and(|r| r.matches(&|key: &str| labels[key].as_str()));
    let affine = required.as_array().is_none_or(|terms| {
        terms.iter().any(|term| {
            let fields = term["matchFields"].as_array().into_iter().flatten().all(|e| {
                expression_of(e).is_ok_and(|r| {
                    r.matches(&|key: &str| {
                        if key == "metadata.name" { node["metadata"]["name"].as_str() } else { None }
                    })
                })
            });
            let any = term["matchExpressions"].is_array() || term["matchFields"].is_array();
            any && fields && term["matchExpressions"].as_array().into_iter().flatten().all(holds)
        })
    });
    if !selected || !affine {
        return Some("node(s) didn't match Pod's node affinity/selector".into());
    }
    let on_node = || placed.iter().filter(|other| other["spec"]["nodeName"] == node["metadata"]["name"]);
    let allocatable = &node["status"]["allocatable"];
    if let Some(limit) = allocatable["pods"].as_str().and_then(|text| text.parse::<usize>().ok())
        && on_node().count() >= limit
    {
        return Some("Too many pods".into());
    }
    for resource in ["cpu", "memory"] {
        let Some(room) = allocatable[resource].as_str().and_then(|text| Quantity::parse(text).ok()) else { continue };
        let wanted = request(pod, resource);
        let used: i64 = on_node().map(|other| request(other, resource)).sum();
        let room = if resource == "cpu" { room.milli_value() } else { room.value() };
        if wanted > 0 && used.saturating_add(wanted) > room {
            return Some(format!("Insufficient {resource}"));
        }
    }
    None
}

fn request(pod: &Value, resource: &str) -> i64 {
    let of = |container: &Value| {
        let quantity =
            container["resources"]["requests"][resource].as_str().and_then(|text| Quantity::parse(text).ok());
        quantity.map_or(0, |q| if resource == "cpu" { q.milli_value() } else { q.value() })
    };
    let list = |name: &str| pod["spec"][name].as_array().into_iter().flatten();
    let main: i64 =
        list("containers").chain(list("initContainers").filter(|c| c["restartPolicy"] == "Always")).map(of).sum();
    main.max(list("initContainers").map(of).max().unwrap_or(0))
}

async fn event(api: &Api, pod: &Value, kind: &str, reason: &str, message: &str) {
    let metadata = &pod["metadata"];
    let (namespace, name) =
        (metadata["namespace"].as_str().unwrap_or_default(), metadata["name"].as_str().unwrap_or_default());
    let unique = format!("{name}.{:x}", jiff::Timestamp::now().as_nanosecond());
    let time = now();
    let object = json!({"apiVersion": "v1", "kind": "Event",
        "metadata": {"name": unique, "namespace": namespace, "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": time},
        "involvedObject": {"kind": "Pod", "namespace": namespace, "name": name, "uid": metadata["uid"], "apiVersion": "v1", "resourceVersion": metadata["resourceVersion"]},
        "reason": reason, "message": message, "type": kind, "count": 1, "firstTimestamp": time, "lastTimestamp": time,
        "source": {"component": "default-scheduler"}, "reportingComponent": "default-scheduler", "reportingInstance": ""});
    if let Err(error) = api.store.create(&format!("/core/events/{namespace}/{unique}"), object).await {
        tracing::debug!(%error, "write an event");
    }
}
