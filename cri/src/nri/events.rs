//! What plugins are asked and told, step by step in the life of a pod.

use std::sync::Arc;

use prost::Message;
use proto::{cri, nri};
use serde_json::Value;

use super::adjust::{self, Owners};
use super::plugin::Plugin;
use super::{convert, updates};
use crate::daemon::{Container, Daemon, Sandbox, lock};
use crate::error::{Error, Result};
use crate::oci::cdi;

/// A pod or container that plugins know of and that is not listed yet. It must be listed or gone when this is dropped.
pub struct Coming {
    daemon: Arc<Daemon>,
    id: String,
}

impl Drop for Coming {
    fn drop(&mut self) {
        let mut state = lock(&self.daemon.nri.state);
        state.pods.remove(&self.id);
        state.containers.remove(&self.id);
    }
}

/// What plugins see of a sandbox.
pub(super) fn pod(daemon: &Daemon, sandbox: &Sandbox) -> nri::PodSandbox {
    let record = sandbox.record();
    let group = crate::sandbox::cgroup(daemon, &record).unwrap_or_default();
    convert::pod(&record, &group)
}

/// What plugins see of a listed container.
pub(super) fn container(daemon: &Daemon, container: &Container) -> nri::Container {
    let bundle = daemon.bundle(&container.id);
    let oci = std::fs::read(bundle.join("config.json")).ok();
    let oci: Value = oci.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let pid = std::fs::read_to_string(bundle.join("pid")).ok().and_then(|p| p.trim().parse().ok());
    convert::container(&container.record(), &oci, pid.unwrap_or(0))
}

fn both(daemon: &Daemon, of: &Container) -> (Option<nri::PodSandbox>, Option<nri::Container>) {
    (daemon.sandbox(&of.sandbox).ok().map(|s| pod(daemon, &s)), Some(container(daemon, of)))
}

/// Asks all of them in turn; the answers of those that gave one.
async fn ask_all<T: Message + Default>(
    plugins: &[Arc<Plugin>],
    event: nri::Event,
    method: &str,
    request: &impl Message,
    change: Option<nri::StateChangeEvent>,
) -> Result<Vec<(String, T)>, Error> {
    let mut answers = Vec::new();
    for plugin in plugins {
        let answer = plugin.ask(event, method, request, change.clone()).await.map_err(Error::Failed)?;
        answers.extend(answer.map(|a| (plugin.name(), a)));
    }
    Ok(answers)
}

fn change(
    event: nri::Event,
    pod: &Option<nri::PodSandbox>,
    container: Option<&nri::Container>,
) -> Option<nri::StateChangeEvent> {
    Some(nri::StateChangeEvent { event: event.into(), pod: pod.clone(), container: container.cloned() })
}

/// A pod's network and namespaces are there. Plugins may refuse it.
///
/// # Errors
/// A plugin refuses.
pub async fn pod_runs(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>) -> Result<Coming> {
    let plugins = daemon.nri.noting(|state| _ = state.pods.insert(sandbox.id.clone(), sandbox.clone()));
    let coming = Coming { daemon: daemon.clone(), id: sandbox.id.clone() };
    if !plugins.is_empty() {
        let pod = Some(pod(daemon, sandbox));
        let change = change(nri::Event::RunPodSandbox, &pod, None);
        let request = nri::RunPodSandboxRequest { pod };
        ask_all::<nri::RunPodSandboxResponse>(&plugins, nri::Event::RunPodSandbox, "RunPodSandbox", &request, change)
            .await?;
    }
    Ok(coming)
}

async fn told<T: Message + Default>(
    plugins: Vec<Arc<Plugin>>,
    event: nri::Event,
    method: &str,
    request: &impl Message,
    change: Option<nri::StateChangeEvent>,
) {
    for plugin in plugins {
        if let Err(error) = plugin.ask::<T>(event, method, request, change.clone()).await {
            tracing::warn!(method, error, "an NRI plugin fails");
        }
    }
}

/// A pod has been stopped.
pub async fn pod_stopped(daemon: &Daemon, sandbox: &Sandbox) {
    let plugins = daemon.nri.noting(|_| {});
    if !plugins.is_empty() {
        let pod = Some(pod(daemon, sandbox));
        let event = nri::Event::StopPodSandbox;
        let change = change(event, &pod, None);
        let request = nri::StopPodSandboxRequest { pod };
        told::<nri::StopPodSandboxResponse>(plugins, event, "StopPodSandbox", &request, change).await;
    }
}

/// A pod is gone; `forget` takes it off the list.
pub async fn pod_removed(daemon: &Daemon, sandbox: &Sandbox, forget: impl FnOnce()) {
    let plugins = daemon.nri.noting(|state| _ = state.leaving.insert(sandbox.id.clone()));
    if !plugins.is_empty() {
        let pod = Some(pod(daemon, sandbox));
        let event = nri::Event::RemovePodSandbox;
        let change = change(event, &pod, None);
        let request = nri::RemovePodSandboxRequest { pod };
        told::<nri::RemovePodSandboxResponse>(plugins, event, "RemovePodSandbox", &request, change).await;
    }
    forget();
    lock(&daemon.nri.state).leaving.remove(&sandbox.id);
}

/// A pod shall get other resources. Plugins may refuse them.
///
/// # Errors
/// A plugin refuses.
pub async fn pod_changes(
    daemon: &Daemon,
    sandbox: &Sandbox,
    overhead: Option<&cri::LinuxContainerResources>,
    resources: Option<&cri::LinuxContainerResources>,
) -> Result<()> {
    let plugins = daemon.nri.noting(|_| {});
    if plugins.is_empty() {
        return Ok(());
    }
    let request = nri::UpdatePodSandboxRequest {
        pod: Some(pod(daemon, sandbox)),
        overhead_linux_resources: overhead.map(convert::of_cri),
        linux_resources: resources.map(convert::of_cri),
    };
    let event = nri::Event::UpdatePodSandbox;
    ask_all::<nri::UpdatePodSandboxResponse>(&plugins, event, "UpdatePodSandbox", &request, None).await.map(drop)
}

/// A pod has other resources now.
pub async fn pod_changed(daemon: &Daemon, sandbox: &Sandbox) {
    let plugins = daemon.nri.noting(|_| {});
    if !plugins.is_empty() {
        let pod = Some(pod(daemon, sandbox));
        let event = nri::Event::PostUpdatePodSandbox;
        let change = change(event, &pod, None);
        let request = nri::PostUpdatePodSandboxRequest { pod };
        told::<nri::PostUpdatePodSandboxResponse>(plugins, event, "PostUpdatePodSandbox", &request, change).await;
    }
}

/// A container is about to be made with this configuration: answers the one that plugins have adjusted.
///
/// # Errors
/// A plugin refuses, two of them contradict each other, or a device that one adds is not there.
pub async fn container_comes(
    daemon: &Arc<Daemon>,
    sandbox: &Arc<Sandbox>,
    new: &Arc<Container>,
    oci: Value,
) -> Result<(Value, Coming)> {
    let shown = Arc::new(oci);
    let known = (new.clone(), shown.clone());
    let plugins = daemon.nri.noting(|state| _ = state.containers.insert(new.id.clone(), known));
    let coming = Coming { daemon: daemon.clone(), id: new.id.clone() };
    if plugins.is_empty() {
        return Ok((Arc::unwrap_or_clone(shown), coming));
    }
    let mut oci = Value::clone(&shown);
    let pod = pod(daemon, sandbox);
    let before = convert::container(&new.record(), &oci, 0);
    let (mut owners, mut all, mut asked) = (Owners::default(), nri::ContainerAdjustment::default(), Vec::new());
    let (mut wanted, mut evicted) = (Vec::new(), Vec::new());
    for plugin in &plugins {
        let name = plugin.name();
        let request = nri::CreateContainerRequest {
            pod: Some(pod.clone()),
            container: Some(convert::container(&new.record(), &oci, 0)),
        };
        let event = nri::Event::CreateContainer;
        let answer = plugin.ask(event, "CreateContainer", &request, None).await.map_err(Error::Failed)?;
        let answer: nri::CreateContainerResponse = answer.unwrap_or_default();
        asked.push(nri::PluginInstance { name: plugin.base.clone(), index: plugin.index.clone() });
        if let Some(adjustment) = &answer.adjust {
            adjust::apply(&mut oci, adjustment, &name, &mut owners).map_err(Error::Invalid)?;
            let devices: Vec<&str> = adjustment.cdi_devices.iter().map(|d| d.name.as_str()).collect();
            cdi::apply(&devices, &daemon.settings().cdi_dirs, &mut oci)
                .map_err(|e| Error::Invalid(format!("NRI plugin {name}: {e}")))?;
            // What protobuf calls merging is what is meant here: lists are joined, maps united, fields replaced.
            let merged = all.merge(adjustment.encode_to_vec().as_slice());
            merged.map_err(|e| Error::Failed(format!("NRI plugin {name}: {e}")))?;
        }
        wanted.extend(answer.update);
        evicted.extend(answer.evict);
    }
    let validation = nri::ValidateContainerAdjustmentRequest {
        pod: Some(pod),
        container: Some(before),
        adjust: Some(all),
        update: wanted.clone(),
        owners: Some(owners.for_validation(&new.id)),
        plugins: asked,
    };
    let event = nri::Event::ValidateContainerAdjustment;
    let said = ask_all(&plugins, event, "ValidateContainerAdjustment", &validation, None).await?;
    for (name, said) in said {
        let said: nri::ValidateContainerAdjustmentResponse = said;
        if said.reject {
            return Err(Error::Invalid(format!("NRI plugin {name} rejects what plugins want: {}", said.reason)));
        }
    }
    // Plugins that connect from here on see what it has become.
    if let Some(known) = lock(&daemon.nri.state).containers.get_mut(&new.id) {
        known.1 = Arc::new(oci.clone());
    }
    wanted.retain(|u| u.container_id != new.id);
    if !wanted.is_empty() || !evicted.is_empty() {
        let daemon = daemon.clone();
        tokio::spawn(async move { updates::apply_all(&daemon, wanted, evicted, "CreateContainer").await });
    }
    Ok((oci, coming))
}

/// A container has been made.
pub async fn container_made(daemon: &Daemon, new: &Container) {
    let plugins = daemon.nri.noting(|_| {});
    if !plugins.is_empty() {
        let (pod, container) = both(daemon, new);
        let event = nri::Event::PostCreateContainer;
        let change = change(event, &pod, container.as_ref());
        let request = nri::PostCreateContainerRequest { pod, container };
        told::<nri::PostCreateContainerResponse>(plugins, event, "PostCreateContainer", &request, change).await;
    }
}

/// A container is about to start. Plugins may refuse it.
///
/// # Errors
/// A plugin refuses.
pub async fn container_starts(daemon: &Daemon, of: &Container) -> Result<()> {
    let plugins = daemon.nri.noting(|_| {});
    if plugins.is_empty() {
        return Ok(());
    }
    let (pod, container) = both(daemon, of);
    let event = nri::Event::StartContainer;
    let change = change(event, &pod, container.as_ref());
    let request = nri::StartContainerRequest { pod, container };
    ask_all::<nri::StartContainerResponse>(&plugins, event, "StartContainer", &request, change).await.map(drop)
}

/// A container has started.
pub async fn container_started(daemon: &Daemon, of: &Container) {
    let plugins = daemon.nri.noting(|_| {});
    if !plugins.is_empty() {
        let (pod, container) = both(daemon, of);
        let event = nri::Event::PostStartContainer;
        let change = change(event, &pod, container.as_ref());
        let request = nri::PostStartContainerRequest { pod, container };
        told::<nri::PostStartContainerResponse>(plugins, event, "PostStartContainer", &request, change).await;
    }
}

/// A container shall get other resources: answers those that plugins make of them, and the limit of tasks that one may add.
///
/// # Errors
/// A plugin refuses.
pub async fn container_changes(
    daemon: &Arc<Daemon>,
    of: &Container,
    new: cri::LinuxContainerResources,
) -> Result<(cri::LinuxContainerResources, Option<i64>)> {
    let plugins = daemon.nri.noting(|_| {});
    if plugins.is_empty() {
        return Ok((new, None));
    }
    let (pod, container) = both(daemon, of);
    let mut resources = convert::of_cri(&new);
    let (mut others, mut evicted) = (Vec::new(), Vec::new());
    for plugin in &plugins {
        let request = nri::UpdateContainerRequest {
            pod: pod.clone(),
            container: container.clone(),
            linux_resources: Some(resources.clone()),
        };
        let answer = plugin.ask(nri::Event::UpdateContainer, "UpdateContainer", &request, None).await;
        let answer: nri::UpdateContainerResponse = answer.map_err(Error::Failed)?.unwrap_or_default();
        for update in answer.update {
            if update.container_id != of.id {
                others.push(update);
            } else if let Some(wanted) = update.linux.and_then(|l| l.resources) {
                let merged = resources.merge(wanted.encode_to_vec().as_slice());
                merged.map_err(|e| Error::Failed(format!("NRI plugin {}: {e}", plugin.name())))?;
            }
        }
        evicted.extend(answer.evict);
    }
    if !others.is_empty() || !evicted.is_empty() {
        let daemon = daemon.clone();
        tokio::spawn(async move { updates::apply_all(&daemon, others, evicted, "UpdateContainer").await });
    }
    let (mut changed, tasks) = convert::to_cri(&resources);
    changed.oom_score_adj = new.oom_score_adj;
    Ok((changed, tasks))
}

/// A container has other resources now.
pub async fn container_changed(daemon: &Daemon, of: &Container) {
    let plugins = daemon.nri.noting(|_| {});
    if !plugins.is_empty() {
        let (pod, container) = both(daemon, of);
        let event = nri::Event::PostUpdateContainer;
        let change = change(event, &pod, container.as_ref());
        let request = nri::PostUpdateContainerRequest { pod, container };
        told::<nri::PostUpdateContainerResponse>(plugins, event, "PostUpdateContainer", &request, change).await;
    }
}

/// A container has ended, by itself or because it was stopped; told in the background, before anything that comes later.
pub fn container_ended(daemon: &Arc<Daemon>, of: &Arc<Container>) {
    let plugins = daemon.nri.noting(|state| state.ends.retain(|_, told| !told.is_finished()));
    if plugins.is_empty() {
        return;
    }
    let (task_daemon, task_container) = (daemon.clone(), of.clone());
    let task = tokio::spawn(async move {
        let (pod, container) = both(&task_daemon, &task_container);
        let request = nri::StopContainerRequest { pod, container };
        let answers = ask_all(&plugins, nri::Event::StopContainer, "StopContainer", &request, None).await;
        match answers {
            Ok(answers) => {
                let wanted = answers.into_iter().flat_map(|(_, a): (_, nri::StopContainerResponse)| a.update);
                let wanted: Vec<_> = wanted.filter(|u| u.container_id != task_container.id).collect();
                updates::apply_all(&task_daemon, wanted, Vec::new(), "StopContainer").await;
            }
            Err(error) => tracing::warn!(container = %task_container.id, %error, "an NRI plugin fails"),
        }
    });
    lock(&daemon.nri.state).ends.insert(of.id.clone(), task);
}

/// A container is gone; `forget` takes it off the list.
pub async fn container_removed(daemon: &Daemon, of: &Container, forget: impl FnOnce()) {
    let mut ended = None;
    let plugins = daemon.nri.noting(|state| {
        state.leaving.insert(of.id.clone());
        ended = state.ends.remove(&of.id);
    });
    if let Some(ended) = ended {
        let _ = ended.await;
    }
    if !plugins.is_empty() {
        let (pod, container) = both(daemon, of);
        let event = nri::Event::RemoveContainer;
        let change = change(event, &pod, container.as_ref());
        let request = nri::RemoveContainerRequest { pod, container };
        told::<nri::RemoveContainerResponse>(plugins, event, "RemoveContainer", &request, change).await;
    }
    forget();
    lock(&daemon.nri.state).leaving.remove(&of.id);
}
