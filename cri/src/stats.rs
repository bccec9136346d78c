//! Statistics from cgroups.

use proto::cri;

use crate::daemon::{Container, Daemon, Sandbox, now};

fn number(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

fn usage(daemon: &Daemon, path: &str) -> (cri::CpuUsage, cri::MemoryUsage, cri::SwapUsage, u64) {
    let timestamp = now();
    let s = daemon.host.cgroup(path).map(|c| c.stats()).unwrap_or_default();
    let cpu = cri::CpuUsage { timestamp, usage_core_nano_seconds: number(s.cpu_ns), usage_nano_cores: None, psi: None };
    let memory = cri::MemoryUsage {
        timestamp,
        working_set_bytes: number(s.working_set),
        available_bytes: s.memory_limit.and_then(|l| number(l.saturating_sub(s.working_set))),
        usage_bytes: number(s.memory),
        rss_bytes: number(s.rss),
        page_faults: number(s.page_faults),
        major_page_faults: number(s.major_page_faults),
        psi: None,
    };
    let available = s.swap_limit.and_then(|l| number(l.saturating_sub(s.swap)));
    let swap = cri::SwapUsage { timestamp, swap_available_bytes: available, swap_usage_bytes: number(s.swap) };
    (cpu, memory, swap, s.pids)
}

/// Of a container. Blocking: walks its writable layer.
pub fn container(daemon: &Daemon, container: &Container) -> cri::ContainerStats {
    let record = container.record();
    let (cpu, memory, swap, _) = usage(daemon, &record.cgroup);
    let layer = daemon.images.snapshot_usage(&record.id).unwrap_or_default();
    let config = record.config.0;
    let mountpoint = daemon.images.fs_usage().mountpoint.display().to_string();
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: record.id,
            metadata: config.metadata,
            labels: config.labels,
            annotations: config.annotations,
        }),
        cpu: Some(cpu),
        memory: Some(memory),
        writable_layer: Some(cri::FilesystemUsage {
            timestamp: now(),
            fs_id: Some(cri::FilesystemIdentifier { mountpoint }),
            used_bytes: number(layer.bytes),
            inodes_used: number(layer.inodes),
        }),
        swap: Some(swap),
        io: None,
    }
}

/// Of a sandbox with its containers. Blocking.
pub fn sandbox(daemon: &Daemon, sandbox: &Sandbox) -> cri::PodSandboxStats {
    let record = sandbox.record();
    let parent = crate::sandbox::cgroup(daemon, &record).unwrap_or_default();
    let config = record.config.0;
    let (cpu, memory, _, pids) = usage(daemon, &parent);
    let running = |c: &std::sync::Arc<Container>| c.state() == cri::ContainerState::ContainerRunning;
    let containers = daemon.containers_of(&record.id).into_iter().filter(running);
    let interfaces = network(daemon, &record.id);
    let linux = cri::LinuxPodSandboxStats {
        cpu: Some(cpu),
        memory: Some(memory),
        network: Some(cri::NetworkUsage {
            timestamp: now(),
            default_interface: interfaces.iter().find(|i| i.name == "eth0").cloned(),
            interfaces,
        }),
        process: Some(cri::ProcessUsage { timestamp: now(), process_count: number(pids) }),
        containers: containers.map(|c| container(daemon, &c)).collect(),
        io: None,
    };
    cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: record.id,
            metadata: config.metadata,
            labels: config.labels,
            annotations: config.annotations,
        }),
        linux: Some(linux),
        windows: None,
    }
}

/// Counters of the pod's interfaces but the loopback.
pub(crate) fn network(daemon: &Daemon, sandbox: &str) -> Vec<cri::NetworkInterfaceUsage> {
    let path = daemon.sandbox_dir(sandbox).join("ns/net");
    if !gantry_sys::namespaces::is_pinned(&path) {
        return Vec::new();
    }
    let read = || std::fs::read_to_string("/proc/thread-self/net/dev");
    parse_net_dev(&gantry_sys::namespaces::within_network(&path, read).unwrap_or_default())
}

fn parse_net_dev(text: &str) -> Vec<cri::NetworkInterfaceUsage> {
    let interface = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let n: Vec<u64> = rest.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        (n.len() >= 11 && name.trim() != "lo").then(|| cri::NetworkInterfaceUsage {
            name: name.trim().to_owned(),
            rx_bytes: number(n[0]),
            rx_errors: number(n[2]),
            tx_bytes: number(n[8]),
            tx_errors: number(n[10]),
        })
    };
    text.lines().filter_map(interface).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_come_from_the_right_columns() {
        let text = "Inter-| Receive\n face |bytes\n  lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n eth0: 1 2 3 0 0 0 0 0 4 5 6 0 0 0 0 0\n";
        let all = parse_net_dev(text);
        let n = |v: &Option<cri::UInt64Value>| v.as_ref().unwrap().value;
        assert_eq!(all.len(), 1);
        assert_eq!(
            (n(&all[0].rx_bytes), n(&all[0].rx_errors), n(&all[0].tx_bytes), n(&all[0].tx_errors)),
            (1, 3, 4, 6)
        );
    }
}
