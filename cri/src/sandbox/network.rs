//! What CNI is told about a pod.

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

/// The attachment of a sandbox.
pub(super) fn attachment<'a>(daemon: &'a Daemon, record: &'a SandboxRecord, netns: Option<&'a Path>) -> Attachment<'a> {
    let config = &record.config.0;
    let metadata = config.metadata.clone().unwrap_or_default();
    let mut capabilities = Map::new();
    let ports = port_mappings(&config.port_mappings);
    if !ports.is_empty() {
        capabilities.insert("portMappings".into(), json!(ports));
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
    Attachment { id: &record.id, netns, args, capabilities, bin_dirs: &daemon.config.cni_bin_dirs }
}
