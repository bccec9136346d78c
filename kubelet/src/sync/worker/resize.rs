//! Carries out what `sync/resize.rs` decides: first on disk, then in the pod's control group and its containers.

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};

use super::Worker;
use crate::pod;
use crate::resources::qos::{self, Qos};
use crate::sync::observe::Observed;
use crate::sync::resize::{Given, Refused, behind, needs_restart};
use crate::sync::stop;

impl Worker {
    fn own_folder(&self, pod: &Pod) -> PathBuf {
        self.shared.volumes.layout().pod(pod::uid(pod))
    }

    /// The pod with what it was given; gives it what it asks for, if it may have that.
    pub(super) fn given(&mut self, pod: &Arc<Pod>) -> Arc<Pod> {
        let folder = self.own_folder(pod);
        let Some(given) = &self.given else {
            // What it asked for when it was admitted.
            let all = Given::all_of(pod);
            if folder.exists() {
                if let Err(e) = all.save(&folder) {
                    tracing::warn!(pod = %pod::key(pod), error = %e, "what the pod was given is not on disk");
                }
                self.given = Some(all);
            }
            self.shared.allocations.set(pod);
            return pod.clone();
        };
        if !given.differs(pod) {
            self.refused = None;
            self.shared.allocations.set(pod);
            return pod.clone();
        }
        let (all, applied, pod_applied) = (Given::all_of(pod), given.applied.clone(), given.pod_applied.clone());
        let answer = self.may_have(pod);
        let key = pod::key(pod);
        if let Err(refused) = answer {
            if self.refused.as_ref() != Some(&refused) {
                let text = format!("resize of the pod is {}: {}", refused.reason.to_lowercase(), refused.message);
                let reason = if refused.reason == "Deferred" { "ResizeDeferred" } else { "ResizeInfeasible" };
                self.shared.events.pod(pod, None, true, reason, text);
                self.refused = Some(refused);
            }
            let old = given.instead(pod);
            self.shared.allocations.set(&old);
            return old;
        }
        let new = Given { applied, pod_applied, ..all };
        if let Err(e) = new.save(&folder) {
            tracing::warn!(pod = %key, error = %e, "the pod is not resized: what it is given cannot be written");
            return given.instead(pod);
        }
        self.shared.events.pod(pod, None, false, "ResizeStarted", "resize of the pod has begun".to_owned());
        (self.given, self.refused, self.resizing) = (Some(new), None, Some(String::new()));
        pod.clone()
    }

    fn may_have(&self, pod: &Arc<Pod>) -> Result<(), Refused> {
        let never = |message: &str| Err(Refused { reason: "Infeasible", message: message.to_owned() });
        let config = &self.shared.config;
        if pod::is_static(pod) {
            return never("In-place resize of static-pods is not supported");
        }
        if qos::class(pod) == Qos::Guaranteed {
            if config.cpu_manager_policy == "static" {
                return never("Resize is infeasible for Guaranteed Pods alongside CPU Manager static policy");
            }
            if config.memory_manager_policy == "Static" {
                return never("Resize is infeasible for Guaranteed Pods alongside Memory Manager static policy");
            }
        }
        let node = &self.shared.allocatable;
        self.shared.allocations.ask(pod, &[("cpu", node.cpu_milli), ("memory", node.memory_bytes)])
    }

    /// What a container runs with, as far as that is known.
    pub(super) fn has(&self, observed: &Observed, id: &str) -> Option<ResourceRequirements> {
        if let Some(changed) = self.given.as_ref().and_then(|g| g.applied.get(id)) {
            return Some(changed.clone());
        }
        let seen = observed.containers.iter().find(|c| c.id == id)?;
        serde_json::from_str(&seen.resources).ok()
    }

    /// Brings running containers to what they were given. Tells whether one was stopped for it, to begin anew.
    pub(super) async fn apply(&mut self, pod: &Arc<Pod>, observed: &Observed) -> bool {
        let late: Vec<_> = behind(pod, observed, |id| self.has(observed, id))
            .map(|(id, container, now)| (id.to_owned(), container.clone(), now))
            .collect();
        if late.is_empty() {
            if self.given.as_ref().is_some_and(Given::group_behind)
                && let Err(e) = self.resize_whole(pod).await
            {
                let failed = format!("the pod's control group: {e}");
                if self.resizing.as_ref() != Some(&failed) {
                    self.shared.events.pod(pod, None, true, "ResizeError", failed.clone());
                }
                self.resizing = Some(failed);
                return false;
            }
            if self.resizing.take().is_some() {
                let text = "resize of the pod is complete".to_owned();
                self.shared.events.pod(pod, None, false, "ResizeCompleted", text);
            }
            return false;
        }
        let mut stopped = false;
        // Room is made above before it is used below; what shrinks does so below first, and then a second time above.
        let _ = self.resize_group(pod).await;
        let mut failed = String::new();
        for (id, container, now) in late {
            let wanted = container.resources.clone().unwrap_or_default();
            if needs_restart(&container, &now, &wanted) {
                let Some(seen) = observed.containers.iter().find(|c| c.id == id) else { continue };
                let ip = observed.ready_sandbox().and_then(|s| s.ips.first().cloned()).unwrap_or_default();
                let text = format!("Container {} resize requires restart", container.name);
                match stop::container(&self.shared, pod, seen, &ip, pod::grace(pod), text).await {
                    Ok(()) => stopped = true,
                    Err(e) => failed = format!("stop container {}: {e}", container.name),
                }
                continue;
            }
            let resources = pod::updated_resources(pod, &container, &self.shared.facts);
            match self.shared.cri.update_resources(&id, resources).await {
                Ok(()) => {
                    let folder = self.own_folder(pod);
                    if let Some(given) = &mut self.given {
                        given.applied.retain(|of, _| observed.containers.iter().any(|c| c.id == *of));
                        given.applied.insert(id, wanted);
                        if let Err(e) = given.save(&folder) {
                            tracing::warn!(pod = %pod::key(pod), error = %e, "what a container has is not on disk");
                        }
                    }
                }
                Err(e) => failed = format!("container {}: {e}", container.name),
            }
        }
        if let Err(e) = self.resize_whole(pod).await {
            failed = format!("the pod's control group: {e}");
        }
        if !failed.is_empty() && self.resizing.as_ref() != Some(&failed) {
            self.shared.events.pod(pod, None, true, "ResizeError", failed.clone());
        }
        self.resizing = Some(failed);
        stopped
    }

    /// Brings the pod's control group to what the pod was given, and notes that.
    async fn resize_whole(&mut self, pod: &Arc<Pod>) -> Result<(), String> {
        self.resize_group(pod).await?;
        let folder = self.own_folder(pod);
        if let Some(given) = self.given.as_mut().filter(|g| g.group_behind()) {
            given.pod_applied.clone_from(&given.pod);
            given.save(&folder).map_err(|e| format!("note it in {}: {e}", folder.display()))?;
        }
        Ok(())
    }

    async fn resize_group(&self, pod: &Arc<Pod>) -> Result<(), String> {
        let (groups, owned) = (self.shared.cgroups.clone(), pod.clone());
        let own_cpus = self.shared.managers.has_cpus(pod::uid(pod));
        let made = tokio::task::spawn_blocking(move || groups.create(&owned, own_cpus)).await;
        made.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }
}
