//! The conditions of a pod, in upstream's words (pure).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};

use super::derive::{Circumstances, time};
use crate::pod::{self, is_sidecar};
use crate::sync::observe::Observed;

/// How far a pod has come.
pub(super) struct Progress<'a> {
    pub(super) phase: &'a str,
    /// Its init containers have done what they are for.
    pub(super) init_done: bool,
    pub(super) mains: &'a [ContainerStatus],
    pub(super) inits: &'a [ContainerStatus],
}

/// The conditions that are the kubelet's, and those of others as they were.
pub(super) fn conditions(
    pod: &Pod,
    seen: &Observed,
    with: &Circumstances,
    before: &PodStatus,
    progress: &Progress<'_>,
    now: Timestamp,
) -> Vec<PodCondition> {
    let Progress { phase, init_done, mains, inits } = *progress;
    let (succeeded, failed) = (phase == "Succeeded", phase == "Failed");
    let over = succeeded || failed;
    let named = |list: &[&str]| format!("[{}]", list.join(" "));
    let because = |reason: &str, message: String| Some((reason.to_owned(), message));
    let ended = || {
        if succeeded {
            because("PodCompleted", String::new())
        } else if failed {
            because("PodFailed", String::new())
        } else {
            None
        }
    };
    let with_specs = || inits.iter().zip(pod::init_containers(pod));
    let unready: Vec<&str> = mains.iter().filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    let sidecars_ready = with_specs().all(|(s, c)| !is_sidecar(c) || s.ready);
    let ready = unready.is_empty() && sidecars_ready && !over;
    let not_ready = if ready || over {
        ended()
    } else {
        because("ContainersNotReady", format!("containers with unready status: {}", named(&unready)))
    };
    let initialized = init_done || succeeded;
    let not_initialized = if initialized {
        ended().filter(|_| succeeded)
    } else {
        let waits = with_specs().filter(|(s, c)| if is_sidecar(c) { s.started != Some(true) } else { !s.ready });
        let incomplete: Vec<&str> = waits.map(|(s, _)| s.name.as_str()).collect();
        because("ContainersNotInitialized", format!("containers with incomplete status: {}", named(&incomplete)))
    };
    let gates = unmet_gates(pod, before);
    let gated = ready && !gates.is_empty();
    let why_gated = if gated { because("ReadinessGatesNotReady", gates.join(", ")) } else { not_ready.clone() };
    let mut conditions = vec![
        condition("PodReadyToStartContainers", seen.ready_sandbox().is_some(), None),
        condition("Initialized", initialized, not_initialized),
        condition("Ready", ready && !gated, why_gated),
        condition("ContainersReady", ready, not_ready),
        condition("PodScheduled", true, None),
    ];
    if let Some(restarting) = with.restarting {
        conditions.push(condition("AllContainersRestarting", restarting && !over, ended()));
    }
    for new in &mut conditions {
        let old = before.conditions.iter().flatten().find(|c| c.type_ == new.type_ && c.status == new.status);
        new.last_transition_time = Some(old.and_then(|c| c.last_transition_time.clone()).unwrap_or_else(|| time(now)));
        new.observed_generation = pod.metadata.generation;
    }
    let own: Vec<String> = conditions.iter().map(|c| c.type_.clone()).collect();
    conditions.extend(before.conditions.iter().flatten().filter(|c| !own.contains(&c.type_)).cloned());
    conditions
}

/// What each readiness gate that is not met lacks, in upstream's words.
fn unmet_gates(pod: &Pod, before: &PodStatus) -> Vec<String> {
    let gates = pod.spec.iter().flat_map(|s| s.readiness_gates.iter().flatten());
    gates
        .filter_map(|gate| {
            let name = &gate.condition_type;
            match before.conditions.iter().flatten().find(|c| c.type_ == *name) {
                Some(c) if c.status == "True" => None,
                Some(c) => Some(format!("the status of pod readiness gate {name:?} is not \"True\", but {}", c.status)),
                None => Some(format!("corresponding condition of pod readiness gate {name:?} does not exist.")),
            }
        })
        .collect()
}

fn condition(type_: &str, status: bool, why: Option<(String, String)>) -> PodCondition {
    let (reason, message) = why.unzip();
    PodCondition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason,
        message: message.filter(|m| !m.is_empty()),
        ..Default::default()
    }
}
