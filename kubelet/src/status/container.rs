//! The status of one container from what was observed of it, of it before this, and of what was said last (pure).

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, EphemeralContainer, Pod, PodStatus, VolumeMount, VolumeMountStatus,
};

use super::derive::{Circumstances, time};
use crate::pod;
use crate::sync::observe::{Observed, Seen, State};

/// The reason of a container whose end nobody saw.
pub(super) const LOST: &str = "ContainerStatusUnknown";
/// The reason of a container that was removed because all of them begin anew.
pub(super) const ANEW: &str = "RestartingAllContainers";

/// The statuses of the ephemeral containers; none where there are no such.
pub(super) fn ephemeral(
    pod: &Pod,
    seen: &Observed,
    with: &Circumstances,
    before: &PodStatus,
) -> Option<Vec<ContainerStatus>> {
    let one = |c: &EphemeralContainer| {
        let last = before.ephemeral_container_statuses.iter().flatten().find(|s| s.name == c.name);
        let now = container(&pod::as_container(c), seen, with, last, "ContainerCreating");
        // What ended and was collected since stays ended.
        let lost = seen.latest(&c.name).is_none();
        let ended = last.filter(|s| lost && s.state.as_ref().is_some_and(|s| s.terminated.is_some()));
        ended.cloned().unwrap_or(ContainerStatus { started: None, ..now })
    };
    let list = pod::ephemeral_containers(pod);
    (!list.is_empty()).then(|| list.iter().map(one).collect())
}

/// The end of a container that nobody saw.
fn lost(reason: &str, message: &str) -> ContainerState {
    let terminated = ContainerStateTerminated {
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        exit_code: 137,
        ..Default::default()
    };
    ContainerState { terminated: Some(terminated), ..Default::default() }
}

/// The mounts of a container, and which of them are read-only through and through.
fn mounts(spec: &Container, seen: &Seen) -> Option<Vec<VolumeMountStatus>> {
    let one = |mount: &VolumeMount| {
        let read_only = mount.read_only == Some(true);
        let recursive = if seen.read_only_trees.contains(&mount.mount_path) { "Enabled" } else { "Disabled" };
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| recursive.to_owned()),
            ..Default::default()
        }
    };
    let all: Vec<VolumeMountStatus> = spec.volume_mounts.iter().flatten().map(one).collect();
    (!all.is_empty()).then_some(all)
}

/// The status of a container; `before` is what was said of it last, `default_wait` why one waits of which nothing else is known.
pub(super) fn container(
    spec: &Container,
    observed: &Observed,
    with: &Circumstances,
    before: Option<&ContainerStatus>,
    default_wait: &str,
) -> ContainerStatus {
    let mut all = observed.containers.iter().filter(|c| c.name == spec.name);
    let (latest, previous) = (all.next(), all.next());
    let ended = |seen: &Seen| ContainerState { terminated: Some(terminated(seen, with)), ..Default::default() };
    let wait = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..Default::default()
    };
    let mut known_last = before.and_then(|b| b.last_state.clone()).filter(|l| l.terminated.is_some());
    let mut status = ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        restart_count: before.map_or(0, |b| b.restart_count),
        started: Some(false),
        ..Default::default()
    };
    if let (None, Some(before)) = (latest, before) {
        let old = before.state.as_ref();
        let (ran, ended) = (old.is_some_and(|s| s.running.is_some()), old.is_some_and(|s| s.terminated.is_some()));
        if with.anew && (ran || ended) {
            let message = "The container is removed because RestartAllContainers in place";
            status.state = Some(wait(ANEW, Some(message.to_owned())));
            status.last_state = if ended { before.state.clone() } else { Some(lost(ANEW, message)) };
            status.restart_count += 1;
            return status;
        }
        if ended {
            // The container was removed to make room; what became of it stays known.
            return before.clone();
        }
        if ran && (with.finished || with.terminating) {
            let message = "The container could not be located when the pod was terminated";
            return ContainerStatus {
                state: Some(lost(LOST, message)),
                ready: false,
                started: Some(false),
                ..before.clone()
            };
        }
        if ran {
            let message =
                "The container could not be located when the pod was deleted.  The container used to be Running";
            known_last = Some(lost(LOST, message));
            status.restart_count += 1;
        }
    }
    if let Some(seen) = latest {
        status.restart_count = i32::try_from(seen.attempt).unwrap_or(i32::MAX);
        status.container_id = Some(format!("{}://{}", with.runtime, seen.id));
        status.image_id.clone_from(&seen.image_ref);
        status.volume_mounts = mounts(spec, seen);
        status.stop_signal.clone_from(&seen.stop_signal);
        status.user = seen.user.clone().map(|linux| ContainerUser { linux: Some(linux) });
    }
    let waiting = with.waiting.get(&spec.name);
    match (latest, waiting) {
        (Some(seen), _) if matches!(seen.state, State::Running | State::Unknown) => {
            status.state = Some(ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(time(seen.started_at)) }),
                ..Default::default()
            });
            status.last_state = previous.filter(|p| p.state == State::Exited).map(ended).or(known_last);
            status.started = Some(with.started.get(&seen.id).copied().unwrap_or(false));
            status.ready = status.started == Some(true) && with.ready.get(&seen.id).copied().unwrap_or(false);
        }
        (Some(seen), None) if seen.state == State::Exited => {
            status.state = Some(ended(seen));
            status.last_state = previous.filter(|p| p.state == State::Exited).map(ended).or(known_last);
        }
        (found, waiting) => {
            let (reason, message) = waiting.map_or((default_wait, None), |(r, m)| (r.as_str(), Some(m.clone())));
            status.state = Some(wait(reason, message.filter(|m| !m.is_empty())));
            let last = found.filter(|s| s.state == State::Exited).or(previous.filter(|p| p.state == State::Exited));
            status.last_state = last.map(ended).or(known_last);
        }
    }
    status
}

fn terminated(seen: &Seen, with: &Circumstances) -> ContainerStateTerminated {
    let reason = match seen.reason.as_str() {
        "" if seen.exit_code == 0 => "Completed",
        "" => "Error",
        given => given,
    };
    let message = with.messages.get(&seen.id).filter(|m| !m.is_empty()).cloned();
    ContainerStateTerminated {
        container_id: Some(format!("{}://{}", with.runtime, seen.id)),
        exit_code: seen.exit_code,
        reason: Some(reason.to_owned()),
        message: message.or_else(|| Some(seen.message.clone()).filter(|m| !m.is_empty())),
        started_at: Some(time(seen.started_at)),
        finished_at: Some(time(seen.finished_at)),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn mounts_tell_how_far_they_are_read_only() {
        let spec: Container = serde_json::from_value(json!({"name": "a", "volumeMounts": [
            {"name": "v", "mountPath": "/w"}, {"name": "v", "mountPath": "/r", "readOnly": true},
            {"name": "v", "mountPath": "/t", "readOnly": true, "recursiveReadOnly": "IfPossible"}]}))
        .unwrap();
        let seen = Seen { read_only_trees: vec!["/t".into()], ..Seen::default() };
        let told: Vec<_> = mounts(&spec, &seen).unwrap().into_iter().map(|m| m.recursive_read_only).collect();
        assert_eq!(told, [None, Some("Disabled".to_owned()), Some("Enabled".to_owned())]);
        assert_eq!(mounts(&Container::default(), &seen), None);
    }
}
