//! StopPodSandbox and RemovePodSandbox: every step is done, however often it is asked for; faults are gathered.

use std::fs;
use std::io;
use std::sync::Arc;

use gantry_monitor::protocol::Request;
use gantry_sys::namespaces::unpin;
use proto::cri;

use super::network;
use crate::daemon::{Daemon, Sandbox, lock};
use crate::error::{Error, Result};
use crate::events::emit;
use crate::{cgroups, cni, container, monitors, nri, reaper};

/// Stops all containers and lets go of the network.
///
/// # Errors
/// What could not be let go of; a later call tries again.
pub async fn stop(daemon: &Arc<Daemon>, id: &str) -> Result<()> {
    let Ok(sandbox) = daemon.sandbox(id) else { return Ok(()) };
    let _turn = sandbox.turn.lock().await;
    // One that does not end holds up neither the others nor the network.
    let containers = daemon.containers_of(&sandbox.id);
    let ends = futures::future::join_all(containers.iter().map(|c| container::stop(daemon, c, 0))).await;
    let mut faults: Vec<String> = ends.into_iter().filter_map(|e| Some(e.err()?.to_string())).collect();
    let was_stopped = sandbox.record().stopped;
    if !was_stopped {
        nri::pod_stopped(daemon, &sandbox).await;
    }
    faults.extend(leave_network(daemon, &sandbox).await);
    if !faults.is_empty() {
        return Err(Error::Failed(format!("stop sandbox {}: {}", sandbox.id, faults.join("; "))));
    }
    if !was_stopped {
        sandbox.change_anyway(&daemon.ledger, |r| r.stopped = true);
    }
    if !was_stopped {
        emit(daemon, &sandbox.id, &sandbox.id, cri::ContainerEventType::ContainerStoppedEvent);
        tracing::info!(sandbox = %sandbox.id, "sandbox stopped");
    }
    Ok(())
}

/// CNI DEL and unpinning of the network namespace.
async fn leave_network(daemon: &Daemon, sandbox: &Sandbox) -> Vec<String> {
    let record = sandbox.record();
    let mut faults = Vec::new();
    let netns = daemon.sandbox_dir(&sandbox.id).join("ns/net");
    if let Some(list) = &record.cni_config {
        let there = gantry_sys::namespaces::is_pinned(&netns).then_some(netns.as_path());
        let attachment = network::attachment(daemon, &record, there);
        faults.extend(cni::del(list, record.cni_result.as_ref(), &attachment).await);
    }
    if faults.is_empty() {
        if let Err(e) = unpin(&netns) {
            faults.push(format!("unpin {}: {e}", netns.display()));
        } else if record.cni_config.is_some() {
            sandbox.change_anyway(&daemon.ledger, |r| r.cni_config = None);
        }
    }
    faults
}

/// Lets go of everything a sandbox holds but its record. Answers what failed.
pub(crate) async fn release(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>) -> Vec<String> {
    let mut faults = leave_network(daemon, sandbox).await;
    let client = daemon.monitor(&sandbox.id);
    if let Err(e) = monitors::call(daemon, &sandbox.id, Request::Shutdown).await {
        // Gone is what is wanted; refused is not.
        if client.socket().exists() && !monitors::gone(daemon, &sandbox.id).await {
            faults.push(e.to_string());
        } else if let Some(pid) = sandbox.record().pid_init.filter(|_| sandbox.record().boot == daemon.boot) {
            kill_pause(pid);
        }
    }
    let _ = fs::remove_file(client.socket());
    monitors::tidy();
    let dir = daemon.sandbox_dir(&sandbox.id);
    for name in ["uts", "ipc", "net", "user"] {
        if let Err(e) = unpin(&dir.join("ns").join(name)) {
            faults.push(format!("unpin {name} of sandbox {}: {e}", sandbox.id));
        }
    }
    let shm = dir.join("shm");
    let unmounted = if shm.exists() { gantry_sys::mount::unmount_all(&shm) } else { Ok(()) };
    if let Err(e) = unmounted {
        faults.push(format!("unmount {}: {e}", shm.display()));
    }
    if faults.is_empty()
        && let Err(e) = fs::remove_dir_all(&dir)
        && e.kind() != io::ErrorKind::NotFound
    {
        faults.push(format!("remove {}: {e}", dir.display()));
    }
    let own_parent = sandbox.record().config.0.linux.is_none_or(|l| l.cgroup_parent.is_empty());
    if own_parent && let Ok(group) = super::cgroup(daemon, &sandbox.record()) {
        let _ = forget_group(daemon, group).await;
    }
    faults
}

/// Removes a pod's own, empty group.
async fn forget_group(daemon: &Arc<Daemon>, group: String) -> Result<()> {
    let daemon = daemon.clone();
    let removed = tokio::task::spawn_blocking(move || {
        cgroups::forget(&group)?;
        daemon.host.cgroup(&group)?.destroy()
    });
    removed.await?.map_err(|e| Error::Failed(e.to_string()))
}

/// Kills a pod's orphaned init, after making sure that the pid is one.
fn kill_pause(pid: i32) {
    use std::os::fd::AsFd;
    let Ok(pidfd) = gantry_sys::process::pidfd_open(pid) else { return };
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if line.ends_with(b"\0pause\0") {
        let _ = gantry_sys::process::pidfd_send_signal(pidfd.as_fd(), nix::libc::SIGKILL);
    }
}

/// Records new overhead and resources of a pod. The pod's cgroup is its parent's owner's (the kubelet's) to change, but where
/// the pod has no parent the daemon made its cgroup, and changes it.
///
/// # Errors
/// There is no such sandbox, it is stopped, or the kernel refuses a value.
pub async fn update_resources(
    daemon: &Arc<Daemon>,
    id: &str,
    overhead: Option<cri::LinuxContainerResources>,
    resources: Option<cri::LinuxContainerResources>,
) -> Result<()> {
    let sandbox = daemon.sandbox(id)?;
    let _turn = sandbox.turn.lock().await;
    let record = sandbox.record();
    if record.stopped {
        return Err(Error::State(format!("sandbox {} is not ready", sandbox.id)));
    }
    nri::pod_changes(daemon, &sandbox, overhead.as_ref(), resources.as_ref()).await?;
    let own_parent = record.config.0.linux.as_ref().is_none_or(|l| l.cgroup_parent.is_empty());
    if let (true, Some(wanted)) = (own_parent, &resources) {
        let failed = |e: gantry_cgroup::Error| Error::Failed(format!("resources of sandbox {}: {e}", sandbox.id));
        let group = super::cgroup(daemon, &record)?;
        let cgroup = daemon.host.cgroup(&group).map_err(failed)?;
        let wanted = container::to_cgroup(wanted);
        tokio::task::spawn_blocking(move || {
            cgroups::tell(&group, &wanted, cgroup.version())?;
            cgroup.create().and_then(|()| cgroup.apply(&wanted))
        })
        .await?
        .map_err(failed)?;
    }
    sandbox.change(&daemon.ledger, |r| {
        let linux = r.config.0.linux.get_or_insert_default();
        linux.overhead = overhead.or_else(|| linux.overhead.take());
        linux.resources = resources.or_else(|| linux.resources.take());
    })?;
    nri::pod_changed(daemon, &sandbox).await;
    Ok(())
}

/// Stops, then removes the sandbox with all its containers. Unknown is fine.
///
/// # Errors
/// What could not be let go of: it is tried again without being asked for, and a later call does too.
pub async fn remove(daemon: &Arc<Daemon>, id: &str) -> Result<()> {
    let removed = try_remove(daemon, id).await;
    if removed.is_err()
        && let Ok(sandbox) = daemon.sandbox(id)
    {
        doom(daemon, &sandbox);
    }
    removed
}

/// Has a sandbox removed as soon as that can be done.
pub(crate) fn doom(daemon: &Arc<Daemon>, sandbox: &Sandbox) {
    if !sandbox.record().doomed {
        sandbox.change_anyway(&daemon.ledger, |r| r.doomed = true);
    }
    reaper::again(daemon, &sandbox.id);
}

/// One attempt at a removal. Why it fails is in what the sandbox' status says verbosely.
///
/// # Errors
/// What could not be let go of.
pub(crate) async fn try_remove(daemon: &Arc<Daemon>, id: &str) -> Result<()> {
    let removed = let_go(daemon, id).await;
    if let (Err(error), Ok(sandbox)) = (&removed, daemon.sandbox(id)) {
        *lock(&sandbox.fault) = error.to_string();
    }
    removed
}

async fn let_go(daemon: &Arc<Daemon>, id: &str) -> Result<()> {
    let Ok(sandbox) = daemon.sandbox(id) else { return Ok(()) };
    stop(daemon, &sandbox.id).await?;
    // One may come in until the pod's turn is ours; a stopped pod gets no more.
    let _turn = loop {
        let containers = daemon.containers_of(&sandbox.id);
        let removals = containers.iter().map(|c| container::try_remove(daemon, &c.id));
        let removals = futures::future::join_all(removals).await;
        let faults: Vec<String> = removals.into_iter().filter_map(|r| Some(r.err()?.to_string())).collect();
        if !faults.is_empty() {
            return Err(Error::Failed(format!("remove sandbox {}: {}", sandbox.id, faults.join("; "))));
        }
        let turn = sandbox.turn.lock().await;
        if daemon.containers_of(&sandbox.id).is_empty() {
            break turn;
        }
    };
    // Whoever had the turn before may have removed it.
    if daemon.sandbox(&sandbox.id).is_err() {
        return Ok(());
    }
    let faults = release(daemon, &sandbox).await;
    if !faults.is_empty() {
        return Err(Error::Failed(format!("remove sandbox {}: {}", sandbox.id, faults.join("; "))));
    }
    sandbox.forget(&daemon.ledger).map_err(Error::failed("forget the sandbox"))?;
    nri::pod_removed(daemon, &sandbox, || daemon.drop_sandbox(&sandbox.id)).await;
    emit(daemon, &sandbox.id, &sandbox.id, cri::ContainerEventType::ContainerDeletedEvent);
    tracing::info!(sandbox = %sandbox.id, "sandbox removed");
    Ok(())
}
