//! What pods may take of the node together, as the kernel is told it: the limits of the group of all pods, and those of
//! the groups of the system's and Kubernetes' own daemons where the configuration wants these held, too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gantry_cgroup::{Host, Resources};
use gantry_kube::quantity::Quantity;

use super::qos::{self, Qos};
use crate::config::KubeletConfiguration;
use crate::kubelet::Pods;
use crate::node::facts;
use crate::pod;
use crate::shared::Shared;

/// Between looks at what burstable pods request together.
const EVERY: Duration = Duration::from_secs(30);

fn amount(of: &BTreeMap<String, String>, key: &str) -> Option<Quantity> {
    Quantity::parse(of.get(key)?).ok().filter(|q| !q.is_zero())
}

fn enforced(config: &KubeletConfiguration, what: &str) -> bool {
    config.enforce_node_allocatable.iter().any(|e| e == what)
}

/// The limits of all pods together: the node less what is reserved (eviction thresholds are not taken off: they are the
/// room in which eviction works).
pub(crate) fn of_pods(config: &KubeletConfiguration, cpus: i64, memory: i64, pids: i64) -> Resources {
    if !enforced(config, "pods") {
        return Resources::default();
    }
    let reserved = |key: &str| -> i64 {
        [&config.kube_reserved, &config.system_reserved]
            .into_iter()
            .filter_map(|map| amount(map, key))
            .map(|q| q.value())
            .sum()
    };
    let (kept_memory, kept_pids) = (reserved("memory"), reserved("pid"));
    let milli = (cpus * 1000 - super::managers::reserved_cpu(config)).max(0);
    Resources {
        cpu_shares: Some(qos::shares(Some(milli))),
        memory_limit: (memory > kept_memory).then_some(memory - kept_memory),
        pids_limit: (kept_pids > 0 && pids > kept_pids).then_some(pids - kept_pids),
        ..Default::default()
    }
}

/// The groups of daemons that are held to what is reserved for them, with their limits.
pub(crate) fn of_daemons(config: &KubeletConfiguration) -> Vec<(String, Resources)> {
    let mut out = Vec::new();
    for (what, group, reserved) in [
        ("kube-reserved", &config.kube_reserved_cgroup, &config.kube_reserved),
        ("system-reserved", &config.system_reserved_cgroup, &config.system_reserved),
    ] {
        let whole = enforced(config, what);
        if group.is_empty() || !(whole || enforced(config, &format!("{what}-compressible"))) {
            continue;
        }
        let limits = Resources {
            cpu_shares: amount(reserved, "cpu").map(|q| qos::shares(Some(q.milli_value()))),
            memory_limit: amount(reserved, "memory").filter(|_| whole).map(|q| q.value()),
            pids_limit: amount(reserved, "pid").filter(|_| whole).map(|q| q.value()),
            ..Default::default()
        };
        out.push((group.clone(), limits));
    }
    out
}

/// Holds daemons to what is reserved for them. Their groups must be there already: they are the service manager's.
pub(crate) fn hold_daemons(config: &KubeletConfiguration) {
    for (path, limits) in of_daemons(config) {
        let work = || -> Result<(), String> {
            let host = Host::detect().map_err(|e| e.to_string())?;
            let group = host.cgroup(&path).map_err(|e| e.to_string())?;
            if !group.exists() {
                return Err("there is no such group".to_owned());
            }
            group.apply(&limits).map_err(|e| e.to_string())
        };
        if let Err(e) = work() {
            tracing::error!(group = path, error = e, "reservations of daemons are not enforced");
        }
    }
}

/// The limits of all pods on this machine.
pub(crate) fn here(config: &KubeletConfiguration) -> Resources {
    let memory = i64::try_from(crate::metrics::meminfo("MemTotal")).unwrap_or(i64::MAX);
    let pids = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|t| t.trim().parse().ok());
    of_pods(config, facts::cpus(), memory, pids.unwrap_or(0))
}

/// Gives the class of burstable pods the share of CPU time that its pods request together, and the groups above pods the memory
/// that is kept for these, for ever.
pub(crate) async fn keep_shares(shared: Arc<Shared>, pods: Pods) {
    if !shared.config.cgroups_per_qos {
        return;
    }
    let (mut known, mut kept) = (None, None);
    loop {
        let over = |uid: &str| {
            let status = shared.statuses.get(uid);
            status.and_then(|s| s.phase).is_some_and(|p| p == "Failed" || p == "Succeeded")
        };
        let alive: Vec<_> = pods.list().into_iter().filter(|p| !over(pod::uid(p))).collect();
        let of = |class: Qos| alive.iter().filter(move |p| qos::class(p) == class).map(|p| qos::of_pod(p));
        let milli: i64 = of(Qos::Burstable).filter_map(|a| a.cpu_request).sum();
        let memory = |class: Qos| of(class).filter_map(|a| a.memory_request).sum::<i64>();
        let bytes = (memory(Qos::Guaranteed), memory(Qos::Burstable));
        if shared.facts.memory_qos.is_some() && kept != Some(bytes) {
            let groups = shared.cgroups.clone();
            let done = tokio::task::spawn_blocking(move || groups.keep_memory(bytes.0, bytes.1)).await;
            match done.map_err(|e| e.to_string()).and_then(|d| d.map_err(|e| e.to_string())) {
                Ok(()) => kept = Some(bytes),
                Err(e) => tracing::warn!(error = %e, "memory is not kept for pods"),
            }
        }
        let shares = qos::shares(Some(milli));
        if known != Some(shares) {
            let groups = shared.cgroups.clone();
            match tokio::task::spawn_blocking(move || groups.share_burstable(shares)).await {
                Ok(Ok(())) => known = Some(shares),
                Ok(Err(e)) => tracing::warn!(error = %e, "burstable pods' share of CPU time not set"),
                Err(e) => tracing::warn!(error = %e, "burstable pods' share of CPU time not set"),
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(fields: serde_json::Value) -> KubeletConfiguration {
        serde_json::from_value(fields).unwrap()
    }

    #[test]
    fn pods_get_the_node_less_what_is_reserved() {
        let with = config(json!({"kubeReserved": {"cpu": "500m", "memory": "1Gi"},
            "systemReserved": {"cpu": "500m", "memory": "1Gi", "pid": "1000"}}));
        let limits = of_pods(&with, 4, 8 << 30, 32_768);
        assert_eq!(
            (limits.cpu_shares, limits.memory_limit, limits.pids_limit),
            (Some(3072), Some(6 << 30), Some(31_768))
        );
        let none = config(json!({"enforceNodeAllocatable": ["none"]}));
        assert_eq!(of_pods(&none, 4, 8 << 30, 32_768), Resources::default());
    }

    #[test]
    fn daemons_are_held_where_that_is_asked_for() {
        let with = config(json!({
            "kubeReserved": {"cpu": "1", "memory": "1Gi"}, "kubeReservedCgroup": "/kube",
            "systemReserved": {"cpu": "2", "memory": "1Gi"}, "systemReservedCgroup": "/system",
            "enforceNodeAllocatable": ["pods", "kube-reserved", "system-reserved-compressible"]}));
        let got: Vec<_> = of_daemons(&with).into_iter().map(|(g, r)| (g, r.cpu_shares, r.memory_limit)).collect();
        assert_eq!(got, [("/kube".to_owned(), Some(1024), Some(1 << 30)), ("/system".to_owned(), Some(2048), None)]);
        assert!(of_daemons(&config(json!({"kubeReservedCgroup": "/kube"}))).is_empty());
    }
}
