//! The downward API: what a pod may read about itself, as text.

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use std::collections::BTreeMap;

use gantry_kube::quantity::Quantity;

use crate::PodContext;

/// The value of a `fieldPath`.
pub(crate) fn field(pod: &Pod, ctx: &PodContext, path: &str) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(format!("fieldPath {path:?} does not support subscript")),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let own = |text: &Option<String>| text.clone().unwrap_or_default();
    Ok(match path {
        "metadata.name" => own(&meta.name),
        "metadata.namespace" => own(&meta.namespace),
        "metadata.uid" => own(&meta.uid),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => {
            spec.and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty()).unwrap_or_else(|| ctx.node_name.clone())
        }
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => ctx.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => ctx.host_ips.join(","),
        "status.podIP" => ctx.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => ctx.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `metadata.labels['key']` taken apart.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// One `key="value"` line per entry, sorted.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={}", go_quote(v))).collect();
    lines.join("\n")
}

/// A string as Go's `%q` writes it.
fn go_quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\x0b' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of a `resourceFieldRef`. `default` is the container meant when the selector names none.
pub(crate) fn resource(
    pod: &Pod,
    default: Option<&Container>,
    ctx: &PodContext,
    selector: &ResourceFieldSelector,
) -> Result<String, String> {
    let container = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => find_container(pod, name).ok_or_else(|| format!("container {name} not found"))?,
        None => default.ok_or_else(|| "resourceFieldRef needs a containerName".to_owned())?,
    };
    let (kind, name) = selector
        .resource
        .split_once('.')
        .filter(|(kind, name)| {
            matches!(*kind, "limits" | "requests")
                && (matches!(*name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-"))
        })
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let divisor = match selector.divisor.as_ref().map(|q| q.0.as_str()).filter(|q| !q.is_empty()) {
        Some(text) => parse(text)?,
        None => Quantity::from_milli(0),
    };
    let divisor = if divisor.is_zero() { Quantity::from_milli(1000) } else { divisor };
    let stated = |which: &str| {
        let resources = container.resources.as_ref()?;
        let map = if which == "limits" { resources.limits.as_ref() } else { resources.requests.as_ref() };
        map?.get(name).map(|q| q.0.clone())
    };
    let stated = if kind == "requests" { stated("requests").or_else(|| stated("limits")) } else { stated("limits") };
    let amount = match stated {
        Some(text) => parse(&text)?,
        None if kind == "requests" => Quantity::from_milli(0),
        None => match name {
            "cpu" => Quantity::from_milli(ctx.allocatable.cpu_milli),
            "memory" => bytes(ctx.allocatable.memory_bytes),
            "ephemeral-storage" => bytes(ctx.allocatable.ephemeral_storage_bytes),
            _ => bytes(0),
        },
    };
    let (amount, divisor) =
        if name == "cpu" { (amount.milli_value(), divisor.milli_value()) } else { (amount.value(), divisor.value()) };
    Ok(div_ceil(amount, divisor.max(1)).to_string())
}

fn bytes(value: i64) -> Quantity {
    Quantity::from_value(value, gantry_kube::quantity::Format::BinarySi)
}

fn parse(text: &str) -> Result<Quantity, String> {
    Quantity::parse(text).map_err(|e| e.to_string())
}

fn div_ceil(amount: i64, divisor: i64) -> i64 {
    amount / divisor + i64::from(amount % divisor > 0)
}

/// A container of the pod by name, init containers included.
pub(crate) fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Allocatable;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u1",
                "labels": {"b": "2", "a": "x\"y"}, "annotations": {"k/n": "line\none"}},
            "spec": {"serviceAccountName": "sa", "containers": [
                {"name": "app", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}},
                {"name": "free"}]}
        }))
        .unwrap()
    }

    fn ctx() -> PodContext {
        PodContext {
            node_name: "n1".into(),
            host_ips: vec!["192.0.2.1".into(), "fd00::1".into()],
            pod_ips: vec!["10.0.0.4".into(), "fd00::4".into()],
            allocatable: Allocatable { cpu_milli: 3500, memory_bytes: 1 << 30, ephemeral_storage_bytes: 1 << 20 },
            cluster_domain: "cluster.local".into(),
        }
    }

    #[test]
    fn fields_are_those_of_the_pod_and_its_node() {
        for (path, want) in [
            ("metadata.name", "web"),
            ("metadata.namespace", "ns"),
            ("metadata.uid", "u1"),
            ("metadata.labels", "a=\"x\\\"y\"\nb=\"2\""),
            ("metadata.labels['b']", "2"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations['k/n']", "line\none"),
            ("metadata.annotations", "k/n=\"line\\none\""),
            ("spec.nodeName", "n1"),
            ("spec.serviceAccountName", "sa"),
            ("status.hostIP", "192.0.2.1"),
            ("status.hostIPs", "192.0.2.1,fd00::1"),
            ("status.podIP", "10.0.0.4"),
            ("status.podIPs", "10.0.0.4,fd00::4"),
        ] {
            assert_eq!(field(&pod(), &ctx(), path).as_deref(), Ok(want), "{path}");
        }
        assert_eq!(field(&pod(), &ctx(), "spec.x").unwrap_err(), "unsupported fieldPath: spec.x");
        assert!(field(&pod(), &ctx(), "spec.x['y']").is_err());
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        for (container, name, divisor, want) in [
            ("app", "limits.cpu", "", "2"),
            ("app", "limits.cpu", "1m", "1500"),
            ("app", "requests.cpu", "1m", "250"),
            ("app", "requests.cpu", "0", "1"),
            ("app", "limits.memory", "1Mi", "64"),
            ("app", "limits.memory", "", "67108864"),
            ("app", "requests.memory", "", "67108864"),
            ("app", "limits.memory", "3Mi", "22"),
            ("free", "limits.cpu", "1m", "3500"),
            ("free", "limits.memory", "1Gi", "1"),
            ("free", "requests.memory", "1", "0"),
            ("free", "limits.ephemeral-storage", "1Ki", "1024"),
        ] {
            let selector: ResourceFieldSelector =
                serde_json::from_value(json!({"containerName": container, "resource": name, "divisor": divisor}))
                    .unwrap();
            assert_eq!(resource(&pod(), None, &ctx(), &selector).as_deref(), Ok(want), "{container} {name} {divisor}");
        }
        let bad: ResourceFieldSelector =
            serde_json::from_value(json!({"containerName": "app", "resource": "limits.gpu"})).unwrap();
        assert!(resource(&pod(), None, &ctx(), &bad).is_err());
        let none: ResourceFieldSelector =
            serde_json::from_value(json!({"containerName": "zz", "resource": "limits.cpu"})).unwrap();
        assert_eq!(resource(&pod(), None, &ctx(), &none).unwrap_err(), "container zz not found");
    }
}
