//! Huge pages and swap: what the kernel is told of them for containers and pods (pure, but for what the machine has).

use k8s_openapi::api::core::v1::{Container, Pod};

use super::qos::{self, Qos};
use crate::eviction::is_critical;
use crate::pod;

/// Sizes of huge pages that the machine has, as the API names them and as control groups do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PageSizes(Vec<(String, String)>);

impl PageSizes {
    /// Those of this machine; none where control groups do not count huge pages.
    pub(crate) fn here() -> Self {
        if !gantry_cgroup::Host::detect().is_ok_and(|h| h.has("hugetlb")) {
            return Self::default();
        }
        let entries = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
        let sizes = entries.filter_map(|e| {
            let name = e.file_name().to_string_lossy().into_owned();
            name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()
        });
        Self::of(sizes)
    }

    fn of(kilobytes: impl Iterator<Item = u64>) -> Self {
        let names = kilobytes.map(|kb| match kb {
            kb if kb >= 1 << 20 => (format!("hugepages-{}Gi", kb >> 20), format!("{}GB", kb >> 20)),
            kb if kb >= 1 << 10 => (format!("hugepages-{}Mi", kb >> 10), format!("{}MB", kb >> 10)),
            kb => (format!("hugepages-{kb}Ki"), format!("{kb}KB")),
        });
        Self(names.collect())
    }

    /// The limits of a container: what it asks for, and nothing of every other size.
    pub(crate) fn of_container(&self, container: &Container) -> Vec<(String, u64)> {
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        let value = |name: &str| {
            let text = &limits?.get(name)?.0;
            gantry_kube::quantity::Quantity::parse(text).ok().and_then(|q| u64::try_from(q.value()).ok())
        };
        self.0.iter().map(|(api, kernel)| (kernel.clone(), value(api).unwrap_or(0))).collect()
    }

    /// The limits of a pod: its containers together, or the largest of those that run alone.
    pub(crate) fn of_pod(&self, pod: &Pod) -> Vec<(String, u64)> {
        let all = |list: Vec<&Container>| list.into_iter().map(|c| self.of_container(c)).collect::<Vec<_>>();
        let mains = all(pod::containers(pod)
            .iter()
            .chain(pod::init_containers(pod).iter().filter(|c| pod::is_sidecar(c)))
            .collect());
        let inits = all(pod::init_containers(pod).iter().filter(|c| !pod::is_sidecar(c)).collect());
        let pick = |n: usize| {
            let sum: u64 = mains.iter().map(|l| l[n].1).sum();
            inits.iter().map(|l| l[n].1).max().unwrap_or(0).max(sum)
        };
        self.0.iter().enumerate().map(|(n, (_, kernel))| (kernel.clone(), pick(n))).collect()
    }
}

/// How containers may swap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Swap {
    /// The machine has none, or control groups of version 1: a memory limit counts both.
    #[default]
    Absent,
    /// There is some, and containers get none.
    No,
    /// Burstable pods get a share of these bytes by the memory that they request.
    Limited(i64),
}

impl Swap {
    /// By `memorySwap.swapBehavior` on this machine.
    pub(crate) fn here(behavior: &str) -> Self {
        let total = i64::try_from(crate::metrics::meminfo("SwapTotal")).unwrap_or(0);
        let v2 = gantry_cgroup::Host::detect().is_ok_and(|h| h.version() == gantry_cgroup::Version::V2);
        match behavior {
            _ if total == 0 || !v2 => Self::Absent,
            "LimitedSwap" => Self::Limited(total),
            _ => Self::No,
        }
    }

    /// Bytes of swap for a container; nothing where the kernel need not be told.
    pub(crate) fn of(self, pod: &Pod, container: &Container, memory: i64) -> Option<i64> {
        let total = match self {
            Self::Absent => return None,
            Self::No => return Some(0),
            Self::Limited(total) => total,
        };
        let amounts = qos::amounts(container);
        let request = amounts.memory_request.unwrap_or(0);
        let none = is_critical(pod)
            || qos::class(pod) != Qos::Burstable
            || request == 0
            || amounts.memory_limit == amounts.memory_request;
        let share = i128::from(request) * i128::from(total) / i128::from(memory.max(1));
        Some(if none { 0 } else { i64::try_from(share).unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: serde_json::Value, inits: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers, "initContainers": inits}})).unwrap()
    }

    #[test]
    fn every_size_has_a_limit() {
        let sizes = PageSizes::of([2048, 1 << 20].into_iter());
        let limit = |n: &str| json!({"limits": {"hugepages-2Mi": n}});
        let pod = pod(
            json!([{"name": "a", "resources": limit("4Mi")}, {"name": "b", "resources": limit("2Mi")}]),
            json!([{"name": "i", "resources": limit("8Mi")}]),
        );
        let kernel = |mb: u64, gb: u64| vec![("2MB".to_owned(), mb << 20), ("1GB".to_owned(), gb << 30)];
        assert_eq!(sizes.of_container(&pod::containers(&pod)[0]), kernel(4, 0));
        assert_eq!(sizes.of_pod(&pod), kernel(8, 0));
    }

    #[test]
    fn swap_goes_by_memory_to_burstable_pods() {
        let with = |resources: serde_json::Value| pod(json!([{"name": "a", "resources": resources}]), json!([]));
        let of = |swap: Swap, pod: &Pod| swap.of(pod, &pod::containers(pod)[0], 1000);
        let burstable = with(json!({"requests": {"memory": "100"}}));
        let guaranteed = with(json!({"limits": {"memory": "100", "cpu": "1"}}));
        let full = with(json!({"limits": {"memory": "100"}}));
        let none = with(json!({}));
        for (swap, pod, want) in [
            (Swap::Absent, &burstable, None),
            (Swap::No, &burstable, Some(0)),
            (Swap::Limited(500), &burstable, Some(50)),
            (Swap::Limited(500), &guaranteed, Some(0)),
            (Swap::Limited(500), &full, Some(0)),
            (Swap::Limited(500), &none, Some(0)),
        ] {
            assert_eq!(of(swap, pod), want, "{swap:?}");
        }
    }
}
