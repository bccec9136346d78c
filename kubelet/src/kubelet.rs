//! The desired pods of all sources, and one worker for each: the only place that starts and ends workers.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{Id, JoinSet};

use crate::cri::UID_LABEL;
use crate::eviction::{Kill, preempt};
use crate::metrics::own;
use crate::pod::{self, Changed, Rejection};
use crate::shared::Shared;
use crate::sources::{Source, Update, mirror};
use crate::sync::admission::Admission;
use crate::sync::stop;
use crate::sync::worker::{Desired, Worker};

/// Between looks for what belongs to no pod.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// The reason of a pod that has to go for a critical one.
const PREEMPTING: &str = "Preempting";

/// Pods that a new one waits for.
#[derive(Default)]
struct Ends {
    uids: Vec<String>,
    patience: Duration,
}

/// The pods of this node, for whoever wants to read them.
#[derive(Clone, Default)]
pub(crate) struct Pods {
    list: Arc<Mutex<HashMap<String, Arc<Pod>>>>,
    /// Every source has told its pods.
    complete: Arc<watch::Sender<bool>>,
}

impl Pods {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Pod>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether every source has told its pods: until then one that is not in the list may be wanted all the same.
    pub(crate) fn complete(&self) -> bool {
        *self.complete.borrow()
    }

    /// Waits for that.
    pub(crate) async fn completed(&self) {
        // The sender lives as long as this handle, so the wait ends with the word only.
        let _ = self.complete.subscribe().wait_for(|complete| *complete).await;
    }

    /// All of them.
    pub(crate) fn list(&self) -> Vec<Arc<Pod>> {
        self.lock().values().cloned().collect()
    }
}

struct Handle {
    desired: watch::Sender<Desired>,
    poke: Arc<Notify>,
    /// Rung with `poke` when something that its volumes show has changed.
    stale: Arc<AtomicBool>,
    /// It takes nothing of the node, whatever its spec asks for.
    rejected: bool,
}

/// Hands desired pods to workers.
pub(crate) struct Dispatcher {
    shared: Arc<Shared>,
    pods: Pods,
    workers: HashMap<String, Handle>,
    tasks: JoinSet<()>,
    ids: HashMap<Id, String>,
    /// Static pods whose predecessor still runs, by key.
    waiting: HashMap<String, Arc<Pod>>,
    mirrors: HashMap<String, Arc<Pod>>,
    mirroring: Arc<Mutex<HashSet<String>>>,
    heard: HashSet<Source>,
    expected: HashSet<Source>,
    freeing: Arc<Mutex<HashSet<String>>>,
    admission: Admission,
}

impl Dispatcher {
    /// `expected` are the sources that have to be heard before anything is taken for an orphan.
    pub(crate) fn new(shared: Arc<Shared>, pods: Pods, expected: HashSet<Source>, admission: Admission) -> Self {
        Self {
            shared,
            pods,
            workers: HashMap::new(),
            tasks: JoinSet::new(),
            ids: HashMap::new(),
            waiting: HashMap::new(),
            mirrors: HashMap::new(),
            mirroring: Arc::default(),
            heard: HashSet::new(),
            expected,
            freeing: Arc::default(),
            admission,
        }
    }

    /// Works for ever.
    pub(crate) async fn run(
        mut self,
        mut updates: mpsc::Receiver<Update>,
        mut changed: mpsc::Receiver<String>,
        mut objects: mpsc::Receiver<Changed>,
    ) {
        let mut ticks = tokio::time::interval(HOUSEKEEPING);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.shared.beat.turned();
            tokio::select! {
                Some(update) = updates.recv() => self.take(update),
                Some(uid) = changed.recv() => {
                    if let Some(worker) = self.workers.get(&uid) {
                        worker.poke.notify_one();
                    }
                }
                Some(object) = objects.recv() => self.object_changed(&object),
                Some(ended) = self.tasks.join_next_with_id() => {
                    let (id, failed) = match ended {
                        Ok((id, ())) => (id, None),
                        Err(e) => (e.id(), Some(e)),
                    };
                    self.ended(id, failed);
                }
                _ = ticks.tick() => self.housekeeping(),
            }
        }
    }

    /// Wakes the pods whose volumes show the object.
    fn object_changed(&self, object: &Changed) {
        for worker in self.workers.values() {
            if pod::shows(&worker.desired.borrow().pod, object) {
                worker.stale.store(true, Ordering::Relaxed);
                worker.poke.notify_one();
            }
        }
    }

    fn take(&mut self, update: Update) {
        match update {
            Update::All(source, pods) => {
                let first = self.heard.insert(source);
                let (mirrors, pods): (Vec<_>, Vec<_>) =
                    pods.into_iter().partition(|p| pod::annotation(p, pod::MIRROR).is_some());
                if source == Source::Api {
                    self.mirrors = mirrors.into_iter().map(|p| (pod::key(&p), p)).collect();
                }
                let uids: HashSet<&str> = pods.iter().map(|p| pod::uid(p)).collect();
                let gone: Vec<Arc<Pod>> = self
                    .workers
                    .values()
                    .map(|w| w.desired.borrow().pod.clone())
                    .filter(|p| source.has(p) && !uids.contains(pod::uid(p)))
                    .collect();
                self.waiting.retain(|_, p| !source.has(p) || uids.contains(pod::uid(p)));
                for pod in gone {
                    self.gone(&pod);
                }
                // Who was first has the first claim on what the node has.
                let mut pods = pods;
                pods.sort_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
                for pod in pods {
                    self.set(pod);
                }
                self.mirror_all();
                if first {
                    self.pods.complete.send_replace(self.heard.is_superset(&self.expected));
                    self.housekeeping();
                }
            }
            Update::Set(pod) if pod::annotation(&pod, pod::MIRROR).is_some() => {
                self.mirrors.insert(pod::key(&pod), pod);
                self.mirror_all();
            }
            Update::Set(pod) => self.set(pod),
            Update::Gone(pod) if pod::annotation(&pod, pod::MIRROR).is_some() => {
                self.mirrors.remove(&pod::key(&pod));
                self.mirror_all();
            }
            Update::Gone(pod) => self.gone(&pod),
        }
    }

    fn set(&mut self, pod: Arc<Pod>) {
        let uid = pod::uid(&pod).to_owned();
        if let Some(worker) = self.workers.get(&uid) {
            worker.desired.send_if_modified(|desired| {
                let new = *desired.pod != *pod || desired.gone;
                // What is being taken down is not brought back under the same uid.
                if new && !desired.gone {
                    desired.pod = pod.clone();
                    return true;
                }
                if desired.gone && pod::is_static(&pod) {
                    self.waiting.insert(pod::key(&pod), pod.clone());
                }
                false
            });
            let current = worker.desired.borrow().pod.clone();
            self.pods.lock().insert(uid, current);
            return;
        }
        if pod::is_static(&pod) {
            let key = pod::key(&pod);
            let predecessor = self.workers.values().any(|w| pod::key(&w.desired.borrow().pod) == key);
            if predecessor {
                self.waiting.insert(key, pod);
                return;
            }
        }
        self.start(pod);
    }

    fn start(&mut self, pod: Arc<Pod>) {
        let uid = pod::uid(&pod).to_owned();
        tracing::info!(pod = %pod::key(&pod), uid, "pod accepted");
        self.pods.lock().insert(uid.clone(), pod.clone());
        let (rejected, ends) = match self.admit(&pod) {
            Ok(ends) => (None, ends),
            Err(rejected) => (Some(rejected), Ends::default()),
        };
        let (desired, receiver) = watch::channel(Desired { pod, gone: false });
        let poke = Arc::new(Notify::new());
        let refused = rejected.is_some();
        let stale = Arc::new(AtomicBool::new(false));
        let worker = Worker::new(self.shared.clone(), receiver, poke.clone(), stale.clone(), rejected);
        let shared = self.shared.clone();
        let work = async move {
            // Its place is theirs as long as they run.
            let wait = async {
                for uid in &ends.uids {
                    shared.kills.ended(uid, ends.patience).await;
                }
            };
            if tokio::time::timeout(ends.patience, wait).await.is_err() {
                tracing::warn!("pods that make room for a critical one do not end in time; it begins all the same");
            }
            worker.run().await;
        };
        let id = self.tasks.spawn(work).id();
        self.ids.insert(id, uid.clone());
        self.workers.insert(uid, Handle { desired, poke, stale, rejected: refused });
    }

    /// Lets a pod in, after the end of others if there is no room beside them.
    fn admit(&self, pod: &Arc<Pod>) -> Result<Ends, (String, String)> {
        let over = |p: &Pod| {
            let reported = self.shared.statuses.get(pod::uid(p));
            pod::is_over(p)
                || reported.is_some_and(|status| pod::is_over(&Pod { status: Some(status), ..Pod::default() }))
        };
        let holding = self.workers.values().filter(|w| !w.rejected);
        // What a pod was given counts, not what it asks for by now.
        let given = |pod: Arc<Pod>| self.shared.allocations.get(pod::uid(&pod)).unwrap_or(pod);
        let others: Vec<Arc<Pod>> = holding.map(|w| given(w.desired.borrow().pod.clone())).collect();
        let others: Vec<&Pod> = others.iter().map(|p| &**p).filter(|p| !over(p) && !self.makes_room(p)).collect();
        match self.admission.ask(&self.shared, pod, &others) {
            Ok(room) => {
                let own = pod::containers(pod).len();
                own::CONTAINERS_PER_POD.add(&[], own as f64);
                for end in &room.ends {
                    self.preempt(end, pod, &room.signal);
                }
                let uids = room.ends.iter().map(|p| pod::uid(p).to_owned()).collect();
                Ok(Ends { uids, patience: preempt::patience(&room.ends) })
            }
            Err(Rejection { reason, message }) => {
                own::REJECTIONS.count(&[("reason", &reason)]);
                self.shared.events.pod(pod, None, true, reason.clone(), message.clone());
                Err((reason, format!("Pod was rejected: {message}")))
            }
        }
    }

    /// Whether the pod has to go for a critical one: what it has is no longer its own.
    fn makes_room(&self, pod: &Pod) -> bool {
        self.shared.kills.get(pod::uid(pod)).is_some_and(|kill| kill.reason == PREEMPTING)
    }

    fn preempt(&self, end: &Pod, pod: &Pod, signal: &str) {
        tracing::warn!(pod = %pod::key(end), critical = %pod::key(pod), resource = signal, "pod ends for a critical one");
        let message = preempt::MESSAGE.to_owned();
        self.shared.events.pod(end, None, true, PREEMPTING, message.clone());
        own::PREEMPTIONS.count(&[("preemption_signal", signal)]);
        let kill =
            Kill { reason: PREEMPTING.to_owned(), message, grace: None, disruption: Some("TerminationByKubelet") };
        self.shared.kills.order(pod::uid(end), kill);
    }

    fn gone(&mut self, pod: &Pod) {
        if let Some(worker) = self.workers.get(pod::uid(pod)) {
            worker.desired.send_modify(|desired| desired.gone = true);
        }
    }

    fn ended(&mut self, id: Id, failed: Option<tokio::task::JoinError>) {
        let Some(uid) = self.ids.remove(&id) else { return };
        let Some(handle) = self.workers.remove(&uid) else { return };
        let desired = handle.desired.borrow().clone();
        if let Some(e) = failed {
            tracing::error!(pod = %pod::key(&desired.pod), error = %e, "the pod's worker failed; it begins anew");
            self.start(desired.pod.clone());
            if desired.gone {
                self.gone(&desired.pod);
            }
            return;
        }
        self.pods.lock().remove(&uid);
        if let Some(next) = self.waiting.remove(&pod::key(&desired.pod)) {
            if pod::uid(&next) == uid {
                own::RESTARTED.count(&[("static", "true")]);
            }
            self.start(next);
        }
        self.mirror_all();
    }

    /// Brings mirror pods in line with static pods.
    fn mirror_all(&mut self) {
        if self.shared.client.is_none() || !self.heard.is_superset(&self.expected) {
            return;
        }
        let statics: HashMap<String, Arc<Pod>> = self
            .workers
            .values()
            .filter(|w| !w.desired.borrow().gone)
            .map(|w| w.desired.borrow().pod.clone())
            .filter(|p| pod::is_static(p))
            .map(|p| (pod::key(&p), p))
            .collect();
        let kept = |key: &str| statics.contains_key(key) || self.waiting.contains_key(key);
        for (key, mirror) in self.mirrors.iter().filter(|(key, _)| !kept(key)) {
            let ours = self.workers.values().any(|w| pod::key(&w.desired.borrow().pod) == **key);
            if ours {
                // Its containers still run; it shows that until they have ended.
                continue;
            }
            let (shared, mirror) = (self.shared.clone(), mirror.clone());
            self.spawn_mirroring(key.clone(), async move {
                let Some(client) = &shared.client else { return };
                if let Err(e) = mirror::delete(client, &mirror).await {
                    tracing::warn!(pod = %pod::key(&mirror), error = %e, "mirror pod not deleted, will try again");
                }
            });
        }
        for (key, pod) in statics {
            let good = self.mirrors.get(&key).is_some_and(|m| {
                pod::annotation(m, pod::MIRROR) == pod::annotation(&pod, pod::HASH)
                    && m.metadata.deletion_timestamp.is_none()
            });
            if good {
                continue;
            }
            let shared = self.shared.clone();
            self.spawn_mirroring(key, async move {
                match mirror::ensure(&shared, &pod).await {
                    Ok(_) => shared.statuses.resend(pod::uid(&pod)),
                    Err(e) => tracing::warn!(pod = %pod::key(&pod), error = %e, "mirror pod not made, will try again"),
                }
            });
        }
    }

    /// One task per mirror pod at a time; housekeeping tries again.
    fn spawn_mirroring(&self, key: String, work: impl Future<Output = ()> + Send + 'static) {
        let busy = self.mirroring.clone();
        if !busy.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone()) {
            return;
        }
        tokio::spawn(async move {
            work.await;
            busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        });
    }

    /// Frees what belongs to no pod: sandboxes, volumes and control groups of pods that were deleted meanwhile.
    fn housekeeping(&mut self) {
        self.mirror_all();
        if !self.heard.is_superset(&self.expected) {
            return;
        }
        let alive: HashSet<String> =
            self.workers.keys().cloned().chain(self.waiting.values().map(|p| pod::uid(p).to_owned())).collect();
        self.shared.managers.retain(|uid| alive.contains(uid));
        let (shared, freeing) = (self.shared.clone(), self.freeing.clone());
        let volumes = shared.clone();
        tokio::spawn(async move { volumes.volumes.sweep().await });
        tokio::spawn(async move {
            let Ok(sandboxes) = shared.cri.sandboxes(None).await else { return };
            let labelled = sandboxes.iter().filter_map(|s| s.labels.get(UID_LABEL).cloned());
            let mut orphans: HashSet<String> = labelled.collect();
            let ran = Arc::new(orphans.clone());
            orphans.extend(shared.volumes.pods_on_disk());
            let groups = shared.cgroups.clone();
            orphans.extend(tokio::task::spawn_blocking(move || groups.pods()).await.unwrap_or_default());
            for uid in orphans.into_iter().filter(|uid| !alive.contains(uid)) {
                if !freeing.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.clone()) {
                    continue;
                }
                let (shared, freeing, ran) = (shared.clone(), freeing.clone(), ran.clone());
                tokio::spawn(async move {
                    match stop::free(&shared, &uid).await {
                        Ok(()) if ran.contains(&uid) => {
                            own::ORPHANS.count(&[]);
                            tracing::info!(uid, "stopped and freed what ran for an unknown pod");
                        }
                        Ok(()) => tracing::info!(uid, "freed what an unknown pod left"),
                        Err(e) => tracing::warn!(uid, error = %e, "orphan not freed, will try again"),
                    }
                    freeing.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
                });
            }
        });
    }
}
