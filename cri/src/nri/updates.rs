//! What plugins want of containers that run already: other resources, or their end.

use std::sync::Arc;

use prost::Message;
use proto::nri;

use super::convert;
use super::wire::{Incoming, UNIMPLEMENTED, decoded};
use crate::container;
use crate::daemon::Daemon;

/// Answers a request of a plugin.
pub(super) async fn serve(daemon: &Arc<Daemon>, request: &Incoming) -> Result<Vec<u8>, (i32, String)> {
    match (request.service.as_str(), request.method.as_str()) {
        ("nri.pkg.api.v1alpha1.Runtime", "UpdateContainers") => {
            let asked: nri::UpdateContainersRequest = decoded(&request.payload)?;
            let failed = apply(daemon, asked.update, asked.evict, "UpdateContainers").await;
            Ok(nri::UpdateContainersResponse { failed }.encode_to_vec())
        }
        (service, method) => Err((UNIMPLEMENTED, format!("{service} has no method {method}"))),
    }
}

/// Applies what was wanted beside an answer; what fails is told to the operator.
pub(super) async fn apply_all(
    daemon: &Arc<Daemon>,
    updates: Vec<nri::ContainerUpdate>,
    evictions: Vec<nri::ContainerEviction>,
    asked_by: &str,
) {
    apply(daemon, updates, evictions, asked_by).await;
}

/// Applies changes; answers those that failed.
async fn apply(
    daemon: &Arc<Daemon>,
    updates: Vec<nri::ContainerUpdate>,
    evictions: Vec<nri::ContainerEviction>,
    asked_by: &str,
) -> Vec<nri::ContainerUpdate> {
    let mut failed = Vec::new();
    for update in updates {
        let resources = update.linux.as_ref().and_then(|l| l.resources.as_ref());
        let Some((resources, tasks)) = resources.map(convert::to_cri) else { continue };
        if let Err(error) = container::set_resources(daemon, &update.container_id, resources, tasks).await {
            if !update.ignore_failure {
                tracing::warn!(container = update.container_id, asked_by, %error, "a change that an NRI plugin wants");
            }
            failed.push(update);
        }
    }
    for eviction in evictions {
        let id = &eviction.container_id;
        tracing::info!(container = %id, reason = eviction.reason, asked_by, "an NRI plugin evicts a container");
        let stopped = match daemon.container(id) {
            Ok(found) => container::stop(daemon, &found, 0).await,
            Err(error) => Err(error),
        };
        if let Err(error) = stopped {
            tracing::warn!(container = %id, asked_by, %error, "an eviction that an NRI plugin wants");
        }
    }
    failed
}
