//! RunPodSandbox: record, then make; what fails is undone in reverse and forgotten.

use std::sync::Arc;

use gantry_monitor::protocol::{Answer, Request};
use gantry_sys::namespaces::{Kind, create_pinned};
use proto::cri;

use super::{files, network, options, release, users};
use crate::cni;
use crate::daemon::{Daemon, Making, Sandbox, new_id, now};
use crate::error::{Error, Result};
use crate::events::emit;
use crate::ledger::{SandboxRecord, Wire};
use crate::oci::refuse;
use crate::oci::spec::is_node;
use crate::{monitors, nri};

/// Makes a sandbox, or answers the one that has the same metadata already and is ready.
///
/// # Errors
/// What failed; nothing is left then.
pub async fn run(daemon: &Arc<Daemon>, config: cri::PodSandboxConfig, handler: String) -> Result<String> {
    let metadata = config.metadata.clone().ok_or_else(|| Error::Invalid("the sandbox has no metadata".to_owned()))?;
    refuse::pod(&config, refuse::selinux()).map_err(Error::Invalid)?;
    if daemon.settings().handler(&handler).is_none() {
        return Err(Error::Invalid(format!("runtime handler {handler:?} is not in the configuration")));
    }
    let name = format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt);
    let _turn = daemon.name_turn(&name).await;
    let usable = |r: &SandboxRecord| r.complete && !r.stopped && !r.doomed;
    let same = |s: &Arc<Sandbox>| s.with(|r| usable(r) && r.config.0.metadata.as_ref() == Some(&metadata));
    if let Some(existing) = daemon.all_sandboxes().into_iter().find(same) {
        return Ok(existing.id.clone());
    }
    let record = SandboxRecord {
        id: new_id(),
        config: Wire(config),
        handler,
        created_at: now(),
        boot: daemon.boot.clone(),
        complete: false,
        stopped: false,
        ips: Vec::new(),
        cni_config: None,
        cni_result: None,
        pid_init: None,
        doomed: false,
    };
    let sandbox = Arc::new(Sandbox::new(record));
    let _making = Making::new(daemon, &sandbox.id);
    let result = make(daemon, &sandbox).await;
    let result = match result {
        Ok(()) => {
            let coming = nri::pod_runs(daemon, &sandbox).await;
            if coming.is_err() {
                nri::pod_removed(daemon, &sandbox, || {}).await;
            }
            coming
        }
        Err(error) => Err(error),
    };
    let coming = match result {
        Ok(coming) => coming,
        Err(error) => return Err(undo(daemon, &sandbox, error).await),
    };
    daemon.add_sandbox(sandbox.clone());
    drop(coming);
    monitors::follow(daemon, &sandbox.id);
    emit(daemon, &sandbox.id, &sandbox.id, cri::ContainerEventType::ContainerCreatedEvent);
    emit(daemon, &sandbox.id, &sandbox.id, cri::ContainerEventType::ContainerStartedEvent);
    tracing::info!(pod = %name, sandbox = %sandbox.id, "sandbox ready");
    Ok(sandbox.id.clone())
}

/// Lets go of a half-made sandbox. Answers why it was not made.
async fn undo(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>, error: Error) -> Error {
    let faults = release(daemon, sandbox).await;
    for fault in &faults {
        tracing::warn!(sandbox = %sandbox.id, %fault, "undo of a failed sandbox");
    }
    if faults.is_empty() {
        let _ = sandbox.forget(&daemon.ledger);
    } else {
        // Shown as not ready, so that whoever removes old sandboxes tries again to let go of the rest.
        sandbox.change_anyway(&daemon.ledger, |r| r.stopped = true);
        daemon.add_sandbox(sandbox.clone());
        super::stop::doom(daemon, sandbox);
    }
    error
}

async fn make(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>) -> Result<()> {
    let record = sandbox.record();
    let options = options(&record);
    let config = record.config.0.clone();
    let (host_network, host_ipc) = (is_node(options.network), is_node(options.ipc));
    network::bandwidth(&config.annotations).map_err(Error::Invalid)?;
    let ids = users::wanted(&options).map_err(Error::Invalid)?;
    let list =
        if host_network { None } else { Some(cni::load(&daemon.settings().cni_conf_dir).map_err(Error::Failed)?) };
    sandbox.change(&daemon.ledger, |r| r.cni_config = list.clone())?;
    let durable = daemon.record_synced(&record.id);
    let dir = daemon.sandbox_dir(&record.id);
    let (folder, request) = (dir.clone(), config.clone());
    let owner = ids.as_ref().map(|ids| ids.root());
    tokio::task::spawn_blocking(move || files::make(&folder, &request, host_network, host_ipc, owner))
        .await?
        .map_err(Error::failed(format!("files of sandbox {}", record.id)))?;
    // Neither needs the other, and neither is left half-way when the other fails.
    let (connected, watched) = futures::join!(connect(daemon, sandbox, ids.as_ref()), monitors::spawn(daemon, sandbox));
    connected.and(watched)?;
    let user = ids.map(|_| users::path(daemon, &record.id));
    if options.pid() == cri::NamespaceMode::Pod
        && let Answer::Created { pid } = monitors::call(daemon, &record.id, Request::PidNamespace { user }).await?
    {
        sandbox.change(&daemon.ledger, |r| r.pid_init = Some(pid))?;
    }
    durable.await??;
    sandbox.change(&daemon.ledger, |r| r.complete = true)
}

/// Makes the namespaces and attaches them to the network.
async fn connect(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>, ids: Option<&users::Ids>) -> Result<()> {
    let record = sandbox.record();
    let options = options(&record);
    let config = &record.config.0;
    let dir = daemon.sandbox_dir(&record.id);
    let (host_network, host_ipc) = (is_node(options.network), is_node(options.ipc));
    let mut kinds = Vec::new();
    if !host_network {
        kinds.push((Kind::Network, dir.join("ns/net")));
        kinds.push((Kind::Uts, dir.join("ns/uts")));
    }
    if !host_ipc {
        kinds.push((Kind::Ipc, dir.join("ns/ipc")));
    }
    let hostname = (!host_network && !config.hostname.is_empty()).then(|| config.hostname.clone());
    let sysctls: Vec<(String, String)> =
        config.linux.iter().flat_map(|l| &l.sysctls).map(|(k, v)| (k.clone(), v.clone())).collect();
    if let Some(ids) = ids {
        users::make(daemon, &record.id, ids, &kinds, hostname, sysctls).await?;
    } else if !kinds.is_empty() {
        tokio::task::spawn_blocking(move || create_pinned(&kinds, hostname.as_deref(), &sysctls))
            .await?
            .map_err(Error::failed(format!("namespaces of sandbox {}", record.id)))?;
    }
    if let Some(list) = &record.cni_config {
        let netns = dir.join("ns/net");
        let result = cni::add(list, &network::attachment(daemon, &record, Some(&netns))).await?;
        let ips = cni::addresses(&result);
        sandbox.change(&daemon.ledger, |r| {
            r.ips = ips;
            r.cni_result = Some(result);
        })?;
    }
    Ok(())
}
