//! Quality of service, and what requests and limits become for the kernel (pure).

use std::collections::BTreeMap;

use gantry_kube::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::pod;

/// The three classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qos {
    /// Requests equal limits everywhere.
    Guaranteed,
    /// Some request or limit.
    Burstable,
    /// None.
    BestEffort,
}

impl Qos {
    /// As the API writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// Requests and limits in thousandths of a CPU and in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    /// CPU request.
    pub(crate) cpu_request: Option<i64>,
    /// CPU limit.
    pub(crate) cpu_limit: Option<i64>,
    /// Memory request.
    pub(crate) memory_request: Option<i64>,
    /// Memory limit.
    pub(crate) memory_limit: Option<i64>,
}

fn amount(map: Option<&BTreeMap<String, ApiQuantity>>, key: &str, milli: bool) -> Option<i64> {
    let quantity = Quantity::parse(&map?.get(key)?.0).ok()?;
    let value = if milli { quantity.milli_value() } else { quantity.value() };
    (value > 0).then_some(value)
}

/// What a container asks for; a limit without a request is the request, too.
pub(crate) fn amounts(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|r| r.requests.as_ref());
    let limits = resources.and_then(|r| r.limits.as_ref());
    let (cpu_limit, memory_limit) = (amount(limits, "cpu", true), amount(limits, "memory", false));
    Amounts {
        cpu_request: amount(requests, "cpu", true).or(cpu_limit),
        cpu_limit,
        memory_request: amount(requests, "memory", false).or(memory_limit),
        memory_limit,
    }
}

/// What the pod as a whole asks for, if it says so; that counts before its containers' amounts.
fn whole(pod: &Pod) -> Option<Amounts> {
    let resources = pod.spec.as_ref()?.resources.as_ref()?;
    let (requests, limits) = (resources.requests.as_ref(), resources.limits.as_ref());
    let (cpu_limit, memory_limit) = (amount(limits, "cpu", true), amount(limits, "memory", false));
    let own = Amounts {
        cpu_request: amount(requests, "cpu", true).or(cpu_limit),
        cpu_limit,
        memory_request: amount(requests, "memory", false).or(memory_limit),
        memory_limit,
    };
    (own != Amounts::default()).then_some(own)
}

/// The class of a pod.
pub(crate) fn class(pod: &Pod) -> Qos {
    let all: Vec<Amounts> = match whole(pod) {
        Some(own) => vec![own],
        None => pod::all_containers(pod).map(amounts).collect(),
    };
    if all.iter().all(|a| *a == Amounts::default()) {
        return Qos::BestEffort;
    }
    let guaranteed = all.iter().all(|a| {
        a.cpu_limit.is_some()
            && a.memory_limit.is_some()
            && a.cpu_request == a.cpu_limit
            && a.memory_request == a.memory_limit
    });
    if guaranteed { Qos::Guaranteed } else { Qos::Burstable }
}

/// What the whole pod may take: the sum of main containers and sidecars, or the largest init container on top of the
/// sidecars before it. A limit stands only where every container has one.
pub(crate) fn of_pod(pod: &Pod) -> Amounts {
    let pick: [fn(&Amounts) -> Option<i64>; 4] =
        [|a| a.cpu_request, |a| a.cpu_limit, |a| a.memory_request, |a| a.memory_limit];
    let totals = pick.map(|get| {
        let (mut sidecars, mut peak) = (0, 0);
        for container in pod::init_containers(pod) {
            let value = get(&amounts(container)).unwrap_or(0);
            if pod::is_sidecar(container) {
                sidecars += value;
                peak = peak.max(sidecars);
            } else {
                peak = peak.max(sidecars + value);
            }
        }
        let mains: i64 = pod::containers(pod).iter().filter_map(|c| get(&amounts(c))).sum();
        peak.max(sidecars + mains)
    });
    let everywhere = |get: fn(&Amounts) -> Option<i64>| pod::all_containers(pod).all(|c| get(&amounts(c)).is_some());
    let some = |n: i64| (n > 0).then_some(n);
    let own = whole(pod).unwrap_or_default();
    let overhead = pod.spec.as_ref().and_then(|s| s.overhead.as_ref());
    let more = |value: Option<i64>, key: &str, milli: bool, always: bool| {
        let over = amount(overhead, key, milli).filter(|_| always || value.is_some());
        if value.is_none() && over.is_none() { None } else { Some(value.unwrap_or(0) + over.unwrap_or(0)) }
    };
    let cpu_limit = own.cpu_limit.or(everywhere(|a| a.cpu_limit).then_some(totals[1]).and_then(some));
    let memory_limit = own.memory_limit.or(everywhere(|a| a.memory_limit).then_some(totals[3]).and_then(some));
    Amounts {
        cpu_request: more(own.cpu_request.or(some(totals[0])), "cpu", true, true),
        cpu_limit: more(cpu_limit, "cpu", true, false),
        memory_request: more(own.memory_request.or(some(totals[2])), "memory", false, true),
        memory_limit: more(memory_limit, "memory", false, false),
    }
}

/// CPU shares of a request (1024 for one CPU, 2 at least).
pub(crate) fn shares(milli: Option<i64>) -> u64 {
    u64::try_from(milli.unwrap_or(0) * 1024 / 1000).unwrap_or(0).clamp(2, 262_144)
}

/// CPU microseconds per period of a limit (1000 at least).
pub(crate) fn quota(milli: i64, period_us: i64) -> i64 {
    (milli * period_us / 1000).max(1000)
}

/// What the pod as a whole requests of memory beyond what its containers request, for each of them.
fn rest_of_whole(pod: &Pod) -> i64 {
    let Some(request) = whole(pod).and_then(|w| w.memory_request) else { return 0 };
    let count = i64::try_from(pod::all_containers(pod).count()).unwrap_or(0).max(1);
    (request - pod::all_containers(pod).filter_map(|c| amounts(c).memory_request).sum::<i64>()).max(0) / count
}

/// The eagerness with which the kernel takes a container when the node has no memory left.
pub(crate) fn oom_score_adj(pod: &Pod, container: &Container, capacity: i64) -> i64 {
    const GUARANTEED: i64 = -997;
    if pod.spec.as_ref().and_then(|s| s.priority).is_some_and(|p| p >= NODE_CRITICAL) {
        return GUARANTEED;
    }
    match class(pod) {
        Qos::Guaranteed => return GUARANTEED,
        Qos::BestEffort => return 1000,
        Qos::Burstable => {}
    }
    let rest = rest_of_whole(pod);
    let score = |c: &Container| {
        let request = i128::from(amounts(c).memory_request.unwrap_or(0) + rest);
        1000 - (1000 * request / i128::from(capacity.max(1))) as i64
    };
    let mut own = score(container);
    if pod::is_sidecar(container) {
        // A sidecar does not go before those that it serves.
        own = pod::containers(pod).iter().map(score).max().map_or(own, |most| own.min(most));
    }
    // 3 is upstream's floor: a burstable container goes before guaranteed ones.
    own.clamp(3, 999)
}

/// The priority of `system-node-critical`.
const NODE_CRITICAL: i32 = 2_000_001_000;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn the_class_follows_requests_and_limits() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        for (containers, want) in [
            (json!([{"name": "a"}]), Qos::BestEffort),
            (json!([{"name": "a", "resources": full}]), Qos::Guaranteed),
            (json!([{"name": "a", "resources": full}, {"name": "b"}]), Qos::Burstable),
            (json!([{"name": "a", "resources": {"requests": {"cpu": "100m"}}}]), Qos::Burstable),
            (
                json!([{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1"}, "requests": {"cpu": "1m"}}}]),
                Qos::Burstable,
            ),
        ] {
            assert_eq!(class(&pod(containers.clone())), want, "{containers}");
        }
    }

    #[test]
    fn kernel_values_match_upstreams() {
        assert_eq!((shares(Some(100)), shares(Some(1000)), shares(None)), (102, 1024, 2));
        assert_eq!((quota(250, 100_000), quota(1, 100_000)), (25_000, 1000));
    }

    #[test]
    fn the_kernel_takes_containers_in_upstreams_order() {
        let of = |spec: serde_json::Value, index: usize| {
            let pod: Pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
            let container = pod::all_containers(&pod).nth(index).unwrap();
            oom_score_adj(&pod, container, 16 << 30)
        };
        let asks = |memory: &str| json!({"name": "a", "resources": {"requests": {"memory": memory}}});
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let sidecar = json!({"name": "s", "restartPolicy": "Always"});
        for (spec, index, want) in [
            (json!({"containers": [asks("4Gi")]}), 0, 750),
            (json!({"containers": [asks("1Gi"), {"name": "b"}]}), 1, 999),
            (json!({"containers": [asks("16Gi")]}), 0, 3),
            (json!({"containers": [{"name": "a"}]}), 0, 1000),
            (json!({"containers": [{"name": "a", "resources": full}]}), 0, -997),
            (json!({"containers": [{"name": "a"}], "priority": 2_000_001_000}), 0, -997),
            // What is requested for the whole pod belongs to its containers in equal parts.
            (json!({"containers": [asks("1Gi"), {"name": "b"}], "resources": {"requests": {"memory": "9Gi"}}}), 1, 750),
            // A sidecar stays as long as the main container that goes last.
            (json!({"containers": [asks("4Gi"), asks("8Gi")], "initContainers": [sidecar]}), 0, 750),
        ] {
            assert_eq!(of(spec.clone(), index), want, "{spec}");
        }
    }

    #[test]
    fn amounts_of_the_whole_pod_count_first_and_overhead_comes_on_top() {
        let pod = |spec: serde_json::Value| serde_json::from_value::<Pod>(json!({ "spec": spec })).unwrap();
        let one = json!([{"name": "a", "resources": {"requests": {"cpu": "100m"}}}, {"name": "b"}]);
        let levelled = pod(json!({"containers": one, "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}));
        assert_eq!(class(&levelled), Qos::Guaranteed);
        let all = of_pod(&levelled);
        assert_eq!((all.cpu_request, all.cpu_limit, all.memory_limit), (Some(1000), Some(1000), Some(1 << 30)));
        let over = pod(json!({"containers": one, "overhead": {"cpu": "50m", "memory": "1Mi"}}));
        let all = of_pod(&over);
        assert_eq!(
            (all.cpu_request, all.cpu_limit, all.memory_request, all.memory_limit),
            (Some(150), None, Some(1 << 20), None)
        );
        assert_eq!(class(&over), Qos::Burstable);
    }

    #[test]
    fn a_pods_limit_needs_one_on_every_container() {
        let one = json!({"limits": {"cpu": "1", "memory": "1Mi"}});
        let both = of_pod(&pod(json!([{"name": "a", "resources": one}, {"name": "b", "resources": one}])));
        assert_eq!((both.cpu_limit, both.memory_limit), (Some(2000), Some(2 << 20)));
        let half = of_pod(&pod(json!([{"name": "a", "resources": one}, {"name": "b"}])));
        assert_eq!((half.cpu_request, half.cpu_limit, half.memory_limit), (Some(1000), None, None));
    }
}
