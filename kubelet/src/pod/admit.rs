//! Whether a pod may begin on this node, with upstream's reasons (pure). A pod that has begun is never asked again.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Taint};

use super::requests::{Amounts, requests};
use super::{affinity, all_containers, host_network, is_static, sysctls};

/// What is known of the node.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeView {
    /// Its name.
    pub(crate) name: String,
    /// Its labels; `None` while they are not known.
    pub(crate) labels: Option<BTreeMap<String, String>>,
    /// Its taints.
    pub(crate) taints: Vec<Taint>,
    /// What its pods may take together.
    pub(crate) allocatable: Amounts,
    /// `allowedUnsafeSysctls`
    pub(crate) unsafe_sysctls: Vec<String>,
    /// AppArmor is at work.
    pub(crate) apparmor: bool,
}

/// Why a pod may not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// `OutOfcpu`, `NodeAffinity`, ...
    pub(crate) reason: String,
    /// The text for people.
    pub(crate) message: String,
}

impl Rejection {
    fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }

    fn predicate(name: &str, why: &str) -> Self {
        Self::new(name, format!("Predicate {name} failed: {why}"))
    }
}

/// Decides on a pod beside the `others` that the node holds.
///
/// # Errors
/// The pod is rejected.
pub(crate) fn admit(pod: &Pod, node: &NodeView, others: &[&Pod]) -> Result<(), Rejection> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    if let Some(why) = sysctls::forbidden(pod, &node.unsafe_sysctls) {
        return Err(Rejection::new("SysctlForbidden", why));
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(Rejection::new("PodOSNotSupported", message));
    }
    let asked_os = spec.node_selector.as_ref().and_then(|s| s.get("kubernetes.io/os"));
    if asked_os.is_some_and(|os| os != "linux") {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Err(Rejection::new("PodOSSelectorNodeLabelDoesNotMatch", message));
    }
    room(pod, node, others)?;
    if node.labels.as_ref().is_some_and(|labels| !affinity::fits(pod, labels, &node.name)) {
        return Err(Rejection::predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
    }
    if spec.node_name.as_ref().is_some_and(|name| !name.is_empty() && *name != node.name) {
        return Err(Rejection::predicate("NodeName", "node(s) didn't match the requested node name"));
    }
    let taken: Vec<Port<'_>> = others.iter().flat_map(|other| ports(other)).collect();
    if ports(pod).iter().any(|port| taken.iter().any(|other| port.meets(other))) {
        return Err(Rejection::predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports"));
    }
    if !is_static(pod)
        && let Some(taint) = affinity::untolerated(pod, &node.taints)
    {
        let value = taint.value.as_deref().unwrap_or_default();
        let why = format!("node(s) had untolerated taint {{{}: {value}}}", taint.key);
        return Err(Rejection::predicate("TaintToleration", &why));
    }
    if !node.apparmor && asks_apparmor(pod, spec) {
        return Err(Rejection::new("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host"));
    }
    Ok(())
}

/// How much of each resource the pod lacks beside the others.
pub(crate) fn missing(pod: &Pod, node: &NodeView, others: &[&Pod]) -> Amounts {
    lacks(pod, node, others).map(|(name, want, taken, all)| (name, want - (all - taken))).collect()
}

/// Whether what is left of each resource is enough.
fn room(pod: &Pod, node: &NodeView, others: &[&Pod]) -> Result<(), Rejection> {
    let Some((name, want, taken, all)) = lacks(pod, node, others).next() else { return Ok(()) };
    let message =
        format!("Node didn't have enough resource: {name}, requested: {want}, used: {taken}, capacity: {all}");
    Err(Rejection { reason: format!("OutOf{name}"), message })
}

/// What there is not enough of: name, what is asked for, what others hold, what there is.
fn lacks(pod: &Pod, node: &NodeView, others: &[&Pod]) -> impl Iterator<Item = (String, i64, i64, i64)> {
    let mut used = Amounts::new();
    for other in others {
        for (name, value) in requests(other) {
            *used.entry(name).or_default() += value;
        }
    }
    used.insert("pods".to_owned(), i64::try_from(others.len()).unwrap_or(i64::MAX));
    let mut asked = requests(pod);
    asked.insert("pods".to_owned(), 1);
    // The order in which upstream looks, then the rest.
    let first = ["pods", "cpu", "memory", "ephemeral-storage"];
    let rest = asked.keys().map(String::as_str).filter(|name| !first.contains(name));
    let lack = |name: &str| {
        // What the node does not have at all belongs to a device plugin, which has the word on it.
        let (&want, &all) = asked.get(name).zip(node.allocatable.get(name))?;
        let taken = used.get(name).copied().unwrap_or(0);
        (want > 0 && want > all - taken).then(|| (name.to_owned(), want, taken, all))
    };
    first.into_iter().chain(rest).filter_map(lack).collect::<Vec<_>>().into_iter()
}

struct Port<'a> {
    protocol: &'a str,
    ip: &'a str,
    number: i32,
}

impl Port<'_> {
    fn meets(&self, other: &Self) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        self.protocol == other.protocol
            && self.number == other.number
            && (self.ip == other.ip || any(self.ip) || any(other.ip))
    }
}

fn ports(pod: &Pod) -> Vec<Port<'_>> {
    let number = |p: &k8s_openapi::api::core::v1::ContainerPort| {
        let own = p.host_port.filter(|&n| n > 0);
        own.or_else(|| host_network(pod).then_some(p.container_port))
    };
    let all = all_containers(pod).flat_map(|c: &Container| c.ports.iter().flatten());
    all.filter_map(|p| {
        Some(Port {
            protocol: p.protocol.as_deref().unwrap_or("TCP"),
            ip: p.host_ip.as_deref().unwrap_or_default(),
            number: number(p)?,
        })
    })
    .collect()
}

fn asks_apparmor(pod: &Pod, spec: &PodSpec) -> bool {
    let own = all_containers(pod).filter_map(|c| c.security_context.as_ref()?.app_armor_profile.as_ref());
    let whole = spec.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    own.chain(whole).any(|profile| profile.type_ != "Unconfined")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "a", "image": "x"}]);
        }
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn asking(requests: Value) -> Value {
        json!({"containers": [{"name": "a", "resources": {"requests": requests}}]})
    }

    fn port(number: i32, ip: &str) -> Value {
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": number, "hostIP": ip}]}]})
    }

    fn node() -> NodeView {
        NodeView {
            name: "n1".into(),
            labels: Some([("zone".to_owned(), "a".to_owned())].into()),
            allocatable: [
                ("cpu", 2000),
                ("memory", 1000),
                ("pods", 3),
                ("ephemeral-storage", 500),
                ("hugepages-2Mi", 10),
            ]
            .map(|(n, v)| (n.to_owned(), v))
            .into(),
            ..Default::default()
        }
    }

    #[test]
    fn each_rejection_has_its_reason() {
        let security = |s: Value| json!({"securityContext": s});
        let none: &[Value] = &[];
        let table: &[(Value, &[Value], &str)] = &[
            (json!({}), none, "ok"),
            (asking(json!({"cpu": "2", "memory": "1000"})), none, "ok"),
            (asking(json!({"cpu": "1500m"})), &[asking(json!({"cpu": "600m"}))], "OutOfcpu"),
            (asking(json!({"memory": "1001"})), none, "OutOfmemory"),
            (asking(json!({"ephemeral-storage": "501"})), none, "OutOfephemeral-storage"),
            (asking(json!({"hugepages-2Mi": "11"})), none, "OutOfhugepages-2Mi"),
            (asking(json!({"example.com/gpu": "11"})), none, "ok"),
            (json!({}), &[json!({}), json!({}), json!({})], "OutOfpods"),
            (json!({"nodeSelector": {"zone": "b"}}), none, "NodeAffinity"),
            (json!({"nodeSelector": {"zone": "a"}}), none, "ok"),
            (json!({"nodeName": "n2"}), none, "NodeName"),
            (json!({"os": {"name": "windows"}}), none, "PodOSNotSupported"),
            (json!({"nodeSelector": {"kubernetes.io/os": "windows"}}), none, "PodOSSelectorNodeLabelDoesNotMatch"),
            (security(json!({"sysctls": [{"name": "kernel.sem", "value": "1"}]})), none, "SysctlForbidden"),
            (security(json!({"appArmorProfile": {"type": "RuntimeDefault"}})), none, "AppArmor"),
            (security(json!({"appArmorProfile": {"type": "Unconfined"}})), none, "ok"),
            (port(80, ""), &[port(80, "10.0.0.1")], "NodePorts"),
            (port(80, "10.0.0.2"), &[port(80, "10.0.0.1")], "ok"),
            (port(81, ""), &[port(80, "")], "ok"),
        ];
        for (spec, others, want) in table {
            let others: Vec<Pod> = others.iter().map(|o| pod(o.clone())).collect();
            let others: Vec<&Pod> = others.iter().collect();
            let got = admit(&pod(spec.clone()), &node(), &others);
            assert_eq!(got.map_or_else(|r| r.reason, |()| "ok".to_owned()), *want, "{spec}");
        }
    }

    #[test]
    fn taints_drive_away_all_but_static_pods() {
        let taint = Taint { key: "k".into(), effect: "NoExecute".into(), ..Default::default() };
        let node = NodeView { taints: vec![taint], ..node() };
        let mut subject = pod(json!({}));
        assert_eq!(admit(&subject, &node, &[]).unwrap_err().reason, "TaintToleration");
        subject.metadata.annotations = Some([(super::super::SOURCE.to_owned(), "file".to_owned())].into());
        assert_eq!(admit(&subject, &node, &[]), Ok(()));
    }

    #[test]
    fn the_message_tells_the_amounts() {
        let full = pod(asking(json!({"cpu": "1900m"})));
        let got = admit(&pod(asking(json!({"cpu": "200m"}))), &node(), &[&full]).unwrap_err();
        let want = "Node didn't have enough resource: cpu, requested: 200, used: 1900, capacity: 2000";
        assert_eq!(got.message, want);
    }
}
