//! The worker of one pod: owns it from its first sandbox to its deletion. Nothing that one worker waits for delays
//! another.

mod act;
mod end;
mod probes;
mod report;
mod resize;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use super::actions::{Action, Memory, Plan, actions};
use super::backoff::{self, Backoff};
use super::observe::{Observed, Seen, observe, superfluous};
use crate::eviction::Kill;
use crate::probe::{Kind, Report};
use crate::shared::Shared;
use crate::sync::resize::{Given, Refused};
use crate::sync::results::Results;
use crate::{logs, pod};
use act::Acted;

/// How often configMap, secret, downwardAPI and projected volumes are brought up to date.
const REFRESH: Duration = Duration::from_secs(20);
/// Between tries of what the runtime refused.
const RETRY: Duration = Duration::from_secs(10);
/// How long ErrImagePull shows before it becomes ImagePullBackOff.
const SHOW: Duration = Duration::from_secs(2);

/// What a source wants of a pod.
#[derive(Clone, Debug)]
pub(crate) struct Desired {
    /// The pod.
    pub(crate) pod: Arc<Pod>,
    /// The source has it no longer.
    pub(crate) gone: bool,
}

impl Desired {
    fn terminating(&self) -> bool {
        self.gone || self.pod.metadata.deletion_timestamp.is_some()
    }
}

/// The state of a worker.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    desired: watch::Receiver<Desired>,
    poke: Arc<Notify>,
    ended: HashMap<String, Seen>,
    messages: BTreeMap<String, String>,
    results: Results,
    probes: HashMap<(String, Kind), JoinHandle<()>>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    waits: Backoff,
    errors: BTreeMap<String, (String, String)>,
    /// When pulls failed last.
    pulls: BTreeMap<String, Timestamp>,
    failed: Option<(String, String)>,
    /// What it was given; nothing before its folder is there.
    given: Option<Given>,
    /// Why it does not get what it asks for now.
    refused: Option<Refused>,
    /// A resize is under way, with what hinders it.
    resizing: Option<String>,
    /// An order to end the pod although its source wants it.
    kill: Option<Kill>,
    refreshed: Instant,
    /// Something that the volumes show has changed since.
    stale: Arc<AtomicBool>,
    first_seen: Timestamp,
    /// The same moment on a clock that nobody sets.
    begun: Instant,
    announced: BTreeMap<String, u32>,
    /// Whether it was looked at before.
    synced: bool,
    /// The pod is over, and its volumes are gone.
    released: bool,
    /// All containers begin anew: the next status says so of each.
    anew: bool,
    /// They are being stopped for that.
    restarting: bool,
    /// What a container that has begun all of them anew waits before it may do so again.
    delays: BTreeMap<String, u64>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        for task in self.probes.values() {
            task.abort();
        }
        self.shared.allocations.forget(pod::uid(&self.desired.borrow().pod));
    }
}

impl Worker {
    /// A worker; [`Worker::run`] makes it work.
    ///
    /// A `rejected` pod (reason and message) never starts; its worker reports that and waits for its deletion.
    pub(crate) fn new(
        shared: Arc<Shared>,
        desired: watch::Receiver<Desired>,
        poke: Arc<Notify>,
        stale: Arc<AtomicBool>,
        rejected: Option<(String, String)>,
    ) -> Self {
        let uid = pod::uid(&desired.borrow().pod).to_owned();
        let results = Results::load(&shared.volumes.layout().pod(&uid));
        let given = Given::load(&shared.volumes.layout().pod(&uid));
        Self {
            shared,
            desired,
            poke,
            ended: HashMap::new(),
            messages: BTreeMap::new(),
            results,
            probes: HashMap::new(),
            reports: mpsc::channel(64),
            waits: Backoff::default(),
            errors: BTreeMap::new(),
            pulls: BTreeMap::new(),
            failed: rejected,
            given,
            refused: None,
            resizing: None,
            kill: None,
            refreshed: Instant::now(),
            stale,
            first_seen: Timestamp::now(),
            begun: Instant::now(),
            announced: BTreeMap::new(),
            synced: false,
            released: false,
            anew: false,
            restarting: false,
            delays: BTreeMap::new(),
        }
    }

    /// Works until the pod is gone from the node.
    pub(crate) async fn run(mut self) {
        crate::metrics::own::WORKER_START.observe(&[], self.begun.elapsed());
        loop {
            let desired = self.desired.borrow_and_update().clone();
            if desired.terminating() {
                return Box::pin(self.terminate()).await;
            }
            let mut watch = self.desired.clone();
            let (shared, known) = (self.shared.clone(), self.kill.clone());
            let order = shared.kills.wait(pod::uid(&desired.pod), known.as_ref());
            tokio::pin!(order);
            let (start, operation) = (Instant::now(), if self.synced { "sync" } else { "create" });
            let wait = tokio::select! {
                // In a box that goes when it is done: what a look needs is large, and most of the time a pod rests.
                wait = Box::pin(self.sync(&desired.pod)) => wait,
                // A pull or a start under way is given up; what it left is found by the next look.
                _ = watch.wait_for(Desired::terminating) => continue,
                kill = &mut order => {
                    self.obey(kill);
                    continue;
                }
            };
            self.synced = true;
            crate::metrics::own::POD_WORKER.observe(&[("operation_type", operation)], start.elapsed());
            tokio::select! {
                kill = &mut order => self.obey(kill),
                changed = self.desired.changed() => if changed.is_err() { return },
                () = self.poke.notified() => {}
                Some(report) = self.reports.1.recv() => self.note(&report),
                () = tokio::time::sleep(wait) => {}
            }
            while let Ok(report) = self.reports.1.try_recv() {
                self.note(&report);
            }
        }
    }

    fn obey(&mut self, kill: Kill) {
        self.failed.get_or_insert_with(|| (kill.reason.clone(), kill.message.clone()));
        self.kill = Some(kill);
    }

    /// The pod's grace period, or that of an order to end it; a deletion under way is only shortened.
    fn grace(&self, pod: &Pod) -> i64 {
        let own = pod::grace(pod);
        let ordered = self.kill.as_ref().and_then(|k| k.grace);
        let deleted = pod.metadata.deletion_timestamp.is_some();
        ordered.map_or(own, |grace| if deleted { grace.min(own) } else { grace })
    }

    /// Brings the pod a step nearer to what it shall be, until nothing is left to do now. Gives the time until the next
    /// look.
    async fn sync(&mut self, pod: &Arc<Pod>) -> Duration {
        // Bounded: a runtime that claims success and does nothing must not spin.
        for _ in 0..20 {
            let observed = match observe(&self.shared.cri, pod::uid(pod), &mut self.ended).await {
                Ok(observed) => observed,
                Err(e) => {
                    tracing::warn!(pod = %pod::key(pod), error = %e, "runtime did not say what the pod does");
                    return Duration::from_secs(2);
                }
            };
            let now = Timestamp::now();
            let over = self.over(pod);
            // From here on it is the pod with what it was given, which its spec may not say any more.
            let pod = &if over { pod.clone() } else { self.given(pod) };
            self.check_deadline(pod);
            self.tend_probes(pod, &observed, over);
            let cap = self.shared.config.crash_loop_back_off.max_container_restart_period.0;
            let mut plan = if over {
                let busy = observed.alive().next().is_some() || observed.sandboxes.iter().any(|s| s.ready);
                Plan {
                    actions: if busy { vec![Action::StopPod] } else { Vec::new() },
                    finished: true,
                    ..Plan::default()
                }
            } else {
                let known = self.shared.statuses.get(pod::uid(pod));
                let mut memory = Memory::of(known.as_ref().or(pod.status.as_ref()));
                memory.delays.clone_from(&self.delays);
                actions(pod, &observed, &self.results.verdicts(), &memory, cap, now)
            };
            self.restarting = plan.restarting;
            self.explain(pod, &plan, &observed);
            // An over pod keeps its phase; one that must be stopped reports its end once nothing runs.
            let finished = plan.finished && observed.alive().next().is_none();
            self.publish(pod, &observed, finished, false, now).await;
            let mut wake = plan.wake;
            let mut acted = false;
            for action in std::mem::take(&mut plan.actions) {
                match self.act(pod, &observed, action, now).await {
                    Acted::Yes => acted = true,
                    Acted::Later(at) => wake = Some(wake.map_or(at, |w: Timestamp| w.min(at))),
                }
            }
            if let Some((culprit, delay)) = plan.cleared.take().filter(|_| acted && wake.is_none()) {
                tracing::info!(pod = %pod::key(pod), culprit, "all containers begin anew");
                self.anew = true;
                self.delays.insert(culprit, delay);
            }
            if acted || (!finished && !over && self.apply(pod, &observed).await) {
                continue;
            }
            let observed_now = observed;
            self.publish(pod, &observed_now, finished, false, now).await;
            if finished {
                self.shared.allocations.forget(pod::uid(pod));
                self.shared.managers.release(pod::uid(pod));
                self.release_volumes(pod).await;
                self.shared.kills.done(pod::uid(pod));
            }
            self.collect(pod, &observed_now).await;
            self.shared.worked.notify_one();
            let rest = self.rest(pod, &observed_now, wake).await;
            return if finished && !self.released { rest.min(RETRY) } else { rest };
        }
        RETRY
    }

    fn over(&self, pod: &Pod) -> bool {
        let phase = |s: &PodStatus| s.phase.as_deref().is_some_and(|p| p == "Failed" || p == "Succeeded");
        self.failed.is_some()
            || self.shared.statuses.get(pod::uid(pod)).as_ref().is_some_and(phase)
            || pod.status.as_ref().is_some_and(phase)
    }

    fn check_deadline(&mut self, pod: &Pod) {
        let Some(limit) = pod::spec(pod).active_deadline_seconds.filter(|_| self.failed.is_none()) else { return };
        if self.active(pod) >= Duration::from_secs(u64::try_from(limit).unwrap_or(0)) && !self.over(pod) {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.shared.events.pod(pod, None, false, "DeadlineExceeded", message.clone());
            self.failed = Some(("DeadlineExceeded".to_owned(), message));
        }
    }

    /// How long the pod has been active on the node.
    fn active(&self, pod: &Pod) -> Duration {
        let start = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
        active(start, self.first_seen, self.begun.elapsed())
    }

    /// Says what has happened to the pod's volumes.
    fn tell_of_volumes(&self, pod: &Pod) {
        for note in self.shared.volumes.notes(pod::uid(pod)) {
            self.shared.events.pod(pod, None, note.warning, note.reason, note.message);
        }
    }

    /// Removes containers that nobody asks for any more.
    async fn collect(&mut self, pod: &Pod, observed: &Observed) {
        for seen in superfluous(observed) {
            match self.shared.cri.remove_container(&seen.id).await {
                Ok(()) => logs::remove(&seen.log_path),
                Err(e) => {
                    tracing::warn!(pod = %pod::key(pod), container = %seen.id, error = %e, "dead container not removed")
                }
            }
        }
    }

    /// Volumes up to date; and how long to rest.
    async fn rest(&mut self, pod: &Pod, observed: &Observed, wake: Option<Timestamp>) -> Duration {
        let payload = pod::spec(pod).volumes.into_iter().flatten().any(|v| {
            let files = v.config_map.is_some() || v.secret.is_some() || v.downward_api.is_some();
            let claims = v.csi.is_some() || v.persistent_volume_claim.is_some() || v.ephemeral.is_some();
            files || claims || v.projected.is_some()
        });
        let now = Timestamp::now();
        let running = observed.alive().next().is_some();
        if payload && running && (self.stale.swap(false, Ordering::Relaxed) || self.refreshed.elapsed() >= REFRESH) {
            self.refreshed = Instant::now();
            let ips = observed.ready_sandbox().map(|s| s.ips.clone()).unwrap_or_default();
            let ips = if pod::host_network(pod) { self.shared.node_ips.clone() } else { ips };
            if let Err(e) = self.shared.volumes.refresh(pod, &self.shared.context(ips)).await {
                self.shared.events.pod(pod, None, true, e.event(), e.to_string());
            }
            self.tell_of_volumes(pod);
        }
        let mut rest = self.shared.config.sync_frequency.0.max(Duration::from_secs(1));
        if payload {
            rest = rest.min(REFRESH);
        }
        if self.refused.is_some() || self.resizing.is_some() {
            rest = rest.min(RETRY);
        }
        if let Some(limit) = pod::spec(pod).active_deadline_seconds {
            let left = Duration::from_secs(u64::try_from(limit).unwrap_or(0)).saturating_sub(self.active(pod));
            rest = rest.min(left.max(Duration::from_secs(1)));
        }
        wake.map_or(rest, |at| backoff::until(at, now).min(rest)).max(Duration::from_millis(20))
    }
}

/// How long a pod has been active that was first seen at `first_seen`, `since` ago. What went before (`start` is what its
/// status says) counts by the wall's clock as it was then; what came after counts by one that nobody sets (pure).
fn active(start: Option<Timestamp>, first_seen: Timestamp, since: Duration) -> Duration {
    let before = start.map_or(Duration::ZERO, |start| backoff::until(first_seen, start));
    before.saturating_add(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_a_pod_is_not_the_clocks() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let second = Duration::from_secs;
        for (start, since, age) in [
            (None, 5, 5),
            (Some(1000), 5, 5),
            // A kubelet that began anew an hour later.
            (Some(1000 - 3600), 5, 3605),
            // The status was written before the clock was set back.
            (Some(1000 + 86_400), 5, 5),
        ] {
            assert_eq!(active(start.map(at), at(1000), second(since)), second(age), "{start:?}");
        }
    }
}
