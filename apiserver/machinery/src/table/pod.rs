//! The columns of pods, whose status is computed from many fields.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, col, duration, list, or_none, text, wide};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    col("Ready", "string", |pod, _| json!(format!("{}/{}", summary(pod).ready, summary(pod).total))),
    col("Status", "string", |pod, _| json!(summary(pod).reason)),
    col("Restarts", "string", restarts),
    AGE,
    wide("IP", "string", |pod, _| {
        let first = list(&pod["status"], "podIPs").first().map_or("", |ip| text(ip, "ip"));
        or_none(if first.is_empty() { text(&pod["status"], "podIP") } else { first })
    }),
    wide("Node", "string", |pod, _| or_none(text(&pod["spec"], "nodeName"))),
    wide("Nominated Node", "string", |pod, _| or_none(text(&pod["status"], "nominatedNodeName"))),
    wide("Readiness Gates", "string", |pod, _| {
        let gates = list(&pod["spec"], "readinessGates");
        let met = gates.iter().filter(|gate| {
            let kind = text(gate, "conditionType");
            list(&pod["status"], "conditions").iter().any(|c| text(c, "type") == kind && text(c, "status") == "True")
        });
        or_none(if gates.is_empty() { String::new() } else { format!("{}/{}", met.count(), gates.len()) })
    }),
];

#[derive(Default)]
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

fn restarts(pod: &Value, now: Timestamp) -> Value {
    let summary = summary(pod);
    match summary.last_restart {
        Some(time) if summary.restarts != 0 => {
            json!(format!("{} ({} ago)", summary.restarts, duration(now.as_second() - time.as_second())))
        }
        _ => json!(summary.restarts.to_string()),
    }
}

fn finished_at(status: &Value) -> Option<Timestamp> {
    text(&status["lastState"]["terminated"], "finishedAt").parse().ok()
}

/// How upstream sums a pod up in one word.
fn summary(pod: &Value) -> Summary {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let restartable = |name: &str| {
        let mut found = list(spec, "initContainers").iter().filter(|c| text(c, "name") == name);
        found.next().is_some_and(|container| text(container, "restartPolicy") == "Always")
    };
    let sidecars = list(spec, "initContainers").iter().filter(|c| text(c, "restartPolicy") == "Always").count();
    let mut out = Summary { total: list(spec, "containers").len() + sidecars, ..Summary::default() };
    out.reason = text(status, "phase").to_owned();
    if !text(status, "reason").is_empty() {
        out.reason = text(status, "reason").to_owned();
    }
    let condition = |kind: &str| list(status, "conditions").iter().find(|c| text(c, "type") == kind);
    if condition("PodScheduled").is_some_and(|c| text(c, "reason") == "SchedulingGated") {
        out.reason = "SchedulingGated".into();
    }
    let mut sidecar_restarts = 0;
    let mut last_sidecar_restart = None;
    let mut initializing = false;
    for (index, container) in list(status, "initContainerStatuses").iter().enumerate() {
        let (state, name) = (&container["state"], text(container, "name"));
        let count = container["restartCount"].as_i64().unwrap_or(0);
        out.restarts += count;
        out.last_restart = out.last_restart.max(finished_at(container));
        if restartable(name) {
            sidecar_restarts += count;
            last_sidecar_restart = last_sidecar_restart.max(finished_at(container));
        }
        if state["terminated"]["exitCode"] == 0 {
            continue;
        }
        if restartable(name) && container["started"] == true {
            out.ready += usize::from(container["ready"] == true);
            continue;
        }
        let terminated = &state["terminated"];
        out.reason = if terminated.is_object() {
            format!("Init:{}", exit_reason(terminated))
        } else if !matches!(text(&state["waiting"], "reason"), "" | "PodInitializing") {
            format!("Init:{}", text(&state["waiting"], "reason"))
        } else {
            format!("Init:{index}/{}", list(spec, "initContainers").len())
        };
        initializing = true;
        break;
    }
    let initialized = condition("Initialized").is_some_and(|c| text(c, "status") == "True");
    if !initializing || initialized {
        out.restarts = sidecar_restarts;
        out.last_restart = last_sidecar_restart;
        let mut running = false;
        for container in list(status, "containerStatuses").iter().rev() {
            out.restarts += container["restartCount"].as_i64().unwrap_or(0);
            out.last_restart = out.last_restart.max(finished_at(container));
            let state = &container["state"];
            if !text(&state["waiting"], "reason").is_empty() {
                out.reason = text(&state["waiting"], "reason").to_owned();
            } else if state["terminated"].is_object() {
                out.reason = exit_reason(&state["terminated"]);
            } else if container["ready"] == true && state["running"].is_object() {
                running = true;
                out.ready += 1;
            }
        }
        if out.reason == "Completed" && running {
            let ready = condition("Ready").is_some_and(|c| text(c, "status") == "True");
            out.reason = if ready { "Running".into() } else { "NotReady".into() };
        }
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        if text(status, "reason") == "NodeLost" {
            out.reason = "Unknown".into();
        } else if !matches!(text(status, "phase"), "Failed" | "Succeeded") {
            out.reason = "Terminating".into();
        }
    }
    out
}

fn exit_reason(terminated: &Value) -> String {
    let reason = text(terminated, "reason");
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match terminated["signal"].as_i64() {
        Some(signal) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
    }
}
