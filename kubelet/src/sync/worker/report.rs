//! What a pod's status and events say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Worker;
use crate::pod;
use crate::status::derive::{Circumstances, derive};
use crate::status::message::termination_message;
use crate::sync::actions::{Plan, may_restart_all};
use crate::sync::observe::{Observed, State};
use crate::sync::resize;

/// Conditions that are the kubelet's own.
const OWN: [&str; 6] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled", "AllContainersRestarting"];

impl Worker {
    /// Says why containers wait.
    pub(super) fn explain(&mut self, pod: &Pod, plan: &Plan, observed: &Observed) {
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

    pub(super) async fn publish(
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
            anew: std::mem::take(&mut self.anew),
            restarting: may_restart_all(pod).then_some(self.restarting && !terminating),
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
            // Not before it is over, as upstream: its containers may take their time.
            && observed.alive().next().is_none()
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
        let mut status = derive(pod, observed, &with, &before, now);
        let has = |id: &str| self.has(observed, id);
        resize::tell(&mut status, pod, has, self.refused.as_ref(), self.resizing.as_deref(), now);
        let phase = status.phase.clone().unwrap_or_default();
        if self.shared.statuses.set(pod, status) {
            tracing::debug!(pod = %pod::key(pod), phase, "status changed");
        }
    }
}

fn short(wait: Duration) -> String {
    let s = wait.as_secs();
    if s >= 60 { format!("{}m{}s", s / 60, s % 60) } else { format!("{s}s") }
}
