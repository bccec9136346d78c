//! What CNI is told about a pod.

use std::collections::HashMap;
use std::path::Path;

use proto::cri;
use serde_json::{Map, Value, json};

use crate::cni::Attachment;
use crate::daemon::Daemon;
use crate::ledger::SandboxRecord;

/// Port mappings with a host port, as the `portMappings` capability wants them.
fn port_mappings(mappings: &[cri::PortMapping]) -> Vec<Value> {
    let wanted = mappings.iter().filter(|m| m.host_port > 0);
    wanted
        .map(|m| {
            let protocol = m.protocol().as_str_name().to_lowercase();
            json!({"hostPort": m.host_port, "containerPort": m.container_port, "protocol": protocol, "hostIP": m.host_ip})
        })
        .collect()
}

/// Bits per second of an annotation such as `10M` or `1Gi`. Pure.
fn rate(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some((number * unit) as u64).filter(|n| *n > 0)
}

/// The `bandwidth` capability from a pod's annotations; none when it has none.
///
/// # Errors
/// An annotation is no quantity (named).
pub(super) fn bandwidth(annotations: &HashMap<String, String>) -> Result<Option<Value>, String> {
    let mut limits = Map::new();
    for way in ["ingress", "egress"] {
        let name = format!("kubernetes.io/{way}-bandwidth");
        let Some(text) = annotations.get(&name) else { continue };
        let rate = rate(text).ok_or_else(|| format!("annotation {name}: {text:?} is no bandwidth"))?;
        limits.insert(format!("{way}Rate"), json!(rate));
        // As other runtimes do: the burst is what the kernel's counter can hold.
        limits.insert(format!("{way}Burst"), json!(u32::MAX));
    }
    Ok((!limits.is_empty()).then_some(Value::Object(limits)))
}

/// The attachment of a sandbox.
pub(crate) fn attachment<'a>(daemon: &'a Daemon, record: &'a SandboxRecord, netns: Option<&'a Path>) -> Attachment<'a> {
    let config = &record.config.0;
    let metadata = config.metadata.clone().unwrap_or_default();
    let mut capabilities = Map::new();
    let ports = port_mappings(&config.port_mappings);
    if !ports.is_empty() {
        capabilities.insert("portMappings".into(), json!(ports));
    }
    if let Ok(Some(limits)) = bandwidth(&config.annotations) {
        capabilities.insert("bandwidth".into(), limits);
    }
    if let Some(dns) = &config.dns_config {
        let dns = json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
        capabilities.insert("dns".into(), dns);
    }
    if let Some(parent) = config.linux.as_ref().map(|l| &l.cgroup_parent).filter(|p| !p.is_empty()) {
        capabilities.insert("cgroupPath".into(), json!(parent));
    }
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        metadata.namespace, metadata.name, record.id, metadata.uid
    );
    Attachment { id: &record.id, netns, args, capabilities, bin_dirs: daemon.settings().cni_bin_dirs.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_comes_from_annotations_in_bits_per_second() {
        let pod = |way: &str, text: &str| [(format!("kubernetes.io/{way}-bandwidth"), text.to_owned())].into();
        assert_eq!(bandwidth(&HashMap::new()), Ok(None));
        assert_eq!(
            bandwidth(&pod("ingress", "10M")),
            Ok(Some(json!({"ingressRate": 10_000_000, "ingressBurst": u32::MAX})))
        );
        assert_eq!(bandwidth(&pod("egress", "1Gi")).unwrap().unwrap()["egressRate"], json!(1u64 << 30));
        for bad in ["", "fast", "10X", "0", "-1M"] {
            assert!(bandwidth(&pod("ingress", bad)).unwrap_err().contains("ingress-bandwidth"), "{bad}");
        }
    }
}
