//! Asks whether a new pod may begin, with what this kubelet knows of its node and its other pods.

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use crate::eviction;
use crate::node::facts;
use crate::pod::{self, NodeView, Rejection, admit, amounts};
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

    /// Why the pod may not begin, if it may not. `others` are the pods that the node holds and that have not ended.
    pub(crate) fn rejection(&self, shared: &Shared, pod: &Pod, others: &[&Pod]) -> Option<Rejection> {
        if began(shared, pod) {
            return None;
        }
        let mut view = self.fixed.clone();
        if let Some(Some(node)) = &*self.node.borrow() {
            view.labels = Some(node.metadata.labels.clone().unwrap_or_default());
            view.taints = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        }
        // A static pod is critical: others make room for it, not it for them.
        let others: Vec<&Pod> =
            others.iter().copied().filter(|other| !pod::is_static(pod) || pod::is_static(other)).collect();
        if let Some((reason, message)) = shared.shutdown.refusal() {
            return Some(Rejection { reason: reason.to_owned(), message: message.to_owned() });
        }
        if let Err((reason, message)) = eviction::admit(pod, &shared.pressure.get()) {
            return Some(Rejection { reason: reason.to_owned(), message });
        }
        admit(pod, &view, &others).err()
    }
}

/// A pod that has begun here before this kubelet did, or that is at its end, is not asked again.
fn began(shared: &Shared, pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    status.is_some_and(|s| s.start_time.is_some())
        || pod::is_over(pod)
        || pod.metadata.deletion_timestamp.is_some()
        || shared.volumes.layout().pod(pod::uid(pod)).exists()
}
