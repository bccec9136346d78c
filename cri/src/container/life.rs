//! Stop, remove and resize.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gantry_cgroup::{HugepageLimit, Resources};
use gantry_files::{Access, Outlives};
use gantry_monitor::protocol::Request;
use gantry_monitor::record::ExitRecord;
use proto::cri;

use super::{ended, runs_on, signal_number};
use crate::daemon::{Container, Daemon, lock, now};
use crate::error::{Error, Result};
use crate::events::emit;
use crate::ledger::Wire;
use crate::oci::spec;
use crate::{cgroups, monitors, nri, reaper};

/// How long a call waits for files to be deleted. Deleting goes on after it.
const DELETING: Duration = Duration::from_secs(60);

/// Waits until a container has ended; false at the time limit.
async fn wait(container: &Container, limit: Duration) -> bool {
    let ended = async {
        loop {
            let notified = container.ended.notified();
            if container.state() == cri::ContainerState::ContainerExited {
                return;
            }
            let _ = tokio::time::timeout(Duration::from_millis(500), notified).await;
        }
    };
    tokio::time::timeout(limit, ended).await.is_ok()
}

/// Asks a container to end, once, and kills it after `grace` seconds. Of several calls the one with the least patience kills.
///
/// # Errors
/// It does not even die by SIGKILL.
pub async fn stop(daemon: &Arc<Daemon>, container: &Arc<Container>, grace: i64) -> Result<()> {
    if container.state() == cri::ContainerState::ContainerCreated {
        // It may be starting just now: what is to be ended is known after that.
        let _turn = container.turn.lock().await;
        if container.state() == cri::ContainerState::ContainerCreated {
            return never_start(daemon, container).await;
        }
    }
    end(daemon, container, grace).await
}

/// Ends a container before it has started, in its turn.
async fn never_start(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    // Most have no process yet; one that an earlier version made, or whose start was cut off, has.
    let delete = Request::Delete { id: container.id.clone() };
    if let Err(error) = monitors::call(daemon, &container.sandbox, delete).await {
        if !monitors::gone(daemon, &container.sandbox).await {
            return Err(error);
        }
        monitors::lost(daemon, &container.sandbox).await;
    }
    ended(daemon, &container.id, unstarted(), "", "");
    Ok(())
}

/// The end of a container that has not started.
fn unstarted() -> ExitRecord {
    ExitRecord { code: 137, finished_at: now(), oom_killed: false }
}

/// As [`stop`], of a container that has started.
async fn end(daemon: &Arc<Daemon>, container: &Arc<Container>, grace: i64) -> Result<()> {
    if container.state() == cri::ContainerState::ContainerExited {
        return Ok(());
    }
    let record = container.record();
    let kill = |signal| Request::Kill { id: record.id.clone(), signal, all: false };
    if grace > 0 {
        let mut asked = true;
        if !container.asked_to_end.swap(true, Ordering::Relaxed) {
            let signal = signal_number(&record.stop_signal);
            asked = monitors::call(daemon, &record.sandbox, kill(signal)).await.is_ok();
            container.asked_to_end.store(asked, Ordering::Relaxed);
        }
        if asked && wait(container, Duration::from_secs(grace.unsigned_abs())).await {
            return Ok(());
        }
    }
    if let Err(error) = monitors::call(daemon, &record.sandbox, kill(9)).await {
        if monitors::gone(daemon, &record.sandbox).await {
            monitors::lost(daemon, &record.sandbox).await;
        } else {
            // What holds the monitor up (a log on a disk that does not answer) need not keep the container alive.
            if let Ok(cgroup) = daemon.host.cgroup(&record.cgroup) {
                let _ = cgroup.kill();
            }
            return Err(Error::Timeout(format!("kill container {}: {error}", container.id)));
        }
    }
    if wait(container, Duration::from_secs(20)).await {
        return Ok(());
    }
    Err(Error::Timeout(format!("container {} does not end after SIGKILL", container.id)))
}

/// Kills runtimes that a dead monitor has left at work on a container: they would make what is deleted now.
async fn end_orphans(daemon: &Daemon, id: &str) {
    use std::os::fd::AsFd;
    let root = &daemon.config.runtime_root;
    let at_work = |pid: &i32| runs_on(*pid, root, id, &["create", "start", "run", "restore"]);
    let pids = || -> Vec<i32> {
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        all.filter_map(|e| e.file_name().to_string_lossy().parse().ok()).filter(|pid| at_work(pid)).collect()
    };
    for _ in 0..100 {
        let found = pids();
        if found.is_empty() {
            return;
        }
        for pid in found {
            let Ok(pidfd) = gantry_sys::process::pidfd_open(pid) else { continue };
            if at_work(&pid) {
                let _ = gantry_sys::process::pidfd_send_signal(pidfd.as_fd(), nix::libc::SIGKILL);
            }
        }
        // There is no event for the end of a process that is no child.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Ends what a dead monitor has left of a container: first the runtime at work, which would go on to start it.
pub(crate) async fn abandon(daemon: &Daemon, container: &Container) {
    if container.with(|r| r.started_at == 0) {
        end_orphans(daemon, &container.id).await;
    }
    if let Ok(cgroup) = daemon.host.cgroup(&container.record().cgroup) {
        let _ = cgroup.kill();
    }
}

/// Lets go of everything a container holds but its record. Answers what failed.
pub(super) async fn release(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Vec<String> {
    let mut faults = Vec::new();
    super::settle::settle(daemon, container).await;
    let record = container.record();
    let delete = Request::Delete { id: record.id.clone() };
    if let Err(e) = monitors::call(daemon, &record.sandbox, delete).await {
        if !monitors::gone(daemon, &record.sandbox).await {
            faults.push(e.to_string());
        } else if let Some(runtime) =
            daemon.settings().handler(&daemon.sandbox(&record.sandbox).map(|s| s.record().handler).unwrap_or_default())
        {
            let root = &daemon.config.runtime_root;
            end_orphans(daemon, &record.id).await;
            let run = tokio::process::Command::new(runtime)
                .arg("--root")
                .arg(root)
                .args(["delete", "--force", &record.id])
                .output();
            let what = format!("delete container {} without its monitor", record.id);
            match tokio::time::timeout(Duration::from_secs(30), run).await {
                Ok(Ok(output)) if output.status.success() => {}
                Ok(Ok(output)) => faults.push(format!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim())),
                Ok(Err(e)) => faults.push(format!("{what}: {e}")),
                Err(_) => faults.push(format!("{what}: no end after 30 s")),
            }
        }
    }
    let (task_daemon, task_record) = (daemon.clone(), record.clone());
    let begin = move || {
        let mut faults = Vec::new();
        for snapshot in std::iter::once(&task_record.id).chain(&task_record.views) {
            if let Err(e) = task_daemon.images.remove_snapshot(snapshot) {
                faults.push(e.to_string());
            }
        }
        if let Ok(cgroup) = task_daemon.host.cgroup(&task_record.cgroup)
            && cgroup.exists()
        {
            let _ = cgroup.kill();
            let forgotten = cgroups::forget(&task_record.cgroup);
            if let Err(e) = cgroup.destroy().and(forgotten) {
                faults.push(e.to_string());
            }
        }
        let bundle = task_daemon.bundle(&task_record.id);
        if faults.is_empty()
            && let Err(e) = fs::remove_dir_all(&bundle)
            && e.kind() != io::ErrorKind::NotFound
        {
            faults.push(format!("remove {}: {e}", bundle.display()));
        }
        faults
    };
    // One that still works since the last call is waited for, not joined by a second.
    let known = lock(&container.deleting).take();
    let mut local = known.unwrap_or_else(|| tokio::task::spawn_blocking(begin));
    match tokio::time::timeout(DELETING, &mut local).await {
        Ok(Ok(more)) => faults.extend(more),
        Ok(Err(e)) => faults.push(e.to_string()),
        Err(_) => {
            *lock(&container.deleting) = Some(local);
            faults.push(format!("its files are still being deleted after {} s", DELETING.as_secs()));
        }
    }
    faults
}

/// Removes a container, by force when it runs. Unknown is fine.
///
/// # Errors
/// What could not be let go of: it is tried again without being asked for, and a later call does too.
pub async fn remove(daemon: &Arc<Daemon>, id: &str) -> Result<()> {
    let removed = try_remove(daemon, id).await;
    if removed.is_err()
        && let Ok(container) = daemon.container(id)
    {
        doom(daemon, &container);
    }
    removed
}

/// Has a container removed as soon as that can be done.
pub(super) fn doom(daemon: &Arc<Daemon>, container: &Container) {
    if !container.record().doomed {
        container.change_anyway(&daemon.ledger, |r| r.doomed = true);
    }
    reaper::again(daemon, &container.id);
}

/// One attempt at a removal. Why it fails is in the container's status then.
///
/// # Errors
/// What could not be let go of.
pub(crate) async fn try_remove(daemon: &Arc<Daemon>, id: &str) -> Result<()> {
    let removed = let_go(daemon, id).await;
    if let (Err(error), Ok(container)) = (&removed, daemon.container(id)) {
        *lock(&container.fault) = error.to_string();
    }
    removed
}

async fn let_go(daemon: &Arc<Daemon>, id: &str) -> Result<()> {
    let Ok(container) = daemon.container(id) else { return Ok(()) };
    let _turn = container.turn.lock().await;
    // Whoever had the turn before may have removed it.
    if daemon.container(&container.id).is_err() {
        return Ok(());
    }
    // What was never made whole has no end that could be told: it is let go of by force.
    match container.state() {
        _ if !container.with(|r| r.complete) => {}
        // What an earlier version made of it is deleted with the rest.
        cri::ContainerState::ContainerCreated => ended(daemon, &container.id, unstarted(), "", ""),
        _ => end(daemon, &container, 0).await?,
    }
    let faults = release(daemon, &container).await;
    if !faults.is_empty() {
        return Err(Error::Failed(format!("remove container {}: {}", container.id, faults.join("; "))));
    }
    container.forget(&daemon.ledger).map_err(Error::failed("forget the container"))?;
    nri::container_removed(daemon, &container, || daemon.drop_container(&container.id)).await;
    emit(daemon, &container.id, &container.sandbox, cri::ContainerEventType::ContainerDeletedEvent);
    tracing::info!(container = %container.id, "container removed");
    Ok(())
}

/// Changes a container's limits; zero and empty leave a limit as it is. One that has not started gets them when it does.
///
/// # Errors
/// It has ended, or the kernel refuses a value (when it starts, for one that has not).
pub async fn update_resources(daemon: &Arc<Daemon>, id: &str, new: cri::LinuxContainerResources) -> Result<()> {
    let container = daemon.container(id)?;
    let turn = container.turn.lock().await;
    let (new, tasks) = nri::container_changes(daemon, &container, new).await?;
    set(daemon, &container, new, tasks).await?;
    drop(turn);
    nri::container_changed(daemon, &container).await;
    Ok(())
}

/// As [`update_resources`], with the limit of tasks beside what CRI knows, and without asking plugins.
///
/// # Errors
/// It has ended, or the kernel refuses a value.
pub(crate) async fn set_resources(
    daemon: &Arc<Daemon>,
    id: &str,
    new: cri::LinuxContainerResources,
    tasks: Option<i64>,
) -> Result<()> {
    let container = daemon.container(id)?;
    let _turn = container.turn.lock().await;
    set(daemon, &container, new, tasks).await
}

async fn set(
    daemon: &Daemon,
    container: &Container,
    new: cri::LinuxContainerResources,
    tasks: Option<i64>,
) -> Result<()> {
    if container.state() == cri::ContainerState::ContainerExited {
        return Err(Error::State(format!("container {} has ended", container.id)));
    }
    let group = container.record().cgroup;
    let cgroup = daemon.host.cgroup(&group).map_err(|e| Error::Failed(e.to_string()))?;
    let created = container.state() == cri::ContainerState::ContainerCreated;
    if created {
        promise(&daemon.bundle(&container.id), &new, tasks)?;
    }
    let wanted = Resources { pids_limit: tasks, ..to_cgroup(&new) };
    let changed = tokio::task::spawn_blocking(move || {
        if created && !cgroup.exists() {
            return Ok(());
        }
        cgroups::tell(&group, &wanted, cgroup.version())?;
        cgroup.apply(&wanted)
    });
    changed.await?.map_err(|e| Error::Failed(e.to_string()))?;
    container.change(&daemon.ledger, |r| {
        let now = std::mem::take(&mut r.resources.0);
        r.resources = Wire(merge(now, new));
    })
}

/// Writes other limits into the configuration that a container starts with.
fn promise(bundle: &Path, new: &cri::LinuxContainerResources, tasks: Option<i64>) -> Result<()> {
    let file = bundle.join("config.json");
    let changed = fs::read(&file).and_then(|text| {
        let mut oci = serde_json::from_slice(&text)?;
        spec::limit(&mut oci, new, tasks);
        gantry_files::replace(&file, oci.to_string().as_bytes(), Access::Umask, Outlives::Program)
    });
    changed.map_err(Error::failed(format!("change {}", file.display())))
}

/// Limits as the kernel's groups take them; zero and empty are left out.
pub(crate) fn to_cgroup(r: &cri::LinuxContainerResources) -> Resources {
    let positive = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0);
    let set = |n: i64| Some(n).filter(|n| *n != 0);
    let text = |s: &String| Some(s.clone()).filter(|s| !s.is_empty());
    Resources {
        cpu_shares: positive(r.cpu_shares),
        cpu_quota: set(r.cpu_quota),
        cpu_period: positive(r.cpu_period),
        cpuset_cpus: text(&r.cpuset_cpus),
        cpuset_mems: text(&r.cpuset_mems),
        memory_limit: set(r.memory_limit_in_bytes),
        memory_swap: set(r.memory_swap_limit_in_bytes),
        hugepages: r
            .hugepage_limits
            .iter()
            .map(|h| HugepageLimit { page_size: h.page_size.clone(), limit: h.limit })
            .collect(),
        unified: r.unified.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        ..Resources::default()
    }
}

fn merge(mut old: cri::LinuxContainerResources, new: cri::LinuxContainerResources) -> cri::LinuxContainerResources {
    let pick = |old: &mut i64, new: i64| *old = if new == 0 { *old } else { new };
    pick(&mut old.cpu_shares, new.cpu_shares);
    pick(&mut old.cpu_quota, new.cpu_quota);
    pick(&mut old.cpu_period, new.cpu_period);
    pick(&mut old.memory_limit_in_bytes, new.memory_limit_in_bytes);
    pick(&mut old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes);
    pick(&mut old.oom_score_adj, new.oom_score_adj);
    if !new.cpuset_cpus.is_empty() {
        old.cpuset_cpus = new.cpuset_cpus;
    }
    if !new.cpuset_mems.is_empty() {
        old.cpuset_mems = new.cpuset_mems;
    }
    old.unified.extend(new.unified);
    for limit in new.hugepage_limits {
        old.hugepage_limits.retain(|l| l.page_size != limit.page_size);
        old.hugepage_limits.push(limit);
    }
    old
}
