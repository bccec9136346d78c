//! What is said of an eviction, in upstream's words (pure): users and programs look for these texts.

use gantry_kube::quantity::{Format, Quantity};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::signal::Signal;
use super::state::Observations;
use super::threshold::Threshold;
use crate::pod;

/// What one container takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Its name.
    pub(crate) name: String,
    /// Its working set.
    pub(crate) memory: Option<i64>,
    /// Its writable layer and its logs.
    pub(crate) storage: Option<i64>,
}

/// A number of bytes as Kubernetes prints it.
pub(crate) fn bytes(n: i64) -> String {
    Quantity::from_value(n, Format::BinarySi).to_string()
}

fn request(container: &Container, resource: &str) -> Option<Quantity> {
    Quantity::parse(&container.resources.as_ref()?.requests.as_ref()?.get(resource)?.0).ok()
}

/// Why a pod goes for the sake of a signal.
pub(crate) fn evicted(pod: &Pod, threshold: &Threshold, seen: &Observations, taken: &[Taken]) -> String {
    let resource = threshold.signal.resource();
    let mut out = format!("The node was low on resource: {resource}. ");
    if let Some(seen) = seen.get(&threshold.signal) {
        let need = threshold.amount.of(seen.capacity);
        out +=
            &format!("Threshold quantity: {}, available: {}. ", bytes(need), shown(threshold.signal, seen.available));
    }
    for own in taken {
        let Some(container) = pod::all_containers(pod).find(|c| c.name == own.name) else { continue };
        let used = match resource {
            "memory" => own.memory,
            "ephemeral-storage" => own.storage,
            _ => None,
        };
        let Some(used) = used else { continue };
        let asked = request(container, resource).unwrap_or(Quantity::from_value(0, Format::BinarySi));
        let used = Quantity::from_value(used, Format::BinarySi);
        if used > asked {
            out += &format!(
                "Container {} was using {used}, request is {asked}, has larger consumption of {resource}. ",
                own.name
            );
        }
    }
    out
}

fn shown(signal: Signal, available: i64) -> String {
    match signal.resource() {
        "memory" | "ephemeral-storage" => bytes(available),
        _ => available.to_string(),
    }
}

/// Why a pod is not admitted.
pub(crate) fn refused(conditions: &[&str]) -> String {
    format!("The node had condition: [{}]. ", conditions.join(" "))
}

/// A volume has grown beyond its limit.
pub(crate) fn empty_dir(volume: &str, limit: &str) -> String {
    format!("Usage of EmptyDir volume {volume:?} exceeds the limit {limit:?}. ")
}

/// A pod takes more local storage than its containers may together.
pub(crate) fn pod_storage(limit: &str) -> String {
    format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ")
}

/// A container takes more local storage than it may.
pub(crate) fn container_storage(container: &str, limit: &str) -> String {
    format!("Container {container} exceeded its local ephemeral storage limit {limit:?}. ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::eviction::state::Observation;
    use crate::eviction::threshold::Amount;

    #[test]
    fn an_evicted_pod_is_told_which_container_took_too_much() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"memory": "10Mi"}}},
            {"name": "b", "resources": {"requests": {"memory": "1Gi"}}},
            {"name": "c"}]}}))
        .unwrap();
        let threshold =
            Threshold { signal: Signal::Memory, amount: Amount::Fixed(100 << 20), grace: None, reclaim: None };
        let seen = [(Signal::Memory, Observation { available: 50 << 20, capacity: 1 << 30 })].into();
        let own = |name: &str, memory| Taken { name: name.into(), memory: Some(memory), storage: None };
        let taken = [own("a", 20 << 20), own("b", 20 << 20), own("c", 3000)];
        assert_eq!(
            evicted(&pod, &threshold, &seen, &taken),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container a was using 20Mi, request is 10Mi, has larger consumption of memory. \
             Container c was using 3000, request is 0, has larger consumption of memory. "
        );
        let pids = Threshold { signal: Signal::Pid, amount: Amount::Fixed(100), grace: None, reclaim: None };
        let seen = [(Signal::Pid, Observation { available: 7, capacity: 1000 })].into();
        assert_eq!(
            evicted(&pod, &pids, &seen, &taken),
            "The node was low on resource: pids. Threshold quantity: 100, available: 7. "
        );
    }

    #[test]
    fn limits_and_refusals_have_upstreams_words() {
        assert_eq!(
            refused(&["MemoryPressure", "DiskPressure"]),
            "The node had condition: [MemoryPressure DiskPressure]. "
        );
        assert_eq!(empty_dir("cache", "1Mi"), "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". ");
        assert_eq!(container_storage("a", "1Gi"), "Container a exceeded its local ephemeral storage limit \"1Gi\". ");
    }
}
