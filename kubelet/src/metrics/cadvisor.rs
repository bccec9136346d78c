//! `/metrics/cadvisor`: containers under the names that dashboards read.
//!
//! The runtime tells them under these names itself where it can (ListPodSandboxMetrics); from other runtimes the
//! ordinary statistics are used. CRI's numbers are whole, so that CPU time is taken from the statistics in either case.

use std::collections::HashMap;

use proto::cri;

use super::text::{Kind, Page, labels};
use crate::cri::{CONTAINER_LABEL, NAME_LABEL, NAMESPACE_LABEL};

const CPU: &str = "container_cpu_usage_seconds_total";
const CPU_HELP: &str = "Processor time in seconds.";

/// What the runtime gave.
pub(crate) struct Source<'a> {
    /// Metrics by name, with their descriptors; empty where the runtime has none.
    pub(crate) metrics: &'a [cri::PodSandboxMetrics],
    /// Their labels and help texts.
    pub(crate) descriptors: &'a [cri::MetricDescriptor],
    /// Statistics of containers.
    pub(crate) containers: &'a [cri::ContainerStats],
    /// Statistics of pods.
    pub(crate) sandboxes: &'a [cri::PodSandboxStats],
}

fn of<'a>(labels: &'a HashMap<String, String>, key: &str) -> &'a str {
    labels.get(key).map(String::as_str).unwrap_or_default()
}

fn number(value: &Option<cri::UInt64Value>) -> Option<f64> {
    value.as_ref().map(|v| v.value as f64)
}

fn of_runtime(page: &mut Page, source: &Source<'_>) {
    let known: HashMap<&str, &cri::MetricDescriptor> =
        source.descriptors.iter().map(|d| (d.name.as_str(), d)).collect();
    let exact: HashMap<&str, f64> = source
        .containers
        .iter()
        .filter_map(|s| Some((s.attributes.as_ref()?.id.as_str(), number(&s.cpu.as_ref()?.usage_core_nano_seconds)?)))
        .collect();
    let exact_pod: HashMap<&str, f64> = source
        .sandboxes
        .iter()
        .filter_map(|s| {
            let cpu = s.linux.as_ref()?.cpu.as_ref()?;
            Some((s.attributes.as_ref()?.id.as_str(), number(&cpu.usage_core_nano_seconds)?))
        })
        .collect();
    let mut put = |metric: &cri::Metric, cpu: Option<f64>| {
        let Some(descriptor) = known.get(metric.name.as_str()) else { return };
        let Some(value) = number(&metric.value) else { return };
        let value = if metric.name == CPU { cpu.map_or(value, |nanos| nanos / 1e9) } else { value };
        let pairs: Vec<(&str, &str)> = descriptor
            .label_keys
            .iter()
            .map(String::as_str)
            .zip(metric.label_values.iter().map(String::as_str))
            .collect();
        let kind = if metric.metric_type() == cri::MetricType::Counter { Kind::Counter } else { Kind::Gauge };
        page.put(&metric.name, &descriptor.help, kind, &labels(&pairs), value);
    };
    for pod in source.metrics {
        pod.metrics.iter().for_each(|m| put(m, exact_pod.get(pod.pod_sandbox_id.as_str()).copied()));
        for container in &pod.container_metrics {
            container.metrics.iter().for_each(|m| put(m, exact.get(container.container_id.as_str()).copied()));
        }
    }
}

fn of_stats(page: &mut Page, source: &Source<'_>) {
    for stats in source.containers {
        let Some(attributes) = &stats.attributes else { continue };
        let l = &attributes.labels;
        let at = labels(&[
            ("id", ""),
            ("name", &attributes.id),
            ("image", ""),
            ("container", of(l, CONTAINER_LABEL)),
            ("pod", of(l, NAME_LABEL)),
            ("namespace", of(l, NAMESPACE_LABEL)),
        ]);
        if let Some(nanos) = stats.cpu.as_ref().and_then(|c| number(&c.usage_core_nano_seconds)) {
            page.put(CPU, CPU_HELP, Kind::Counter, &at, nanos / 1e9);
        }
        let memory = stats.memory.unwrap_or_default();
        let layer = stats.writable_layer.clone().unwrap_or_default();
        for (name, help, value) in [
            (
                "container_memory_working_set_bytes",
                "Memory in use beside files that could be dropped, in bytes.",
                &memory.working_set_bytes,
            ),
            ("container_memory_usage_bytes", "Memory in use in bytes, cached files included.", &memory.usage_bytes),
            ("container_memory_rss", "Size of RSS in bytes.", &memory.rss_bytes),
            ("container_fs_usage_bytes", "Bytes of the container's writable layer.", &layer.used_bytes),
        ] {
            if let Some(value) = number(value) {
                page.put(name, help, Kind::Gauge, &at, value);
            }
        }
    }
    for stats in source.sandboxes {
        let Some(attributes) = &stats.attributes else { continue };
        let meta = attributes.metadata.clone().unwrap_or_default();
        let interfaces =
            stats.linux.as_ref().and_then(|l| l.network.as_ref()).and_then(|n| n.default_interface.as_ref());
        if let Some(one) = interfaces {
            let at = labels(&[
                ("id", ""),
                ("name", &attributes.id),
                ("image", ""),
                ("container", "POD"),
                ("pod", &meta.name),
                ("namespace", &meta.namespace),
                ("interface", &one.name),
            ]);
            for (name, help, value) in [
                ("container_network_receive_bytes_total", "Bytes received.", &one.rx_bytes),
                ("container_network_transmit_bytes_total", "Bytes sent.", &one.tx_bytes),
            ] {
                if let Some(value) = number(value) {
                    page.put(name, help, Kind::Counter, &at, value);
                }
            }
        }
    }
}

/// The page; `node` is the node's CPU seconds and working set, told as the container with id `/`.
pub(crate) fn page(source: &Source<'_>, node: (f64, u64), cpus: i64, memory: u64) -> String {
    let mut page = Page::default();
    if source.metrics.is_empty() {
        of_stats(&mut page, source);
    } else {
        of_runtime(&mut page, source);
    }
    let root = labels(&[("id", "/"), ("name", ""), ("image", ""), ("container", ""), ("pod", ""), ("namespace", "")]);
    page.put(CPU, CPU_HELP, Kind::Counter, &root, node.0);
    page.put(
        "container_memory_working_set_bytes",
        "Memory in use beside files that could be dropped, in bytes.",
        Kind::Gauge,
        &root,
        node.1 as f64,
    );
    page.gauge("machine_cpu_cores", "Processors that are online.", cpus as f64);
    page.gauge("machine_memory_bytes", "Amount of memory installed on the machine.", memory as f64);
    page.gauge("container_scrape_error", "1 if containers could not be measured, else 0.", 0.0);
    page.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::resource::tests::container;

    #[test]
    fn the_runtimes_own_metrics_are_told_with_exact_cpu_time() {
        let metric = |name: &str, value| cri::Metric {
            name: name.into(),
            metric_type: cri::MetricType::Counter.into(),
            label_values: vec!["app".into(), "web".into()],
            value: Some(cri::UInt64Value { value }),
            ..Default::default()
        };
        let descriptor = |name: &str| cri::MetricDescriptor {
            name: name.into(),
            help: "Help.".into(),
            label_keys: vec!["container".into(), "pod".into()],
        };
        let source = Source {
            metrics: &[cri::PodSandboxMetrics {
                container_metrics: vec![cri::ContainerMetrics {
                    container_id: "id-app".into(),
                    metrics: vec![metric(CPU, 1), metric("container_oom_events_total", 3), metric("unknown", 1)],
                }],
                ..Default::default()
            }],
            descriptors: &[descriptor(CPU), descriptor("container_oom_events_total")],
            containers: &[container("app")],
            sandboxes: &[],
        };
        let text = page(&source, (9.25, 5), 2, 1000);
        for line in [
            "container_cpu_usage_seconds_total{container=\"app\",pod=\"web\"} 1.5",
            "container_oom_events_total{container=\"app\",pod=\"web\"} 3",
            "machine_cpu_cores 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        assert!(text.contains("{id=\"/\",name=\"\",image=\"\",container=\"\",pod=\"\",namespace=\"\"} 9.25"));
        assert!(!text.contains("unknown"));
    }

    #[test]
    fn other_runtimes_are_told_by_their_statistics() {
        let source = Source { metrics: &[], descriptors: &[], containers: &[container("app")], sandboxes: &[] };
        let text = page(&source, (0.0, 0), 2, 1000);
        let at = "{id=\"\",name=\"id-app\",image=\"\",container=\"app\",pod=\"web\",namespace=\"ns\"}";
        assert!(text.contains(&format!("container_cpu_usage_seconds_total{at} 1.5\n")), "{text}");
        assert!(text.contains(&format!("container_memory_working_set_bytes{at} 4096\n")), "{text}");
    }
}
