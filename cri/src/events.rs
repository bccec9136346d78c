//! Container events for GetContainerEvents: each carries the pod's whole state.

use proto::cri;

use crate::daemon::{Daemon, now};

/// Tells all who listen.
pub fn emit(daemon: &Daemon, container: &str, sandbox: &str, kind: cri::ContainerEventType) {
    if daemon.events.receiver_count() == 0 {
        return;
    }
    let statuses = daemon.containers_of(sandbox).iter().map(|c| crate::container::status(c)).collect();
    let event = cri::ContainerEventResponse {
        container_id: container.to_owned(),
        container_event_type: kind.into(),
        created_at: now(),
        pod_sandbox_status: daemon.sandbox(sandbox).ok().map(|s| crate::sandbox::status(&s)),
        containers_statuses: statuses,
    };
    let _ = daemon.events.send(event);
}
