//! Whether a new pod may begin on a node under pressure (pure).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, Toleration};

use super::message;
use super::signal::Condition;
use crate::pod;
use crate::resources::qos::{self, Qos};

/// From this priority on a pod is critical (`system-cluster-critical`).
const CRITICAL: i32 = 2_000_000_000;

/// A pod that is never evicted: a static one, its mirror, or one of system priority.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    pod::is_static(pod)
        || pod::annotation(pod, pod::MIRROR).is_some()
        || pod.spec.as_ref().and_then(|s| s.priority).is_some_and(|p| p >= CRITICAL)
}

fn tolerates(toleration: &Toleration, taint: &str) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    let operator = toleration.operator.as_deref().unwrap_or("Equal");
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let value = toleration.value.as_deref().unwrap_or_default();
    (effect.is_empty() || effect == "NoSchedule")
        && (key == taint || (key.is_empty() && operator == "Exists"))
        && (operator == "Exists" || (operator == "Equal" && value.is_empty()))
}

/// Decides on a pod that has not begun.
///
/// # Errors
/// Reason and message of the refusal.
pub(crate) fn admit(pod: &Pod, conditions: &BTreeSet<Condition>) -> Result<(), (&'static str, String)> {
    if conditions.is_empty() || is_critical(pod) {
        return Ok(());
    }
    if conditions.iter().all(|c| *c == Condition::Memory) {
        let tolerations = pod.spec.iter().flat_map(|s| s.tolerations.iter().flatten());
        if qos::class(pod) != Qos::BestEffort
            || tolerations.into_iter().any(|t| tolerates(t, Condition::Memory.taint()))
        {
            return Ok(());
        }
    }
    let names: Vec<&str> = conditions.iter().map(|c| c.name()).collect();
    Err(("Evicted", message::refused(&names)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn pressure_refuses_whom_upstream_refuses() {
        let plain = json!({"containers": [{"name": "a"}]});
        let asks = json!({"containers": [{"name": "a", "resources": {"requests": {"memory": "1"}}}]});
        let critical = json!({"priority": CRITICAL, "containers": [{"name": "a"}]});
        let patient = json!({"containers": [{"name": "a"}],
            "tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]});
        let memory: &[Condition] = &[Condition::Memory];
        let disk: &[Condition] = &[Condition::Disk];
        for (spec, conditions, want) in [
            (&plain, &[][..], true),
            (&plain, memory, false),
            (&asks, memory, true),
            (&patient, memory, true),
            (&critical, disk, true),
            (&asks, disk, false),
            (&patient, &[Condition::Memory, Condition::Pid][..], false),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": Value::clone(spec)})).unwrap();
            assert_eq!(admit(&pod, &conditions.iter().copied().collect()).is_ok(), want, "{spec} {conditions:?}");
        }
    }

    #[test]
    fn the_refusal_names_the_conditions() {
        let got = admit(&Pod::default(), &[Condition::Disk].into()).unwrap_err();
        assert_eq!(got, ("Evicted", "The node had condition: [DiskPressure]. ".to_owned()));
    }
}
