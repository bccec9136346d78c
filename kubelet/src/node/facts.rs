//! What the machine is: capacity, addresses, versions.

use std::collections::BTreeMap;

use gantry_kube::quantity::Quantity;
use k8s_openapi::api::core::v1::{NodeSwapStatus, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::config::KubeletConfiguration;
use crate::metrics::meminfo;

/// The machine's name in lower case.
pub(crate) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_lowercase()
}

/// The address that this machine uses towards others, or loopback.
pub(crate) fn own_address() -> String {
    let ask = || -> std::io::Result<String> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        // No packet is sent: this only chooses a route.
        socket.connect("192.0.2.1:9")?;
        Ok(socket.local_addr()?.ip().to_string())
    };
    ask().unwrap_or_else(|_| "127.0.0.1".to_owned())
}

/// CPUs that this process may use.
pub(crate) fn cpus() -> i64 {
    std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(1))
}

fn disk(path: &std::path::Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |s| s.blocks() * s.fragment_size())
}

fn huge_pages() -> BTreeMap<String, i64> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size =
            name.strip_prefix("hugepages-").and_then(|n| n.strip_suffix("kB")).and_then(|n| n.parse::<i64>().ok());
        let count =
            std::fs::read_to_string(entry.path().join("nr_hugepages")).ok().and_then(|t| t.trim().parse::<i64>().ok());
        if let (Some(kb), Some(count)) = (size, count) {
            let unit = if kb >= 1 << 20 { format!("{}Gi", kb >> 20) } else { format!("{}Mi", kb >> 10) };
            out.insert(format!("hugepages-{unit}"), count * kb * 1024);
        }
    }
    out
}

/// How many pods the node takes: `maxPods`, and no more than `podsPerCore` for each CPU where that is set.
fn most_pods(config: &KubeletConfiguration, cpus: i64) -> i64 {
    let most = i64::from(config.max_pods);
    if config.pods_per_core > 0 { most.min(i64::from(config.pods_per_core) * cpus) } else { most }
}

/// Capacity and allocatable: what is left after reservations and the hard eviction threshold of memory.
pub(crate) fn resources(
    config: &KubeletConfiguration,
    root: &std::path::Path,
) -> (BTreeMap<String, ApiQuantity>, BTreeMap<String, ApiQuantity>) {
    let memory = i64::try_from(meminfo("MemTotal")).unwrap_or(0);
    let storage = i64::try_from(disk(root)).unwrap_or(0);
    let reserved = |key: &str| -> i64 {
        let of = |map: &BTreeMap<String, String>| {
            map.get(key).and_then(|q| Quantity::parse(q).ok()).map_or(0, |q| q.value())
        };
        of(&config.system_reserved) + of(&config.kube_reserved)
    };
    let threshold = |key: &str, of: i64| match config.eviction_hard.get(key) {
        Some(text) => match text.strip_suffix('%').and_then(|p| p.parse::<f64>().ok()) {
            Some(percent) => (of as f64 * percent / 100.0) as i64,
            None => Quantity::parse(text).map_or(0, |q| q.value()),
        },
        None => 0,
    };
    let quantity = |n: i64| ApiQuantity(n.max(0).to_string());
    let ki = |n: i64| ApiQuantity(format!("{}Ki", n.max(0) / 1024));
    let huge = huge_pages();
    let pods = quantity(most_pods(config, cpus()));
    let mut capacity = BTreeMap::from([
        ("cpu".to_owned(), quantity(cpus())),
        ("memory".to_owned(), ki(memory)),
        ("pods".to_owned(), pods.clone()),
        ("ephemeral-storage".to_owned(), ki(storage)),
    ]);
    let in_huge_pages: i64 = huge.values().sum();
    let free_memory = memory - in_huge_pages - reserved("memory") - threshold("memory.available", memory);
    let free_cpu = cpus() * 1000 - crate::resources::managers::reserved_cpu(config);
    let mut allocatable = BTreeMap::from([
        (
            "cpu".to_owned(),
            if free_cpu % 1000 == 0 { quantity(free_cpu / 1000) } else { ApiQuantity(format!("{free_cpu}m")) },
        ),
        ("memory".to_owned(), ki(free_memory)),
        ("pods".to_owned(), pods),
        (
            "ephemeral-storage".to_owned(),
            quantity(storage - reserved("ephemeral-storage") - threshold("nodefs.available", storage)),
        ),
    ]);
    for (name, bytes) in huge {
        capacity.insert(name.clone(), quantity(bytes));
        allocatable.insert(name, quantity(bytes));
    }
    if !config.local_storage_capacity_isolation {
        // Nobody counts it then, so nobody may ask for it.
        capacity.remove("ephemeral-storage");
        allocatable.remove("ephemeral-storage");
    }
    (capacity, allocatable)
}

/// The value of a resource in thousandths, or as it is.
pub(crate) fn value(of: &BTreeMap<String, ApiQuantity>, key: &str, milli: bool) -> i64 {
    let parsed = of.get(key).and_then(|q| Quantity::parse(&q.0).ok());
    parsed.map_or(0, |q| if milli { q.milli_value() } else { q.value() })
}

/// Versions and ids of the machine.
pub(crate) fn system_info(runtime: &str) -> NodeSystemInfo {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let os = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let os = os.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"').to_owned();
    NodeSystemInfo {
        machine_id: read("/etc/machine-id"),
        system_uuid: read("/sys/class/dmi/id/product_uuid"),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        os_image: os,
        container_runtime_version: runtime.to_owned(),
        kubelet_version: gantry_telemetry::build::git_version(),
        operating_system: "linux".into(),
        architecture: architecture().into(),
        swap: i64::try_from(meminfo("SwapTotal"))
            .ok()
            .filter(|&bytes| bytes > 0)
            .map(|bytes| NodeSwapStatus { capacity: Some(bytes) }),
        ..Default::default()
    }
}

/// The architecture as Go names it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_takes_as_many_pods_as_it_is_told() {
        for (most, per_core, want) in [(110, 0, 110), (110, 10, 40), (30, 10, 30)] {
            let config = KubeletConfiguration { max_pods: most, pods_per_core: per_core, ..Default::default() };
            assert_eq!(most_pods(&config, 4), want);
        }
    }

    #[test]
    fn ephemeral_storage_is_not_offered_where_nobody_counts_it() {
        let has = |counted: bool| {
            let config = KubeletConfiguration { local_storage_capacity_isolation: counted, ..Default::default() };
            let (capacity, allocatable) = resources(&config, std::path::Path::new("/"));
            assert_eq!(capacity.contains_key("ephemeral-storage"), allocatable.contains_key("ephemeral-storage"));
            capacity.contains_key("ephemeral-storage")
        };
        assert!(has(true) && !has(false));
    }
}
