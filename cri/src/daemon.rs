//! The daemon's memory: sandboxes and containers by id, each with its own lock; there is no global one.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use cri_images::Images;
use gantry_cgroup::Host;
use gantry_monitor::client::Client;
use proto::cri;
use tokio::sync::Notify;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::kept::Kept;
use crate::ledger::{ContainerRecord, Ledger, SandboxRecord};
use crate::stats::{Layer, Rate};

/// A pod sandbox: its record, and what goes on around it.
pub struct Sandbox {
    /// Id.
    pub id: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Operations on this pod take turns.
    pub turn: tokio::sync::Mutex<()>,
    /// How much of the processors it uses.
    pub rate: Mutex<Rate>,
    /// Why it could not be removed; empty when nobody tried or nothing is wrong.
    pub fault: Mutex<String>,
    kept: Kept<SandboxRecord>,
}

/// A container: its record, and what goes on around it.
pub struct Container {
    /// Id.
    pub id: String,
    /// Its sandbox.
    pub sandbox: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Operations on this container take turns.
    pub turn: tokio::sync::Mutex<()>,
    /// Told when it ends.
    pub ended: Notify,
    /// Listeners to events have heard of its start (or will never).
    pub told_start: Mutex<bool>,
    /// It was sent its stop signal: a call that is tried again does not send it twice.
    pub asked_to_end: AtomicBool,
    /// How much of the processors it uses.
    pub rate: Mutex<Rate>,
    /// What its writable layer held when it was last walked.
    pub layer: Mutex<Option<Layer>>,
    /// Why it could not be removed; empty when nobody tried or nothing is wrong.
    pub fault: Mutex<String>,
    /// Making its record outlive a power failure, which its start waits for.
    pub syncing: Mutex<Option<tokio::task::JoinHandle<Result<()>>>>,
    /// Deleting what it has on the disk, which takes longer than anyone waited.
    pub deleting: Mutex<Option<tokio::task::JoinHandle<Vec<String>>>>,
    kept: Kept<ContainerRecord>,
}

/// When plugins were asked about which configuration, and what they said.
type NetworkAnswer = (std::time::Instant, serde_json::Value, Result<(), String>);

/// Everything the daemon has.
pub struct Daemon {
    /// Settings as they were at the start.
    pub config: Config,
    /// The image store.
    pub images: Images,
    /// Records on disk.
    pub ledger: Ledger,
    /// This boot's id.
    pub boot: String,
    /// The host's cgroups.
    pub host: Host,
    /// Container events.
    pub events: crate::events::Events,
    /// Sandboxes by id.
    pub sandboxes: RwLock<HashMap<String, Arc<Sandbox>>>,
    /// Containers by id.
    pub containers: RwLock<HashMap<String, Arc<Container>>>,
    /// Creations in progress, by the name of what is created.
    names: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Ids of what is being made: it has a record already, and is not known yet.
    making: Mutex<HashSet<String>>,
    /// The exec/attach/port-forward server.
    pub streaming: std::sync::OnceLock<cri_streaming::Server>,
    /// Pod CIDR as told by the kubelet.
    pub pod_cidr: Mutex<String>,
    /// What plugins last said about a network configuration, and when.
    pub network: tokio::sync::Mutex<Option<NetworkAnswer>>,
    /// The configuration as it is now, see [`Daemon::settings`].
    current: RwLock<Arc<Config>>,
    /// Pulls that are going on.
    pub pulls: crate::pulls::Pulls,
    /// What OCI runtimes can do.
    pub handlers: crate::handlers::Handlers,
    /// NRI plugins.
    pub nri: crate::nri::Nri,
    /// Removals that are tried again.
    pub reaper: crate::reaper::Reaper,
    /// Long operations so far, and how many of them failed.
    pub calls: Mutex<(u64, u64)>,
    /// Told at the end of each of them.
    pub worked: Arc<Notify>,
}

/// Locks whatever a panicking holder left.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}

/// A new id of 64 hex digits.
pub fn new_id() -> String {
    format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>())
}

impl Sandbox {
    /// From its record.
    pub fn new(record: SandboxRecord) -> Self {
        Self {
            id: record.id.clone(),
            created_at: record.created_at,
            turn: tokio::sync::Mutex::new(()),
            rate: Mutex::new(Rate::of(record.created_at)),
            fault: Mutex::default(),
            kept: Kept::new(record),
        }
    }
}

impl Deref for Sandbox {
    type Target = Kept<SandboxRecord>;

    fn deref(&self) -> &Self::Target {
        &self.kept
    }
}

impl Container {
    /// From its record.
    pub fn new(record: ContainerRecord) -> Self {
        Self {
            id: record.id.clone(),
            sandbox: record.sandbox.clone(),
            created_at: record.created_at,
            turn: tokio::sync::Mutex::new(()),
            ended: Notify::new(),
            told_start: Mutex::new(record.started_at > 0),
            asked_to_end: AtomicBool::new(false),
            rate: Mutex::new(Rate::of(record.created_at)),
            layer: Mutex::default(),
            fault: Mutex::default(),
            syncing: Mutex::default(),
            deleting: Mutex::default(),
            kept: Kept::new(record),
        }
    }

    /// CRI state.
    pub fn state(&self) -> cri::ContainerState {
        self.with(crate::container::state)
    }
}

impl Deref for Container {
    type Target = Kept<ContainerRecord>;

    fn deref(&self) -> &Self::Target {
        &self.kept
    }
}

impl Daemon {
    /// With nothing in it yet; see [`crate::reconcile`].
    pub fn new(config: Config, images: Images, ledger: Ledger, host: Host) -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let current = Arc::new(config.clone());
        Self {
            config,
            images,
            ledger,
            boot,
            host,
            events: crate::events::Events::default(),
            sandboxes: RwLock::default(),
            containers: RwLock::default(),
            names: Mutex::default(),
            making: Mutex::default(),
            streaming: std::sync::OnceLock::new(),
            pod_cidr: Mutex::default(),
            network: tokio::sync::Mutex::default(),
            pulls: crate::pulls::Pulls::default(),
            handlers: crate::handlers::Handlers::default(),
            nri: crate::nri::Nri::default(),
            reaper: crate::reaper::Reaper::default(),
            current: RwLock::new(current),
            calls: Mutex::default(),
            worked: Arc::default(),
        }
    }

    /// The configuration as it is now: keys that a reload may change are read here, each time.
    pub fn settings(&self) -> Arc<Config> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a configuration that [`Config::reload`] made.
    pub fn reload(&self, config: Config) {
        let docker = Some(config.docker_config.clone()).filter(|path| !path.as_os_str().is_empty());
        self.images.reload(config.registry_config.clone(), docker, config.pinned_images.clone());
        if let Some(server) = self.streaming.get() {
            server.set_idle(config.streaming_idle());
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// Makes the record of a sandbox or container durable, beside whatever else is done.
    pub fn record_synced(&self, id: &str) -> tokio::task::JoinHandle<Result<()>> {
        let (ledger, id) = (self.ledger.clone(), id.to_owned());
        tokio::task::spawn_blocking(move || ledger.sync(&id).map_err(Error::failed(format!("record {id} for good"))))
    }

    /// Volatile folder of a sandbox.
    pub fn sandbox_dir(&self, id: &str) -> PathBuf {
        self.config.state.join("sandboxes").join(id)
    }

    /// Bundle folder of a container.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.config.state.join("containers").join(id)
    }

    /// Client of a pod's monitor. The path is short: unix socket paths are.
    pub fn monitor(&self, sandbox: &str) -> Client {
        Client::new(self.config.state.join("m").join(format!("{}.sock", &sandbox[..sandbox.len().min(13)])))
    }

    /// All sandboxes, oldest first.
    pub fn all_sandboxes(&self) -> Vec<Arc<Sandbox>> {
        let mut all: Vec<_> = self.sandboxes.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_by_key(|s| s.created_at);
        all
    }

    /// All containers, oldest first.
    pub fn all_containers(&self) -> Vec<Arc<Container>> {
        let mut all: Vec<_> =
            self.containers.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_by_key(|c| c.created_at);
        all
    }

    /// Containers of a sandbox, oldest first.
    pub fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let all = self.containers.read().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> = all.values().filter(|c| c.sandbox == sandbox).cloned().collect();
        drop(all);
        found.sort_by_key(|c| c.created_at);
        found
    }

    /// A sandbox by id or a unique beginning of it.
    ///
    /// # Errors
    /// There is none.
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        find(&self.sandboxes.read().unwrap_or_else(PoisonError::into_inner), id)
            .ok_or_else(|| Error::NotFound(format!("pod sandbox {id}")))
    }

    /// A container by id or a unique beginning of it.
    ///
    /// # Errors
    /// There is none.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        find(&self.containers.read().unwrap_or_else(PoisonError::into_inner), id)
            .ok_or_else(|| Error::NotFound(format!("container {id}")))
    }

    /// Adds a sandbox.
    pub fn add_sandbox(&self, sandbox: Arc<Sandbox>) {
        self.sandboxes.write().unwrap_or_else(PoisonError::into_inner).insert(sandbox.id.clone(), sandbox);
    }

    /// Adds a container.
    pub fn add_container(&self, container: Arc<Container>) {
        self.containers.write().unwrap_or_else(PoisonError::into_inner).insert(container.id.clone(), container);
    }

    /// Forgets a sandbox.
    pub fn drop_sandbox(&self, id: &str) {
        self.sandboxes.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Forgets a container.
    pub fn drop_container(&self, id: &str) {
        self.containers.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Whether pods can get a network now, or why not. Plugins are asked at most every ten seconds as long as the
    /// configuration stays what it is.
    pub async fn network_ready(&self) -> Result<(), String> {
        let list = crate::cni::load(&self.settings().cni_conf_dir)?;
        let mut last = self.network.lock().await;
        if let Some((when, asked, answer)) = &*last
            && *asked == list
            && when.elapsed() < std::time::Duration::from_secs(10)
        {
            return answer.clone();
        }
        let answer = crate::cni::status(&list, &self.settings().cni_bin_dirs).await.map_err(|e| e.to_string());
        *last = Some((std::time::Instant::now(), list, answer.clone()));
        answer
    }

    /// Ids of what is being made just now.
    pub fn being_made(&self) -> HashSet<String> {
        lock(&self.making).clone()
    }

    /// The turn of those who create something with this name, so that a retry joins the first.
    pub async fn name_turn(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut names = lock(&self.names);
            names.retain(|_, turn| Arc::strong_count(turn) > 1);
            names.entry(name.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }
}

/// Says that something is being made, as long as it lives.
pub struct Making(Arc<Daemon>, String);

impl Making {
    /// From now on this id is being made.
    pub fn new(daemon: &Arc<Daemon>, id: &str) -> Self {
        lock(&daemon.making).insert(id.to_owned());
        Self(daemon.clone(), id.to_owned())
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        lock(&self.0.making).remove(&self.1);
    }
}

fn find<T>(map: &HashMap<String, Arc<T>>, id: &str) -> Option<Arc<T>> {
    if let Some(found) = map.get(id) {
        return Some(found.clone());
    }
    let mut matching = map.iter().filter(|(key, _)| !id.is_empty() && key.starts_with(id));
    matching.next().filter(|_| matching.next().is_none()).map(|(_, v)| v.clone())
}
