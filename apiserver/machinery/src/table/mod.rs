//! Tables: the columns that `kubectl get` prints, which the server computes.

mod columns;
mod pod;
mod workload;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::resource::Resource;

/// What the rows of a table carry beside their cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// A PartialObjectMetadata.
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// From the query parameter `includeObject`; unknown and missing values mean metadata.
    pub fn parse(text: &str) -> Self {
        match text {
            "None" => Self::None,
            "Object" => Self::Object,
            _ => Self::Metadata,
        }
    }
}

/// One column: name, type, format, priority (1: only wide), and how to get the cell.
pub(crate) struct Column {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    priority: u8,
    cell: fn(&Value, Timestamp) -> Value,
}

const fn col(name: &'static str, kind: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Column {
    Column { name, kind, format: "", priority: 0, cell }
}

const fn wide(name: &'static str, kind: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Column {
    Column { name, kind, format: "", priority: 1, cell }
}

const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    priority: 0,
    cell: |object, _| object["metadata"]["name"].clone(),
};
const AGE: Column = col("Age", "string", |object, now| json!(since(&object["metadata"]["creationTimestamp"], now)));

/// A meta.k8s.io/v1 Table of `items`; the server adds the list's metadata (`metadata.resourceVersion`).
pub fn render(resource: &Resource, items: &[&Value], now: Timestamp, include: IncludeObject) -> Value {
    let columns = columns::of(resource);
    let definitions: Vec<Value> = columns
        .iter()
        .map(|column| {
            let description = if column.format == "name" {
                "Name must be unique within a namespace.".to_owned()
            } else {
                format!("{} of the {}", column.name, resource.singular)
            };
            json!({"name": column.name, "type": column.kind, "format": column.format, "description": description,
                   "priority": column.priority})
        })
        .collect();
    let rows: Vec<Value> = items.iter().map(|item| row(resource, columns, item, now, include)).collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": definitions, "rows": rows})
}

fn row(resource: &Resource, columns: &[Column], item: &Value, now: Timestamp, include: IncludeObject) -> Value {
    let cells: Vec<Value> = columns.iter().map(|column| (column.cell)(item, now)).collect();
    let mut row = json!({"cells": cells});
    if resource.kind == "Pod" {
        let phase = item["status"]["phase"].as_str().unwrap_or_default();
        let reason = match phase {
            "Succeeded" => Some("The pod has completed successfully."),
            "Failed" => Some("The pod failed."),
            _ => None,
        };
        if let Some(message) = reason {
            row["conditions"] = json!([{"type": "Completed", "status": "True", "reason": phase, "message": message}]);
        }
    }
    match include {
        IncludeObject::None => {}
        IncludeObject::Object => row["object"] = item.clone(),
        IncludeObject::Metadata => {
            row["object"] = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                                   "metadata": item["metadata"]});
        }
    }
    row
}

/// A time's distance from now, as kubectl writes it; `<unknown>` for none.
fn since(time: &Value, now: Timestamp) -> String {
    match time.as_str().and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(time) => duration(now.as_second() - time.as_second()),
        None => "<unknown>".to_owned(),
    }
}

/// Seconds for people, as kubectl writes them: `75s`, `5m30s`, `3h`, `2d4h`, `3y120d`.
pub(crate) fn duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".into();
    }
    if seconds < 0 {
        return "0s".into();
    }
    let two = |big: i64, big_unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{big_unit}") } else { format!("{big}{big_unit}{small}{small_unit}") }
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        two(minutes, "m", seconds % 60, "s")
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        two(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 192 {
        two(days, "d", hours % 24, "h")
    } else if days < 730 {
        format!("{days}d")
    } else if days < 8 * 365 {
        two(days / 365, "y", days % 365, "d")
    } else {
        format!("{}y", days / 365)
    }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn or_none(text: impl Into<String>) -> Value {
    let text = text.into();
    if text.is_empty() { json!("<none>") } else { json!(text) }
}

/// `a=b,c=d`, or `<none>`.
fn labels(value: &Value) -> Value {
    let mut pairs: Vec<String> = value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    pairs.sort();
    or_none(pairs.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::find;

    fn cells(plural: &str, object: Value) -> Vec<Value> {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let group = if plural == "deployments" { "apps" } else { "" };
        let table = render(find(group, "v1", plural).unwrap(), &[&object], now, IncludeObject::None);
        let columns = table["columnDefinitions"].as_array().unwrap().len();
        let cells = table["rows"][0]["cells"].as_array().unwrap().clone();
        assert_eq!(cells.len(), columns);
        cells
    }

    #[test]
    fn durations_read_like_kubectls() {
        let cases = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (330, "5m30s"),
            (600, "10m"),
            (3600, "60m"),
            (10800, "3h"),
            (11700, "3h15m"),
            (90000, "25h"),
            (180000, "2d2h"),
            (864000, "10d"),
            (86400 * 800, "2y70d"),
            (-5, "<invalid>"),
        ];
        for (seconds, want) in cases {
            assert_eq!(duration(seconds), want);
        }
    }

    #[test]
    fn pods_show_why_they_wait_and_when_they_restarted() {
        let running = json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "c"}], "nodeName": "n"},
            "status": {"phase": "Running", "podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}], "containerStatuses": [
                {"name": "c", "ready": true, "restartCount": 2, "state": {"running": {}},
                 "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}}]}});
        let shown = cells("pods", running);
        assert_eq!(shown[..5], [json!("a"), json!("1/1"), json!("Running"), json!("2 (5m ago)"), json!("60m")]);
        assert_eq!(shown[5..], [json!("10.0.0.2"), json!("n"), json!("<none>"), json!("<none>")]);
        let waiting = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]},
            "status": {"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}}],
                "containerStatuses": [{"name": "c", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}});
        assert_eq!(cells("pods", waiting)[1..3], [json!("0/1"), json!("ImagePullBackOff")]);
        let init = json!({"metadata": {"name": "a", "deletionTimestamp": null}, "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]},
            "status": {"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}});
        assert_eq!(cells("pods", init)[2], "Init:0/1");
    }

    #[test]
    fn every_resource_renders_a_nearly_empty_object() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        for resource in Resource::all() {
            let table = render(resource, &[&json!({"metadata": {"name": "a"}})], now, IncludeObject::Metadata);
            let columns = table["columnDefinitions"].as_array().unwrap().len();
            assert_eq!(table["rows"][0]["cells"].as_array().unwrap().len(), columns, "{}", resource.plural);
            assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        }
    }

    #[test]
    fn nodes_and_deployments_show_their_state() {
        let node = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
            "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "nodeInfo": {"kubeletVersion": "v1.36.0"}}});
        let shown = cells("nodes", node);
        assert_eq!(shown[1..3], [json!("Ready,SchedulingDisabled"), json!("control-plane")]);
        assert_eq!(shown[4], "v1.36.0");
        let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 3}, "status": {"readyReplicas": 1, "updatedReplicas": 2}});
        assert_eq!(cells("deployments", deployment)[1..4], [json!("1/3"), json!(2), json!(0)]);
    }
}
