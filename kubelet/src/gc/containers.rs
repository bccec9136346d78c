//! Containers that have ended. Those of living pods are the business of their workers, which keep the newest; here is
//! what goes when the disk is full: all that pods which are over have left.

use std::collections::HashSet;

use proto::cri::{ContainerState, PodSandboxState};

use crate::cri::UID_LABEL;
use crate::kubelet::Pods;
use crate::pod;
use crate::shared::Shared;

/// Removes dead containers and sandboxes of pods that are over or that nobody knows; nothing while a source has not told
/// its pods yet. Tells how many containers went.
pub(crate) async fn remove_dead(shared: &Shared, pods: &Pods) -> usize {
    if !pods.complete() {
        return 0;
    }
    let over = |uid: &str| {
        let status = shared.statuses.get(uid);
        status.and_then(|s| s.phase).is_some_and(|p| p == "Failed" || p == "Succeeded")
    };
    let alive: HashSet<String> = pods.list().iter().map(|p| pod::uid(p).to_owned()).filter(|uid| !over(uid)).collect();
    let (containers, sandboxes) = match tokio::try_join!(shared.cri.containers(None), shared.cri.sandboxes(None)) {
        Ok(both) => both,
        Err(e) => {
            tracing::warn!(error = %e, "dead containers not listed");
            return 0;
        }
    };
    let ours = |labels: &std::collections::HashMap<String, String>| {
        labels.get(UID_LABEL).is_some_and(|uid| !alive.contains(uid))
    };
    let mut busy = HashSet::new();
    let mut removed = 0;
    for container in containers {
        let dead = container.state() == ContainerState::ContainerExited;
        if !dead || !ours(&container.labels) {
            busy.insert(container.pod_sandbox_id);
            continue;
        }
        let log = shared.cri.container_status(&container.id).await.map(|s| s.log_path).unwrap_or_default();
        match shared.cri.remove_container(&container.id).await {
            Ok(()) => {
                tracing::info!(container = %container.id, "dead container removed");
                removed += 1;
                crate::logs::remove(&log);
            }
            Err(e) => {
                tracing::warn!(container = %container.id, error = %e, "dead container not removed");
                busy.insert(container.pod_sandbox_id);
            }
        }
    }
    for sandbox in sandboxes {
        let dead = sandbox.state() != PodSandboxState::SandboxReady && !busy.contains(&sandbox.id);
        if dead
            && ours(&sandbox.labels)
            && let Err(e) = shared.cri.remove_sandbox(&sandbox.id).await
        {
            tracing::warn!(sandbox = %sandbox.id, error = %e, "dead sandbox not removed");
        }
    }
    removed
}
