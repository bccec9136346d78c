//! Runs the OCI runtime's commands, each with a time limit, and reads its log for the reason of a failure.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The OCI runtime of this pod.
#[derive(Debug)]
pub(super) struct Runtime {
    pub(super) program: PathBuf,
    pub(super) root: PathBuf,
    /// Whether containers' cgroups are units of systemd.
    pub(super) systemd: bool,
}

/// What a runtime command inherits.
pub(super) struct Streams {
    pub(super) input: Stdio,
    pub(super) output: Stdio,
    pub(super) error: Stdio,
}

impl Streams {
    pub(super) fn null() -> Self {
        Self { input: Stdio::null(), output: Stdio::null(), error: Stdio::null() }
    }
}

impl Runtime {
    /// Runs one command; `log` is a scratch file for the runtime's errors.
    pub(super) fn run<A: AsRef<std::ffi::OsStr>>(
        &self,
        log: &Path,
        arguments: &[A],
        streams: Streams,
        limit: Duration,
    ) -> Result<(), String> {
        let verb = arguments.first().map(|a| a.as_ref().to_string_lossy().into_owned()).unwrap_or_default();
        let failed = |why: String| format!("{} {verb}: {why}", self.name());
        let mut child = self.spawn(log, arguments, streams)?;
        let pid = i32::try_from(child.id()).unwrap_or(0);
        let pidfd = gantry_sys::process::pidfd_open(pid).map_err(|e| failed(e.to_string()))?;
        if !ended_within(&pidfd, limit) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(format!("no end after {} s, killed", limit.as_secs())));
        }
        let status = child.wait().map_err(|e| failed(e.to_string()))?;
        let said = if status.success() { None } else { Some(last_error(log).unwrap_or_else(|| status.to_string())) };
        let _ = fs::remove_file(log);
        said.map_or(Ok(()), |why| Err(failed(why)))
    }

    /// Starts one command, which is to be reaped like any other child, and does not wait for its end.
    pub(super) fn start(&self, log: &Path, arguments: &[&str]) -> Result<Started, String> {
        let child = self.spawn(log, arguments, Streams::null())?;
        let pid = i32::try_from(child.id()).unwrap_or(0);
        let pidfd = gantry_sys::process::pidfd_open(pid).map_err(|e| format!("watch process {pid}: {e}"))?;
        Ok(Started { pid, pidfd })
    }

    fn spawn<A: AsRef<std::ffi::OsStr>>(&self, log: &Path, arguments: &[A], streams: Streams) -> Result<Child, String> {
        let _ = fs::remove_file(log);
        Command::new(&self.program)
            .arg("--root")
            .arg(&self.root)
            .arg("--log")
            .arg(log)
            .args(["--log-format", "json"])
            .args(self.systemd.then_some("--systemd-cgroup"))
            .args(arguments)
            .stdin(streams.input)
            .stdout(streams.output)
            .stderr(streams.error)
            .spawn()
            .map_err(|e| format!("run {}: {e}", self.program.display()))
    }

    fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// A command at work.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

/// Waits for the end of a process; false at the time limit.
pub(super) fn ended_within(pidfd: &OwnedFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up: with less than a millisecond left it would not wait at all.
        let timeout = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if Instant::now() >= deadline => return false,
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            _ => return true,
        }
    }
}

/// The last message in a JSON log.
fn last_error(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    let mut messages = text.lines().filter_map(|line| {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        let error = matches!(value["level"].as_str(), Some("error" | "fatal") | None);
        error.then(|| value["msg"].as_str().map(str::to_owned)).flatten()
    });
    messages.next_back()
}

/// Waits on a console socket for the terminal's master. The runtime has connected already when it succeeded.
pub(super) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn take(self) -> io::Result<OwnedFd> {
        let (socket, _) = self.listener.accept()?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let (_, mut fds) = gantry_sys::fd::receive_with_fds(socket.as_fd(), &mut [0; 4096])?;
        fds.pop().ok_or_else(|| io::Error::other("the runtime sent no terminal"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_last_error_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(
            &log,
            "{\"level\":\"error\",\"msg\":\"a\"}\nnoise\n{\"level\":\"error\",\"msg\":\"b\"}\n{\"level\":\"info\",\"msg\":\"c\"}\n",
        )
        .unwrap();
        assert_eq!(last_error(&log).as_deref(), Some("b"));
    }

    #[test]
    fn a_hanging_runtime_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("slow");
        fs::write(&program, "#!/bin/sh\nexec sleep 60\n").unwrap();
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = Runtime { program, root: dir.path().into(), systemd: false };
        let e = runtime.run(&dir.path().join("log"), &["create"], Streams::null(), Duration::from_millis(200));
        assert!(e.unwrap_err().contains("killed"));
    }
}
