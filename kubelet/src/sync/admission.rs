//! Asks whether a new pod may begin, with what this kubelet knows of its node and its other pods.

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use crate::eviction::{self, preempt};
use crate::node::facts;
use crate::pod::{self, NodeView, Rejection, admit, amounts, missing};
use crate::shared::Shared;
use crate::sources::node::NodeObject;

/// What decides.
pub(crate) struct Admission {
    node: NodeObject,
    fixed: NodeView,
}

impl Admission {
    /// `node` follows the apiserver's object of this node.
    pub(crate) fn new(shared: &Shared, node: NodeObject) -> Self {
        let (_, allocatable) = facts::resources(&shared.config, &shared.root);
        let name = &shared.node_name;
        let standard = [
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", facts::architecture()),
            ("kubernetes.io/hostname", name.as_str()),
        ];
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        let fixed = NodeView {
            name: name.clone(),
            // Without an apiserver nobody can give the node more labels.
            labels: shared.client.is_none().then(|| standard.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
            taints: Vec::new(),
            allocatable: amounts(Some(&allocatable)),
            unsafe_sysctls: shared.config.allowed_unsafe_sysctls.clone(),
            apparmor: enabled.is_ok_and(|text| text.trim() == "Y")
                && Path::new("/sys/kernel/security/apparmor").exists(),
        };
        Self { node, fixed }
    }

    /// Whether the pod may begin, and which pods have to end before. `others` are the pods that the node holds and that have
    /// not ended.
    ///
    /// # Errors
    /// Why it may not.
    pub(crate) fn ask<'a>(&self, shared: &Shared, pod: &Pod, others: &[&'a Pod]) -> Result<Room<'a>, Rejection> {
        if began(shared, pod) {
            return Ok(Room::default());
        }
        let mut view = self.fixed.clone();
        if let Some(Some(node)) = &*self.node.borrow() {
            view.labels = Some(node.metadata.labels.clone().unwrap_or_default());
            view.taints = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        }
        if let Some((reason, message)) = shared.shutdown.refusal() {
            return Err(Rejection { reason: reason.to_owned(), message: message.to_owned() });
        }
        if let Err((reason, message)) = eviction::admit(pod, &shared.pressure.get()) {
            return Err(Rejection { reason: reason.to_owned(), message });
        }
        room(pod, &view, others)
    }
}

/// What a pod that may begin needs first.
#[derive(Debug, Default)]
pub(crate) struct Room<'a> {
    /// The pods that have to end.
    pub(crate) ends: Vec<&'a Pod>,
    /// The resource for which they have to.
    pub(crate) signal: String,
}

/// Decides on a pod; a critical one that lacks nothing but room has others ended for it (pure).
fn room<'a>(pod: &Pod, view: &NodeView, others: &[&'a Pod]) -> Result<Room<'a>, Rejection> {
    let Err(rejection) = admit(pod, view, others) else { return Ok(Room::default()) };
    let missing = missing(pod, view, others);
    let Some(ends) = preempt::victims(pod, others, &missing) else { return Err(rejection) };
    let left: Vec<&Pod> = others.iter().copied().filter(|o| !ends.iter().any(|e| std::ptr::eq(*e, *o))).collect();
    admit(pod, view, &left)?;
    Ok(Room { ends, signal: preempt::signal(&missing).to_owned() })
}

/// A pod that has begun here before this kubelet did, or that is at its end, is not asked again.
fn began(shared: &Shared, pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    status.is_some_and(|s| s.start_time.is_some())
        || pod::is_over(pod)
        || pod.metadata.deletion_timestamp.is_some()
        || shared.volumes.layout().pod(pod::uid(pod)).exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, priority: i32, cpu: &str, zone: &str) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": name}, "spec": {"priority": priority, "nodeSelector": {"zone": zone},
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}),
        )
        .unwrap()
    }

    #[test]
    fn a_critical_pod_gets_room_but_nothing_else() {
        let view = NodeView {
            labels: Some([("zone".to_owned(), "a".to_owned())].into()),
            allocatable: [("cpu".to_owned(), 2000), ("pods".to_owned(), 10)].into(),
            ..Default::default()
        };
        let (system, held) = (2_000_000_000, [pod("x", 0, "1500m", "a"), pod("y", 0, "400m", "a")]);
        let others: Vec<&Pod> = held.iter().collect();
        let names = |new: &Pod| {
            room(new, &view, &others)
                .map(|r| (r.ends.iter().map(|p| pod::name(p)).collect::<Vec<_>>().join(" "), r.signal))
        };
        assert_eq!(names(&pod("fits", system, "100m", "a")).unwrap(), (String::new(), String::new()));
        assert_eq!(names(&pod("big", system, "1", "a")).unwrap(), ("x".to_owned(), "cpu".to_owned()));
        assert_eq!(names(&pod("plain", 1000, "1", "a")).unwrap_err().reason, "OutOfcpu");
        assert_eq!(names(&pod("elsewhere", system, "1", "b")).unwrap_err().reason, "NodeAffinity");
        assert_eq!(names(&pod("more than there is", system, "3", "a")).unwrap_err().reason, "OutOfcpu");
    }
}
