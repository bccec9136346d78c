//! `/metrics/resource`: exactly what metrics-server reads, and pods and swap beside it as upstream has them.

use std::collections::HashMap;

use proto::cri;

use super::text::{Kind, Page, labels};
use crate::cri::{CONTAINER_LABEL, NAME_LABEL, NAMESPACE_LABEL};

fn of<'a>(labels: &'a HashMap<String, String>, key: &str) -> &'a str {
    labels.get(key).map(String::as_str).unwrap_or_default()
}

fn number(value: &Option<cri::UInt64Value>) -> Option<f64> {
    value.as_ref().map(|v| v.value as f64)
}

/// The page. `node` is the node's CPU seconds and working set; `starts` is when each container (namespace, pod,
/// container) started.
pub(crate) fn page(
    node: (f64, u64),
    swap: u64,
    containers: &[cri::ContainerStats],
    sandboxes: &[cri::PodSandboxStats],
    starts: &[([String; 3], f64)],
    failed: bool,
) -> String {
    let mut page = Page::default();
    let core = "Processor time of the whole node in seconds.";
    page.put("node_cpu_usage_seconds_total", core, Kind::Counter, "", node.0);
    page.gauge(
        "node_memory_working_set_bytes",
        "Memory that the node uses beside files that could be dropped, in bytes.",
        node.1 as f64,
    );
    page.gauge("node_swap_usage_bytes", "Swap that the node uses in bytes.", swap as f64);
    for stats in containers {
        let Some(attributes) = &stats.attributes else { continue };
        let l = &attributes.labels;
        if of(l, CONTAINER_LABEL).is_empty() {
            continue;
        }
        let at = labels(&[
            ("container", of(l, CONTAINER_LABEL)),
            ("namespace", of(l, NAMESPACE_LABEL)),
            ("pod", of(l, NAME_LABEL)),
        ]);
        if let Some(nanos) = stats.cpu.as_ref().and_then(|c| number(&c.usage_core_nano_seconds)) {
            let help = "Processor time of the container in seconds.";
            page.put("container_cpu_usage_seconds_total", help, Kind::Counter, &at, nanos / 1e9);
        }
        if let Some(bytes) = stats.memory.as_ref().and_then(|m| number(&m.working_set_bytes)) {
            let help = "Memory that the container uses beside files that could be dropped, in bytes.";
            page.put("container_memory_working_set_bytes", help, Kind::Gauge, &at, bytes);
        }
        if let Some(bytes) = stats.swap.as_ref().and_then(|s| number(&s.swap_usage_bytes)) {
            let help = "Swap that the container uses in bytes.";
            page.put("container_swap_usage_bytes", help, Kind::Gauge, &at, bytes);
        }
    }
    for ([namespace, pod, container], at) in starts {
        let of = labels(&[("container", container), ("namespace", namespace), ("pod", pod)]);
        let help = "When the container was started, in seconds since 1970.";
        page.put("container_start_time_seconds", help, Kind::Gauge, &of, *at);
    }
    for stats in sandboxes {
        let meta = stats.attributes.as_ref().and_then(|a| a.metadata.as_ref());
        let (Some(meta), Some(linux)) = (meta, &stats.linux) else { continue };
        let at = labels(&[("namespace", &meta.namespace), ("pod", &meta.name)]);
        if let Some(nanos) = linux.cpu.as_ref().and_then(|c| number(&c.usage_core_nano_seconds)) {
            let help = "Processor time of the pod in seconds.";
            page.put("pod_cpu_usage_seconds_total", help, Kind::Counter, &at, nanos / 1e9);
        }
        if let Some(bytes) = linux.memory.as_ref().and_then(|m| number(&m.working_set_bytes)) {
            let help = "Memory that the pod uses beside files that could be dropped, in bytes.";
            page.put("pod_memory_working_set_bytes", help, Kind::Gauge, &at, bytes);
        }
    }
    for name in ["resource_scrape_error", "scrape_error"] {
        let help = "1 if containers could not be measured, else 0.";
        page.gauge(name, help, f64::from(u8::from(failed)));
    }
    page.render()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A container of pod ns/web with 1.5 s of CPU and 4096 bytes of memory.
    pub(crate) fn container(name: &str) -> cri::ContainerStats {
        let value = |value| Some(cri::UInt64Value { value });
        let labels = [(CONTAINER_LABEL, name), (NAME_LABEL, "web"), (NAMESPACE_LABEL, "ns")];
        cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                id: format!("id-{name}"),
                labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
                ..Default::default()
            }),
            cpu: Some(cri::CpuUsage { usage_core_nano_seconds: value(1_500_000_000), ..Default::default() }),
            memory: Some(cri::MemoryUsage { working_set_bytes: value(4096), ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn it_has_the_names_that_metrics_server_reads() {
        let start = (["ns".to_owned(), "web".to_owned(), "app".to_owned()], 7.5);
        let text = page((2.5, 100), 0, &[container("app")], &[], &[start], false);
        let at = "{container=\"app\",namespace=\"ns\",pod=\"web\"}";
        for line in [
            "node_cpu_usage_seconds_total 2.5".to_owned(),
            "node_memory_working_set_bytes 100".to_owned(),
            format!("container_cpu_usage_seconds_total{at} 1.5"),
            format!("container_memory_working_set_bytes{at} 4096"),
            format!("container_start_time_seconds{at} 7.5"),
            "resource_scrape_error 0".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
