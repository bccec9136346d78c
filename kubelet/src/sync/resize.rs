//! Resizing a pod in place: what it was given, whether it may have what its spec asks for now, and what its status says
//! about that (pure but for the file).
//!
//! What was given is on disk before anything is changed, so that a kubelet that begins anew neither gives twice nor takes
//! a spec that nobody allowed for what the containers have.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use gantry_files::{Access, Outlives};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodStatus, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

use crate::pod::{self, requests};
use crate::sync::observe::{Observed, State};

/// The condition of a pod that may not have what it asks for, or not yet.
pub(crate) const PENDING: &str = "PodResizePending";
/// The condition of a pod whose containers do not have yet what it was given.
pub(crate) const IN_PROGRESS: &str = "PodResizeInProgress";
const FILE: &str = "resources.json";

/// What a pod was given.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub(crate) struct Given {
    /// By container.
    pub(crate) containers: BTreeMap<String, ResourceRequirements>,
    /// What containers run with that were changed since they were made, by id.
    pub(crate) applied: BTreeMap<String, ResourceRequirements>,
    /// For the pod as a whole; `None` in what an older kubelet wrote.
    #[serde(default)]
    pub(crate) pod: Option<ResourceRequirements>,
    /// What the pod's control group was last set to of that.
    #[serde(default)]
    pub(crate) pod_applied: Option<ResourceRequirements>,
}

/// What a pod asks for as a whole.
fn whole(pod: &Pod) -> ResourceRequirements {
    pod.spec.as_ref().and_then(|s| s.resources.clone()).unwrap_or_default()
}

/// Why a pod does not get what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// `Deferred` or `Infeasible`.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
}

/// What a container runs with, as text for its annotation.
pub(crate) fn text_of(container: &Container) -> String {
    serde_json::to_string(&container.resources.clone().unwrap_or_default()).unwrap_or_default()
}

impl Given {
    /// As on disk; `None` for a pod that was given nothing yet.
    pub(crate) fn load(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()
    }

    /// All that the pod asks for.
    pub(crate) fn all_of(pod: &Pod) -> Self {
        let own = |c: &Container| (c.name.clone(), c.resources.clone().unwrap_or_default());
        Self {
            containers: pod::all_containers(pod).map(own).collect(),
            applied: BTreeMap::new(),
            pod: Some(whole(pod)),
            pod_applied: Some(whole(pod)),
        }
    }

    /// Writes it whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn save(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        gantry_files::replace(&folder.join(FILE), &serde_json::to_vec(self)?, Access::Umask, Outlives::Crash)
    }

    /// The pod with what it was given instead of what it asks for.
    pub(crate) fn instead(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        if !self.differs(pod) {
            return pod.clone();
        }
        let mut out = (**pod).clone();
        if let Some(spec) = &mut out.spec {
            if let Some(given) = &self.pod {
                spec.resources = Some(given.clone()).filter(|r| *r != ResourceRequirements::default());
            }
            for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
                if let Some(given) = self.containers.get(&container.name) {
                    container.resources = Some(given.clone());
                }
            }
        }
        Arc::new(out)
    }

    /// Whether the pod asks for something else.
    pub(crate) fn differs(&self, pod: &Pod) -> bool {
        self.pod.as_ref().is_some_and(|given| *given != whole(pod))
            || pod::all_containers(pod).any(|c| {
                let empty = ResourceRequirements::default();
                self.containers.get(&c.name).is_some_and(|g| g != c.resources.as_ref().unwrap_or(&empty))
            })
    }

    /// Whether the pod's control group is not yet what the pod was given as a whole.
    pub(crate) fn group_behind(&self) -> bool {
        self.pod != self.pod_applied
    }
}

/// What all pods of the node were given: who asks for more is compared with the others.
#[derive(Debug, Default)]
pub(crate) struct Allocations(Mutex<BTreeMap<String, Arc<Pod>>>);

impl Allocations {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Pod>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod with what it was given.
    pub(crate) fn get(&self, uid: &str) -> Option<Arc<Pod>> {
        self.lock().get(uid).cloned()
    }

    /// Notes what a pod has.
    pub(crate) fn set(&self, pod: &Arc<Pod>) {
        self.lock().insert(pod::uid(pod).to_owned(), pod.clone());
    }

    /// A pod that is gone, or that has ended.
    pub(crate) fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Gives a pod what it asks for, if the node has that beside the other pods: one pod at a time is looked at.
    ///
    /// # Errors
    /// Why it does not get it.
    pub(crate) fn ask(&self, pod: &Arc<Pod>, node: &[(&str, i64)]) -> Result<(), Refused> {
        let mut all = self.lock();
        let uid = pod::uid(pod);
        let others: Vec<&Pod> = all.iter().filter(|(of, _)| *of != uid).map(|(_, p)| &**p).collect();
        fits(pod, &others, node)?;
        all.insert(uid.to_owned(), pod.clone());
        Ok(())
    }
}

/// Whether a pod fits beside the others.
fn fits(pod: &Pod, others: &[&Pod], node: &[(&str, i64)]) -> Result<(), Refused> {
    let wanted = requests(pod);
    let of = |name: &str| wanted.get(name).copied().unwrap_or(0);
    for (name, capacity) in node {
        if of(name) > *capacity {
            return Err(Refused {
                reason: "Infeasible",
                message: format!(
                    "Node didn't have enough capacity: {name}, requested: {}, capacity: {capacity}",
                    of(name)
                ),
            });
        }
    }
    for (name, capacity) in node {
        let used: i64 = others.iter().map(|other| requests(other).get(*name).copied().unwrap_or(0)).sum();
        if of(name) > capacity - used {
            return Err(Refused {
                reason: "Deferred",
                message: format!(
                    "Node didn't have enough resource: {name}, requested: {}, used: {used}, capacity: {capacity}",
                    of(name)
                ),
            });
        }
    }
    Ok(())
}

/// Whether a container has to begin anew to get `wanted` instead of `now`.
pub(crate) fn needs_restart(container: &Container, now: &ResourceRequirements, wanted: &ResourceRequirements) -> bool {
    let of = |r: &ResourceRequirements, name: &str| {
        let pick = |m: &Option<BTreeMap<String, _>>| m.as_ref().and_then(|m| m.get(name).cloned());
        (pick(&r.requests), pick(&r.limits))
    };
    container.resize_policy.iter().flatten().any(|policy| {
        policy.restart_policy == "RestartContainer"
            && of(now, &policy.resource_name) != of(wanted, &policy.resource_name)
    })
}

/// Puts what the containers have, and how the resize goes, into a status.
pub(crate) fn tell(
    status: &mut PodStatus,
    pod: &Pod,
    has: impl Fn(&str) -> Option<ResourceRequirements>,
    refused: Option<&Refused>,
    under_way: Option<&str>,
    now: Timestamp,
) {
    let lists = [&mut status.container_statuses, &mut status.init_container_statuses];
    for own in lists.into_iter().flatten().flatten() {
        let running = own.state.as_ref().is_some_and(|s| s.running.is_some());
        let id = own.container_id.as_deref().and_then(|id| id.rsplit('/').next()).unwrap_or_default();
        own.resources = has(id).filter(|_| running).map(|mut r| {
            r.claims = None;
            r
        });
        let given = pod::all_containers(pod).find(|c| c.name == own.name).and_then(|c| c.resources.as_ref());
        own.allocated_resources = given.and_then(|r| r.requests.clone()).filter(|r| !r.is_empty());
    }
    // Told of the pod as a whole where it asks for something as a whole.
    let own = pod.spec.as_ref().and_then(|s| s.resources.clone());
    status.allocated_resources = own.as_ref().and_then(|r| r.requests.clone()).filter(|r| !r.is_empty());
    status.resources = own.filter(|_| !status.container_statuses.iter().flatten().all(|s| s.container_id.is_none()));
    let conditions = status.conditions.get_or_insert_default();
    let refusal = refused.map(|r| (PENDING, Some(r.reason.to_owned()), Some(r.message.clone())));
    let progress = under_way.map(|why| {
        let failed = (!why.is_empty()).then(|| ("Error".to_owned(), why.to_owned())).unzip();
        (IN_PROGRESS, failed.0, failed.1)
    });
    for type_ in [PENDING, IN_PROGRESS] {
        let new = refusal.iter().chain(&progress).find(|(t, _, _)| *t == type_);
        let Some((_, reason, message)) = new else {
            conditions.retain(|c| c.type_ != type_);
            continue;
        };
        let at = match conditions.iter().position(|c| c.type_ == type_) {
            Some(at) => at,
            None => {
                conditions.push(PodCondition {
                    type_: type_.to_owned(),
                    status: "True".to_owned(),
                    last_transition_time: Some(Time(Timestamp::from_second(now.as_second()).unwrap_or(now))),
                    ..Default::default()
                });
                conditions.len() - 1
            }
        };
        (conditions[at].reason, conditions[at].message) = (reason.clone(), message.clone());
        conditions[at].observed_generation = pod.metadata.generation;
    }
}

/// Containers that run with something else than they were given: id, name.
pub(crate) fn behind<'a>(
    pod: &'a Pod,
    observed: &'a Observed,
    has: impl Fn(&str) -> Option<ResourceRequirements> + 'a,
) -> impl Iterator<Item = (&'a str, &'a Container, ResourceRequirements)> {
    observed.containers.iter().filter(|c| c.state == State::Running).filter_map(move |seen| {
        let container = pod::all_containers(pod).find(|c| c.name == seen.name)?;
        let now = has(&seen.id)?;
        (now != container.resources.clone().unwrap_or_default()).then_some((seen.id.as_str(), container, now))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, cpu: &str) -> Arc<Pod> {
        let resources = json!({"requests": {"cpu": cpu, "memory": "1Mi"}});
        let value = json!({"metadata": {"name": uid, "uid": uid}, "spec": {"containers": [{"name": "c", "resources": resources}]}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn a_pod_gets_more_only_while_the_node_has_it() {
        let node = [("cpu", 2000), ("memory", 1 << 30)];
        let all = Allocations::default();
        all.set(&pod("a", "500m"));
        all.set(&pod("b", "1"));
        assert_eq!(all.ask(&pod("a", "1"), &node), Ok(()));
        let refused = all.ask(&pod("b", "1500m"), &node).unwrap_err();
        assert_eq!(refused.reason, "Deferred");
        assert!(refused.message.contains("requested: 1500, used: 1000, capacity: 2000"), "{}", refused.message);
        assert_eq!(all.ask(&pod("b", "3"), &node).unwrap_err().reason, "Infeasible");
        assert_eq!(requests(&all.get("b").unwrap())["cpu"], 1000, "a refusal takes nothing");
        all.forget("a");
        assert_eq!(all.ask(&pod("b", "1500m"), &node), Ok(()));
    }

    #[test]
    fn what_was_given_counts_until_more_is_given() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Given::load(dir.path()).is_none());
        let given = Given::all_of(&pod("a", "500m"));
        given.save(dir.path()).unwrap();
        let given = Given::load(dir.path()).unwrap();
        let wanted = pod("a", "1");
        assert!(given.differs(&wanted) && !given.differs(&pod("a", "500m")));
        assert_eq!(requests(&given.instead(&wanted))["cpu"], 500);
        // What an older kubelet wrote says nothing of the pod as a whole.
        std::fs::write(dir.path().join(FILE), r#"{"containers": {}, "applied": {}}"#).unwrap();
        let old = Given::load(dir.path()).unwrap();
        assert!(!old.differs(&wanted) && !old.group_behind());
    }

    #[test]
    fn a_pod_as_a_whole_is_given_and_told_what_it_asks_for() {
        let with = |cpu: &str| {
            let mut pod = (*pod("a", "500m")).clone();
            pod.spec.as_mut().unwrap().resources =
                Some(serde_json::from_value(json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu}})).unwrap());
            Arc::new(pod)
        };
        let mut given = Given::all_of(&with("1"));
        assert!(given.differs(&with("2")) && !given.differs(&with("1")) && !given.group_behind());
        assert_eq!(requests(&given.instead(&with("2")))["cpu"], 1000);
        given = Given { pod_applied: given.pod_applied, ..Given::all_of(&with("2")) };
        assert!(given.group_behind());
        let id =
            json!({"name": "c", "containerID": "x://i", "image": "", "imageID": "", "ready": true, "restartCount": 0});
        let mut status: PodStatus = serde_json::from_value(json!({"containerStatuses": [id]})).unwrap();
        tell(&mut status, &with("2"), |_| None, None, None, Timestamp::UNIX_EPOCH);
        let told = |s: &PodStatus| serde_json::to_value(s).unwrap();
        assert_eq!(told(&status)["resources"]["limits"]["cpu"], "2");
        assert_eq!(told(&status)["allocatedResources"]["cpu"], "2");
        tell(&mut status, &pod("a", "1"), |_| None, None, None, Timestamp::UNIX_EPOCH);
        assert!(status.resources.is_none() && status.allocated_resources.is_none());
    }

    #[test]
    fn only_a_changed_resource_restarts_its_container() {
        let container: Container = serde_json::from_value(json!({"name": "c", "resizePolicy": [
            {"resourceName": "cpu", "restartPolicy": "NotRequired"},
            {"resourceName": "memory", "restartPolicy": "RestartContainer"},
        ]}))
        .unwrap();
        let of = |cpu: &str, memory: &str| -> ResourceRequirements {
            serde_json::from_value(json!({"limits": {"cpu": cpu, "memory": memory}})).unwrap()
        };
        assert!(!needs_restart(&container, &of("1", "1Mi"), &of("2", "1Mi")));
        assert!(needs_restart(&container, &of("1", "1Mi"), &of("1", "2Mi")));
    }

    #[test]
    fn conditions_come_and_go_with_their_causes() {
        let mut status = PodStatus::default();
        let refused = Refused { reason: "Deferred", message: "later".into() };
        let now = Timestamp::UNIX_EPOCH;
        let kinds = |s: &PodStatus| {
            let all = s.conditions.iter().flatten();
            all.map(|c| (c.type_.clone(), c.reason.clone().unwrap_or_default())).collect::<Vec<_>>()
        };
        tell(&mut status, &pod("a", "1"), |_| None, Some(&refused), None, now);
        assert_eq!(kinds(&status), [(PENDING.to_owned(), "Deferred".to_owned())]);
        tell(&mut status, &pod("a", "1"), |_| None, None, Some("no"), now);
        assert_eq!(kinds(&status), [(IN_PROGRESS.to_owned(), "Error".to_owned())]);
        tell(&mut status, &pod("a", "1"), |_| None, None, None, now);
        assert!(kinds(&status).is_empty());
    }
}
