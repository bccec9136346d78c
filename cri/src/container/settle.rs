//! What a checkpoint leaves, however it ends: nothing at work, nothing stopped, no files.
//!
//! Where its parts are is in the container's record before there are any. So a daemon that is killed in between finds them when it
//! starts anew, and what it finds at work it lets end: criu that is killed while it has hold of processes harms them.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::cri;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::checkpoint::{QUICK, Runtime};
use super::runs_on;
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
    let workers =
        Workers { parts: begun.parts.clone(), root: daemon.config.runtime_root.clone(), id: container.id.clone() };
    let _ = tokio::task::spawn_blocking(move || workers.end()).await;
    if !begun.frozen && container.state() == cri::ContainerState::ContainerRunning {
        go_on(daemon, container).await;
        if is_frozen(daemon, container) {
            tracing::error!(container = %container.id, "does not go on after its checkpoint");
            return;
        }
    }
    // Gigabytes of memory may be in there.
    let parts = begun.parts.clone();
    let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(&parts)).await;
    match removed.unwrap_or_else(|e| Err(io::Error::other(e))) {
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

/// Who may be at work on a checkpoint.
struct Workers {
    parts: PathBuf,
    /// The folder of the runtime's state.
    root: PathBuf,
    /// The container.
    id: String,
}

impl Workers {
    /// Waits until none is left, and kills those that do not end. Blocking.
    fn end(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut found = self.all();
        while !found.is_empty() && Instant::now() < deadline {
            for pid in &found {
                self.wait(*pid, deadline.saturating_duration_since(Instant::now()), false);
            }
            found = self.all();
        }
        for pid in found {
            tracing::warn!(container = self.id, pid, "work on a checkpoint does not end, and is killed");
            self.wait(pid, Duration::from_secs(5), true);
        }
    }

    /// Waits for the end of one.
    fn wait(&self, pid: i32, limit: Duration, kill: bool) {
        let Ok(pidfd) = gantry_sys::process::pidfd_open(pid) else { return };
        // That number may have become another's meanwhile.
        if !self.has(pid) {
            return;
        }
        if kill {
            let _ = gantry_sys::process::pidfd_send_signal(pidfd.as_fd(), nix::libc::SIGKILL);
        }
        let limit = Timespec::try_from(limit).unwrap_or_default();
        let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit));
    }

    fn all(&self) -> Vec<i32> {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = all.filter_map(|e| e.file_name().to_string_lossy().parse().ok());
        pids.filter(|pid| *pid != own && self.has(*pid)).collect()
    }

    /// Whether a process is a runtime that stops or writes the container, or has files of the parts open, as criu has: it is told
    /// of them by descriptors.
    fn has(&self, pid: i32) -> bool {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let inside = |link: PathBuf| fs::read_link(link).is_ok_and(|to| to.starts_with(&self.parts));
        runs_on(pid, &self.root, &self.id, &["checkpoint", "pause"])
            || inside(process.join("cwd"))
            || fs::read_dir(process.join("fd")).into_iter().flatten().flatten().any(|e| inside(e.path()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Stdio;

    #[test]
    fn who_has_a_part_open_is_waited_for_and_who_names_the_container_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let parts = dir.path().join("parts");
        fs::create_dir(&parts).unwrap();
        let log = fs::File::create(parts.join("dump.log")).unwrap();
        let run = |words: &[&str], out: fs::File| {
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", "read x; exit 0"]).args(words).stdin(Stdio::piped()).stdout(out).spawn().unwrap()
        };
        let null = || fs::File::options().write(true).open("/dev/null").unwrap();
        let workers = |parts: &Path| Workers { parts: parts.into(), root: "/state".into(), id: "c1".into() };
        let mut children = [
            run(&["criu"], log),
            run(&["--root", "/state", "checkpoint", "--image-path", "x", "c1"], null()),
            run(&["crictl", "checkpoint", "c1"], null()),
            run(&["--root", "/other", "checkpoint", "c1"], null()),
        ];
        let pids = children.each_ref().map(|c| i32::try_from(c.id()).unwrap());
        let ours = workers(&parts);
        // A shell without its words yet is still the test's own program.
        let named = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.starts_with("sh"));
        while !pids.iter().all(named) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(pids.map(|pid| ours.has(pid)), [true, true, false, false]);
        assert!(!workers(&dir.path().join("par")).has(pids[0]));
        // Each ends when its input does.
        let reaper = std::thread::spawn(move || children.iter_mut().all(|c| c.wait().unwrap().success()));
        ours.end();
        assert_eq!(ours.all(), [0; 0]);
        assert!(reaper.join().unwrap(), "one was killed");
    }
}
