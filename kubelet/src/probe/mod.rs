//! Liveness, readiness and startup probes: one task per container and probe, which reports when a threshold is reached.

mod grpc;
mod handler;
mod http;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::sync::mpsc;

use handler::Outcome;
pub(crate) use http::http_get;

use crate::pod::probe_numbers;
use crate::shared::Shared;

/// How probes call themselves.
const AGENT: &str = "kube-probe/1.36";

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Has it started up? Others wait for it.
    Startup,
    /// Shall it live on?
    Liveness,
    /// May it have traffic?
    Readiness,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    /// In the words of statuses and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// The container's probe of this kind.
    pub(crate) fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// A threshold was reached.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// The container's id.
    pub(crate) id: String,
    /// Which probe.
    pub(crate) kind: Kind,
    /// Which threshold.
    pub(crate) success: bool,
}

/// What a task probes.
pub(crate) struct Target {
    /// The pod's namespace, name and uid. Not the pod itself: as long as one is probed there would be an old copy of it.
    pub(crate) pod: (String, String, String),
    /// What the probe needs of the container: its name, its ports and the probe.
    pub(crate) container: Container,
    /// Its id.
    pub(crate) id: String,
    /// Which probe.
    pub(crate) kind: Kind,
    /// The pod's address.
    pub(crate) ip: String,
    /// When the container was started.
    pub(crate) started_at: Timestamp,
    /// What was known before (after a restart of the kubelet).
    pub(crate) before: Option<bool>,
}

impl Target {
    /// The part of a container that a probe needs.
    pub(crate) fn part(container: &Container, kind: Kind) -> Container {
        let probe = |of: Kind| kind.of(container).filter(|_| of == kind).cloned();
        Container {
            name: container.name.clone(),
            ports: container.ports.clone(),
            startup_probe: probe(Kind::Startup),
            liveness_probe: probe(Kind::Liveness),
            readiness_probe: probe(Kind::Readiness),
            ..Container::default()
        }
    }

    fn event(&self, shared: &Shared, reason: &'static str, text: String) {
        // A pod that is gone meanwhile has no events.
        if let Some(pod) = shared.allocations.get(&self.pod.2) {
            shared.events.pod(&pod, Some(&self.container.name), true, reason, text);
        }
    }
}

/// Counts results in a row (pure).
#[derive(Debug)]
struct Counter {
    known: Option<bool>,
    row: (bool, i32),
    success: i32,
    failure: i32,
}

impl Counter {
    /// Takes a result; tells the new state when a threshold is reached and it is not the old one.
    fn take(&mut self, ok: bool) -> Option<bool> {
        self.row = if self.row.0 == ok { (ok, self.row.1.saturating_add(1)) } else { (ok, 1) };
        let enough = if ok { self.success } else { self.failure };
        if self.row.1 < enough || self.known == Some(ok) {
            return None;
        }
        self.known = Some(ok);
        self.known
    }
}

/// A part of the period that differs from container to container (pure).
fn spread(id: &str, period: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    period.mul_f64((hasher.finish() % 1000) as f64 / 1000.0)
}

/// Probes until aborted, or until a startup or liveness probe has decided the container's fate.
pub(crate) async fn run(shared: Arc<Shared>, target: Target, reports: mpsc::Sender<Report>) {
    let Some(probe) = target.kind.of(&target.container).cloned() else { return };
    let (delay, timeout, period, success, failure) = probe_numbers(&probe);
    let mut counter = Counter { known: target.before, row: (true, 0), success, failure };
    let age = Duration::try_from(Timestamp::now().duration_since(target.started_at)).unwrap_or_default();
    tokio::time::sleep(Duration::from_secs(delay).saturating_sub(age)).await;
    if age > Duration::from_secs(period) {
        // The kubelet began anew beside many containers: their probes shall not come all at once.
        tokio::time::sleep(spread(&target.id, Duration::from_secs(period))).await;
    }
    let mut ticks = tokio::time::interval(Duration::from_secs(period));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // In a box that goes when it is done: a request's state is large, and most of the time a probe waits for its turn.
        let probing = Box::pin(handler::probe(&shared, &target, &probe, Duration::from_secs(timeout)));
        let outcome = crate::metrics::timed_probe(&target, probing).await;
        let (ok, output) = match outcome {
            Outcome::Success(warning) => {
                if let Some(text) = warning {
                    let text = format!("{} probe warning: {text}", target.kind.title());
                    target.event(&shared, "ProbeWarning", text);
                }
                (true, String::new())
            }
            Outcome::Failure(output) => (false, output),
            Outcome::Unknown(why) => {
                let text = format!("{} probe errored and resulted in unknown state: {why}", target.kind.title());
                target.event(&shared, "Unhealthy", text);
                continue;
            }
        };
        crate::metrics::probed(&target, ok);
        if !ok {
            let text = format!("{} probe failed: {output}", target.kind.title());
            target.event(&shared, "Unhealthy", text);
        }
        if let Some(success) = counter.take(ok) {
            let report = Report { id: target.id.clone(), kind: target.kind, success };
            if reports.send(report).await.is_err()
                || (target.kind == Kind::Startup)
                || (target.kind == Kind::Liveness && !success)
            {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_results_in_a_row() {
        let mut counter = Counter { known: None, row: (true, 0), success: 2, failure: 3 };
        let got: Vec<_> =
            [true, true, false, false, true, false, false, false, false, true, true].map(|ok| counter.take(ok)).into();
        let mut want = vec![None; 11];
        (want[1], want[7], want[10]) = (Some(true), Some(false), Some(true));
        assert_eq!(got, want);
    }
}
