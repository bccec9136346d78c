//! What a container asks of the managers (pure).

use std::collections::BTreeMap;

use gantry_kube::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::devices::server::is_extended;
use crate::memory::Amounts;

/// What one container asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) name: String,
    /// CPUs of its own.
    pub(crate) cpus: usize,
    /// Memory of NUMA nodes.
    pub(crate) memory: Amounts,
    /// Extended resources.
    pub(crate) devices: BTreeMap<String, usize>,
    /// An init container that ends before others begin.
    pub(crate) passes_on: bool,
}

fn quantity(container: &Container, limits: bool, name: &str) -> Option<Quantity> {
    let resources = container.resources.as_ref()?;
    let map = if limits { resources.limits.as_ref()? } else { resources.requests.as_ref()? };
    Quantity::parse(&map.get(name)?.0).ok().filter(|q| !q.is_zero())
}

/// Whether every container has CPU and memory limits that equal its requests.
fn guaranteed(pod: &Pod) -> bool {
    let all = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    let mut any = false;
    for container in all {
        any = true;
        for name in ["cpu", "memory"] {
            let Some(limit) = quantity(container, true, name) else { return false };
            if quantity(container, false, name).is_some_and(|r| r != limit) {
                return false;
            }
        }
    }
    any
}

/// The requests of all containers, in the order in which they start.
pub(crate) fn requests(pod: &Pod) -> Vec<Request> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    // With amounts for the whole pod no container has any that are its own.
    let whole = spec.resources.as_ref().is_some_and(|r| r.requests.is_some() || r.limits.is_some());
    let guaranteed = guaranteed(pod) && !whole;
    let one = |container: &Container, init: bool| {
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        let mut out = Request {
            name: container.name.clone(),
            passes_on: init && container.restart_policy.as_deref() != Some("Always"),
            ..Request::default()
        };
        for (name, text) in limits.into_iter().flatten() {
            let Ok(value) = Quantity::parse(&text.0) else { continue };
            let amount = u64::try_from(value.value()).unwrap_or(0);
            if is_extended(name) {
                out.devices.insert(name.clone(), usize::try_from(amount).unwrap_or(usize::MAX));
            } else if guaranteed && (name == "memory" || name.starts_with("hugepages-")) && amount > 0 {
                out.memory.insert(name.clone(), amount);
            } else if guaranteed && name == "cpu" && value.milli_value() % 1000 == 0 {
                out.cpus = usize::try_from(amount).unwrap_or(usize::MAX);
            }
        }
        out.devices.retain(|_, n| *n > 0);
        out
    };
    let inits = spec.init_containers.iter().flatten().map(|c| one(c, true));
    inits.chain(spec.containers.iter().map(|c| one(c, false))).collect()
}

/// The whole pod as one request, for the scope `pod`: main containers and sidecars together, or the largest of the init
/// containers.
pub(crate) fn together(all: &[Request]) -> Request {
    let mut out = Request::default();
    for own in all.iter().filter(|r| !r.passes_on) {
        out.cpus += own.cpus;
        own.memory.iter().for_each(|(n, v)| *out.memory.entry(n.clone()).or_default() += v);
        own.devices.iter().for_each(|(n, v)| *out.devices.entry(n.clone()).or_default() += v);
    }
    for own in all.iter().filter(|r| r.passes_on) {
        out.cpus = out.cpus.max(own.cpus);
        for (name, value) in &own.memory {
            let known = out.memory.entry(name.clone()).or_default();
            *known = (*known).max(*value);
        }
        for (name, value) in &own.devices {
            let known = out.devices.entry(name.clone()).or_default();
            *known = (*known).max(*value);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({ "spec": spec })).unwrap()
    }

    #[test]
    fn only_guaranteed_containers_get_whole_cpus_and_memory() {
        let limits = |cpu: &str| serde_json::json!({"limits": {"cpu": cpu, "memory": "1Gi", "x.y/dev": "2"}});
        let one =
            |cpu: &str| requests(&pod(serde_json::json!({"containers": [{"name": "a", "resources": limits(cpu)}]})));
        assert_eq!((one("2")[0].cpus, one("2")[0].memory["memory"], one("2")[0].devices["x.y/dev"]), (2, 1 << 30, 2));
        assert_eq!((one("1500m")[0].cpus, one("1500m")[0].memory.len()), (0, 1));
        let mixed = serde_json::json!({"containers": [{"name": "a", "resources": limits("2")}, {"name": "b"}]});
        let got = requests(&pod(mixed));
        assert_eq!((got[0].cpus, got[0].memory.len(), got[0].devices.len()), (0, 0, 1));
    }

    #[test]
    fn a_pod_together_is_its_sum_or_its_largest_init_container() {
        let limits = |cpu: &str| serde_json::json!({"limits": {"cpu": cpu, "memory": "1Gi"}});
        let spec = serde_json::json!({
            "initContainers": [{"name": "i", "resources": limits("4")}, {"name": "s", "restartPolicy": "Always", "resources": limits("1")}],
            "containers": [{"name": "a", "resources": limits("1")}, {"name": "b", "resources": limits("1")}]});
        let all = together(&requests(&pod(spec)));
        assert_eq!((all.cpus, all.memory["memory"]), (4, 3 << 30));
    }
}
