//! What a checkpoint leaves, however it ends: nothing at work, nothing stopped, no files.
//!
//! Where its parts are is in the container's record before there are any. So a daemon that is killed in between finds them when it
//! starts anew, and what it finds at work it lets end: criu that is killed while it has hold of processes harms them.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::cri;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::checkpoint::{QUICK, Runtime};
use crate::daemon::{Container, Daemon};

/// How long what a dead daemon or runtime has left at work may go on.
const PATIENCE: Duration = Duration::from_secs(15);

/// Has containers settled whose checkpoint ended with an earlier run of this daemon. Each has its turn when this returns.
pub async fn recover(daemon: &Arc<Daemon>) {
    for container in daemon.all_containers() {
        if !container.with(|r| r.checkpoint.is_some()) {
            continue;
        }
        tracing::info!(container = %container.id, "a checkpoint of it did not end");
        let (daemon, (taken, ready)) = (daemon.clone(), tokio::sync::oneshot::channel());
        tokio::spawn(async move {
            let _turn = container.turn.lock().await;
            let _ = taken.send(());
            settle(&daemon, &container).await;
        });
        let _ = ready.await;
    }
}

/// Ends what a checkpoint has begun, in the container's turn. What cannot be undone now is tried at the next start, at the next
/// checkpoint and when the container is removed.
pub(super) async fn settle(daemon: &Arc<Daemon>, container: &Container) {
    let Some(begun) = container.with(|r| r.checkpoint.clone()) else { return };
    let (parts, id) = (begun.parts.clone(), container.id.clone());
    let _ = tokio::task::spawn_blocking(move || end_work(&parts, &id)).await;
    if !begun.frozen && container.state() == cri::ContainerState::ContainerRunning {
        go_on(daemon, container).await;
        if is_frozen(daemon, container) {
            tracing::error!(container = %container.id, "does not go on after its checkpoint");
            return;
        }
    }
    match fs::remove_dir_all(&begun.parts) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(container = %container.id, folder = %begun.parts.display(), %error, "parts of a checkpoint stay");
        }
        _ => container.change_anyway(&daemon.ledger, |r| r.checkpoint = None),
    }
}

/// Whether the container's processes are stopped by its control group.
pub(super) fn is_frozen(daemon: &Daemon, container: &Container) -> bool {
    daemon.host.cgroup(container.record().cgroup).is_ok_and(|group| group.is_frozen())
}

/// Lets the processes go on, if they are stopped: the runtime knows how, and where it fails the kernel does.
async fn go_on(daemon: &Daemon, container: &Container) {
    if !is_frozen(daemon, container) {
        return;
    }
    let resumed = match Runtime::of(daemon, container) {
        Ok(runtime) => runtime.run(daemon, &["resume"], QUICK, |command| command.arg(&container.id)).await,
        Err(error) => Err(error),
    };
    if let Err(error) = resumed
        && let Ok(group) = daemon.host.cgroup(container.record().cgroup)
        && group.is_frozen()
    {
        tracing::warn!(container = %container.id, %error, "thawed by its control group");
        if let Err(error) = group.thaw() {
            tracing::warn!(container = %container.id, %error, "thaw after a checkpoint");
        }
    }
}

/// Waits until nothing works on the parts, and kills what does not end. Blocking.
fn end_work(parts: &Path, id: &str) {
    let deadline = Instant::now() + PATIENCE;
    let mut found = at_work(parts, id);
    while !found.is_empty() && Instant::now() < deadline {
        for pid in &found {
            let Ok(pidfd) = gantry_sys::process::pidfd_open(*pid) else { continue };
            // That number may have become another's meanwhile.
            if at_work_in(parts, id, *pid) {
                let left = deadline.saturating_duration_since(Instant::now());
                let limit = Timespec::try_from(left).unwrap_or_default();
                let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit));
            }
        }
        found = at_work(parts, id);
    }
    for pid in found {
        tracing::warn!(container = id, pid, "work on a checkpoint does not end, and is killed");
        let Ok(pidfd) = gantry_sys::process::pidfd_open(pid) else { continue };
        if at_work_in(parts, id, pid) {
            let _ = gantry_sys::process::pidfd_send_signal(pidfd.as_fd(), nix::libc::SIGKILL);
            let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit));
        }
    }
}

fn at_work(parts: &Path, id: &str) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|e| e.file_name().to_string_lossy().parse().ok());
    pids.filter(|pid| *pid != own && at_work_in(parts, id, *pid)).collect()
}

/// Whether a process is a runtime that stops or writes this container, or has files of the parts open, as criu has: it is told of
/// them by descriptors.
fn at_work_in(parts: &Path, id: &str, pid: i32) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    let words: Vec<_> = line.split(|b| *b == 0).collect();
    let has = |word: &[u8]| words.contains(&word);
    if has(id.as_bytes()) && (has(b"checkpoint") || has(b"pause")) {
        return true;
    }
    let inside = |link: PathBuf| fs::read_link(link).is_ok_and(|to| to.starts_with(parts));
    inside(process.join("cwd"))
        || fs::read_dir(process.join("fd")).into_iter().flatten().flatten().any(|e| inside(e.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_part_open_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let parts = dir.path().join("parts");
        fs::create_dir(&parts).unwrap();
        let log = fs::File::create(parts.join("dump.log")).unwrap();
        let mut sleep = std::process::Command::new("sleep");
        let mut child = sleep.arg("1").stdout(log.try_clone().unwrap()).spawn().unwrap();
        drop(log);
        drop(sleep);
        let pid = i32::try_from(child.id()).unwrap();
        assert!(at_work_in(&parts, "none", pid));
        assert!(!at_work_in(&dir.path().join("par"), "none", pid));
        let reaper = std::thread::spawn(move || child.wait().unwrap().success());
        end_work(&parts, "none");
        assert!(reaper.join().unwrap(), "it was killed");
        assert_eq!(at_work(&parts, "none"), [0; 0]);
    }
}
