//! Memory quality of service (feature gate `MemoryQoS`, control groups of version 2 only): how much of its memory a container
//! may use before it is slowed down, and how much of it the kernel leaves alone when others need some (pure, but for what the
//! machine has).

use k8s_openapi::api::core::v1::{Container, Pod};

use super::qos::{self, Qos};
use crate::config::{KubeletConfiguration, gates};

const PAGE: i64 = 4096;
/// Above it a container is slowed down and its memory taken back, as far as it goes.
pub(crate) const HIGH: &str = "memory.high";
/// Up to it memory is never taken back.
pub(crate) const MIN: &str = "memory.min";
/// Up to it memory is taken back only when there is no other.
pub(crate) const LOW: &str = "memory.low";

/// How memory is throttled and kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MemoryQos {
    /// The share of the room between request and limit that is used freely (`memoryThrottlingFactor`).
    factor: f64,
    /// `memoryReservationPolicy: TieredReservation`
    tiered: bool,
    /// What pods may take together, in bytes: the limit of those without one.
    allocatable: i64,
}

/// Files of a group and what is written there.
type Files = Vec<(&'static str, i64)>;

impl MemoryQos {
    /// By configuration and machine; nothing where memory is only limited.
    pub(crate) fn here(config: &KubeletConfiguration, allocatable: i64) -> Option<Self> {
        if !gates::is_set(gates::MEMORY_QOS, &config.feature_gates) {
            return None;
        }
        let v2 = gantry_cgroup::Host::detect().is_ok_and(|h| h.version() == gantry_cgroup::Version::V2);
        if !v2 {
            tracing::warn!("feature gate MemoryQoS changes nothing: it needs control groups of version 2");
        }
        v2.then(|| Self::of(config, allocatable))
    }

    fn of(config: &KubeletConfiguration, allocatable: i64) -> Self {
        let tiered = config.memory_reservation_policy == "TieredReservation";
        Self { factor: config.memory_throttling_factor, tiered, allocatable }
    }

    /// What a container of the pod gets.
    pub(crate) fn of_container(&self, pod: &Pod, container: &Container) -> Files {
        let amounts = qos::amounts(container);
        let request = amounts.memory_request.unwrap_or(0);
        let mut out = self.kept(qos::class(pod), request);
        if amounts.memory_limit.is_some_and(|limit| limit == request) {
            return out;
        }
        let limit = amounts.memory_limit.unwrap_or(self.allocatable);
        let high = (request as f64 + (limit - request) as f64 * self.factor) as i64 / PAGE * PAGE;
        if high > request {
            out.push((HIGH, high));
        }
        out
    }

    /// What the group of a pod gets.
    pub(crate) fn of_pod(&self, pod: &Pod) -> Files {
        self.kept(qos::class(pod), qos::of_pod(pod).memory_request.unwrap_or(0))
    }

    /// What the groups above pods get: what is kept for a group is kept only as far as it is for those above it.
    pub(crate) fn above(&self, guaranteed: i64, burstable: i64) -> [(Qos, Files); 2] {
        if !self.tiered {
            return [(Qos::Guaranteed, Vec::new()), (Qos::Burstable, Vec::new())];
        }
        [(Qos::Guaranteed, vec![(MIN, guaranteed), (LOW, burstable)]), (Qos::Burstable, vec![(LOW, burstable)])]
    }

    fn kept(&self, class: Qos, request: i64) -> Files {
        match class {
            Qos::Guaranteed if self.tiered && request > 0 => vec![(MIN, request)],
            Qos::Burstable if self.tiered && request > 0 => vec![(LOW, request)],
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod;
    use serde_json::json;

    fn with(fields: serde_json::Value) -> MemoryQos {
        MemoryQos::of(&serde_json::from_value(fields).unwrap(), 10 << 30)
    }

    fn pod_of(resources: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "a", "resources": resources}]}})).unwrap()
    }

    #[test]
    fn a_container_is_slowed_down_between_request_and_limit() {
        let of = |qos: &MemoryQos, resources: serde_json::Value| {
            let pod = pod_of(resources);
            qos.of_container(&pod, &pod::containers(&pod)[0])
        };
        let standard = with(json!({}));
        for (resources, want) in [
            // 256 MiB and nine tenths of the 768 above, in whole pages.
            (json!({"requests": {"memory": "256Mi"}, "limits": {"memory": "1Gi"}}), vec![(HIGH, 993_210_368)]),
            (json!({"requests": {"memory": "1Gi"}}), vec![(HIGH, 9_771_048_960)]),
            // Nothing asked for: nine tenths of what pods may have.
            (json!({}), vec![(HIGH, 9_663_676_416)]),
            (json!({"limits": {"memory": "1Gi", "cpu": "1"}}), vec![]),
        ] {
            assert_eq!(of(&standard, resources.clone()), want, "{resources}");
        }
        let half = with(json!({"memoryThrottlingFactor": 0.5}));
        assert_eq!(of(&half, json!({"limits": {"memory": "2Mi"}, "requests": {"memory": "1Mi"}})), [(HIGH, 3 << 19)]);
    }

    #[test]
    fn memory_is_kept_by_class_and_only_where_asked_for() {
        let tiered = with(json!({"memoryReservationPolicy": "TieredReservation"}));
        let full = pod_of(json!({"limits": {"memory": "1Gi", "cpu": "1"}}));
        let some = pod_of(json!({"requests": {"memory": "1Mi"}, "limits": {"memory": "1Mi"}}));
        assert_eq!(tiered.of_pod(&full), [(MIN, 1 << 30)]);
        assert_eq!(tiered.of_pod(&some), [(LOW, 1 << 20)]);
        assert_eq!(tiered.of_container(&some, &pod::containers(&some)[0]), [(LOW, 1 << 20)]);
        assert_eq!(tiered.of_pod(&pod_of(json!({}))), []);
        assert_eq!(with(json!({})).of_pod(&full), []);
        let [all, burstable] = tiered.above(5, 7);
        assert_eq!((all.1, burstable.1), (vec![(MIN, 5), (LOW, 7)], vec![(LOW, 7)]));
        assert!(with(json!({})).above(5, 7).iter().all(|(_, files)| files.is_empty()));
    }
}
