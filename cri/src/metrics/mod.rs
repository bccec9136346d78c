//! ListMetricDescriptors and ListPodSandboxMetrics: the names, units and labels of cAdvisor, from cgroups.

mod families;
mod measured;
mod own;

use std::sync::Arc;

use proto::cri;

pub use own::of_daemon;

use crate::daemon::{Container, Daemon, Sandbox, now};
use crate::stats;
use families::{FAMILIES, Of};
use measured::{Disk, Measured};

use cri::MetricType::Counter;

/// Labels of every metric, in the order of its values.
const LABELS: [&str; 6] = ["id", "name", "image", "container", "pod", "namespace"];
const NANO: u64 = 1_000_000_000;

type Traffic = fn(&stats::Interface) -> u64;

/// Metrics of a pod's interfaces, with the label `interface`.
const NETWORK: &[(&str, &str, Traffic)] = &[
    ("container_network_receive_bytes_total", "Bytes received.", |i| i.received.bytes),
    ("container_network_receive_errors_total", "Errors while receiving.", |i| i.received.errors),
    ("container_network_receive_packets_dropped_total", "Received packets that were dropped.", |i| i.received.dropped),
    ("container_network_receive_packets_total", "Packets received.", |i| i.received.packets),
    ("container_network_transmit_bytes_total", "Bytes sent.", |i| i.sent.bytes),
    ("container_network_transmit_errors_total", "Errors while sending.", |i| i.sent.errors),
    ("container_network_transmit_packets_dropped_total", "Packets to be sent that were dropped.", |i| i.sent.dropped),
    ("container_network_transmit_packets_total", "Packets sent.", |i| i.sent.packets),
];

fn seconds(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(0) / NANO
}

/// Every metric that [`of_sandbox`] may answer.
pub fn descriptors() -> Vec<cri::MetricDescriptor> {
    let one = |name: &str, help: &str, more: &[&str]| cri::MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: LABELS.iter().chain(more).map(|l| (*l).to_owned()).collect(),
    };
    let families = FAMILIES.iter().map(|f| one(f.name, f.help, f.labels()));
    families.chain(NETWORK.iter().map(|(name, help, _)| one(name, help, &["interface"]))).collect()
}

fn metric(name: &str, kind: cri::MetricType, (common, more): (&[String], Vec<String>), value: u64) -> cri::Metric {
    cri::Metric {
        name: name.to_owned(),
        timestamp: now(),
        metric_type: kind.into(),
        label_values: common.iter().cloned().chain(more).collect(),
        value: Some(cri::UInt64Value { value }),
    }
}

fn metrics(measured: &Measured, labels: &[String], of: impl Fn(Of) -> bool) -> Vec<cri::Metric> {
    let wanted = FAMILIES.iter().filter(|f| of(f.of));
    let all = wanted.flat_map(|f| f.samples(measured).into_iter().map(move |sample| (f, sample)));
    all.map(|(f, (more, value))| metric(f.name, f.kind, (labels, more), value)).collect()
}

fn of_container(daemon: &Daemon, container: &Container, pod: &cri::PodSandboxMetadata) -> cri::ContainerMetrics {
    let record = container.record();
    let config = record.config.0;
    let labels = [
        record.cgroup.clone(),
        record.id.clone(),
        config.image.unwrap_or_default().image,
        config.metadata.unwrap_or_default().name,
        pod.name.clone(),
        pod.namespace.clone(),
    ];
    let mut measured = Measured::of(daemon, &record.cgroup, seconds(record.started_at), record.resources.0);
    let (layer, _) = container.layer(daemon);
    measured.disk = rustix::fs::statvfs(&daemon.images.fs_usage().mountpoint).ok().map(|fs| Disk {
        used: layer.bytes,
        size: fs.f_blocks * fs.f_frsize,
        inodes: fs.f_files,
        inodes_free: fs.f_ffree,
    });
    cri::ContainerMetrics { container_id: record.id, metrics: metrics(&measured, &labels, |_| true) }
}

/// Metrics of a pod and its running containers. Blocking: looks at every process, and may walk writable layers.
pub fn of_sandbox(daemon: &Daemon, sandbox: &Sandbox) -> cri::PodSandboxMetrics {
    let record = sandbox.record();
    let parent = crate::sandbox::cgroup(daemon, &record).unwrap_or_default();
    let config = record.config.0;
    let pod = config.metadata.unwrap_or_default();
    let labels =
        [parent.clone(), record.id.clone(), String::new(), String::new(), pod.name.clone(), pod.namespace.clone()];
    let measured = Measured::of(daemon, &parent, 0, cri::LinuxContainerResources::default());
    let mut all = metrics(&measured, &labels, |of| of == Of::Both);
    for interface in stats::interfaces(daemon, &record.id) {
        let one = |(name, _, value): &(&str, &str, Traffic)| {
            metric(name, Counter, (&labels, vec![interface.name.clone()]), value(&interface))
        };
        all.extend(NETWORK.iter().map(one));
    }
    let running = |c: &Arc<Container>| c.state() == cri::ContainerState::ContainerRunning;
    let containers = daemon.containers_of(&record.id).into_iter().filter(running);
    cri::PodSandboxMetrics {
        pod_sandbox_id: record.id,
        metrics: all,
        container_metrics: containers.map(|c| of_container(daemon, &c, &pod)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_labels_fit_their_values() {
        let all = descriptors();
        let mut names: Vec<_> = all.iter().map(|d| d.name.clone()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len());
        for wanted in
            ["container_threads", "container_cpu_usage_seconds_total", "container_network_receive_bytes_total"]
        {
            assert!(names.iter().any(|n| n == wanted), "{wanted}");
        }
        let network = all.iter().find(|d| d.name.contains("network")).unwrap();
        assert_eq!(network.label_keys.last().map(String::as_str), Some("interface"));
    }
}
