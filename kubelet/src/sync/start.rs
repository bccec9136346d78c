//! Making a sandbox or a container run.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
use kubelet_volumes::Recursive;
use proto::cri::{CreateContainerRequest, PodSandboxConfig};

use super::observe::{Observed, Sandbox, State};
use super::stop;
use crate::images::Wanted;
use crate::metrics::own;
use crate::pod::{self, Creation};
use crate::resources::managers;
use crate::shared::Shared;
use crate::{images, logs, pod::container_config};

/// How long a postStart hook may take. Upstream has no limit, and people wait in hooks for others; it ends sooner with its
/// container, its pod, or the pod's deletion.
const POST_START: Duration = Duration::from_secs(24 * 60 * 60);

/// Why something did not start: the reason of the waiting state and its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartError {
    /// `CreateContainerConfigError`, `ErrImagePull`, ...
    pub(crate) reason: &'static str,
    /// Why.
    pub(crate) message: String,
}

/// Prepares volumes and the control group, and makes a sandbox.
///
/// # Errors
/// Something failed; events have told what.
pub(crate) async fn sandbox(shared: &Shared, pod: &Pod, attempt: u32) -> Result<(), StartError> {
    let event = |reason, message| shared.events.pod(pod, None, true, reason, message);
    let fail = |message| StartError { reason: "ContainerCreating", message };
    if let Err(e) = pod::kernel_hostname(pod, &shared.config.cluster_domain) {
        event("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {e}"));
        return Err(fail(e));
    }
    if let Some(claim) = pod::spec(pod).resource_claims.iter().flatten().next() {
        // Without its devices it would run, and not do what it is for.
        let message = format!(
            "Failed to prepare dynamic resources: claim {:?}: this kubelet has no plugins for claims",
            claim.name
        );
        event("FailedPrepareDynamicResources", message.clone());
        return Err(fail(message));
    }
    for (reason, message) in pod::dns_warnings(pod, &shared.facts.dns) {
        event(reason, message);
    }
    let ips = if pod::host_network(pod) { shared.node_ips.clone() } else { Vec::new() };
    let start = std::time::Instant::now();
    let set_up = shared.volumes.setup(pod, &shared.context(ips)).await;
    own::stored("volume_mount", start.elapsed(), set_up.is_ok());
    if let Err(e) = set_up {
        event("FailedMount", e.to_string());
        return Err(fail(e.to_string()));
    }
    let (groups, owned) = (shared.cgroups.clone(), pod.clone());
    let own_cpus = shared.managers.has_cpus(pod::uid(pod));
    let start = std::time::Instant::now();
    let made = tokio::task::spawn_blocking(move || groups.create(&owned, own_cpus)).await;
    own::CGROUPS.observe(&[("operation_type", "create")], start.elapsed());
    if let Err(e) = made.map_err(|e| e.to_string()).and_then(|r| r.map_err(|e| e.to_string())) {
        let message = format!("unable to ensure pod container exists: {e}");
        event("FailedCreatePodContainer", message.clone());
        return Err(fail(message));
    }
    let config = match sandbox_config(shared, pod, attempt) {
        Ok(config) => config,
        Err(e) => {
            event("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {e}"));
            return Err(fail(e));
        }
    };
    if let Err(e) = std::fs::create_dir_all(&config.log_directory) {
        let message = format!("Failed to create pod sandbox: make the log directory {}: {e}", config.log_directory);
        event("FailedCreatePodSandBox", message.clone());
        return Err(fail(message));
    }
    let handler = match handler(shared, pod).await {
        Ok(handler) => handler,
        Err(e) => {
            let message = format!("Failed to create pod sandbox: {e}");
            event("FailedCreatePodSandBox", message.clone());
            return Err(fail(message));
        }
    };
    if pod::spec(pod).host_users == Some(false)
        && let Err(e) = own_users(shared, &handler).await
    {
        let message = format!("Failed to create pod sandbox: {e}");
        event("FailedCreatePodSandBox", message.clone());
        return Err(fail(message));
    }
    let (start, class) = (std::time::Instant::now(), [("runtime_handler", handler.as_str())]);
    let run = shared.cri.run_sandbox(config, &handler).await;
    own::SANDBOX_SECONDS.observe(&class, start.elapsed());
    match run {
        Ok(id) => {
            tracing::info!(pod = %pod::key(pod), sandbox = %id, attempt, "sandbox made");
            Ok(())
        }
        Err(e) => {
            own::SANDBOX_ERRORS.count(&class);
            let message = format!("Failed to create pod sandbox: {e}");
            event("FailedCreatePodSandBox", message.clone());
            Err(fail(message))
        }
    }
}

/// The sandbox of a pod with the user ids that it has.
fn sandbox_config(shared: &Shared, pod: &Pod, attempt: u32) -> Result<PodSandboxConfig, String> {
    let mut config = pod::sandbox_config(pod, attempt, &shared.cgroups.path(pod), &shared.facts);
    if let Some(ids) = shared.users.of(pod)? {
        ids.sandbox(&mut config);
    }
    Ok(config)
}

/// Whether the runtime's handler can give a pod user ids of its own.
async fn own_users(shared: &Shared, handler: &str) -> Result<(), String> {
    let told = shared.cri.status().await.map_err(|e| e.to_string())?.runtime_handlers;
    let found = told.into_iter().find(|h| h.name == handler).and_then(|h| h.features);
    if found.is_some_and(|f| f.user_namespaces) {
        return Ok(());
    }
    Err(format!("hostUsers: false: RuntimeClass handler {handler:?} does not support user namespaces"))
}

/// The runtime's name for the pod's RuntimeClass; empty for its own choice. Without an apiserver the class is the handler.
async fn handler(shared: &Shared, pod: &Pod) -> Result<String, String> {
    let class = pod.spec.as_ref().and_then(|s| s.runtime_class_name.clone()).unwrap_or_default();
    let Some(client) = shared.client.clone().filter(|_| !class.is_empty()) else { return Ok(class) };
    let api: kube::Api<RuntimeClass> = kube::Api::all(client);
    match tokio::time::timeout(Duration::from_secs(10), api.get_opt(&class)).await {
        Ok(Ok(Some(found))) => Ok(found.handler),
        Ok(Ok(None)) => Err(format!("RuntimeClass {class:?} not found")),
        Ok(Err(e)) => Err(format!("get RuntimeClass {class:?}: {e}")),
        Err(_) => Err(format!("get RuntimeClass {class:?}: the apiserver gave no answer in time")),
    }
}

/// Whether the runtime makes what lies below a read-only mount read-only, too; asked only where a container wants it.
async fn recursive(shared: &Shared, pod: &Pod, container: &Container) -> Result<bool, String> {
    let modes =
        || container.volume_mounts.iter().flatten().map(|m| m.recursive_read_only.as_deref().unwrap_or_default());
    if !modes().any(|m| m == "IfPossible" || m == "Enabled") {
        return Ok(false);
    }
    let name = handler(shared, pod).await?;
    let told = shared.cri.status().await.map_err(|e| e.to_string())?.runtime_handlers;
    let can = told.into_iter().find(|h| h.name == name).and_then(|h| h.features);
    let can = can.is_some_and(|f| f.recursive_read_only_mounts);
    if !can && modes().any(|m| m == "Enabled") {
        return Err(format!("volumeMounts: recursiveReadOnly Enabled: the runtime's handler {name:?} cannot do it"));
    }
    Ok(can)
}

/// Creates and starts a container in the sandbox.
///
/// # Errors
/// Something failed; events have told what. A container that was created but did not start is removed.
pub(crate) async fn container(
    shared: &Shared,
    pod: &Pod,
    observed: &Observed,
    container: &Container,
    attempt: u32,
    restart_delay_ms: u64,
) -> Result<(), StartError> {
    let event = |warning, reason, message| shared.events.pod(pod, Some(&container.name), warning, reason, message);
    let failed = |reason: &'static str, message: String| {
        event(true, "Failed", format!("Error: {message}"));
        StartError { reason, message }
    };
    let Some(sandbox) = observed.ready_sandbox() else {
        return Err(StartError { reason: "ContainerCreating", message: String::new() });
    };
    let target = match pod::target_of(pod, &container.name) {
        Some(name) => match observed.latest_in(&sandbox.id, name).filter(|s| s.state == State::Running) {
            Some(seen) => Some(seen.id.clone()),
            None => {
                return Err(failed(
                    "CreateContainerConfigError",
                    format!("targetContainerName: container {name:?} does not run"),
                ));
            }
        },
        None => None,
    };
    let sandbox_config =
        sandbox_config(shared, pod, sandbox.attempt).map_err(|e| failed("CreateContainerConfigError", e))?;
    let ids = shared.users.of(pod).map_err(|e| failed("CreateContainerConfigError", e))?;
    let no_image = |e: images::ImageError| StartError { reason: e.reason, message: e.message };
    let image = images::ensure(shared, pod, Wanted::of(container), &sandbox_config).await.map_err(no_image)?;
    let mut volumes = HashMap::new();
    for (volume, source) in pod::image_volumes(pod, container) {
        let found = images::ensure(shared, pod, source, &sandbox_config).await.map_err(no_image)?;
        volumes.insert(volume.to_owned(), found.id);
    }
    let ips = if pod::host_network(pod) { shared.node_ips.clone() } else { sandbox.ips.clone() };
    let context = shared.context(ips.clone());
    let places = |volume: &str| shared.volumes.host_path(pod, volume);
    let env = kubelet_volumes::environment(pod, container, &context, &*shared.objects, &places)
        .await
        .map_err(|e| failed("CreateContainerConfigError", e.to_string()))?;
    let (uid, name) = (pod::uid(pod), container.name.as_str());
    shared.managers.pre_start(uid, name).await.map_err(|e| failed("CreateContainerConfigError", e))?;
    let grant = shared.managers.grant(uid, name);
    let recursive = recursive(shared, pod, container).await.map_err(|e| failed("CreateContainerConfigError", e))?;
    shared
        .volumes
        .write_hosts(pod, &ips, &pod::hostname(pod), &pod::domain(pod, &shared.config.cluster_domain))
        .and_then(|()| shared.volumes.mounts(pod, container, &env, attempt))
        .map(|mut mounts| {
            for mount in mounts.iter_mut().filter(|_| !recursive) {
                mount.recursive_read_only = Recursive::Disabled;
            }
            mounts
        })
        .and_then(|mounts| Ok((mounts, shared.volumes.devices(pod, container)?)))
        .map_err(|e| e.to_string())
        .and_then(|made| shared.users.let_through(pod).map(|()| made))
        .map_err(|e| failed("CreateContainerConfigError", e))
        .map(|(mounts, devices)| Creation {
            pod,
            container,
            attempt,
            restart_delay_ms,
            env,
            mounts,
            devices,
            target,
            image: &image,
            volumes: &volumes,
        })
        .and_then(|creation| {
            container_config(creation, &shared.facts).map_err(|e| failed("CreateContainerConfigError", e))
        })
        .map(|mut config| {
            managers::apply(grant, &mut config);
            if let Some(ids) = ids {
                ids.container(&mut config);
            }
            config
        })
        .map(|config| CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        })
        .map(|request| run(shared, pod, sandbox, container, request))?
        .await
}

async fn run(
    shared: &Shared,
    pod: &Pod,
    sandbox: &Sandbox,
    container: &Container,
    request: CreateContainerRequest,
) -> Result<(), StartError> {
    let event = |warning, reason, message| shared.events.pod(pod, Some(&container.name), warning, reason, message);
    let failed = |reason: &'static str, message: String| {
        event(true, "Failed", format!("Error: {message}"));
        StartError { reason, message }
    };
    let attempt = request.config.as_ref().and_then(|c| c.metadata.as_ref()).map_or(0, |m| m.attempt);
    let logs = pod::log_dir(&shared.facts.log_root, pod).join(&container.name);
    std::fs::create_dir_all(&logs)
        .map_err(|e| failed("CreateContainerError", format!("make the log directory {}: {e}", logs.display())))?;
    let id = shared.cri.create_container(request).await.map_err(|e| failed("CreateContainerError", e.to_string()))?;
    event(false, "Created", format!("Created container: {}", container.name));
    let log = logs.join(format!("{attempt}.log"));
    logs::link(&shared.facts.log_root, pod, &container.name, &id, &log);
    if let Err(e) = shared.cri.start_container(&id).await {
        // It stays as a container that has ended where the runtime keeps it: its exit code counts for the back-off.
        let error = failed("RunContainerError", e.to_string());
        let state = shared.cri.container_status(&id).await.map(|s| s.state());
        if !matches!(state, Ok(proto::cri::ContainerState::ContainerExited))
            && let Err(e) = shared.cri.remove_container(&id).await
        {
            tracing::warn!(pod = %pod::key(pod), container = %id, error = %e, "container that did not start not removed");
        }
        return Err(error);
    }
    event(false, "Started", format!("Started container {}", container.name));
    let hook = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref());
    if let Some(hook) = hook {
        let ip = sandbox.ips.first().cloned().unwrap_or_default();
        if let Err(why) = stop::hook(shared, hook, container, &id, &ip, POST_START).await {
            event(true, "FailedPostStartHook", format!("PostStartHook failed: {why}"));
            let grace = Duration::from_secs(u64::try_from(pod::grace(pod)).unwrap_or(0));
            if let Err(e) = shared.cri.stop_container(&id, grace).await {
                tracing::warn!(container = %id, error = %e, "container not stopped after its failed hook");
            }
            return Err(StartError { reason: "PostStartHookError", message: why });
        }
    }
    Ok(())
}
