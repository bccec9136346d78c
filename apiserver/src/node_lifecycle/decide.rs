//! Which conditions, taints and evictions a node's state asks for (pure).

use serde_json::{Value, json};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that keep pods away while they are `True`, and their taints.
const CONDITIONS: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// Conditions that only the kubelet knows: nobody does when it is silent.
const OF_KUBELET: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

fn status_of<'a>(node: &'a Value, kind: &str) -> Option<&'a str> {
    condition(node, kind)?["status"].as_str()
}

/// Whether a taint is kept by this controller.
fn ours(taint: &Value) -> bool {
    let key = taint["key"].as_str().unwrap_or_default();
    let no_schedule =
        [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&key) || CONDITIONS.iter().any(|(_, k)| *k == key);
    match taint["effect"].as_str() {
        Some("NoSchedule") => no_schedule,
        Some("NoExecute") => [NOT_READY, UNREACHABLE].contains(&key),
        _ => false,
    }
}

/// The taints that a node's conditions ask for: key and effect.
fn wanted(node: &Value) -> Vec<(&'static str, &'static str)> {
    let mut out = Vec::new();
    match status_of(node, "Ready") {
        Some("True") => {}
        Some("False") => out.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
        Some(_) => out.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
        // Nothing was heard of it yet.
        None => out.push((NOT_READY, "NoSchedule")),
    }
    let bad = CONDITIONS.iter().filter(|(kind, _)| status_of(node, kind) == Some("True"));
    out.extend(bad.map(|(_, key)| (*key, "NoSchedule")));
    if node["spec"]["unschedulable"] == true {
        out.push((UNSCHEDULABLE, "NoSchedule"));
    }
    out
}

/// Brings a node's taints in line with its conditions; others stay as they are.
pub(super) fn taint(node: &mut Value, now: &str) {
    let old: Vec<Value> = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let wanted = wanted(node);
    let is = |taint: &Value, (key, effect): &(&str, &str)| taint["key"] == *key && taint["effect"] == *effect;
    let mut new: Vec<Value> = old.iter().filter(|t| !ours(t) || wanted.iter().any(|w| is(t, w))).cloned().collect();
    for pair in wanted.iter().filter(|w| !old.iter().any(|t| is(t, w))) {
        new.push(json!({"key": pair.0, "effect": pair.1, "timeAdded": now}));
    }
    if new == old {
        return;
    }
    if new.is_empty() {
        if let Some(spec) = node["spec"].as_object_mut() {
            spec.remove("taints");
        }
    } else {
        node["spec"]["taints"] = Value::Array(new);
    }
}

/// Notes on a node whose kubelet is silent that nobody knows its state.
pub(super) fn silence(node: &mut Value, now: &str) {
    if !node["status"]["conditions"].is_array() {
        node["status"]["conditions"] = json!([]);
    }
    let created = node["metadata"]["creationTimestamp"].clone();
    let Some(list) = node["status"]["conditions"].as_array_mut() else { return };
    for kind in OF_KUBELET {
        match list.iter_mut().find(|c| c["type"] == kind) {
            Some(own) if own["status"] == "Unknown" => {}
            Some(own) => {
                own["status"] = json!("Unknown");
                own["reason"] = json!("NodeStatusUnknown");
                own["message"] = json!("Kubelet stopped posting node status.");
                own["lastTransitionTime"] = json!(now);
            }
            None => list.push(json!({"type": kind, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                "message": "Kubelet never posted node status.", "lastHeartbeatTime": created,
                "lastTransitionTime": now})),
        }
    }
}

/// What a kubelet last said, in one text that changes with each sign of life.
pub(super) fn sign(node: &Value, lease: Option<&Value>) -> String {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let beats = conditions.filter(|c| OF_KUBELET.iter().any(|k| c["type"] == *k));
    let newest = beats.filter_map(|c| c["lastHeartbeatTime"].as_str()).max().unwrap_or_default();
    let renewed = lease.and_then(|l| l["spec"]["renewTime"].as_str()).unwrap_or_default();
    format!("{newest}/{renewed}")
}

/// Whether pods of the node may not be counted as ready: whoever would have to say so is silent.
pub(super) fn is_silent(node: &Value) -> bool {
    status_of(node, "Ready").is_some_and(|s| s == "Unknown")
}

/// A pod of a silent node is not ready; tells whether that is new.
pub(super) fn unready(pod: &mut Value, now: &str) -> bool {
    let Some(list) = pod["status"]["conditions"].as_array_mut() else { return false };
    let Some(ready) = list.iter_mut().find(|c| c["type"] == "Ready" && c["status"] == "True") else { return false };
    ready["status"] = json!("False");
    ready["lastTransitionTime"] = json!(now);
    true
}

/// What NoExecute taints mean to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays.
    Stays,
    /// It goes at this second since 1970.
    Goes(i64),
}

/// When a pod has to leave a node with such taints. `now` is in seconds since 1970, for taints that say no time.
pub(super) fn fate(pod: &Value, taints: &[Value], now: i64) -> Fate {
    let mut ends: Option<i64> = None;
    for taint in taints.iter().filter(|t| t["effect"] == "NoExecute") {
        let added = taint["timeAdded"].as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
        let added = added.map_or(now, jiff::Timestamp::as_second);
        let tolerations = pod["spec"]["tolerations"].as_array().into_iter().flatten();
        let mut own = tolerations.filter(|t| tolerates(t, taint)).peekable();
        if own.peek().is_none() {
            return Fate::Goes(added);
        }
        // The shortest of them counts; one without a time is for ever.
        if let Some(seconds) = own.filter_map(|t| t["tolerationSeconds"].as_i64()).min() {
            let end = added.saturating_add(seconds.max(0));
            ends = Some(ends.map_or(end, |e| e.min(end)));
        }
    }
    ends.map_or(Fate::Stays, Fate::Goes)
}

fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let text = |of: &Value, field: &str| of[field].as_str().unwrap_or_default().to_owned();
    let (key, effect) = (text(toleration, "key"), text(toleration, "effect"));
    let exists = toleration["operator"] == "Exists";
    (effect.is_empty() || effect == text(taint, "effect"))
        && ((key.is_empty() && exists) || key == text(taint, "key"))
        && (exists || text(toleration, "value") == text(taint, "value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(conditions: &[(&str, &str)], spec: Value) -> Value {
        let list: Vec<Value> = conditions.iter().map(|(k, s)| json!({"type": k, "status": s})).collect();
        json!({"spec": spec, "status": {"conditions": list}})
    }

    fn taints(node: &Value) -> Vec<String> {
        let list = node["spec"]["taints"].as_array().into_iter().flatten();
        let text = |t: &Value, field: &str| t[field].as_str().unwrap_or_default().to_owned();
        list.map(|t| format!("{}:{}", text(t, "key").replace("node.kubernetes.io/", ""), text(t, "effect"))).collect()
    }

    #[test]
    fn conditions_become_taints_and_go_with_them() {
        let own = json!({"key": "mine", "effect": "NoExecute"});
        let stale = json!({"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"});
        for (conditions, spec, want) in [
            (&[][..], json!({}), &["not-ready:NoSchedule"][..]),
            (&[("Ready", "True")], json!({}), &[]),
            (&[("Ready", "False")], json!({}), &["not-ready:NoSchedule", "not-ready:NoExecute"]),
            (&[("Ready", "Unknown")], json!({}), &["unreachable:NoSchedule", "unreachable:NoExecute"]),
            (
                &[("Ready", "True"), ("MemoryPressure", "True"), ("PIDPressure", "True"), ("DiskPressure", "False")],
                json!({"unschedulable": true}),
                &["memory-pressure:NoSchedule", "pid-pressure:NoSchedule", "unschedulable:NoSchedule"],
            ),
            (&[("Ready", "True"), ("NetworkUnavailable", "True")], json!({}), &["network-unavailable:NoSchedule"]),
            (&[("Ready", "True")], json!({"taints": [own, stale]}), &["mine:NoExecute"]),
        ] {
            let mut node = node(conditions, spec);
            taint(&mut node, "2026-01-01T00:00:00Z");
            assert_eq!(taints(&node), want, "{conditions:?}");
            let again = node.clone();
            taint(&mut node, "2026-01-01T00:00:09Z");
            assert_eq!(node, again, "a taint keeps its time");
        }
    }

    #[test]
    fn a_silent_kubelet_leaves_everything_unknown() {
        let mut node = node(&[("Ready", "True"), ("NetworkUnavailable", "False")], json!({}));
        silence(&mut node, "2026-01-01T00:00:00Z");
        for kind in OF_KUBELET {
            assert_eq!(status_of(&node, kind), Some("Unknown"), "{kind}");
        }
        assert_eq!(status_of(&node, "NetworkUnavailable"), Some("False"));
        assert!(is_silent(&node));
        let before = node.clone();
        silence(&mut node, "2026-01-01T00:00:09Z");
        assert_eq!(node, before);
        let mut pod = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        assert!(unready(&mut pod, "2026-01-01T00:00:00Z") && !unready(&mut pod, "2026-01-01T00:00:00Z"));
    }

    #[test]
    fn pods_go_when_nothing_or_too_short_a_time_is_tolerated() {
        let taint = |key: &str| json!({"key": key, "effect": "NoExecute", "timeAdded": "1970-01-01T00:01:40Z"});
        let soft = json!({"key": "c", "effect": "NoSchedule"});
        let for_a = |seconds: Option<i64>| {
            let mut one = json!({"key": "a", "operator": "Exists", "effect": "NoExecute"});
            if let Some(seconds) = seconds {
                one["tolerationSeconds"] = json!(seconds);
            }
            one
        };
        let all = json!({"operator": "Exists"});
        for (tolerations, taints, want) in [
            (json!([]), vec![], Fate::Stays),
            (json!([]), vec![soft], Fate::Stays),
            (json!([]), vec![taint("a")], Fate::Goes(100)),
            (json!([for_a(None)]), vec![taint("a")], Fate::Stays),
            (json!([for_a(Some(300))]), vec![taint("a")], Fate::Goes(400)),
            (json!([for_a(Some(300)), for_a(Some(10))]), vec![taint("a")], Fate::Goes(110)),
            (json!([for_a(Some(300))]), vec![taint("a"), taint("b")], Fate::Goes(100)),
            (json!([all]), vec![taint("a"), taint("b")], Fate::Stays),
        ] {
            assert_eq!(fate(&json!({"spec": {"tolerations": tolerations}}), &taints, 7), want);
        }
    }

    #[test]
    fn a_renewed_lease_is_a_sign_of_life() {
        let node = json!({"status": {"conditions": [{"type": "Ready", "lastHeartbeatTime": "a"}]}});
        let lease = |at: &str| json!({"spec": {"renewTime": at}});
        assert_ne!(sign(&node, Some(&lease("1"))), sign(&node, Some(&lease("2"))));
        assert_ne!(sign(&node, None), sign(&json!({}), None));
    }
}
