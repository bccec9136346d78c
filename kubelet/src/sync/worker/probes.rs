//! Probes of a pod's containers: begun when a container runs, ended with it.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::Worker;
use crate::pod;
use crate::probe::{self, Kind, Report};
use crate::sync::observe::{Observed, Seen, State};
use crate::sync::results::Verdict;

impl Worker {
    /// Starts probes of containers that run, and ends those of others. A pod that is `ending` keeps the probes of its
    /// readiness alone: who sends to it shall know, but nobody restarts it any more.
    pub(super) fn tend_probes(&mut self, pod: &Arc<Pod>, observed: &Observed, ending: bool) {
        let running: HashMap<&str, &Seen> =
            observed.containers.iter().filter(|c| c.state == State::Running).map(|c| (c.id.as_str(), c)).collect();
        self.probes.retain(|(id, kind), task| {
            let keep = running.contains_key(id.as_str()) && goes_on(*kind, ending);
            if !keep {
                task.abort();
            }
            keep
        });
        self.results.keep(|id| running.contains_key(id));
        if ending {
            self.results.save(&self.shared.volumes.layout().pod(pod::uid(pod)));
            return;
        }
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
                    pod: (pod::namespace(pod).to_owned(), pod::name(pod).to_owned(), pod::uid(pod).to_owned()),
                    container: probe::Target::part(spec, kind),
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

    pub(super) fn note(&mut self, report: &Report) {
        self.results.note(report);
        if report.kind == Kind::Startup {
            self.probes.remove(&(report.id.clone(), Kind::Startup));
        }
        let uid = pod::uid(&self.desired.borrow().pod).to_owned();
        self.results.save(&self.shared.volumes.layout().pod(&uid));
    }
}

/// Whether probes of a kind go on while their pod ends.
fn goes_on(kind: Kind, ending: bool) -> bool {
    !ending || kind == Kind::Readiness
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_pod_is_probed_for_its_readiness_only() {
        let left = |ending: bool| Kind::ALL.into_iter().filter(|k| goes_on(*k, ending)).collect::<Vec<_>>();
        assert_eq!(left(false), Kind::ALL);
        assert_eq!(left(true), [Kind::Readiness]);
    }
}
