//! Sends statuses to the apiserver until they have arrived, and deletes pods that have ended.
//!
//! Workers only leave the newest status here and go on; a slow apiserver delays no pod.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::metrics::own;
use crate::pod;
use crate::sync::resize::{IN_PROGRESS, PENDING};

const LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Entry {
    pod: Arc<Pod>,
    status: PodStatus,
    /// Counts changes, so that one made while a patch is under way is not lost.
    version: u64,
    sent: u64,
    /// Conditions that come and go and that it once had: the apiserver may have them still.
    told: BTreeSet<&'static str>,
    /// Since when something is not sent.
    since: Option<Instant>,
    /// The pod is stopped and freed: delete it once its status has arrived.
    delete: bool,
}

/// The statuses of all pods by uid.
pub(crate) struct Statuses {
    client: Option<kube::Client>,
    entries: Mutex<HashMap<String, Entry>>,
    changed: Notify,
    /// Rings when statuses have arrived.
    arrived: Notify,
}

impl Statuses {
    /// Without a client the statuses are only kept.
    pub(crate) fn new(client: Option<kube::Client>) -> Self {
        Self { client, entries: Mutex::default(), changed: Notify::new(), arrived: Notify::new() }
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a status; tells whether it is new.
    pub(crate) fn set(&self, pod: &Arc<Pod>, status: PodStatus) -> bool {
        let mut entries = self.entries();
        let entry = entries.entry(pod::uid(pod).to_owned()).or_insert_with(|| Entry {
            pod: pod.clone(),
            status: pod.status.clone().unwrap_or_default(),
            version: 0,
            sent: 0,
            told: BTreeSet::new(),
            since: None,
            delete: false,
        });
        entry.pod = pod.clone();
        if entry.status == status {
            return false;
        }
        own::pod_changed(pod, (entry.version > 0).then_some(&entry.status), &status);
        entry.told.extend(PASSING.into_iter().filter(|type_| has(&status, type_)));
        entry.status = status;
        entry.version += 1;
        entry.since.get_or_insert_with(Instant::now);
        drop(entries);
        self.changed.notify_one();
        true
    }

    /// The newest status.
    pub(crate) fn get(&self, uid: &str) -> Option<PodStatus> {
        self.entries().get(uid).map(|e| e.status.clone())
    }

    /// Sends the status again although it is the same (a mirror pod was made anew).
    pub(crate) fn resend(&self, uid: &str) {
        if let Some(entry) = self.entries().get_mut(uid) {
            entry.version += 1;
        }
        self.changed.notify_one();
    }

    /// The pod is stopped and holds nothing more: deletes it from the apiserver.
    pub(crate) fn delete(&self, uid: &str) {
        if let Some(entry) = self.entries().get_mut(uid) {
            entry.delete = true;
            entry.version += 1;
        }
        self.changed.notify_one();
    }

    /// Forgets a pod.
    pub(crate) fn forget(&self, uid: &str) {
        if let Some(entry) = self.entries().remove(uid) {
            own::forget(&entry.pod);
        }
    }

    /// Waits until all statuses have arrived at the apiserver; tells whether that came true within `limit`.
    pub(crate) async fn settled(&self, limit: Duration) -> bool {
        let wait = async {
            loop {
                let arrived = self.arrived.notified();
                tokio::pin!(arrived);
                // Listening begins before the look, so that nothing is missed in between.
                arrived.as_mut().enable();
                if self.client.is_none() || self.entries().values().all(|e| e.sent >= e.version) {
                    return;
                }
                arrived.await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }

    /// Sends what is new, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        let Some(client) = self.client.clone() else { return };
        loop {
            let dirty: Vec<(String, Entry)> = self
                .entries()
                .iter()
                .filter(|(_, e)| e.version > e.sent)
                .map(|(u, e)| (u.clone(), e.clone()))
                .collect();
            let failed = futures::stream::iter(dirty)
                .map(|(uid, entry)| {
                    let (client, this) = (client.clone(), self.clone());
                    async move {
                        let sent = tokio::time::timeout(LIMIT, send(&client, &entry)).await;
                        let why = match sent {
                            Ok(Ok(gone)) => {
                                let mut entries = this.entries();
                                if let Some(since) = entries.get_mut(&uid).and_then(|e| e.since.take()) {
                                    own::STATUS_SYNC.observe(&[], since.elapsed());
                                }
                                if gone && entry.delete {
                                    entries.remove(&uid);
                                } else if let Some(now) = entries.get_mut(&uid) {
                                    now.sent = now.sent.max(entry.version);
                                }
                                return false;
                            }
                            Ok(Err(e)) => e.to_string(),
                            Err(_) => "no answer in time".to_owned(),
                        };
                        tracing::warn!(pod = %pod::key(&entry.pod), error = %why, "pod status not sent, will try again");
                        true
                    }
                })
                .buffer_unordered(16)
                // All of them: stopping at the first that fails would cut off those at work, again and again.
                .fold(false, |any, failed| async move { any || failed })
                .await;
            self.arrived.notify_waiters();
            if failed {
                tokio::time::sleep(Duration::from_secs(1)).await;
            } else {
                self.changed.notified().await;
            }
        }
    }
}

/// Conditions that a pod has while it is resized.
const PASSING: [&str; 2] = [PENDING, IN_PROGRESS];

fn has(status: &PodStatus, type_: &str) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == type_)
}

/// The patch that brings the apiserver's status to the newest. What a merge would leave standing is taken out by name (pure).
fn patch_of(entry: &Entry) -> Value {
    let mut status = json!(entry.status);
    let own = ["reason", "message", "containerStatuses", "initContainerStatuses", "resources", "allocatedResources"];
    for cleared in own {
        if status.get(cleared).is_none() {
            status[cleared] = Value::Null;
        }
    }
    let before = entry.pod.status.as_ref();
    let over = |type_: &str| {
        (entry.told.contains(type_) || before.is_some_and(|s| has(s, type_))) && !has(&entry.status, type_)
    };
    if let Some(list) = status["conditions"].as_array_mut() {
        for condition in list.iter_mut().filter_map(Value::as_object_mut) {
            for cleared in ["reason", "message"] {
                condition.entry(cleared).or_insert(Value::Null);
            }
        }
        list.extend(
            PASSING.into_iter().filter(|type_| over(type_)).map(|type_| json!({"$patch": "delete", "type": type_})),
        );
    }
    json!({"status": status})
}

/// Patches, and deletes if asked to; tells whether the pod is gone.
async fn send(client: &kube::Client, entry: &Entry) -> Result<bool, kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), pod::namespace(&entry.pod));
    let name = pod::name(&entry.pod);
    // A mirror pod has a uid of its own.
    let uid = if pod::is_static(&entry.pod) { None } else { entry.pod.metadata.uid.clone() };
    let mut patch = patch_of(entry);
    if let Some(uid) = &uid {
        patch["metadata"] = json!({"uid": uid});
    }
    match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
        Ok(_) => {}
        // 409: the name belongs to another pod by now.
        Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => return Ok(true),
        Err(e) => return Err(e),
    }
    if !entry.delete || uid.is_none() {
        return Ok(false);
    }
    let how = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid, resource_version: None }),
        ..Default::default()
    };
    match api.delete(name, &how).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => Ok(true),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_is_taken_out_by_name() {
        let statuses = Statuses::new(None);
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(json!({"metadata": {"uid": "u", "name": "p"}})).unwrap());
        let with = |value: Value| -> PodStatus { serde_json::from_value(json!({"conditions": value})).unwrap() };
        let ready = json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "c"});
        statuses.set(&pod, with(json!([ready, {"type": IN_PROGRESS, "status": "True"}])));
        // Before anybody has read the former back.
        statuses.set(&pod, with(json!([{"type": "Ready", "status": "True"}])));
        let patch = patch_of(&statuses.entries()["u"]);
        let conditions = patch["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions[0], json!({"type": "Ready", "status": "True", "reason": null, "message": null}));
        assert_eq!(conditions[1..], [json!({"$patch": "delete", "type": IN_PROGRESS})]);
        assert!(patch["status"]["resources"].is_null() && patch["status"]["containerStatuses"].is_null());
    }
}
