//! What a Pod says, with the API's defaults where it says nothing.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Probe};

use crate::images::Wanted;

/// Annotation: where a pod came from (`file`, `api`).
pub(crate) const SOURCE: &str = "kubernetes.io/config.source";
/// Annotation: the hash of a static pod's manifest.
pub(crate) const HASH: &str = "kubernetes.io/config.hash";
/// Annotation: when the kubelet first saw the pod.
pub(crate) const SEEN: &str = "kubernetes.io/config.seen";
/// Annotation of a mirror pod: the hash of the static pod that it shows.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";

pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// `namespace/name`
pub(crate) fn key(pod: &Pod) -> String {
    format!("{}/{}", namespace(pod), name(pod))
}

/// `name_namespace(uid)`, as upstream's messages name a pod.
pub(crate) fn full(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// The spec; a pod without one has no containers.
pub(crate) fn spec(pod: &Pod) -> PodSpec {
    pod.spec.clone().unwrap_or_default()
}

pub(crate) fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

pub(crate) fn is_static(pod: &Pod) -> bool {
    annotation(pod, SOURCE).is_some_and(|s| s != "api") && annotation(pod, MIRROR).is_none()
}

/// Whether the pod has come to its end.
pub(crate) fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    phase.is_some_and(|p| p == "Failed" || p == "Succeeded")
}

pub(crate) fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default()
}

pub(crate) fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
}

/// All containers that the kubelet runs by itself, init containers first.
pub(crate) fn all_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    init_containers(pod).iter().chain(containers(pod))
}

/// An init container that runs beside the main ones.
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub(crate) fn restart_policy(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
}

pub(crate) fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_network) == Some(true)
}

/// The grace period in seconds: that of the deletion under way, else that of the spec.
pub(crate) fn grace(pod: &Pod) -> i64 {
    let own = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
    pod.metadata.deletion_timestamp.as_ref().and(pod.metadata.deletion_grace_period_seconds).unwrap_or(own).max(0)
}

/// The grace period of one container that is killed alone: that of the probe that condemned it (`liveness`, `startup`),
/// else the pod's.
pub(crate) fn grace_after(pod: &Pod, container: &str, failed: Option<&str>) -> i64 {
    let probe = all_containers(pod).find(|c| c.name == container).and_then(|c| match failed? {
        "startup" => c.startup_probe.as_ref(),
        _ => c.liveness_probe.as_ref(),
    });
    probe.and_then(|p| p.termination_grace_period_seconds).filter(|&s| s > 0).unwrap_or_else(|| grace(pod))
}

/// Whether the status that was reported last has this container ready.
pub(crate) fn was_ready(pod: &Pod, id: &str) -> bool {
    let status = pod.status.iter();
    let all = status.flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses).flatten());
    let mut own = all.filter(|s| s.container_id.as_deref().and_then(|i| i.rsplit('/').next()) == Some(id));
    own.any(|s| s.ready)
}

pub(crate) fn has_startup_probe(container: &Container) -> bool {
    container.startup_probe.is_some()
}

/// `imagePullPolicy`, or what the image's tag implies.
pub(crate) fn pull_policy(container: &Container) -> &str {
    if let Some(policy) = container.image_pull_policy.as_deref().filter(|p| !p.is_empty()) {
        return policy;
    }
    policy_of_tag(container.image.as_deref().unwrap_or_default())
}

fn policy_of_tag(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or_default();
    let always = !image.contains('@') && (!last.contains(':') || last.ends_with(":latest"));
    if always { "Always" } else { "IfNotPresent" }
}

/// The image volumes that a container mounts, and the image of each.
pub(crate) fn image_volumes<'a>(pod: &'a Pod, container: &'a Container) -> impl Iterator<Item = (&'a str, Wanted<'a>)> {
    let mounted = |name: &str| container.volume_mounts.iter().flatten().any(|m| m.name == name);
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter(move |v| mounted(&v.name));
    volumes.filter_map(|v| {
        let source = v.image.as_ref()?;
        let image = source.reference.as_deref().unwrap_or_default();
        let policy = source.pull_policy.as_deref().filter(|p| !p.is_empty()).unwrap_or_else(|| policy_of_tag(image));
        Some((v.name.as_str(), Wanted { image, policy, container: None }))
    })
}

/// The period of a probe in seconds and the like, with defaults.
pub(crate) fn probe_numbers(probe: &Probe) -> (u64, u64, u64, i32, i32) {
    let positive = |n: Option<i32>, default: i32| n.filter(|&n| n > 0).unwrap_or(default);
    (
        u64::try_from(probe.initial_delay_seconds.unwrap_or(0)).unwrap_or(0),
        u64::try_from(positive(probe.timeout_seconds, 1)).unwrap_or(1),
        u64::try_from(positive(probe.period_seconds, 10)).unwrap_or(10),
        positive(probe.success_threshold, 1),
        positive(probe.failure_threshold, 3),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, want) in [
            ("busybox", "Always"),
            ("busybox:latest", "Always"),
            ("localhost:5000/busybox", "Always"),
            ("busybox:1.36", "IfNotPresent"),
            ("busybox@sha256:0000", "IfNotPresent"),
        ] {
            let container = Container { image: Some(image.into()), ..Default::default() };
            assert_eq!(pull_policy(&container), want, "{image}");
        }
    }

    #[test]
    fn the_probe_that_condemned_has_the_word_on_the_grace_period() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": {
            "terminationGracePeriodSeconds": 60, "containers": [{"name": "a", "image": "x",
                "livenessProbe": {"terminationGracePeriodSeconds": 7}, "startupProbe": {}}]},
            "status": {"containerStatuses": [{"name": "a", "containerID": "cri://abc", "ready": true, "image": "", "imageID": "", "restartCount": 0}]}}))
        .unwrap();
        for (failed, want) in [(Some("liveness"), 7), (Some("startup"), 60), (None, 60)] {
            assert_eq!(grace_after(&pod, "a", failed), want, "{failed:?}");
        }
        assert!(was_ready(&pod, "abc") && !was_ready(&pod, "abd"));
    }

    #[test]
    fn a_deletion_brings_its_own_grace_period() {
        let mut pod = Pod::default();
        assert_eq!(grace(&pod), 30);
        pod.metadata.deletion_grace_period_seconds = Some(1);
        assert_eq!(grace(&pod), 30);
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now()));
        assert_eq!(grace(&pod), 1);
    }
}
