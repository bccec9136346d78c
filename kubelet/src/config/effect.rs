//! Fields that change nothing here, each with the reason that is told to whoever sets one.
//!
//! A line goes when its field begins to work; the tests see to it that every line names a field.

use std::collections::BTreeMap;

use serde_json::Value;

use super::gates;

/// Fields and why they change nothing.
pub(crate) const NONE: &[(&str, &str)] = &[
    ("readOnlyPort", "nothing is served without authentication"),
    ("enableContentionProfiling", "it is about the Go runtime"),
    ("kubeletCgroups", "the kubelet stays where the service manager put it"),
    ("systemCgroups", "processes outside of pods stay where they are"),
    ("qosReserved", "requests of one class are not kept from another"),
    ("hairpinMode", "the network plugin decides it"),
    ("contentType", "JSON is spoken with the apiserver"),
    (
        "enableControllerAttachDetach",
        "volumes are attached by the controller only; false leaves out the node's annotation",
    ),
    ("makeIPTablesUtilChains", "rules of the packet filter are the network plugin's"),
    ("iptablesMasqueradeBit", "rules of the packet filter are the network plugin's"),
    ("iptablesDropBit", "rules of the packet filter are the network plugin's"),
    ("showHiddenMetricsForVersion", "no metric is hidden"),
    ("defaultPodSysctls", "sysctls of pods are left to the runtime"),
    ("volumePluginDir", "flex volumes are not supported"),
    ("kernelMemcgNotification", "the kernel's events are always used"),
    ("memoryThrottlingFactor", "memory is throttled with feature gate MemoryQoS only"),
    ("memoryReservationPolicy", "memory is kept with feature gate MemoryQoS only"),
    ("tracing", "spans are not exported"),
    ("logging.flushFrequency", "log lines are written at once"),
    ("logging.options", "log lines are written at once, to one stream"),
];

/// What `path` (with dots) leads to.
pub(super) fn at<'a>(fields: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(fields, |value, part| value.get(part))
}

/// Whether a value says nothing: zeros, empty texts, and objects of such.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::Bool(on) => !on,
        Value::Null => true,
    }
}

/// Fields that change something where feature gate MemoryQoS is on.
const MEMORY: &[&str] = &["memoryThrottlingFactor", "memoryReservationPolicy"];

/// Fields that change nothing with these gates, and why.
pub(super) fn none(set: &BTreeMap<String, bool>) -> impl Iterator<Item = (&'static str, &'static str)> {
    let memory = gates::is_set(gates::MEMORY_QOS, set);
    NONE.iter().copied().filter(move |(field, _)| !(memory && MEMORY.contains(field)))
}
