//! The worker of one pod: owns it from its first sandbox to its deletion. Nothing that one worker waits for delays
//! another.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kubelet_managers::Refusal;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use super::actions::{Action, Plan, actions};
use super::backoff::{self, Backoff};
use super::observe::{Observed, Seen, State, observe, superfluous};
use super::{start, stop};
use crate::eviction::Kill;
use crate::probe::{self, Kind, Report};
use crate::shared::Shared;
use crate::status::derive::{Circumstances, derive};
use crate::status::message::termination_message;
use crate::sync::results::{Results, Verdict};
use crate::{logs, pod};

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
    /// An order to end the pod although its source wants it.
    kill: Option<Kill>,
    refreshed: Timestamp,
    first_seen: Timestamp,
    announced: BTreeMap<String, u32>,
    /// Whether it was looked at before.
    synced: bool,
}

impl Drop for Worker {
    fn drop(&mut self) {
        for task in self.probes.values() {
            task.abort();
        }
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
        rejected: Option<(String, String)>,
    ) -> Self {
        let uid = pod::uid(&desired.borrow().pod).to_owned();
        let results = Results::load(&shared.volumes.layout().pod(&uid));
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
            kill: None,
            refreshed: Timestamp::now(),
            first_seen: Timestamp::now(),
            announced: BTreeMap::new(),
            synced: false,
        }
    }

    /// Works until the pod is gone from the node.
    pub(crate) async fn run(mut self) {
        loop {
            let desired = self.desired.borrow_and_update().clone();
            if desired.terminating() {
                return self.terminate().await;
            }
            let mut watch = self.desired.clone();
            let (shared, known) = (self.shared.clone(), self.kill.clone());
            let order = shared.kills.wait(pod::uid(&desired.pod), known.as_ref());
            tokio::pin!(order);
            let (start, operation) = (std::time::Instant::now(), if self.synced { "sync" } else { "create" });
            let wait = tokio::select! {
                wait = self.sync(&desired.pod) => wait,
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
            self.check_deadline(pod, now);
            self.tend_probes(pod, &observed);
            let cap = self.shared.config.crash_loop_back_off.max_container_restart_period.0;
            let over = self.over(pod);
            let mut plan = if over {
                let busy = observed.alive().next().is_some() || observed.sandboxes.iter().any(|s| s.ready);
                Plan {
                    actions: if busy { vec![Action::StopPod] } else { Vec::new() },
                    finished: true,
                    ..Plan::default()
                }
            } else {
                actions(pod, &observed, &self.results.verdicts(), cap, now)
            };
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
            if acted {
                continue;
            }
            let observed_now = observed;
            self.publish(pod, &observed_now, finished, false, now).await;
            if finished {
                self.shared.kills.done(pod::uid(pod));
                self.shared.managers.release(pod::uid(pod));
            }
            self.collect(pod, &observed_now).await;
            return self.rest(pod, &observed_now, wake).await;
        }
        RETRY
    }

    fn over(&self, pod: &Pod) -> bool {
        let phase = |s: &PodStatus| s.phase.as_deref().is_some_and(|p| p == "Failed" || p == "Succeeded");
        self.failed.is_some()
            || self.shared.statuses.get(pod::uid(pod)).as_ref().is_some_and(phase)
            || pod.status.as_ref().is_some_and(phase)
    }

    fn check_deadline(&mut self, pod: &Pod, now: Timestamp) {
        let Some(limit) = pod::spec(pod).active_deadline_seconds.filter(|_| self.failed.is_none()) else { return };
        let start = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(self.first_seen, |t| t.0);
        if now.duration_since(start) >= SignedDuration::from_secs(limit) && !self.over(pod) {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.shared.events.pod(pod, None, false, "DeadlineExceeded", message.clone());
            self.failed = Some(("DeadlineExceeded".to_owned(), message));
        }
    }

    /// Starts probes of containers that run, and ends those of others.
    fn tend_probes(&mut self, pod: &Arc<Pod>, observed: &Observed) {
        let running: HashMap<&str, &Seen> =
            observed.containers.iter().filter(|c| c.state == State::Running).map(|c| (c.id.as_str(), c)).collect();
        self.probes.retain(|(id, _), task| {
            let keep = running.contains_key(id.as_str());
            if !keep {
                task.abort();
            }
            keep
        });
        self.results.keep(|id| running.contains_key(id));
        let ip = observed.ready_sandbox().and_then(|s| s.ips.first().cloned());
        let ip = if pod::host_network(pod) { self.shared.node_ips.first().cloned() } else { ip }.unwrap_or_default();
        for seen in running.values() {
            let Some(spec) = pod::all_containers(pod).find(|c| c.name == seen.name) else { continue };
            let verdict = self.results.entry(&seen.id, || Verdict {
                started: spec.startup_probe.is_none(),
                // What was reported before the kubelet began anew holds until it is probed.
                ready: spec.readiness_probe.is_none() || pod::was_ready(pod, &seen.id),
                failed: None,
            });
            for kind in Kind::ALL {
                let due = if kind == Kind::Startup { !verdict.started } else { verdict.started };
                let key = (seen.id.clone(), kind);
                if !due || kind.of(spec).is_none() || self.probes.contains_key(&key) {
                    continue;
                }
                let target = probe::Target {
                    pod: pod.clone(),
                    container: spec.clone(),
                    id: seen.id.clone(),
                    kind,
                    ip: ip.clone(),
                    started_at: seen.started_at,
                    before: match kind {
                        Kind::Readiness => verdict.ready.then_some(true),
                        Kind::Liveness => Some(true),
                        Kind::Startup => None,
                    },
                };
                self.probes.insert(key, tokio::spawn(probe::run(self.shared.clone(), target, self.reports.0.clone())));
            }
        }
        self.results.save(&self.shared.volumes.layout().pod(pod::uid(pod)));
    }

    fn note(&mut self, report: &Report) {
        self.results.note(report);
        if report.kind == Kind::Startup {
            self.probes.remove(&(report.id.clone(), Kind::Startup));
        }
        let uid = pod::uid(&self.desired.borrow().pod).to_owned();
        self.results.save(&self.shared.volumes.layout().pod(&uid));
    }

    /// Says why containers wait.
    fn explain(&mut self, pod: &Pod, plan: &Plan, observed: &Observed) {
        self.errors.retain(|_, (reason, _)| reason != "CrashLoopBackOff");
        for (name, wait) in &plan.crash_loop {
            let message =
                format!("back-off {} restarting failed container={name} pod={}", short(*wait), pod::full(pod));
            self.errors.insert(name.clone(), ("CrashLoopBackOff".to_owned(), message));
            let attempt = observed.latest(name).map_or(0, |s| s.attempt);
            if self.announced.insert(name.clone(), attempt) != Some(attempt) {
                let text = format!("Back-off restarting failed container {name} in pod {}", pod::full(pod));
                self.shared.events.pod(pod, Some(name), true, "BackOff", text);
            }
        }
    }

    async fn act(&mut self, pod: &Arc<Pod>, observed: &Observed, action: Action, now: Timestamp) -> Acted {
        let shared = self.shared.clone();
        match action {
            Action::CreateSandbox { attempt } => {
                if let Some(at) = self.waits.waiting("sandbox", now) {
                    return Acted::Later(at);
                }
                match shared.managers.admit(pod).await {
                    Ok(()) => {}
                    Err(Refusal::NotYet(why)) => return self.await_managers(pod, why).await,
                    Err(Refusal::Never(reason, why)) => {
                        shared.events.pod(pod, None, true, reason, why.clone());
                        self.failed = Some((reason.to_owned(), format!("Pod was rejected: {why}")));
                        return Acted::Yes;
                    }
                }
                match start::sandbox(&shared, pod, attempt).await {
                    Ok(()) => {
                        self.waits.succeeded("sandbox");
                        self.errors.clear();
                        self.refreshed = Timestamp::now();
                        Acted::Yes
                    }
                    Err(e) => {
                        for container in pod::containers(pod) {
                            self.errors.insert(container.name.clone(), (e.reason.to_owned(), String::new()));
                        }
                        let at = self.waits.failed(
                            "sandbox",
                            Timestamp::now(),
                            Duration::from_secs(2),
                            Duration::from_secs(30),
                        );
                        Acted::Later(at)
                    }
                }
            }
            Action::Start { container, attempt, restart_delay_ms } => {
                let Some(spec) = pod::named(pod, &container).map(std::borrow::Cow::into_owned) else {
                    return Acted::Later(backoff::after(now, RETRY));
                };
                self.start(pod, observed, &spec, attempt, restart_delay_ms, now).await
            }
            Action::Kill { id, container, message } => {
                let Some(seen) = observed.containers.iter().find(|c| c.id == id) else { return Acted::Yes };
                let ip = observed.ready_sandbox().and_then(|s| s.ips.first().cloned()).unwrap_or_default();
                let failed = self.results.verdicts().failed.get(&id).copied();
                let grace = pod::grace_after(pod, &container, failed);
                let stopped = stop::container(&shared, pod, seen, &ip, grace, message).await;
                self.done(pod, stopped.map_err(|e| e.to_string()), "stop container")
            }
            Action::Remove { id } => {
                let removed = shared.cri.remove_container(&id).await;
                self.done(pod, removed.map_err(|e| e.to_string()), "remove container")
            }
            Action::RemoveSandbox { id } => {
                let stopped = shared.cri.stop_sandbox(&id).await;
                let removed = match stopped {
                    Ok(()) => shared.cri.remove_sandbox(&id).await,
                    Err(e) => Err(e),
                };
                self.done(pod, removed.map_err(|e| e.to_string()), "remove sandbox")
            }
            Action::StopPod => {
                let stopped = stop::everything(&shared, pod, observed, self.grace(pod)).await;
                self.done(pod, stopped, "stop pod")
            }
        }
    }

    /// Waits for a device plugin: it registers again after the kubelet or the node has begun anew.
    async fn await_managers(&mut self, pod: &Pod, why: String) -> Acted {
        for container in pod::containers(pod) {
            let message = ("ContainerCreating".to_owned(), why.clone());
            if self.errors.insert(container.name.clone(), message.clone()) != Some(message) {
                self.shared.events.pod(pod, Some(&container.name), true, "FailedAllocateDevices", why.clone());
            }
        }
        let mut changes = self.shared.managers.changes();
        let _ = tokio::time::timeout(RETRY, changes.changed()).await;
        Acted::Later(Timestamp::now())
    }

    fn done(&self, pod: &Pod, result: Result<(), String>, what: &str) -> Acted {
        match result {
            Ok(()) => Acted::Yes,
            Err(e) => {
                tracing::warn!(pod = %pod::key(pod), error = %e, "{what} failed, will try again");
                Acted::Later(backoff::after(Timestamp::now(), Duration::from_secs(2)))
            }
        }
    }

    async fn start(
        &mut self,
        pod: &Arc<Pod>,
        observed: &Observed,
        spec: &Container,
        attempt: u32,
        restart_delay_ms: u64,
        now: Timestamp,
    ) -> Acted {
        if observed.ready_sandbox().is_none() {
            return Acted::Yes;
        }
        let name = &spec.name;
        if let Some(at) = self.waits.waiting(name, now) {
            let shown = self.pulls.get(name).map(|failed| backoff::after(*failed, SHOW)).filter(|shown| *shown > now);
            if let Some(shown) = shown {
                return Acted::Later(shown);
            }
            let image = spec.image.as_deref().unwrap_or_default();
            if let Some((reason, message)) = self.errors.get_mut(name).filter(|(r, _)| r == "ErrImagePull") {
                *message = format!("Back-off pulling image {image:?}: ErrImagePull: {message}");
                *reason = "ImagePullBackOff".to_owned();
                let event = |reason, text| self.shared.events.pod(pod, Some(name), reason == "Failed", reason, text);
                event("BackOff", format!("Back-off pulling image {image:?}"));
                event("Failed", "Error: ImagePullBackOff".to_owned());
            }
            return Acted::Later(at);
        }
        match start::container(&self.shared, pod, observed, spec, attempt, restart_delay_ms).await {
            Ok(()) => {
                self.waits.succeeded(name);
                self.errors.remove(name);
                Acted::Yes
            }
            Err(e) => {
                let now = Timestamp::now();
                self.errors.insert(name.clone(), (e.reason.to_owned(), e.message));
                let at = match e.reason {
                    "ErrImagePull" => {
                        self.waits.failed(name, now, backoff::FIRST, backoff::LONGEST);
                        self.pulls.insert(name.clone(), now);
                        backoff::after(now, SHOW)
                    }
                    // What ran for a moment waits by the rules of restarts.
                    "PostStartHookError" => return Acted::Yes,
                    _ => self.waits.failed(name, now, RETRY, backoff::LONGEST.min(RETRY)),
                };
                Acted::Later(at)
            }
        }
    }

    async fn publish(
        &mut self,
        pod: &Arc<Pod>,
        observed: &Observed,
        finished: bool,
        terminating: bool,
        now: Timestamp,
    ) {
        self.messages.retain(|id, _| observed.containers.iter().any(|c| &c.id == id));
        for seen in observed.containers.iter().filter(|c| c.state == State::Exited) {
            if !self.messages.contains_key(&seen.id) {
                let message = termination_message(&self.shared.volumes, pod, seen);
                self.messages.insert(seen.id.clone(), message);
            }
        }
        let mut waiting = self.errors.clone();
        for seen in observed.alive() {
            waiting.remove(&seen.name);
        }
        let with = Circumstances {
            waiting: if finished || terminating { BTreeMap::new() } else { waiting },
            ready: self.results.ready(),
            started: self.results.started(),
            messages: self.messages.clone(),
            host_ips: self.shared.node_ips.clone(),
            runtime: self.shared.runtime_name.clone(),
            failed: self.failed.clone(),
            finished,
            terminating,
            first_seen: self.first_seen,
        };
        let uid = pod::uid(pod);
        let mut before = self.shared.statuses.get(uid).unwrap_or_else(|| pod.status.clone().unwrap_or_default());
        // Conditions of others (readiness gates) are newer in the object than in what we sent.
        let foreign = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        let own = before.conditions.get_or_insert_default();
        for condition in foreign {
            match own.iter_mut().find(|c| c.type_ == condition.type_) {
                Some(known) if !OWN.contains(&condition.type_.as_str()) => *known = condition,
                Some(_) => {}
                None => own.push(condition),
            }
        }
        if let Some((reason, message)) = self.kill.as_ref().and_then(|k| Some((k.disruption?, &k.message)))
            && !own.iter().any(|c| c.type_ == "DisruptionTarget")
        {
            own.push(PodCondition {
                type_: "DisruptionTarget".to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.clone()),
                last_transition_time: Some(Time(now)),
                ..Default::default()
            });
        }
        let status = derive(pod, observed, &with, &before, now);
        let phase = status.phase.clone().unwrap_or_default();
        if self.shared.statuses.set(pod, status) {
            tracing::debug!(pod = %pod::key(pod), phase, "status changed");
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
        let due = backoff::after(self.refreshed, REFRESH);
        if payload && due <= now && observed.alive().next().is_some() {
            self.refreshed = now;
            let ips = observed.ready_sandbox().map(|s| s.ips.clone()).unwrap_or_default();
            let ips = if pod::host_network(pod) { self.shared.node_ips.clone() } else { ips };
            if let Err(e) = self.shared.volumes.refresh(pod, &self.shared.context(ips)).await {
                self.shared.events.pod(pod, None, true, "FailedMount", e.to_string());
            }
        }
        let mut rest = self.shared.config.sync_frequency.0.max(Duration::from_secs(1));
        if payload {
            rest = rest.min(REFRESH);
        }
        if let Some(limit) = pod::spec(pod).active_deadline_seconds {
            let start = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(self.first_seen, |t| t.0);
            let left =
                backoff::until(backoff::after(start, Duration::from_secs(u64::try_from(limit).unwrap_or(0))), now);
            rest = rest.min(left.max(Duration::from_secs(1)));
        }
        wake.map_or(rest, |at| backoff::until(at, now).min(rest)).max(Duration::from_millis(20))
    }

    /// Stops the pod, reports its end, frees what it holds and has it deleted.
    async fn terminate(&mut self) {
        for task in self.probes.values() {
            task.abort();
        }
        self.probes.clear();
        let begin = Timestamp::now();
        let mut wait = Duration::from_secs(1);
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let pod = desired.pod.clone();
            let uid = pod::uid(&pod).to_owned();
            let observed = match observe(&self.shared.cri, &uid, &mut self.ended).await {
                Ok(observed) => observed,
                Err(e) => {
                    tracing::warn!(pod = %pod::key(&pod), error = %e, "pod cannot be stopped yet");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY);
                    continue;
                }
            };
            self.publish(&pod, &observed, false, true, Timestamp::now()).await;
            let spent = Timestamp::now().duration_since(begin).as_secs();
            let grace = self.grace(&pod);
            let left = (grace - spent).max(grace.min(1));
            let mut watch = self.desired.clone();
            let (shared, known) = (self.shared.clone(), self.kill.clone());
            let order = shared.kills.wait(&uid, known.as_ref());
            let shorter = async {
                // A later request may cut the grace period, never lengthen it.
                let cut = watch.wait_for(|d| pod::grace(&d.pod) < grace).await.is_ok();
                if !cut {
                    std::future::pending::<()>().await;
                }
            };
            let stopped = tokio::select! {
                stopped = stop::everything(&self.shared, &pod, &observed, left) => stopped,
                () = shorter => continue,
                kill = order => {
                    self.obey(kill);
                    continue;
                }
            };
            let freed = match stopped {
                Ok(()) => {
                    if let Ok(last) = observe(&self.shared.cri, &uid, &mut self.ended).await {
                        self.publish(&pod, &last, false, true, Timestamp::now()).await;
                    }
                    stop::free(&self.shared, &uid).await
                }
                Err(e) => Err(e),
            };
            match freed {
                Ok(()) => {
                    tracing::info!(pod = %pod::key(&pod), "pod stopped and freed");
                    self.shared.kills.forget(&uid);
                    if desired.gone || pod::is_static(&pod) {
                        self.shared.statuses.forget(&uid);
                    } else {
                        self.shared.statuses.delete(&uid);
                    }
                    return;
                }
                Err(e) => {
                    self.shared.events.pod(&pod, None, true, "FailedKillPod", format!("error killing pod: {e}"));
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY);
                }
            }
        }
    }
}

const OWN: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

enum Acted {
    /// Look again at once.
    Yes,
    /// Look again then.
    Later(Timestamp),
}

fn short(wait: Duration) -> String {
    let s = wait.as_secs();
    if s >= 60 { format!("{}m{}s", s / 60, s % 60) } else { format!("{s}s") }
}
