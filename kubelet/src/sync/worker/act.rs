//! One action after the other, as `actions` decided; what fails waits and is tried again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kubelet_managers::Refusal;

use super::{RETRY, SHOW, Worker};
use crate::metrics::own;
use crate::pod;
use crate::sync::actions::Action;
use crate::sync::observe::Observed;
use crate::sync::{backoff, start, stop};

/// What an action came to.
pub(super) enum Acted {
    /// Look again at once.
    Yes,
    /// Look again then.
    Later(Timestamp),
}

impl Worker {
    pub(super) async fn act(&mut self, pod: &Arc<Pod>, observed: &Observed, action: Action, now: Timestamp) -> Acted {
        let shared = self.shared.clone();
        match action {
            Action::CreateSandbox { attempt } => {
                if let Some(at) = self.waits.waiting("sandbox", now) {
                    return Acted::Later(at);
                }
                let start = Instant::now();
                let placed = shared.managers.admit(pod).await;
                own::TOPOLOGY_ASKED.count(&[]);
                own::TOPOLOGY_MILLIS.add(&[], start.elapsed().as_secs_f64() * 1000.0);
                match placed {
                    Ok(()) => {}
                    Err(Refusal::NotYet(why)) => return self.await_managers(pod, why).await,
                    Err(Refusal::Never(reason, why)) => {
                        if reason == "TopologyAffinityError" {
                            own::TOPOLOGY_REFUSED.count(&[]);
                        }
                        shared.events.pod(pod, None, true, reason, why.clone());
                        self.failed = Some((reason.to_owned(), format!("Pod was rejected: {why}")));
                        return Acted::Yes;
                    }
                }
                let started = start::sandbox(&shared, pod, attempt).await;
                self.tell_of_volumes(pod);
                match started {
                    Ok(()) => {
                        self.waits.succeeded("sandbox");
                        self.errors.clear();
                        self.refreshed = Instant::now();
                        Acted::Yes
                    }
                    Err(e) => {
                        own::POD_ERRORS.count(&[]);
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
            Action::Halt => {
                let stopped = stop::halt(&shared, pod, observed, self.grace(pod)).await;
                self.done(pod, stopped, "stop all containers")
            }
            Action::StopPod => {
                let stopped = stop::everything(&shared, pod, observed, self.grace(pod)).await;
                self.done(pod, stopped, "stop pod")
            }
        }
    }

    /// Waits for a device plugin: it registers again after the kubelet or the node has begun anew.
    pub(super) async fn await_managers(&mut self, pod: &Pod, why: String) -> Acted {
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

    pub(super) fn done(&self, pod: &Pod, result: Result<(), String>, what: &str) -> Acted {
        match result {
            Ok(()) => Acted::Yes,
            Err(e) => {
                tracing::warn!(pod = %pod::key(pod), error = %e, "{what} failed, will try again");
                Acted::Later(backoff::after(Timestamp::now(), Duration::from_secs(2)))
            }
        }
    }

    pub(super) async fn start(
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
                own::container_failed(pod, name, e.reason);
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
}
