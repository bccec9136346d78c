//! Pods that take more disk than they said they would (pure).

use std::collections::BTreeMap;

use gantry_kube::quantity::{Format, Quantity};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::message;
use crate::pod;

/// What a pod's files take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Storage {
    /// Bytes of volumes by name.
    pub(crate) volumes: BTreeMap<String, i64>,
    /// Bytes of writable layer and logs by container.
    pub(crate) containers: BTreeMap<String, i64>,
}

fn limit(container: &Container) -> Option<Quantity> {
    Quantity::parse(&container.resources.as_ref()?.limits.as_ref()?.get("ephemeral-storage")?.0).ok()
}

/// Limits of `emptyDir` volumes by name.
fn volume_limits(pod: &Pod) -> Vec<(String, Quantity)> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let limits = volumes.filter_map(|v| {
        let limit = Quantity::parse(&v.empty_dir.as_ref()?.size_limit.as_ref()?.0).ok()?;
        (!limit.is_zero() && !limit.is_negative()).then(|| (v.name.clone(), limit))
    });
    limits.collect()
}

/// Whether a pod has any limit of disk, so that it needs to be measured.
pub(crate) fn limited(pod: &Pod) -> bool {
    !volume_limits(pod).is_empty() || pod::all_containers(pod).any(|c| limit(c).is_some())
}

/// Volumes that count as the pod's local storage: those on the node's disk.
pub(crate) fn local_volumes(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let local = volumes.filter(|v| {
        let on_disk = v.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref().unwrap_or_default().is_empty());
        on_disk || v.config_map.is_some() || v.git_repo.is_some()
    });
    local.map(|v| v.name.clone()).collect()
}

/// Why the pod must go, if it exceeds one of its limits.
pub(crate) fn exceeded(pod: &Pod, used: &Storage) -> Option<String> {
    let value = |n: i64| Quantity::from_value(n, Format::BinarySi);
    for (volume, limit) in volume_limits(pod) {
        if used.volumes.get(&volume).is_some_and(|n| value(*n) > limit) {
            return Some(message::empty_dir(&volume, &limit.to_string()));
        }
    }
    let limits: Vec<(&str, Quantity)> =
        pod::all_containers(pod).filter_map(|c| Some((c.name.as_str(), limit(c)?))).collect();
    let mains = pod::containers(pod).iter().filter_map(limit).reduce(Quantity::plus);
    if let Some(total) = mains {
        let local = local_volumes(pod);
        let volumes: i64 = used.volumes.iter().filter(|(name, _)| local.contains(name)).map(|(_, n)| n).sum();
        if value(volumes + used.containers.values().sum::<i64>()) > total {
            return Some(message::pod_storage(&total.to_string()));
        }
    }
    for (name, limit) in limits {
        if used.containers.get(name).is_some_and(|n| value(*n) > limit) {
            return Some(message::container_storage(name, &limit.to_string()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_limit_has_its_words() {
        let limit = |text: &str| json!({"limits": {"ephemeral-storage": text}});
        let cache = json!([{"name": "cache", "emptyDir": {"sizeLimit": "1Mi"}}]);
        let free = json!([{"name": "cache", "emptyDir": {}}]);
        let memory = json!([{"name": "cache", "emptyDir": {"medium": "Memory"}}]);
        let both = json!([{"name": "a", "resources": limit("1Mi")}, {"name": "b", "resources": limit("1Mi")}]);
        let plain = json!([{"name": "a"}]);
        for (containers, volumes, cache, a, want) in [
            (&plain, &cache, 1 << 20, 0, None),
            (&plain, &cache, (1 << 20) + 1, 0, Some("Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". ")),
            (&plain, &free, 1 << 40, 1 << 40, None),
            (
                &both,
                &free,
                2 << 20,
                1,
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "),
            ),
            (&both, &memory, 2 << 20, 1, None),
            (&both, &free, 0, (1 << 20) + 1, Some("Container a exceeded its local ephemeral storage limit \"1Mi\". ")),
            (&both, &free, 0, 1 << 20, None),
        ] {
            let pod: Pod =
                serde_json::from_value(json!({"spec": {"containers": containers, "volumes": volumes}})).unwrap();
            let used =
                Storage { volumes: [("cache".to_owned(), cache)].into(), containers: [("a".to_owned(), a)].into() };
            assert_eq!(exceeded(&pod, &used).as_deref(), want, "{containers} {volumes}");
        }
    }

    #[test]
    fn only_pods_with_limits_are_measured() {
        let pod = |spec: serde_json::Value| serde_json::from_value::<Pod>(json!({ "spec": spec })).unwrap();
        assert!(!limited(&pod(json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {}}]}))));
        assert!(limited(&pod(
            json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1"}}]})
        )));
    }
}
