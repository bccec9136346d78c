//! ListMetricDescriptors and ListPodSandboxMetrics: the names, units and labels of cAdvisor, from cgroups.

use std::sync::Arc;

use gantry_cgroup::Stats;
use proto::cri;

use crate::daemon::{Container, Daemon, Sandbox, lock, now};
use crate::stats;

use cri::MetricType::{Counter, Gauge};

/// Labels of every metric, in the order of its values.
const LABELS: [&str; 6] = ["id", "name", "image", "container", "pod", "namespace"];

/// What a container or pod is measured by.
struct Measured {
    stats: Stats,
    processes: u64,
    oom_kills: u64,
    /// Seconds since the epoch, 0 for pods.
    started: u64,
    limits: cri::LinuxContainerResources,
}

type Value = fn(&Measured) -> u64;

/// Name, help, type and value of each metric of a container (and, but for the spec, of a pod's cgroup).
const METRICS: &[(&str, &str, cri::MetricType, Value)] = &[
    ("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", Counter, |m| {
        m.stats.cpu_ns / NANO
    }),
    ("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", Counter, |m| {
        m.stats.cpu_user_ns / NANO
    }),
    ("container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", Counter, |m| {
        m.stats.cpu_system_ns / NANO
    }),
    ("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", Counter, |m| {
        m.stats.cpu_periods
    }),
    ("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", Counter, |m| {
        m.stats.cpu_throttled_periods
    }),
    (
        "container_cpu_cfs_throttled_seconds_total",
        "Total time duration the container has been throttled.",
        Counter,
        |m| m.stats.cpu_throttled_ns / NANO,
    ),
    ("container_memory_usage_bytes", "Current memory usage in bytes, including all memory.", Gauge, |m| m.stats.memory),
    ("container_memory_working_set_bytes", "Current working set in bytes.", Gauge, |m| m.stats.working_set),
    ("container_memory_rss", "Size of RSS in bytes.", Gauge, |m| m.stats.rss),
    ("container_memory_cache", "Number of bytes of page cache memory.", Gauge, |m| m.stats.cache),
    ("container_memory_mapped_file", "Size of memory mapped files in bytes.", Gauge, |m| m.stats.mapped_file),
    ("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes.", Gauge, |m| m.stats.memory_peak),
    ("container_memory_swap", "Container swap usage in bytes.", Gauge, |m| m.stats.swap),
    ("container_memory_failures_total", "Cumulative count of memory allocation failures.", Counter, |m| {
        m.stats.page_faults
    }),
    ("container_oom_events_total", "Count of out of memory events observed for the container.", Counter, |m| {
        m.oom_kills
    }),
    ("container_processes", "Number of processes running inside the container.", Gauge, |m| m.processes),
    ("container_threads", "Number of threads running inside the container.", Gauge, |m| m.stats.pids),
    ("container_threads_max", "Maximum number of threads allowed inside the container, infinity if 0.", Gauge, |m| {
        m.stats.pids_limit.unwrap_or(0)
    }),
    ("container_fs_reads_bytes_total", "Cumulative count of bytes read.", Counter, |m| m.stats.io_read_bytes),
    ("container_fs_writes_bytes_total", "Cumulative count of bytes written.", Counter, |m| m.stats.io_write_bytes),
    ("container_spec_memory_limit_bytes", "Memory limit for the container.", Gauge, |m| {
        m.stats.memory_limit.unwrap_or(0)
    }),
    ("container_spec_cpu_shares", "CPU share of the container.", Gauge, |m| unsigned(m.limits.cpu_shares)),
    ("container_spec_cpu_quota", "CPU quota of the container.", Gauge, |m| unsigned(m.limits.cpu_quota)),
    ("container_spec_cpu_period", "CPU period of the container.", Gauge, |m| unsigned(m.limits.cpu_period)),
    ("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", Gauge, |m| m.started),
    ("container_last_seen", "Last time a container was seen by the exporter.", Gauge, |_| seconds(now())),
];

type Traffic = fn(&cri::NetworkInterfaceUsage) -> &Option<cri::UInt64Value>;

/// Metrics of a pod's interfaces, with the label `interface`.
const NETWORK: &[(&str, &str, Traffic)] = &[
    ("container_network_receive_bytes_total", "Cumulative count of bytes received.", |i| &i.rx_bytes),
    ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving.", |i| {
        &i.rx_errors
    }),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", |i| &i.tx_bytes),
    ("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting.", |i| {
        &i.tx_errors
    }),
];

const FS_USAGE: &str = "container_fs_usage_bytes";
const FS_INODES: &str = "container_fs_inodes_total";
const NANO: u64 = 1_000_000_000;

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn seconds(nanoseconds: i64) -> u64 {
    unsigned(nanoseconds) / NANO
}

/// Every metric that [`of_sandbox`] may answer.
pub fn descriptors() -> Vec<cri::MetricDescriptor> {
    let keys = |more: &[&str]| LABELS.iter().chain(more).map(|l| (*l).to_owned()).collect::<Vec<_>>();
    let one = |name: &str, help: &str, label_keys| cri::MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys,
    };
    let mut all: Vec<_> = METRICS.iter().map(|(name, help, ..)| one(name, help, keys(&[]))).collect();
    all.push(one(FS_USAGE, "Number of bytes that are consumed by the container's writable layer.", keys(&[])));
    all.push(one(FS_INODES, "Number of inodes of the container's writable layer.", keys(&[])));
    all.extend(NETWORK.iter().map(|(name, help, _)| one(name, help, keys(&["interface"]))));
    all
}

fn metric(name: &str, kind: cri::MetricType, labels: &[String], value: u64) -> cri::Metric {
    cri::Metric {
        name: name.to_owned(),
        timestamp: now(),
        metric_type: kind.into(),
        label_values: labels.to_vec(),
        value: Some(cri::UInt64Value { value }),
    }
}

fn measure(daemon: &Daemon, cgroup: &str, started: u64, limits: cri::LinuxContainerResources) -> Measured {
    let cgroup = daemon.host.cgroup(cgroup).ok();
    Measured {
        stats: cgroup.as_ref().map(|c| c.stats()).unwrap_or_default(),
        processes: cgroup.as_ref().and_then(|c| c.procs().ok()).map_or(0, |p| p.len() as u64),
        oom_kills: cgroup.as_ref().map_or(0, gantry_cgroup::Cgroup::oom_kills),
        started,
        limits,
    }
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
    let measured = measure(daemon, &record.cgroup, seconds(record.started_at), record.resources.0);
    let mut metrics: Vec<_> =
        METRICS.iter().map(|(name, _, kind, value)| metric(name, *kind, &labels, value(&measured))).collect();
    let layer = daemon.images.snapshot_usage(&record.id).unwrap_or_default();
    metrics.push(metric(FS_USAGE, Gauge, &labels, layer.bytes));
    metrics.push(metric(FS_INODES, Gauge, &labels, layer.inodes));
    cri::ContainerMetrics { container_id: record.id, metrics }
}

/// Metrics of a pod and its running containers. Blocking: walks writable layers.
pub fn of_sandbox(daemon: &Daemon, sandbox: &Sandbox) -> cri::PodSandboxMetrics {
    let record = sandbox.record();
    let parent = crate::sandbox::cgroup(daemon, &record).unwrap_or_default();
    let config = record.config.0;
    let pod = config.metadata.unwrap_or_default();
    let labels =
        [parent.clone(), record.id.clone(), String::new(), String::new(), pod.name.clone(), pod.namespace.clone()];
    let measured = measure(daemon, &parent, 0, cri::LinuxContainerResources::default());
    let mut metrics: Vec<_> = METRICS
        .iter()
        .filter(|(name, ..)| !name.contains("_spec_") && !name.contains("_start_"))
        .map(|(name, _, kind, value)| metric(name, *kind, &labels, value(&measured)))
        .collect();
    for interface in stats::network(daemon, &record.id) {
        let labels: Vec<String> = labels.iter().cloned().chain([interface.name.clone()]).collect();
        let value = |from: Traffic| from(&interface).as_ref().map_or(0, |v| v.value);
        metrics.extend(NETWORK.iter().map(|(name, _, from)| metric(name, Counter, &labels, value(*from))));
    }
    let running = |c: &Arc<Container>| c.state() == cri::ContainerState::ContainerRunning;
    let containers = daemon.containers_of(&record.id).into_iter().filter(running);
    cri::PodSandboxMetrics {
        pod_sandbox_id: record.id,
        metrics,
        container_metrics: containers.map(|c| of_container(daemon, &c, &pod)).collect(),
    }
}

/// Metrics of the daemon itself in Prometheus' text format.
pub fn of_daemon(daemon: &Daemon) -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, values: &[(&str, u64)]| {
        text += &format!("# HELP gantry_cri_{name} {help}\n# TYPE gantry_cri_{name} gauge\n");
        for (labels, value) in values {
            text += &format!("gantry_cri_{name}{labels} {value}\n");
        }
    };
    let sandboxes = daemon.all_sandboxes();
    let ready = sandboxes.iter().filter(|s| !s.record().stopped).count() as u64;
    let values = [("{state=\"ready\"}", ready), ("{state=\"notready\"}", sandboxes.len() as u64 - ready)];
    gauge("sandboxes", "Pod sandboxes by state.", &values);
    let containers = daemon.all_containers();
    let count = |state| containers.iter().filter(|c| c.state() == state).count() as u64;
    let values = [
        ("{state=\"created\"}", count(cri::ContainerState::ContainerCreated)),
        ("{state=\"running\"}", count(cri::ContainerState::ContainerRunning)),
        ("{state=\"exited\"}", count(cri::ContainerState::ContainerExited)),
    ];
    gauge("containers", "Containers by state.", &values);
    let usage = daemon.images.fs_usage();
    gauge("images", "Images in the store.", &[("", daemon.images.list().len() as u64)]);
    gauge("image_bytes", "Bytes used by images.", &[("", usage.bytes)]);
    gauge(
        "event_listeners",
        "Clients that listen to container events.",
        &[("", daemon.events.receiver_count() as u64)],
    );
    let (calls, failed) = *lock(&daemon.calls);
    text += "# HELP gantry_cri_operations_total Long operations (run, create, start, remove) asked for.\n";
    text += &format!("# TYPE gantry_cri_operations_total counter\ngantry_cri_operations_total {calls}\n");
    text += "# HELP gantry_cri_operation_errors_total Those that failed.\n";
    text += &format!("# TYPE gantry_cri_operation_errors_total counter\ngantry_cri_operation_errors_total {failed}\n");
    text
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
