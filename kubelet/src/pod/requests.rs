//! What a pod asks of its node, resource by resource (pure). CPU in thousandths, everything else in its own unit.

use std::collections::BTreeMap;

use gantry_kube::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::{containers, init_containers, is_sidecar};

/// Amounts by the names of resources.
pub(crate) type Amounts = BTreeMap<String, i64>;

/// The amounts of a map of quantities; what is no quantity counts for nothing.
pub(crate) fn amounts(of: Option<&BTreeMap<String, ApiQuantity>>) -> Amounts {
    let value = |name: &str, q: &ApiQuantity| {
        Quantity::parse(&q.0).map_or(0, |q| if name == "cpu" { q.milli_value() } else { q.value() })
    };
    of.into_iter().flatten().map(|(name, q)| (name.clone(), value(name, q))).collect()
}

/// A container's requests; a limit without a request is the request, too.
fn of_container(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    let mut out = amounts(resources.and_then(|r| r.limits.as_ref()));
    out.extend(amounts(resources.and_then(|r| r.requests.as_ref())));
    out
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (name, value) in more {
        *to.entry(name.clone()).or_default() += value;
    }
}

fn raise(to: &mut Amounts, other: &Amounts) {
    for (name, value) in other {
        let now = to.entry(name.clone()).or_default();
        *now = (*now).max(*value);
    }
}

/// The pod's requests: main containers and sidecars together, or the largest init container on top of the sidecars
/// before it; what the pod as a whole requests instead of it; and the overhead of its runtime class.
pub(crate) fn requests(pod: &Pod) -> Amounts {
    let (mut sidecars, mut peak, mut all) = (Amounts::new(), Amounts::new(), Amounts::new());
    for container in init_containers(pod) {
        let own = of_container(container);
        if is_sidecar(container) {
            add(&mut sidecars, &own);
            raise(&mut peak, &sidecars);
        } else {
            let mut with = sidecars.clone();
            add(&mut with, &own);
            raise(&mut peak, &with);
        }
    }
    for container in containers(pod) {
        add(&mut all, &of_container(container));
    }
    add(&mut all, &sidecars);
    raise(&mut all, &peak);
    let spec = pod.spec.as_ref();
    if let Some(whole) = spec.and_then(|s| s.resources.as_ref()) {
        let mut own = amounts(whole.limits.as_ref());
        own.retain(|name, _| !all.contains_key(name));
        own.extend(amounts(whole.requests.as_ref()));
        all.extend(own);
    }
    add(&mut all, &amounts(spec.and_then(|s| s.overhead.as_ref())));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_are_sums_or_the_peak_of_the_init_phase() {
        let of = |spec: serde_json::Value| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
            let all = requests(&pod);
            (all.get("cpu").copied().unwrap_or(0), all.get("memory").copied().unwrap_or(0))
        };
        let c = |name: &str, cpu: &str, memory: &str| json!({"name": name, "resources": {"requests": {"cpu": cpu, "memory": memory}}});
        let mut side = c("s", "10m", "1");
        side["restartPolicy"] = "Always".into();
        assert_eq!(of(json!({"containers": [c("a", "100m", "5"), c("b", "1", "6")]})), (1100, 11));
        assert_eq!(of(json!({"initContainers": [c("i", "2", "1")], "containers": [c("a", "1", "5")]})), (2000, 5));
        assert_eq!(
            of(json!({"initContainers": [side, c("i", "2", "1")], "containers": [c("a", "1", "5")]})),
            (2010, 6)
        );
        let limit = json!({"name": "a", "resources": {"limits": {"cpu": "3"}}});
        assert_eq!(of(json!({"containers": [limit], "overhead": {"memory": "7"}})), (3000, 7));
        assert_eq!(of(json!({"resources": {"requests": {"cpu": "4"}}, "containers": [c("a", "1", "5")]})), (4000, 5));
    }
}
