//! What happens between word of a shutdown and the moment at which it may go on.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::logind::{Places, Word, listen};
use super::plan::{Group, assign, grace, groups, total};
use crate::eviction::Kill;
use crate::kubelet::Pods;
use crate::metrics::own;
use crate::pod;
use crate::shared::Shared;

/// Whether the node is going down, for whoever admits pods or reports the node.
#[derive(Debug, Default)]
pub(crate) struct Shutdown(AtomicBool);

/// For how long statuses may take to arrive before the machine goes down all the same.
const FLUSH: Duration = Duration::from_secs(5);

impl Shutdown {
    /// Whether it is.
    pub(crate) fn active(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Reason and message for a pod that comes too late.
    pub(crate) fn refusal(&self) -> Option<(&'static str, &'static str)> {
        self.active().then_some(("NodeShutdown", "Pod was rejected as the node is shutting down."))
    }
}

/// Holds shutdowns of the machine up for pods, for ever; does nothing unless the configuration gives them time.
pub(crate) async fn run(shared: Arc<Shared>, pods: Pods) {
    let groups = groups(&shared.config);
    if groups.is_empty() {
        return;
    }
    let mut words = listen(Places::default(), total(&groups));
    let mut lock: Option<OwnedFd> = None;
    while let Some(word) = words.recv().await {
        match word {
            // It came while this shutdown was held up by the one before, which is given back: so is this one.
            Word::Ready(new) if shared.shutdown.active() => drop(new),
            Word::Ready(new) => {
                tracing::info!(seconds = total(&groups).as_secs(), "shutdowns of the machine wait for pods");
                lock = Some(new);
            }
            Word::Shutdown(false) => {
                shared.shutdown.0.store(false, Ordering::Relaxed);
                shared.events.node(
                    &shared.node_name,
                    false,
                    "NodeShutdown",
                    "Shutdown manager detected shutdown cancellation".to_owned(),
                );
                shared.pressure.touch();
            }
            Word::Shutdown(true) => {
                shared.shutdown.0.store(true, Ordering::Relaxed);
                shared.events.node(
                    &shared.node_name,
                    false,
                    "NodeShutdown",
                    "Shutdown manager detected shutdown event".to_owned(),
                );
                own::SHUTDOWN_START.set(now());
                // The node says at once that it is not ready.
                shared.pressure.touch();
                end_pods(&shared, &pods, &groups).await;
                if !shared.statuses.settled(FLUSH).await {
                    tracing::warn!("not all statuses have arrived; the machine goes down all the same");
                }
                tracing::info!("pods have ended; the machine may go down");
                own::SHUTDOWN_END.set(now());
                drop(lock.take());
            }
        }
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    jiff::Timestamp::now().as_millisecond() as f64 / 1000.0
}

/// Ends pods group by group.
async fn end_pods(shared: &Shared, pods: &Pods, groups: &[Group]) {
    let over = |pod: &Pod| {
        let status = shared.statuses.get(pod::uid(pod));
        status.and_then(|s| s.phase).is_some_and(|p| p == "Failed" || p == "Succeeded")
    };
    let all: Vec<Arc<Pod>> = pods.list().into_iter().filter(|p| !over(p)).collect();
    for (group, members) in assign(groups, all) {
        if members.is_empty() {
            continue;
        }
        let end = Instant::now() + group.period;
        tracing::info!(priority = group.priority, pods = members.len(), seconds = group.period.as_secs(), "pods end");
        for pod in &members {
            let kill = Kill {
                reason: "Terminated".to_owned(),
                message: "Pod was terminated in response to imminent node shutdown.".to_owned(),
                grace: Some(grace(pod, &group)),
                disruption: Some("TerminationByKubelet"),
            };
            shared.kills.order(pod::uid(pod), kill);
        }
        let ended = members.iter().map(|pod| async {
            let left = end.saturating_duration_since(Instant::now());
            if !shared.kills.ended(pod::uid(pod), left).await {
                tracing::warn!(pod = %pod::key(pod), "pod has not ended in its time");
            }
        });
        join_all(ended).await;
    }
}
