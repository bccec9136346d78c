//! Containers: made over an image's snapshot, held by the pod's monitor.

mod checkpoint;
mod create;
pub mod exec;
mod life;
mod restore;
mod settle;
mod start;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use gantry_monitor::record::ExitRecord;
use proto::cri;

pub use checkpoint::checkpoint;
pub use create::create;
pub use exec::{Exec, exec, exec_sync, exit_code};
pub(crate) use life::abandon;
pub(crate) use life::set_resources;
pub(crate) use life::to_cgroup;
pub(crate) use life::try_remove;
pub use life::{remove, stop, update_resources};
pub use settle::recover;
pub use start::{find_started, start};

use crate::daemon::{Container, Daemon, lock};
use crate::events::emit;
use crate::ledger::ContainerRecord;

/// A container has ended: recorded once, then told. That its end outlives a power failure, too, is seen to after that.
pub fn ended(daemon: &Arc<Daemon>, id: &str, exit: ExitRecord, reason: &str, message: &str) {
    let Ok(container) = daemon.container(id) else { return };
    if container.record().exit.is_some() {
        return;
    }
    let code = exit.code;
    container.change_anyway(&daemon.ledger, |r| {
        r.exit = Some(exit);
        r.reason = reason.to_owned();
        r.message = message.to_owned();
    });
    container.ended.notify_waiters();
    crate::nri::container_ended(daemon, &container);
    emit(daemon, id, &container.sandbox, cri::ContainerEventType::ContainerStoppedEvent);
    tracing::info!(container = id, code, "container ended");
    let file = daemon.ledger.exit_file(id);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = gantry_monitor::record::sync(&file) {
            tracing::warn!(file = %file.display(), %error, "an exit record would not outlive a power failure");
        }
    });
}

/// A monitor tells of an end. That of a container which is starting just now comes after its start: in the record, and for those
/// who follow events.
pub(crate) fn end_told(daemon: &Arc<Daemon>, id: String, exit: ExitRecord) {
    let Ok(container) = daemon.container(&id) else { return };
    if container.state() != cri::ContainerState::ContainerCreated {
        return ended(daemon, &id, exit, "", "");
    }
    let daemon = daemon.clone();
    tokio::spawn(async move {
        let _turn = container.turn.lock().await;
        ended(&daemon, &id, exit, "", "");
    });
}

/// CRI state.
pub(crate) fn state(record: &ContainerRecord) -> cri::ContainerState {
    match (&record.exit, record.started_at) {
        (Some(_), _) => cri::ContainerState::ContainerExited,
        (None, 0) => cri::ContainerState::ContainerCreated,
        _ => cri::ContainerState::ContainerRunning,
    }
}

/// CRI status.
pub fn status(container: &Container) -> cri::ContainerStatus {
    let record = container.record();
    let state = state(&record);
    let config = record.config.0;
    let exit = record.exit;
    let reason = match &exit {
        None => String::new(),
        Some(_) if !record.reason.is_empty() => record.reason.clone(),
        Some(e) if e.oom_killed => "OOMKilled".to_owned(),
        Some(e) if e.code == 0 => "Completed".to_owned(),
        Some(_) => "Error".to_owned(),
    };
    let fault = lock(&container.fault).clone();
    let stop = format!("SIG{}", record.stop_signal.trim_start_matches("SIG"));
    let linux_user = cri::LinuxContainerUser {
        uid: record.user.0.into(),
        gid: record.user.1.into(),
        supplemental_groups: record.user.2.iter().map(|g| i64::from(*g)).collect(),
    };
    cri::ContainerStatus {
        id: record.id,
        metadata: config.metadata,
        state: state.into(),
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: exit.as_ref().map_or(0, |e| e.finished_at),
        exit_code: exit.as_ref().map_or(0, |e| e.code),
        image: config.image,
        image_ref: record.image_ref,
        reason,
        message: if fault.is_empty() { record.message } else { fault },
        labels: config.labels,
        annotations: config.annotations,
        mounts: config.mounts,
        log_path: record.log_path,
        resources: Some(cri::ContainerResources { linux: Some(record.resources.0), windows: None }),
        image_id: record.image_id,
        user: Some(cri::ContainerUser { linux: Some(linux_user) }),
        stop_signal: cri::Signal::from_str_name(&stop).unwrap_or_default().into(),
    }
}

/// CRI list entry.
pub fn summary(container: &Container) -> cri::Container {
    container.with(|record| {
        let config = &record.config.0;
        cri::Container {
            id: record.id.clone(),
            pod_sandbox_id: record.sandbox.clone(),
            metadata: config.metadata.clone(),
            image: config.image.clone(),
            image_ref: record.image_ref.clone(),
            state: state(record).into(),
            created_at: record.created_at,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            image_id: record.image_id.clone(),
        }
    })
}

/// Whether a list with this filter has the container.
pub fn matches(container: &Container, filter: &cri::ContainerFilter) -> bool {
    container.id.starts_with(&filter.id)
        && container.sandbox.starts_with(&filter.pod_sandbox_id)
        && container.with(|record| {
            filter.state.as_ref().is_none_or(|wanted| wanted.state == i32::from(state(record)))
                && labels_match(&filter.label_selector, &record.config.0.labels)
        })
}

/// Every wanted label is there with its value.
pub fn labels_match(wanted: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// Whether a process is an OCI runtime of this daemon that does one of these things with a container. Others name both, too, such
/// as `crictl start ID`, but not the folder of the runtime's state.
fn runs_on(pid: i32, root: &Path, id: &str, verbs: &[&str]) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
    let has = |word: &str| words.contains(&word.as_bytes());
    let ours = words.windows(2).any(|pair| pair[0] == b"--root" && pair[1] == root.as_os_str().as_bytes());
    ours && has(id) && verbs.iter().any(|verb| has(verb))
}

/// The full path of a container's log; empty for none.
fn log_path(folder: &str, file: &str) -> String {
    if file.is_empty() || folder.is_empty() {
        String::new()
    } else {
        Path::new(folder).join(file).display().to_string()
    }
}

/// A signal number for `SIGTERM`, `TERM` or `15`.
fn signal_number(name: &str) -> i32 {
    use std::str::FromStr;
    let full = format!("SIG{}", name.trim_start_matches("SIG"));
    let parsed = name.parse().ok().or_else(|| nix::sys::signal::Signal::from_str(&full).ok().map(|s| s as i32));
    let real_time = || match full.strip_prefix("SIGRTMIN") {
        Some("") => Some(34),
        Some(rest) => rest.trim_start_matches("PLUS").trim_start_matches('+').parse::<i32>().ok().map(|n| 34 + n),
        None => None,
    };
    parsed.or_else(real_time).unwrap_or(15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal_number("SIGQUIT"), 3);
        assert_eq!(signal_number("HUP"), 1);
        assert_eq!(signal_number("9"), 9);
        assert_eq!(signal_number("SIGRTMIN+3"), 37);
        assert_eq!(signal_number(""), 15);
    }
}
