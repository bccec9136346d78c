//! What plugins want of containers that run already: other resources, or their end.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use proto::nri;

use super::convert;
use super::plugin::Plugin;
use super::wire::{Incoming, UNIMPLEMENTED, decoded};
use crate::container;
use crate::daemon::Daemon;

/// How long changes may keep a plugin waiting that is being asked about an event itself: the event may be about the container that
/// it wants to change, whose turn ends only after its answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// Answers a request of a plugin.
pub(super) async fn serve(daemon: &Arc<Daemon>, plugin: &Plugin, request: &Incoming) -> Result<Vec<u8>, (i32, String)> {
    match (request.service.as_str(), request.method.as_str()) {
        ("nri.pkg.api.v1alpha1.Runtime", "UpdateContainers") => {
            let asked: nri::UpdateContainersRequest = decoded(&request.payload)?;
            evict(daemon, asked.evict, "UpdateContainers");
            let work = apply(daemon.clone(), asked.update, "UpdateContainers".to_owned());
            // What it does not wait for is done all the same.
            let mut work = tokio::spawn(work);
            let failed = if plugin.is_asked() {
                tokio::time::timeout(PATIENCE, &mut work).await.unwrap_or_else(|_| Ok(Vec::new()))
            } else {
                work.await
            };
            Ok(nri::UpdateContainersResponse { failed: failed.unwrap_or_default() }.encode_to_vec())
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
    evict(daemon, evictions, asked_by);
    apply(daemon.clone(), updates, asked_by.to_owned()).await;
}

/// Applies changes; answers those that failed.
async fn apply(daemon: Arc<Daemon>, updates: Vec<nri::ContainerUpdate>, asked_by: String) -> Vec<nri::ContainerUpdate> {
    let mut failed = Vec::new();
    for update in updates {
        let resources = update.linux.as_ref().and_then(|l| l.resources.as_ref());
        let Some((resources, tasks)) = resources.map(convert::to_cri) else { continue };
        if let Err(error) = container::set_resources(&daemon, &update.container_id, resources, tasks).await {
            if !update.ignore_failure {
                tracing::warn!(container = update.container_id, asked_by, %error, "a change that an NRI plugin wants");
            }
            failed.push(update);
        }
    }
    failed
}

/// Ends containers. Nobody waits for it: one that is starting just now ends when it has started.
fn evict(daemon: &Arc<Daemon>, evictions: Vec<nri::ContainerEviction>, asked_by: &str) {
    for eviction in evictions {
        let (daemon, asked_by, id) = (daemon.clone(), asked_by.to_owned(), eviction.container_id);
        tracing::info!(container = %id, reason = eviction.reason, asked_by, "an NRI plugin evicts a container");
        tokio::spawn(async move {
            let stopped = match daemon.container(&id) {
                Ok(found) => container::stop(&daemon, &found, 0).await,
                Err(error) => Err(error),
            };
            if let Err(error) = stopped {
                tracing::warn!(container = %id, asked_by, %error, "an eviction that an NRI plugin wants");
            }
        });
    }
}
