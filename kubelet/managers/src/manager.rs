//! The managers as one: admission, grants, release, and their state on disk.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use proto::deviceplugin::{Device, DeviceSpec, Mount};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::devices::book::{Book as Devices, Holder, Shortage};
use crate::devices::server::Endpoints;
use crate::devices::{checkpoint, server};
use crate::hint::{Hints, Nodes, Policy};
use crate::pod_resources::{self, Lister};
use crate::request::{Request, requests, together};
use crate::{CpuOptions, CpuSet, Machine, cpu, memory, state_file};

/// What the configuration says.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The kubelet's folder.
    pub root: PathBuf,
    /// `cpuManagerPolicy: static`
    pub static_cpus: bool,
    /// `cpuManagerPolicyOptions`
    pub cpu_options: CpuOptions,
    /// CPUs that pods do not get.
    pub reserved_cpus: CpuSet,
    /// How many CPUs are kept where `reserved_cpus` does not name any.
    pub reserved_count: usize,
    /// `memoryManagerPolicy: Static`
    pub static_memory: bool,
    /// `reservedMemory`: bytes by NUMA node and name.
    pub reserved_memory: BTreeMap<u32, BTreeMap<String, u64>>,
    /// `topologyManagerPolicy`
    pub policy: Policy,
    /// `topologyManagerScope: pod`
    pub pod_scope: bool,
    /// `prefer-closest-numa-nodes`
    pub closest: bool,
}

/// Why a pod does not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A plugin has not come back yet: ask again when something changed.
    NotYet(String),
    /// Never: the reason and the message of the pod's status.
    Never(&'static str, String),
}

/// What a container gets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grant {
    /// CPUs that it runs on; none where the kernel decides.
    pub cpus: Option<CpuSet>,
    /// Whether they are its own.
    pub exclusive: bool,
    /// NUMA nodes of its memory.
    pub nodes: Option<CpuSet>,
    /// Environment variables.
    pub envs: BTreeMap<String, String>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Device nodes.
    pub devices: Vec<DeviceSpec>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Devices of the container device interface, by name.
    pub cdi: Vec<String>,
}

/// A plugin that is taken; dropping it forgets the plugin.
#[derive(Debug)]
pub struct PluginTask(tokio::task::JoinHandle<()>);

impl Drop for PluginTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) devices: Devices,
    pub(crate) cpus: cpu::book::Book,
    pub(crate) memory: memory::Book,
}

struct Inner {
    settings: Settings,
    machine: Machine,
    state: Mutex<State>,
    endpoints: Endpoints,
    changes: watch::Sender<u64>,
}

/// All managers; cloning gives another handle on the same.
#[derive(Clone)]
pub struct Managers(Arc<Inner>);

const CPU_FILE: &str = "cpu_manager_state";
const MEMORY_FILE: &str = "memory_manager_state";

impl Managers {
    /// Takes up what is on disk. [`Managers::serve`] opens the sockets.
    pub fn new(settings: Settings, machine: Machine) -> Self {
        let mut state = State { devices: checkpoint::load(&settings.root.join("device-plugins")), ..State::default() };
        let mut reserved = settings.reserved_cpus.intersection(&machine.all());
        if settings.static_cpus && reserved.is_empty() {
            let count = settings.reserved_count.max(1);
            reserved = cpu::take::take(&machine, &machine.all(), count, CpuOptions::default()).unwrap_or_default();
        }
        state.cpus = cpu::book::Book {
            enabled: settings.static_cpus,
            options: settings.cpu_options,
            reserved,
            ..Default::default()
        };
        state.memory = memory::Book {
            enabled: settings.static_memory,
            reserved: settings.reserved_memory.clone(),
            ..Default::default()
        };
        state.cpus.restore(&machine, state_file::load(&settings.root.join(CPU_FILE)).unwrap_or_default());
        state.memory.restore(&machine, state_file::load(&settings.root.join(MEMORY_FILE)).unwrap_or_default());
        Self(Arc::new(Inner {
            settings,
            machine,
            state: Mutex::new(state),
            endpoints: Endpoints::default(),
            changes: watch::Sender::new(0),
        }))
    }

    /// Serves device plugins and the pod resources API until `stop`. `pods` tells the pods of the node.
    ///
    /// # Errors
    /// A socket cannot be had.
    pub async fn serve(&self, pods: Lister, stop: CancellationToken) -> std::io::Result<()> {
        let root = &self.0.settings.root;
        server::serve(self.clone(), root.join("device-plugins"), stop.clone()).await?;
        pod_resources::serve(self.clone(), pods, root.join("pod-resources"), stop).await
    }

    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.0.endpoints
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.0.machine
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and keeps it; whoever waits for changes hears of it.
    pub(crate) fn change<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let out = work(&mut state);
        self.save(&state);
        drop(state);
        self.0.changes.send_modify(|n| *n += 1);
        out
    }

    pub(crate) fn devices_told(&self, resource: &str, devices: Vec<Device>) {
        let mut state = self.state();
        if !state.devices.told(resource, devices) {
            return;
        }
        let (all, healthy) = state.devices.totals(Instant::now()).get(resource).copied().unwrap_or_default();
        tracing::info!(resource, devices = all, healthy, "devices");
        self.save(&state);
        drop(state);
        self.0.changes.send_modify(|n| *n += 1);
    }

    /// Takes a plugin that another socket made known (the kubelet's plugin watcher), until it goes away or what this gives
    /// is dropped.
    ///
    /// # Errors
    /// Its name or versions are not what this kubelet takes.
    pub fn plugin(&self, resource: &str, socket: PathBuf, versions: &[String]) -> Result<PluginTask, String> {
        if !versions.iter().any(|v| v == server::VERSION) {
            return Err(format!("it speaks {versions:?}, this kubelet {:?}", server::VERSION));
        }
        if !server::is_extended(resource) {
            return Err(format!("the ResourceName {resource:?} is invalid"));
        }
        let task = server::follow(self.clone(), resource.to_owned(), socket, None);
        Ok(PluginTask(tokio::spawn(task)))
    }

    fn save(&self, state: &State) {
        let settings = &self.0.settings;
        let mut faults = Vec::new();
        faults.extend(checkpoint::save(&settings.root.join("device-plugins"), &state.devices).err());
        // Without a policy there is a file only to tell a later one that nothing is held.
        for (name, wanted, text) in [
            (CPU_FILE, settings.static_cpus, serde_json::to_value(state.cpus.file(&self.0.machine))),
            (MEMORY_FILE, settings.static_memory, serde_json::to_value(state.memory.file())),
        ] {
            let path = settings.root.join(name);
            if let (true, Ok(value)) = (wanted || path.exists(), text) {
                faults.extend(state_file::save(&path, &value).err());
            }
        }
        for fault in faults {
            tracing::error!(error = %fault, "the managers' state is not on disk; a restart may give resources twice");
        }
    }

    /// Hears of plugins and devices that come and go.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Capacity and allocatable of device plugins' resources.
    pub fn totals(&self) -> BTreeMap<String, (usize, usize)> {
        self.state().devices.totals(Instant::now())
    }

    fn hints(&self, state: &State, uid: &str, container: Option<&str>, asked: &Request) -> Vec<Hints> {
        let machine = &self.0.machine;
        let mut all = vec![
            state.cpus.hints(machine, uid, container, asked.cpus),
            state.memory.hints(machine, uid, container, &asked.memory),
        ];
        for (resource, count) in &asked.devices {
            let container = container.unwrap_or_default();
            all.push(state.devices.hints(uid, container, resource, *count, machine.all_nodes()));
        }
        all
    }

    fn place(
        &self,
        state: &State,
        uid: &str,
        container: Option<&str>,
        asked: &Request,
    ) -> Result<Option<Nodes>, Refusal> {
        let machine = &self.0.machine;
        let distance = |nodes: Nodes| machine.distance(nodes);
        let closest: Option<&dyn Fn(Nodes) -> f64> = if self.0.settings.closest { Some(&distance) } else { None };
        let hints = self.hints(state, uid, container, asked);
        let (best, admitted) = self.0.settings.policy.merge(&hints, machine.all_nodes(), closest);
        if admitted {
            return Ok(best.nodes);
        }
        let text = "Resources cannot be allocated with Topology locality".to_owned();
        Err(Refusal::Never("TopologyAffinityError", text))
    }

    /// Gives a pod what its containers ask for; calling again changes nothing.
    ///
    /// # Errors
    /// See [`Refusal`]. Nothing is held then.
    pub async fn admit(&self, pod: &Pod) -> Result<(), Refusal> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let all = requests(pod);
        if all.iter().all(|r| r.cpus == 0 && r.memory.is_empty() && r.devices.is_empty()) {
            return Ok(());
        }
        let got = self.allocate(&uid, &all).await;
        if got.is_err() {
            self.release(&uid);
        }
        got
    }

    async fn allocate(&self, uid: &str, all: &[Request]) -> Result<(), Refusal> {
        let aligned = self.0.settings.policy != Policy::None;
        let whole = if self.0.settings.pod_scope && aligned {
            self.place(&self.state(), uid, None, &together(all))?
        } else {
            None
        };
        for asked in all {
            let (place, new) = self.reserve(uid, asked, whole)?;
            for resource in new {
                let holder = Holder { uid: uid.to_owned(), container: asked.name.clone(), resource: resource.clone() };
                self.ask(&holder, place).await?;
            }
        }
        Ok(())
    }

    /// Reserves what one container asks for. Gives the resources that a plugin must still be asked for.
    fn reserve(
        &self,
        uid: &str,
        asked: &Request,
        whole: Option<Nodes>,
    ) -> Result<(Option<Nodes>, Vec<String>), Refusal> {
        let settings = &self.0.settings;
        self.change(|state| {
            let unexpected = |e: &dyn std::fmt::Display| Refusal::Never("UnexpectedAdmissionError", e.to_string());
            let place = if settings.pod_scope || settings.policy == Policy::None {
                whole
            } else {
                self.place(state, uid, Some(&asked.name), asked)?
            };
            let machine = &self.0.machine;
            state.cpus.allocate(machine, uid, &asked.name, asked.cpus, place, asked.passes_on).map_err(
                |e| match e {
                    cpu::book::Shortage::Threads { .. } => Refusal::Never("SMTAlignmentError", e.to_string()),
                    cpu::book::Shortage::Few { .. } => unexpected(&e),
                },
            )?;
            state
                .memory
                .allocate(machine, uid, &asked.name, &asked.memory, place, asked.passes_on)
                .map_err(|e| unexpected(&e))?;
            let mut new = Vec::new();
            // What no plugin ever offered is the business of whoever put it into the node's capacity.
            for (resource, count) in &asked.devices {
                if !state.devices.knows(resource) {
                    continue;
                }
                let holder = Holder { uid: uid.into(), container: asked.name.clone(), resource: resource.clone() };
                match state.devices.reserve(&holder, *count, place, asked.passes_on) {
                    Ok(true) => new.push(resource.clone()),
                    Ok(false) => {
                        let answered = state.devices.held.get(&holder).is_some_and(|h| h.response.is_some());
                        if !answered {
                            new.push(resource.clone());
                        }
                    }
                    Err(e @ Shortage::NotYet(_)) => return Err(Refusal::NotYet(e.to_string())),
                    Err(e) => return Err(unexpected(&e)),
                }
            }
            Ok((place, new))
        })
    }

    /// Asks the plugin for its preference and for the devices themselves.
    async fn ask(&self, holder: &Holder, place: Option<Nodes>) -> Result<(), Refusal> {
        let resource = &holder.resource;
        let Some(plugin) = self.0.endpoints.get(resource) else {
            return Err(Refusal::NotYet(Shortage::NotYet(resource.clone()).to_string()));
        };
        let question = {
            let state = self.state();
            let options = state.devices.resources.get(resource).map(|r| r.options).unwrap_or_default();
            options.get_preferred_allocation_available.then(|| state.devices.question(holder, place)).flatten()
        };
        if let Some((available, must, count)) = question {
            match plugin.prefer(available, must, count).await {
                Ok(ids) => {
                    if !self.change(|state| state.devices.prefer(holder, &ids)) {
                        tracing::debug!(resource, ?ids, "these devices cannot be had; others are taken");
                    }
                }
                Err(e) => tracing::warn!(resource, error = e.message(), "device plugin told no preference"),
            }
        }
        let ids: Vec<String> = {
            let state = self.state();
            state.devices.held.get(holder).map(|h| h.ids.iter().cloned().collect()).unwrap_or_default()
        };
        let response = plugin.allocate(ids).await.map_err(|e| {
            let text = format!(
                "Allocate failed due to rpc error: code = {:?} desc = {}, which is unexpected",
                e.code(),
                e.message()
            );
            Refusal::Never("UnexpectedAdmissionError", text)
        })?;
        self.change(|state| state.devices.answered(holder, response));
        Ok(())
    }

    /// What a container gets: devices, and under the static policies CPUs and NUMA nodes.
    pub fn grant(&self, uid: &str, container: &str) -> Grant {
        let state = self.state();
        let mut out = Grant::default();
        if state.cpus.enabled {
            let own = state.cpus.of(uid, container).cloned();
            out.exclusive = own.is_some();
            out.cpus = Some(own.unwrap_or_else(|| state.cpus.shared(&self.0.machine)));
        }
        let blocks = state.memory.of(uid, container);
        out.nodes = blocks.and_then(|b| b.first()).map(|b| b.nodes.iter().copied().collect());
        let mut paths = HashSet::new();
        for response in state.devices.of(uid, container).filter_map(|(_, held)| held.response.as_ref()) {
            out.envs.extend(response.envs.clone());
            out.annotations.extend(response.annotations.clone());
            out.mounts.extend(response.mounts.clone());
            // Two plugins may want the same node of a driver.
            out.devices.extend(response.devices.iter().filter(|d| paths.insert(d.container_path.clone())).cloned());
            out.cdi.extend(response.cdi_devices.iter().map(|d| d.name.clone()));
        }
        out
    }

    /// Whether a container of the pod has CPUs of its own.
    pub fn has_cpus(&self, uid: &str) -> bool {
        self.state().cpus.held.pods().any(|owner| owner == uid)
    }

    /// Tells plugins that want to know it that a container is about to start.
    ///
    /// # Errors
    /// A plugin refuses.
    pub async fn pre_start(&self, uid: &str, container: &str) -> Result<(), String> {
        let held: Vec<(String, Vec<String>)> = {
            let state = self.state();
            let wants = |r: &str| state.devices.resources.get(r).is_some_and(|r| r.options.pre_start_required);
            let own = state.devices.of(uid, container).filter(|(r, _)| wants(r));
            own.map(|(r, held)| (r.to_owned(), held.ids.iter().cloned().collect())).collect()
        };
        for (resource, ids) in held {
            let plugin = self.0.endpoints.get(&resource);
            let plugin = plugin.ok_or_else(|| format!("the device plugin of {resource} is not there"))?;
            plugin
                .pre_start(ids)
                .await
                .map_err(|e| format!("device plugin PreStartContainer rpc failed with err: {}", e.message()))?;
        }
        Ok(())
    }

    /// Frees what a pod holds.
    pub fn release(&self, uid: &str) {
        let mut state = self.state();
        let (a, b, c) = (state.devices.release(uid), state.cpus.held.release(uid), state.memory.held.release(uid));
        if a || b || c {
            self.save(&state);
            drop(state);
            self.0.changes.send_modify(|n| *n += 1);
        }
    }

    /// Frees what pods hold that the node has no longer.
    pub fn retain(&self, alive: impl Fn(&str) -> bool) {
        let gone: HashSet<String> = {
            let state = self.state();
            let devices = state.devices.held.keys().map(|h| h.uid.as_str());
            let all = devices.chain(state.cpus.held.pods()).chain(state.memory.held.pods());
            all.filter(|uid| !alive(uid)).map(str::to_owned).collect()
        };
        gone.iter().for_each(|uid| self.release(uid));
    }
}
