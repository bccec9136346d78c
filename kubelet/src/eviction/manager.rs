//! The loop of eviction: measures, reports, reclaims, and ends at most one pod a round.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;

use super::kills::Kill;
use super::measure::{self, FileSystems, Layers};
use super::rank::{Disks, rank};
use super::signal::Signal;
use super::state::{Observations, State};
use super::threshold::{Threshold, thresholds, with_containers};
use super::{limits, message, notify};
use crate::gc::Images;
use crate::kubelet::Pods;
use crate::metrics::own;
use crate::pod;
use crate::shared::Shared;

/// Between looks while nothing tells of trouble.
const EVERY: Duration = Duration::from_secs(10);
/// How long the next look waits for an evicted pod to be gone.
const CLEANUP: Duration = Duration::from_secs(30);
/// How long what was removed may take until the disk shows it, and how often that is looked at.
const FREED: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(250);
/// What pods get that must go at once: time for SIGTERM, no more.
const IMMEDIATE: i64 = 1;
/// Between questions where the runtime keeps its files.
const ASK: Duration = Duration::from_secs(60);

struct Manager {
    shared: Arc<Shared>,
    pods: Pods,
    images: Arc<Images>,
    configured: Vec<Threshold>,
    state: State,
    places: FileSystems,
    asked: Instant,
}

/// Guards the node, for ever.
pub(crate) async fn run(shared: Arc<Shared>, pods: Pods, images: Arc<Images>) {
    let configured = thresholds(&shared.config);
    let places = FileSystems::ask(&shared).await;
    let alarm = notify::Alarm::start();
    let mut manager =
        Manager { shared, pods, images, configured, state: State::default(), places, asked: Instant::now() };
    loop {
        let evicted = manager.look().await;
        if let Some(uid) = evicted {
            if !manager.shared.kills.ended(&uid, CLEANUP).await {
                tracing::warn!(uid, "evicted pod not gone yet");
            }
            // What it freed is looked at right away: the node may be short still.
            continue;
        }
        let rest = manager.state.next(Instant::now()).map_or(EVERY, |next| next.min(EVERY));
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            () = alarm.rung() => {}
        }
    }
}

impl Manager {
    async fn measure(&self) -> Option<Observations> {
        let places = self.places.clone();
        let group = self.shared.cgroups.all_pods();
        let work = tokio::task::spawn_blocking(move || {
            let group = group.and_then(|path| gantry_cgroup::Host::detect().ok()?.cgroup(path).ok());
            measure::node(&places, group.as_ref())
        });
        // A disk that hangs must not stop the watch over memory for ever: the thread is left behind, the loop goes on.
        match tokio::time::timeout(CLEANUP, work).await {
            Ok(Ok(seen)) => Some(seen),
            _ => {
                tracing::warn!("the node's file systems do not answer; nothing is evicted meanwhile");
                None
            }
        }
    }

    /// One round. Gives the uid of the pod that it ordered to end.
    async fn look(&mut self) -> Option<String> {
        if self.asked.elapsed() >= ASK {
            self.places = FileSystems::ask(&self.shared).await;
            self.asked = Instant::now();
        }
        let disks = self.places.disks();
        let all = with_containers(&self.configured, disks.images_apart && disks.split);
        let measured = Instant::now();
        let seen = self.measure().await?;
        let transition = self.shared.config.eviction_pressure_transition_period.0;
        let urgent = self.state.look(&all, &seen, transition, Instant::now());
        self.report(&seen);
        if self.shared.config.local_storage_capacity_isolation
            && let Some(uid) = self.over_limits().await
        {
            return Some(uid);
        }
        let threshold = *urgent.first()?;
        let signal = threshold.signal;
        tracing::warn!(
            signal = signal.name(),
            available = seen.get(&signal).map(|o| o.available),
            "eviction threshold met"
        );
        self.shared.events.node(
            &self.shared.node_name,
            true,
            "EvictionThresholdMet",
            format!("Attempting to reclaim {}", signal.resource()),
        );
        if self.reclaim(signal, disks).await {
            return None;
        }
        let evicted = self.evict(&threshold, &seen, disks).await;
        if evicted.is_some() {
            own::EVICTION_AGE.observe(&[("eviction_signal", signal.name())], measured.elapsed());
        }
        evicted
    }

    fn report(&self, seen: &Observations) {
        for (condition, bad) in self.shared.pressure.set(self.state.conditions()) {
            let name = &self.shared.node_name;
            let text = format!("Node {name} status is now: {}", condition.event(bad));
            self.shared.events.node(name, bad, condition.event(bad), text);
            tracing::info!(condition = condition.name(), bad, ?seen, "pressure changed");
        }
    }

    /// Pods that may be ended: begun, not over, not being ended already.
    fn active(&self) -> Vec<Arc<Pod>> {
        let over = |uid: &str| {
            let status = self.shared.statuses.get(uid);
            status.and_then(|s| s.phase).is_some_and(|p| p == "Failed" || p == "Succeeded")
        };
        let mut pods = self.pods.list();
        pods.retain(|p| !over(pod::uid(p)) && self.shared.kills.get(pod::uid(p)).is_none());
        pods
    }

    /// Ends one pod that takes more disk than its own limits allow.
    async fn over_limits(&self) -> Option<String> {
        let limited: Vec<Arc<Pod>> = self.active().into_iter().filter(|p| limits::limited(p)).collect();
        if limited.is_empty() {
            return None;
        }
        let layers = Layers::ask(&self.shared).await;
        let shared = self.shared.clone();
        let find = tokio::task::spawn_blocking(move || {
            limited.into_iter().find_map(|pod| {
                let why = limits::exceeded(&pod, &measure::storage(&shared, &pod, &layers))?;
                (!super::is_critical(&pod)).then_some((pod, why))
            })
        });
        let (pod, why) = find.await.ok()??;
        self.kill(&pod, IMMEDIATE, why, None);
        Some(pod::uid(&pod).to_owned())
    }

    /// Frees what no pod needs; tells whether that was enough.
    async fn reclaim(&self, signal: Signal, disks: Disks) -> bool {
        let (containers, images) = match signal {
            Signal::Memory | Signal::AllocatableMemory | Signal::Pid => return false,
            _ if !disks.images_apart => (true, true),
            Signal::NodeFs | Signal::NodeFsInodes if disks.split => (true, false),
            Signal::NodeFs | Signal::NodeFsInodes => return false,
            Signal::ImageFs | Signal::ImageFsInodes if disks.split => (false, true),
            _ => (true, !disks.split),
        };
        let mut freed = containers && crate::gc::remove_dead(&self.shared, &self.pods).await > 0;
        freed |= images && self.images.remove_unused(&self.shared, &self.pods).await > 0;
        // Runtimes may delete files behind their answer: a pod must not end for what is just being freed.
        let end = Instant::now() + FREED;
        loop {
            let Some(seen) = self.measure().await else { return false };
            if self.state.relieved(&seen) {
                tracing::info!(signal = signal.name(), "enough was freed without ending a pod");
                return true;
            }
            if !freed || Instant::now() > end {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn evict(&self, threshold: &Threshold, seen: &Observations, disks: Disks) -> Option<String> {
        let signal = threshold.signal;
        let pods = self.active();
        let layers = Layers::ask(&self.shared).await;
        let (shared, known, list) = (self.shared.clone(), layers.clone(), pods.clone());
        let measured = tokio::task::spawn_blocking(move || {
            list.iter().map(|pod| measure::pod_use(&shared, pod, signal, &known)).collect::<Vec<_>>()
        });
        let mut order = measured.await.ok()?;
        rank(&mut order, signal, disks);
        let by_uid = |uid: &str| pods.iter().find(|p| pod::uid(p) == uid);
        for candidate in &order {
            let Some(pod) = by_uid(&candidate.uid) else { continue };
            if super::is_critical(pod) {
                tracing::warn!(pod = %pod::key(pod), "critical pod not evicted");
                continue;
            }
            let taken = layers.taken(&pod::log_dir(&self.shared.facts.log_root, pod), &candidate.uid);
            let why = message::evicted(pod, threshold, seen, &taken);
            let grace = if threshold.hard() {
                IMMEDIATE
            } else {
                let own = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
                let most = i64::from(self.shared.config.eviction_max_pod_grace_period);
                // A negative maximum leaves each pod its own period.
                own.filter(|own| most < 0 || *own < most).unwrap_or(if most < 0 { pod::grace(pod) } else { most })
            };
            self.kill(pod, grace, why, Some("TerminationByKubelet"));
            own::EVICTIONS.count(&[("eviction_signal", signal.name())]);
            return Some(candidate.uid.clone());
        }
        tracing::error!(signal = signal.name(), "no pod is left that could be evicted");
        None
    }

    fn kill(&self, pod: &Pod, grace: i64, message: String, disruption: Option<&'static str>) {
        self.shared.events.pod(pod, None, true, "Evicted", message.clone());
        self.shared
            .kills
            .order(pod::uid(pod), Kill { reason: "Evicted".to_owned(), message, grace: Some(grace), disruption });
    }
}
