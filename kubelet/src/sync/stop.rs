//! Stopping containers and pods: hooks, SIGTERM, the grace period, SIGKILL, in the right order.

use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use super::observe::{Observed, Seen};
use crate::metrics::own;
use crate::pod::{self, is_sidecar};
use crate::probe::http_get;
use crate::shared::Shared;

/// How hooks call themselves.
const HOOK_AGENT: &str = "kube-lifecycle/1.36";
/// What a container gets for SIGTERM even when its hook took all of the grace period.
const LEAST: Duration = Duration::from_secs(2);

/// Runs a hook.
///
/// # Errors
/// It failed or took longer than `limit`.
pub(crate) async fn hook(
    shared: &Shared,
    hook: &LifecycleHandler,
    container: &Container,
    id: &str,
    ip: &str,
    limit: Duration,
) -> Result<(), String> {
    let work = async {
        if let Some(exec) = &hook.exec {
            let command = exec.command.clone().unwrap_or_default();
            let result = shared.cri.exec_sync(id, &command, limit).await.map_err(|e| e.to_string())?;
            if result.exit_code != 0 {
                let output = String::from_utf8_lossy(&result.stderr).into_owned();
                return Err(format!("command {:?} exited with {}: {output}", command.join(" "), result.exit_code));
            }
            Ok(())
        } else if let Some(get) = &hook.http_get {
            http_get(get, container, ip, HOOK_AGENT, limit).await.map(drop)
        } else if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
            Ok(())
        } else {
            Ok(())
        }
    };
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(format!("no end within {} s", limit.as_secs())))
}

/// Stops one container: its preStop hook, then SIGTERM and SIGKILL within `grace` seconds in all.
///
/// # Errors
/// The runtime could not stop it.
pub(crate) async fn container(
    shared: &Shared,
    pod: &Pod,
    seen: &Seen,
    ip: &str,
    grace: i64,
    message: String,
) -> Result<(), crate::cri::CriError> {
    shared.events.pod(pod, Some(&seen.name), false, "Killing", message);
    let begin = Instant::now();
    let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
    let spec = pod::all_containers(pod).find(|c| c.name == seen.name);
    let found = spec.and_then(|c| Some((c, c.lifecycle.as_ref()?.pre_stop.as_ref()?)));
    if let Some((spec, pre_stop)) = found.filter(|_| !grace.is_zero())
        && let Err(why) = hook(shared, pre_stop, spec, &seen.id, ip, grace).await
    {
        shared.events.pod(pod, Some(&seen.name), true, "FailedPreStopHook", format!("PreStopHook failed: {why}"));
    }
    let rest = if grace.is_zero() { grace } else { grace.saturating_sub(begin.elapsed()).max(LEAST.min(grace)) };
    shared.cri.stop_container(&seen.id, rest).await
}

/// Stops all containers of a pod together and without their hooks: all of them begin anew.
///
/// # Errors
/// Something still runs; everything was tried.
pub(crate) async fn halt(shared: &Shared, pod: &Pod, observed: &Observed, grace: i64) -> Result<(), String> {
    let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
    let one = async |seen: &Seen| {
        let text = format!("Stopping container {}: all containers of the pod are restarted", seen.name);
        shared.events.pod(pod, Some(&seen.name), false, "Killing", text);
        shared.cri.stop_container(&seen.id, grace).await
    };
    let stopped = join_all(observed.alive().map(one)).await;
    let faults: Vec<String> = stopped.into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
    if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
}

/// Stops everything of a pod: main and init containers together, then sidecars in reverse order, then sandboxes.
///
/// # Errors
/// Something still runs; everything was tried.
pub(crate) async fn everything(shared: &Shared, pod: &Pod, observed: &Observed, grace: i64) -> Result<(), String> {
    let begin = Instant::now();
    let ip = observed.ready_sandbox().and_then(|s| s.ips.first().cloned()).unwrap_or_default();
    let sidecars: Vec<&str> =
        pod::init_containers(pod).iter().filter(|c| is_sidecar(c)).map(|c| c.name.as_str()).rev().collect();
    let mut faults = Vec::new();
    let text = |seen: &Seen| format!("Stopping container {}", seen.name);
    let mains = observed.alive().filter(|s| !sidecars.contains(&s.name.as_str()));
    let stopped = join_all(mains.map(|seen| container(shared, pod, seen, &ip, grace, text(seen)))).await;
    faults.extend(stopped.into_iter().filter_map(Result::err).map(|e| e.to_string()));
    for name in sidecars {
        let spent = i64::try_from(begin.elapsed().as_secs()).unwrap_or(i64::MAX);
        let rest = (grace - spent).max(grace.min(2));
        for seen in observed.alive().filter(|s| s.name == name) {
            faults.extend(container(shared, pod, seen, &ip, rest, text(seen)).await.err().map(|e| e.to_string()));
        }
    }
    for sandbox in &observed.sandboxes {
        faults.extend(shared.cri.stop_sandbox(&sandbox.id).await.err().map(|e| e.to_string()));
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
}

/// Frees what a pod that no longer runs holds: sandboxes with their containers, volumes, control group, logs.
///
/// # Errors
/// Something is still held; everything was tried, and calling again is fine.
pub(crate) async fn free(shared: &Shared, uid: &str) -> Result<(), String> {
    let mut faults = Vec::new();
    match shared.cri.sandboxes(Some(uid)).await {
        Ok(sandboxes) => {
            for sandbox in sandboxes {
                for result in [shared.cri.stop_sandbox(&sandbox.id).await, shared.cri.remove_sandbox(&sandbox.id).await]
                {
                    faults.extend(result.err().map(|e| e.to_string()));
                }
            }
        }
        Err(e) => return Err(e.to_string()),
    }
    match shared.cri.containers(Some(uid)).await {
        Ok(containers) => {
            for left in containers {
                faults.extend(shared.cri.remove_container(&left.id).await.err().map(|e| e.to_string()));
            }
        }
        Err(e) => faults.push(e.to_string()),
    }
    if !faults.is_empty() {
        // Volumes and the group may be in use as long as something runs.
        return Err(faults.join("; "));
    }
    shared.managers.release(uid);
    let start = std::time::Instant::now();
    let torn_down = shared.volumes.teardown(uid).await;
    own::stored("volume_unmount", start.elapsed(), torn_down.is_ok());
    shared.users.forget(uid);
    if let Err(all) = torn_down {
        faults.extend(all.into_iter().map(|e| e.to_string()));
    }
    let (groups, owned, logs) = (shared.cgroups.clone(), uid.to_owned(), shared.facts.log_root.clone());
    let freed = tokio::task::spawn_blocking(move || {
        let start = std::time::Instant::now();
        let group = groups.destroy(&owned).map_err(|e| e.to_string());
        own::CGROUPS.observe(&[("operation_type", "destroy")], start.elapsed());
        let suffix = format!("_{owned}");
        let mut out: Vec<String> = group.err().into_iter().collect();
        for entry in std::fs::read_dir(&logs).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with(&suffix) {
                out.extend(
                    std::fs::remove_dir_all(entry.path())
                        .err()
                        .map(|e| format!("remove {}: {e}", entry.path().display())),
                );
            }
        }
        out
    });
    faults.extend(freed.await.unwrap_or_else(|e| vec![e.to_string()]));
    if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
}
