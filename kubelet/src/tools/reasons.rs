//! Why a pod is in its state, in words. Pure: what the kubelet knows of the pod goes in, sentences come out.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodStatus};

use crate::pod;

/// What an exit code means.
fn exit(code: i32, reason: &str) -> String {
    let word = match (code, reason) {
        (_, "OOMKilled") => " (the kernel killed it: it took more memory than its limit)",
        (0, _) => " (it finished)",
        (126, _) => " (the command cannot be executed)",
        (127, _) => " (the command was not found)",
        (134, _) => " (it aborted, SIGABRT)",
        (137, _) => " (it was killed, SIGKILL: it did not end in its grace period, or somebody else killed it)",
        (139, _) => " (it accessed memory that is not its own, SIGSEGV)",
        (143, _) => " (it was asked to end, SIGTERM)",
        (128, _) => " (it could not be started)",
        _ => "",
    };
    format!("exit code {code}{word}")
}

fn ended(state: &ContainerStateTerminated) -> String {
    let reason = state.reason.as_deref().unwrap_or_default();
    let mut out = exit(state.exit_code, reason);
    if let Some(message) = state.message.as_deref().filter(|m| !m.is_empty()) {
        out += &format!(", it said: {}", message.trim());
    }
    out
}

fn since(time: Option<Timestamp>, now: Timestamp) -> String {
    let Some(time) = time else { return String::new() };
    let seconds = now.as_second().saturating_sub(time.as_second()).max(0);
    match seconds {
        0..120 => format!(" for {seconds} s"),
        120..7200 => format!(" for {} min", seconds / 60),
        _ => format!(" for {} h", seconds / 3600),
    }
}

fn of_container(of: &Pod, status: &ContainerStatus, init: bool, now: Timestamp) -> Option<String> {
    let name = &status.name;
    let kind = if init { "init container" } else { "container" };
    let state = status.state.clone().unwrap_or_default();
    let last = status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
    if let Some(waiting) = state.waiting {
        let reason = waiting.reason.unwrap_or_default();
        let message = waiting.message.filter(|m| !m.is_empty()).map(|m| format!(": {m}")).unwrap_or_default();
        let before = last.map(|l| format!("; last time it ended with {}", ended(l))).unwrap_or_default();
        let hint = match reason.as_str() {
            "CrashLoopBackOff" => " (it ends again and again, and waits longer each time)",
            "ImagePullBackOff" | "ErrImagePull" => " (its image cannot be had)",
            "CreateContainerConfigError" => " (something that its spec refers to is missing)",
            "PodInitializing" => " (init containers come first)",
            _ => "",
        };
        return Some(format!("{kind} {name} waits: {reason}{hint}{message}{before}"));
    }
    if let Some(terminated) = state.terminated {
        if init && terminated.exit_code == 0 {
            return None;
        }
        let next = match pod::restart_policy(of) {
            "Never" => "; it stays so, restartPolicy is Never",
            "OnFailure" if terminated.exit_code == 0 => "; it stays so, restartPolicy is OnFailure",
            _ => "",
        };
        return Some(format!("{kind} {name} ended: {}{next}", ended(&terminated)));
    }
    let running = state.running?;
    let up = since(running.started_at.map(|t| t.0), now);
    let again = match (status.restart_count, last) {
        (0, _) => String::new(),
        (n, Some(last)) => format!("; restarted {n} times, the last time after {}", ended(last)),
        (n, None) => format!("; restarted {n} times"),
    };
    if status.started == Some(false) {
        return Some(format!("{kind} {name} runs{up}, and its startup probe has not succeeded yet{again}"));
    }
    if !status.ready && !init {
        return Some(format!("{kind} {name} runs{up}, and is not ready: its readiness probe does not succeed{again}"));
    }
    (status.restart_count > 0).then(|| format!("{kind} {name} runs{up}{again}"))
}

/// Sentences, the most telling first. `held`: sandboxes and containers that the runtime has for it.
pub(crate) fn reasons(known: Option<&Pod>, held: usize, now: Timestamp) -> Vec<String> {
    let Some(of) = known else {
        return vec![match held {
            0 => "neither the kubelet nor the runtime knows this pod".into(),
            _ => "the kubelet does not know this pod, or does not run; what the runtime has of it is removed when no source names it".into(),
        }];
    };
    let status = of.status.clone().unwrap_or_default();
    let phase = status.phase.as_deref().unwrap_or("Pending");
    let mut out = Vec::new();
    if let Some(time) = &of.metadata.deletion_timestamp {
        let grace = of.metadata.deletion_grace_period_seconds.unwrap_or_default();
        out.push(format!("it is being deleted: it has to be gone at {} (grace period {grace} s)", time.0));
    }
    if let Some(reason) = status.reason.as_deref().filter(|r| !r.is_empty()) {
        let message = status.message.as_deref().unwrap_or_default();
        out.push(format!("{phase}: {reason}: {message}"));
    }
    let lists = [
        (&status.init_container_statuses, true),
        (&status.container_statuses, false),
        (&status.ephemeral_container_statuses, false),
    ];
    for (list, init) in lists {
        out.extend(list.iter().flatten().filter_map(|s| of_container(of, s, init, now)));
    }
    out.extend(conditions(&status));
    if out.is_empty() {
        out.push(match phase {
            "Running" => "it runs and is ready".into(),
            "Succeeded" => "all its containers finished".into(),
            phase => format!("its phase is {phase}"),
        });
    }
    out
}

fn conditions(status: &PodStatus) -> Vec<String> {
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let list = status.conditions.iter().flatten();
    // Ready only repeats what ContainersReady and the readiness gates say.
    list.filter(|c| c.status == "False" && !over && !matches!(c.type_.as_str(), "Ready" | "DisruptionTarget"))
        .map(|c| {
            let (reason, message) = (c.reason.as_deref().unwrap_or_default(), c.message.as_deref().unwrap_or_default());
            let words = [reason, message].into_iter().filter(|w| !w.is_empty()).collect::<Vec<_>>().join(": ");
            format!("condition {} is False: {}", c.type_, if words.is_empty() { "no reason is given" } else { &words })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn told(status: Value, policy: &str) -> Vec<String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a", "uid": "u"},
            "spec": {"containers": [{"name": "app"}], "restartPolicy": policy}, "status": status}))
        .unwrap();
        reasons(Some(&pod), 1, "2026-01-01T00:10:00Z".parse().unwrap())
    }

    fn app(state: Value, more: Value) -> Value {
        let mut status = json!({"name": "app", "state": state, "ready": true, "started": true, "restartCount": 0, "image": "", "imageID": ""});
        for (key, value) in more.as_object().unwrap() {
            status[key] = value.clone();
        }
        json!({"phase": "Running", "containerStatuses": [status]})
    }

    #[test]
    fn each_state_has_its_words() {
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
        let oom = json!({"lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, "restartCount": 3});
        for (status, policy, words) in [
            (app(running.clone(), json!({})), "Always", vec!["runs and is ready"]),
            (app(running.clone(), json!({"ready": false})), "Always", vec!["for 10 min", "readiness probe"]),
            (app(running.clone(), json!({"started": false, "ready": false})), "Always", vec!["startup probe"]),
            (app(running, oom), "Always", vec!["restarted 3 times", "more memory than its limit"]),
            (
                app(json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}), json!({})),
                "Always",
                vec!["ImagePullBackOff", "cannot be had", "no such image"],
            ),
            (
                app(json!({"terminated": {"exitCode": 127}}), json!({})),
                "Never",
                vec!["not found", "restartPolicy is Never"],
            ),
            (
                json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}),
                "Always",
                vec!["Failed: Evicted: low on memory"],
            ),
            (
                json!({"phase": "Pending", "conditions": [{"type": "PodReadyToStartContainers", "status": "False"}]}),
                "Always",
                vec!["PodReadyToStartContainers is False"],
            ),
        ] {
            let text = told(status, policy).join("\n");
            for word in words {
                assert!(text.contains(word), "{word} in {text}");
            }
        }
    }

    #[test]
    fn an_unknown_pod_is_told_apart_from_an_orphan() {
        let now = Timestamp::now();
        assert!(reasons(None, 0, now)[0].contains("neither"));
        assert!(reasons(None, 2, now)[0].contains("does not know"));
    }
}
