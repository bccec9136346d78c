//! Numbers about the kubelet and its pods, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use proto::cri;

use crate::cri::{CONTAINER_LABEL, NAME_LABEL, NAMESPACE_LABEL};
use crate::pod;
use crate::probe::Target;

/// Probe results by their labels; containers come and go, so that this stays small only because pods are few.
static PROBES: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

/// Counts one try of a probe.
pub(crate) fn probed(target: &Target, ok: bool) {
    let labels = format!(
        "probe_type=\"{}\",result=\"{}\",container=\"{}\",pod=\"{}\",namespace=\"{}\",pod_uid=\"{}\"",
        match target.kind.name() {
            "startup" => "Startup",
            "liveness" => "Liveness",
            _ => "Readiness",
        },
        if ok { "successful" } else { "failed" },
        target.container.name,
        pod::name(&target.pod),
        pod::namespace(&target.pod),
        pod::uid(&target.pod)
    );
    *PROBES.lock().unwrap_or_else(PoisonError::into_inner).entry(labels).or_default() += 1;
}

/// `/metrics/probes`
pub(crate) fn probes() -> String {
    let mut out = String::from("# TYPE prober_probe_total counter\n");
    for (labels, count) in PROBES.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = writeln!(out, "prober_probe_total{{{labels}}} {count}");
    }
    out
}

fn label<'a>(labels: &'a std::collections::HashMap<String, String>, key: &str) -> &'a str {
    labels.get(key).map(String::as_str).unwrap_or_default()
}

/// A container's numbers under their names.
fn lines(out: &mut String, stats: &cri::ContainerStats, cadvisor: bool) {
    let Some(attributes) = &stats.attributes else { return };
    let l = &attributes.labels;
    let labels = format!(
        "container=\"{}\",namespace=\"{}\",pod=\"{}\"",
        label(l, CONTAINER_LABEL),
        label(l, NAMESPACE_LABEL),
        label(l, NAME_LABEL)
    );
    if let Some(nanos) = stats.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds.as_ref()) {
        let _ = writeln!(out, "container_cpu_usage_seconds_total{{{labels}}} {}", nanos.value as f64 / 1e9);
    }
    let Some(memory) = &stats.memory else { return };
    let mut put = |name: &str, value: &Option<cri::UInt64Value>| {
        if let Some(value) = value {
            let _ = writeln!(out, "{name}{{{labels}}} {}", value.value);
        }
    };
    put("container_memory_working_set_bytes", &memory.working_set_bytes);
    if cadvisor {
        put("container_memory_usage_bytes", &memory.usage_bytes);
        put("container_memory_rss", &memory.rss_bytes);
        let layer = stats.writable_layer.as_ref();
        put("container_fs_usage_bytes", &layer.and_then(|f| f.used_bytes));
    }
}

/// `/metrics/resource` and `/metrics/cadvisor`. `node` is the node's CPU seconds and working set.
pub(crate) fn containers(
    stats: &[cri::ContainerStats],
    node: Option<(f64, u64)>,
    starts: &[(String, f64)],
    cadvisor: bool,
) -> String {
    let mut out = String::new();
    if let Some((cpu, memory)) = node {
        let _ = writeln!(out, "# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total {cpu}");
        let _ = writeln!(out, "# TYPE node_memory_working_set_bytes gauge\nnode_memory_working_set_bytes {memory}");
    }
    for one in stats {
        lines(&mut out, one, cadvisor);
    }
    for (labels, at) in starts {
        let _ = writeln!(out, "container_start_time_seconds{{{labels}}} {at}");
    }
    // The format wants all samples of a name together.
    let mut sorted: Vec<&str> = out.lines().filter(|l| !l.starts_with('#')).collect();
    sorted.sort_by_key(|l| l.split(['{', ' ']).next().unwrap_or_default().to_owned());
    sorted.iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{line}");
        text
    })
}

/// The node's CPU seconds and working set from /proc.
pub(crate) fn node_usage() -> (f64, u64) {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|w| w.parse().ok()).collect();
    // All but idle and iowait; a tick is a hundredth of a second on every Linux that we run on.
    let busy: u64 = ticks.iter().enumerate().filter(|(i, _)| *i < 8 && *i != 3 && *i != 4).map(|(_, t)| t).sum();
    (busy as f64 / 100.0, meminfo("MemTotal").saturating_sub(meminfo("MemAvailable")))
}

/// A line of /proc/meminfo in bytes.
pub(crate) fn meminfo(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|l| l.strip_prefix(name).is_some_and(|r| r.starts_with(':')));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) * 1024
}
