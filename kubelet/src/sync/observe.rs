//! What the runtime has of one pod, in the terms that decisions are made of.

use std::collections::HashMap;

use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::LinuxContainerUser;
use proto::cri;

use crate::cri::{CONTAINER_LABEL, Cri, CriError};
use crate::pod::{RESOURCES, RESTART_DELAY, SPEC_HASH};

/// A sandbox.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sandbox {
    /// Its id.
    pub(crate) id: String,
    /// The how manieth of the pod.
    pub(crate) attempt: u32,
    /// Whether containers can run in it.
    pub(crate) ready: bool,
    /// Nanoseconds since 1970.
    pub(crate) created_at: i64,
    /// Its addresses; known for the newest only.
    pub(crate) ips: Vec<String>,
}

/// What a container does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// Made, not started.
    Created,
    /// Runs.
    Running,
    /// Has ended.
    #[default]
    Exited,
    /// The runtime does not know.
    Unknown,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    /// Its id.
    pub(crate) id: String,
    /// Its name in the pod's spec.
    pub(crate) name: String,
    /// How often it was started before.
    pub(crate) attempt: u32,
    /// The sandbox that it is in.
    pub(crate) sandbox: String,
    /// What it does.
    pub(crate) state: State,
    /// When it was made.
    pub(crate) created_at: Timestamp,
    /// When it was started.
    pub(crate) started_at: Timestamp,
    /// When it ended.
    pub(crate) finished_at: Timestamp,
    /// With which code.
    pub(crate) exit_code: i32,
    /// The runtime's reason (`Completed`, `Error`, `OOMKilled`).
    pub(crate) reason: String,
    /// The runtime's message.
    pub(crate) message: String,
    /// The image as the spec named it.
    pub(crate) image: String,
    /// The image as the runtime resolved it.
    pub(crate) image_ref: String,
    /// Where its log is.
    pub(crate) log_path: String,
    /// The hash of the spec that it was made of.
    pub(crate) hash: String,
    /// The signal that stops it, if the runtime says so.
    pub(crate) stop_signal: Option<String>,
    /// The user that it began as.
    pub(crate) user: Option<LinuxContainerUser>,
    /// The resources that it was made with.
    pub(crate) resources: String,
    /// How long its successor waits, in milliseconds.
    pub(crate) restart_delay_ms: u64,
    /// Mounts that are read-only with all that is mounted below them.
    pub(crate) read_only_trees: Vec<String>,
}

/// A pod as the runtime knows it; newest sandboxes and containers first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Observed {
    /// Sandboxes.
    pub(crate) sandboxes: Vec<Sandbox>,
    /// Containers.
    pub(crate) containers: Vec<Seen>,
}

impl Observed {
    /// The newest sandbox, if it is ready.
    pub(crate) fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|s| s.ready)
    }

    /// The newest container of a name.
    pub(crate) fn latest(&self, name: &str) -> Option<&Seen> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The newest container of a name in a sandbox.
    pub(crate) fn latest_in(&self, sandbox: &str, name: &str) -> Option<&Seen> {
        self.containers.iter().find(|c| c.name == name && c.sandbox == sandbox)
    }

    /// Containers that have not ended.
    pub(crate) fn alive(&self) -> impl Iterator<Item = &Seen> {
        self.containers.iter().filter(|c| matches!(c.state, State::Running | State::Unknown))
    }
}

/// Dead containers that nobody asks for any more: all but the newest of each name (pure).
pub(crate) fn superfluous(observed: &Observed) -> impl Iterator<Item = &Seen> {
    let mut known = std::collections::HashSet::new();
    let dead = observed.containers.iter().filter(|c| c.state == State::Exited);
    dead.filter(move |seen| !known.insert(seen.name.as_str()))
}

/// The newest first. Attempts count up whatever becomes of the clock, which may have been set back since (pure).
fn sort_sandboxes(sandboxes: &mut [Sandbox]) {
    sandboxes.sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created_at)));
}

/// Asks the runtime about a pod. `ended` keeps what is known of containers that have ended: they do not change.
pub(crate) async fn observe(cri: &Cri, uid: &str, ended: &mut HashMap<String, Seen>) -> Result<Observed, CriError> {
    let (sandboxes, containers) = tokio::try_join!(cri.sandboxes(Some(uid)), cri.containers(Some(uid)))?;
    let mut sandboxes: Vec<Sandbox> = sandboxes
        .into_iter()
        .map(|s| Sandbox {
            ready: s.state() == cri::PodSandboxState::SandboxReady,
            attempt: s.metadata.as_ref().map_or(0, |m| m.attempt),
            created_at: s.created_at,
            id: s.id,
            ips: Vec::new(),
        })
        .collect();
    sort_sandboxes(&mut sandboxes);
    if let Some(first) = sandboxes.first_mut().filter(|s| s.ready) {
        match cri.sandbox_status(&first.id).await {
            Ok(status) => {
                let status = status.status.unwrap_or_default();
                first.ready = status.state() == cri::PodSandboxState::SandboxReady;
                let network = status.network.unwrap_or_default();
                let more = network.additional_ips.into_iter().map(|p| p.ip);
                first.ips = std::iter::once(network.ip).chain(more).filter(|ip| !ip.is_empty()).collect();
            }
            Err(e) if e.is_not_found() => first.ready = false,
            Err(e) => return Err(e),
        }
    }
    ended.retain(|id, _| containers.iter().any(|c| &c.id == id));
    let known = &*ended;
    let work = containers.into_iter().map(|listed| async move {
        if let Some(seen) = known.get(&listed.id) {
            return Ok(Some(seen.clone()));
        }
        match cri.container_status(&listed.id).await {
            Ok(status) => Ok(Some(seen(&listed, status))),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    });
    let mut containers: Vec<Seen> = try_join_all(work).await?.into_iter().flatten().collect();
    for container in containers.iter().filter(|c| c.state == State::Exited) {
        ended.entry(container.id.clone()).or_insert_with(|| container.clone());
    }
    containers.sort_by_key(|c| std::cmp::Reverse((c.attempt, c.created_at)));
    Ok(Observed { sandboxes, containers })
}

fn seen(listed: &cri::Container, status: cri::ContainerStatus) -> Seen {
    let time = |nanos: i64| Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default();
    let annotation = |key: &str| status.annotations.get(key).cloned().unwrap_or_default();
    let metadata = status.metadata.clone().unwrap_or_default();
    let image = status.image.clone().unwrap_or_default();
    Seen {
        name: status.labels.get(CONTAINER_LABEL).cloned().unwrap_or(metadata.name),
        attempt: metadata.attempt,
        sandbox: listed.pod_sandbox_id.clone(),
        state: match status.state() {
            cri::ContainerState::ContainerCreated => State::Created,
            cri::ContainerState::ContainerRunning => State::Running,
            cri::ContainerState::ContainerExited => State::Exited,
            cri::ContainerState::ContainerUnknown => State::Unknown,
        },
        created_at: time(status.created_at),
        started_at: time(status.started_at),
        finished_at: time(status.finished_at),
        exit_code: status.exit_code,
        image: if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image },
        hash: annotation(SPEC_HASH),
        resources: annotation(RESOURCES),
        restart_delay_ms: annotation(RESTART_DELAY).parse().unwrap_or(0),
        stop_signal: (status.stop_signal != 0).then(|| status.stop_signal().as_str_name().to_owned()),
        user: status.user.and_then(|u| u.linux).map(|user| LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: (!user.supplemental_groups.is_empty()).then_some(user.supplemental_groups),
        }),
        read_only_trees: status
            .mounts
            .into_iter()
            .filter(|m| m.readonly && m.recursive_read_only)
            .map(|m| m.container_path)
            .collect(),
        id: status.id,
        reason: status.reason,
        message: status.message,
        image_ref: status.image_ref,
        log_path: status.log_path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_sandbox_is_the_latest_attempt_whatever_the_clock_says() {
        let sandbox =
            |id: &str, attempt, created_at| Sandbox { id: id.into(), attempt, created_at, ..Default::default() };
        let mut list = vec![sandbox("old", 0, 90_000), sandbox("new", 1, 10), sandbox("twin", 0, 90_001)];
        sort_sandboxes(&mut list);
        let ids: Vec<&str> = list.iter().map(|s| s.id.as_str()).collect();
        assert_eq!(ids, ["new", "twin", "old"]);
    }

    #[test]
    fn one_dead_container_of_each_name_is_kept() {
        let seen = |id: &str, name: &str, state| Seen { id: id.into(), name: name.into(), state, ..Default::default() };
        let containers = vec![
            seen("4", "a", State::Running),
            seen("3", "a", State::Exited),
            seen("2", "a", State::Exited),
            seen("1", "a", State::Exited),
            seen("b", "b", State::Exited),
            seen("c", "c", State::Created),
        ];
        let observed = Observed { sandboxes: Vec::new(), containers };
        let ids: Vec<&str> = superfluous(&observed).map(|s| s.id.as_str()).collect();
        assert_eq!(ids, ["2", "1"]);
    }
}
