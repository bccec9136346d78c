//! Ephemeral containers in the terms of other containers: what `kubectl debug` adds to a pod that runs.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};

use super::all_containers;

/// The ephemeral containers of a pod.
pub(crate) fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default()
}

/// An ephemeral container as a container. It is never started again, whatever the pod's policy.
pub(crate) fn as_container(of: &EphemeralContainer) -> Container {
    let of = of.clone();
    Container {
        args: of.args,
        command: of.command,
        env: of.env,
        env_from: of.env_from,
        image: of.image,
        image_pull_policy: of.image_pull_policy,
        name: of.name,
        resources: of.resources,
        restart_policy: Some("Never".into()),
        security_context: of.security_context,
        stdin: of.stdin,
        stdin_once: of.stdin_once,
        termination_message_path: of.termination_message_path,
        termination_message_policy: of.termination_message_policy,
        tty: of.tty,
        volume_devices: of.volume_devices,
        volume_mounts: of.volume_mounts,
        working_dir: of.working_dir,
        ..Container::default()
    }
}

/// The container of this name, of whatever kind.
pub(crate) fn named<'a>(pod: &'a Pod, name: &str) -> Option<Cow<'a, Container>> {
    let ephemeral = || ephemeral_containers(pod).iter().find(|c| c.name == name).map(as_container).map(Cow::Owned);
    all_containers(pod).find(|c| c.name == name).map(Cow::Borrowed).or_else(ephemeral)
}

/// The container whose processes an ephemeral container wants to see.
pub(crate) fn target_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let found = ephemeral_containers(pod).iter().find(|c| c.name == name)?;
    found.target_container_name.as_deref().filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_ephemeral_container_is_found_by_name_and_has_its_target() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a", "image": "x"}],
            "ephemeralContainers": [{"name": "d", "image": "y", "tty": true, "targetContainerName": "a"}]}}))
        .unwrap();
        let found = named(&pod, "d").unwrap();
        assert_eq!((found.image.as_deref(), found.tty), (Some("y"), Some(true)));
        assert_eq!((target_of(&pod, "d"), target_of(&pod, "a")), (Some("a"), None));
        assert!(named(&pod, "a").is_some() && named(&pod, "x").is_none());
    }
}
