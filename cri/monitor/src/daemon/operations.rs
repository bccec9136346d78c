//! What a request does.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use gantry_sys::process::{self, Cloned};

use super::container::{Container, Deletion, Source, clock, set_nonblocking};
use super::runtime::{Console, Streams, ended_within};
use super::{Monitor, Role};
use crate::log::LogFile;
use crate::protocol::{Answer, Create, Request};

const SLOW: Duration = Duration::from_secs(100);

impl Monitor {
    /// Serves one request of a peer.
    pub(super) fn serve(&mut self, key: u64, request: Request, fds: Vec<OwnedFd>) {
        let answer = match request {
            Request::Ping => Ok(Answer::Done),
            Request::Create(create) => self.create(*create),
            Request::Start { id } => self.start(&id),
            Request::Look { id } => self.container(&id).map(|c| c.progress()),
            Request::Kill { id, signal, all } => self.kill(&id, signal, all),
            Request::Delete { id } => self.delete(&id),
            Request::CloseStdin { id } => {
                if let Some(container) = self.containers.get_mut(&id)
                    && !container.terminal
                {
                    container.input = None;
                }
                Ok(Answer::Done)
            }
            Request::ReopenLog { id } => self.reopen_log(&id),
            Request::PidNamespace { user } => self.pid_namespace(user.as_deref()),
            Request::Shutdown => self.shutdown(),
            Request::Subscribe => return self.subscribe(key),
            Request::Exec { id, process, terminal, streams } => {
                return self.exec(key, &id, &process, terminal, streams, fds);
            }
            Request::Attach { id, streams } => return self.attach(key, &id, streams, fds),
        };
        let answer = answer.unwrap_or_else(|message| Answer::Failed { message });
        self.answer(key, &answer, &[]);
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, String> {
        self.containers.get_mut(id).ok_or_else(|| format!("container {id} is unknown to its monitor"))
    }

    fn create(&mut self, create: Create) -> Result<Answer, String> {
        if let Some(container) = self.containers.get(&create.id) {
            return Ok(container.progress());
        }
        let log = LogFile::open(create.log.clone())
            .map_err(|e| format!("open log {}: {e}", create.log.as_deref().unwrap_or(Path::new("")).display()))?;
        let pid_file = create.bundle.join("pid");
        let scratch = create.bundle.join("log.json");
        let plain = |e: io::Error| format!("streams of container {}: {e}", create.id);
        let mut arguments: Vec<std::ffi::OsString> = match &create.restore {
            None if create.start => vec!["run".into(), "--detach".into()],
            None => vec!["create".into()],
            Some(from) => {
                let images = from.join("checkpoint").into();
                let words = ["--file-locks".into(), "--image-path".into(), images, "--work-path".into(), from.into()];
                ["restore".into(), "--detach".into()].into_iter().chain(words).collect()
            }
        };
        arguments.extend(["--bundle".into(), create.bundle.clone().into()]);
        arguments.extend(["--pid-file".into(), pid_file.clone().into()]);
        let began = clock();
        let made = if create.terminal {
            let console = Console::open(self.socket.with_extension("tty")).map_err(plain)?;
            arguments.extend(["--console-socket".into(), console.path().into(), create.id.clone().into()]);
            self.runtime.run(&scratch, &arguments, Streams::null(), SLOW).and_then(|()| {
                let master = console.take().map_err(plain)?;
                let input = master.try_clone().map_err(plain)?;
                Ok((Some(input), vec![Source::new(master, 0).map_err(plain)?]))
            })
        } else {
            arguments.push(create.id.clone().into());
            let (out, out_far) = pipe().map_err(plain)?;
            let (err, err_far) = pipe().map_err(plain)?;
            let (far, input) = if create.stdin {
                let (far, near) = pipe().map_err(plain)?;
                (Stdio::from(far), Some(OwnedFd::from(near)))
            } else {
                (Stdio::null(), None)
            };
            let streams = Streams { input: far, output: out_far.into(), error: err_far.into() };
            self.runtime.run(&scratch, &arguments, streams, SLOW).and_then(|()| {
                let sources = [(OwnedFd::from(out), 0), (OwnedFd::from(err), 1)];
                let sources: io::Result<_> = sources.into_iter().map(|(fd, which)| Source::new(fd, which)).collect();
                Ok((input, sources.map_err(plain)?))
            })
        };
        let held = made.and_then(|(input, sources)| {
            let pid = read_pid(&pid_file)?;
            let (bundle, exit_file) = (create.bundle.clone(), create.exit_file.clone());
            Container::new(pid, bundle, create.terminal, input, sources, log, exit_file, &create.cgroup)
                .map_err(|e| format!("watch container {} (pid {pid}): {e}", create.id))
        });
        match held {
            Ok(mut container) => {
                container.since = create.start.then_some(began);
                let answer = container.progress();
                self.containers.insert(create.id, container);
                Ok(answer)
            }
            Err(message) => {
                let _ = self.runtime.run(&scratch, &["delete", "--force", &create.id], Streams::null(), SLOW);
                Err(message)
            }
        }
    }

    fn start(&mut self, id: &str) -> Result<Answer, String> {
        let container = self.container(id)?;
        if container.since.is_some() {
            return Ok(Answer::Done);
        }
        let (scratch, began) = (container.bundle.join("log.json"), clock());
        self.runtime.run(&scratch, &["start", id], Streams::null(), SLOW)?;
        self.container(id)?.since = Some(began);
        Ok(Answer::Done)
    }

    fn kill(&mut self, id: &str, signal: i32, all: bool) -> Result<Answer, String> {
        self.reap();
        let container = self.container(id)?;
        let Some(pidfd) = &container.pidfd else { return Ok(Answer::Done) };
        if all {
            let scratch = container.bundle.join("log.json");
            let signal = signal.to_string();
            self.runtime.run(&scratch, &["kill", "--all", id, &signal], Streams::null(), SLOW)?;
        } else if let Err(e) = process::pidfd_send_signal(pidfd.as_fd(), signal)
            && e.raw_os_error() != Some(nix::libc::ESRCH)
        {
            return Err(format!("signal {signal} to container {id}: {e}"));
        }
        Ok(Answer::Done)
    }

    fn delete(&mut self, id: &str) -> Result<Answer, String> {
        let Some(container) = self.containers.get(id) else {
            let scratch = self.socket.with_extension("log");
            // A create that failed half-way may have left its state; by force, nothing there is fine.
            self.runtime.run(&scratch, &["delete", "--force", id], Streams::null(), SLOW)?;
            return Ok(Answer::Done);
        };
        let scratch = container.bundle.join("log.json");
        let deadline = Instant::now() + SLOW;
        while let Some(Container { deletion: Deletion::Running(started), .. }) = self.containers.get(id) {
            if !ended_within(&started.pidfd, deadline.saturating_duration_since(Instant::now())) {
                let _ = process::pidfd_send_signal(started.pidfd.as_fd(), nix::libc::SIGKILL);
                return Err(format!("delete of container {id}: no end after {} s, killed", SLOW.as_secs()));
            }
            self.reap();
        }
        if !self.containers.get(id).is_some_and(|c| matches!(c.deletion, Deletion::Done)) {
            self.runtime.run(&scratch, &["delete", "--force", id], Streams::null(), SLOW)?;
            if let Some(container) = self.containers.get_mut(id) {
                container.deletion = Deletion::Done;
            }
        }
        if let Some(Container { pid, pidfd: Some(pidfd), .. }) = self.containers.get(id)
            && !ended_within(pidfd, Duration::from_secs(10))
        {
            return Err(format!("container {id} (pid {pid}) does not die"));
        }
        self.reap();
        if let Some(mut container) = self.containers.remove(id) {
            container.drain(&mut self.buffer);
        }
        Ok(Answer::Done)
    }

    fn reopen_log(&mut self, id: &str) -> Result<Answer, String> {
        let container = self.container(id)?;
        container.log.reopen().map_err(|e| format!("reopen the log of container {id}: {e}"))?;
        Ok(Answer::Done)
    }

    fn pid_namespace(&mut self, user: Option<&Path>) -> Result<Answer, String> {
        if let Some((pid, _)) = &self.pause {
            return Ok(Answer::Created { pid: *pid });
        }
        let flag = gantry_sys::namespaces::Kind::Pid.flag();
        // Run by descriptor: the root of a user namespace need not be let into the folder of this program.
        let program = fs::File::open("/proc/self/exe").map_err(|e| format!("open this program: {e}"))?;
        let cloned = match user {
            None => process::clone3(flag, None),
            Some(path) => fs::File::open(path).and_then(|user| process::clone3_within(user.as_fd(), flag, None)),
        };
        match cloned.map_err(|e| format!("make a PID namespace: {e}"))? {
            Cloned::Child => {
                let argv = [c"gantry-monitor".to_owned(), c"pause".to_owned()];
                if let Ok(null) = fs::File::open("/dev/null") {
                    let _ = rustix::stdio::dup2_stdin(&null);
                }
                let error = process::exec_fd(program.as_fd(), &argv, &[]);
                super::complain(&format!("start the init of the PID namespace: {error}"));
                process::exit_now(127)
            }
            Cloned::Parent(pid, pidfd) => {
                self.pause = Some((pid, pidfd));
                Ok(Answer::Created { pid })
            }
        }
    }

    fn shutdown(&mut self) -> Result<Answer, String> {
        self.reap();
        if let Some((id, _)) = self.containers.iter().find(|(_, c)| c.exit.is_none()) {
            return Err(format!("container {id} still runs"));
        }
        if let Some((pid, pidfd)) = self.pause.take() {
            let _ = process::pidfd_send_signal(pidfd.as_fd(), nix::libc::SIGKILL);
            let _ = process::wait(pid);
        }
        self.finished = true;
        Ok(Answer::Done)
    }

    fn subscribe(&mut self, key: u64) {
        let past: Vec<Answer> = self
            .containers
            .iter()
            .filter_map(|(id, c)| c.exit.clone().map(|record| Answer::Exit { id: id.clone(), record }))
            .collect();
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.role = Role::Events;
        }
        for answer in past {
            self.answer(key, &answer, &[]);
        }
    }

    fn attach(&mut self, key: u64, id: &str, streams: [bool; 2], fds: Vec<OwnedFd>) {
        let joined = self.container(id).and_then(|container| {
            if container.exit.is_some() {
                return Err(format!("container {id} has ended"));
            }
            let mut fds = fds.into_iter();
            for (which, fd) in (0..2).filter(|w| streams[*w]).map_while(|w| fds.next().map(|fd| (w, fd))) {
                container.attach(fd, which).map_err(|e| format!("attach to container {id}: {e}"))?;
            }
            let input = container.input.as_ref().and_then(|i| i.try_clone().ok());
            Ok((container.terminal, input))
        });
        match joined {
            Ok((terminal, input)) => {
                if let Some(input) = &input {
                    let _ = set_nonblocking(input);
                }
                let answer = Answer::Attached { input: input.is_some(), terminal };
                let fds: Vec<_> = input.iter().map(AsFd::as_fd).collect();
                self.answer(key, &answer, &fds);
            }
            Err(message) => self.answer(key, &Answer::Failed { message }, &[]),
        }
    }

    fn exec(
        &mut self,
        key: u64,
        id: &str,
        spec: &serde_json::Value,
        terminal: bool,
        streams: [bool; 3],
        fds: Vec<OwnedFd>,
    ) {
        match self.exec_start(key, id, spec, terminal, streams, fds) {
            Ok((pid, pidfd, master)) => {
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.role = Role::Exec { pid, pidfd };
                }
                let answer = Answer::Started { pid, terminal: master.is_some() };
                let fds: Vec<_> = master.iter().map(AsFd::as_fd).collect();
                self.answer(key, &answer, &fds);
            }
            Err(message) => self.answer(key, &Answer::Failed { message }, &[]),
        }
    }

    fn exec_start(
        &mut self,
        key: u64,
        id: &str,
        spec: &serde_json::Value,
        terminal: bool,
        streams: [bool; 3],
        fds: Vec<OwnedFd>,
    ) -> Result<(i32, OwnedFd, Option<OwnedFd>), String> {
        let container = self.container(id)?;
        if container.exit.is_some() {
            return Err(format!("container {id} is not running"));
        }
        let bundle = container.bundle.clone();
        let file = |kind: &str| bundle.join(format!("exec-{key}.{kind}"));
        let (process_file, pid_file, scratch) = (file("json"), file("pid"), file("log"));
        let plain = |e: io::Error| format!("exec in container {id}: {e}");
        fs::write(&process_file, spec.to_string()).map_err(plain)?;
        let mut arguments: Vec<std::ffi::OsString> =
            vec!["exec".into(), "--process".into(), process_file.clone().into(), "--detach".into()];
        arguments.extend(["--pid-file".into(), pid_file.clone().into()]);
        let ran = if terminal {
            Console::open(self.socket.with_extension("tty")).map_err(plain).and_then(|console| {
                arguments.extend(["--console-socket".into(), console.path().into(), id.into()]);
                self.runtime.run(&scratch, &arguments, Streams::null(), SLOW)?;
                console.take().map(Some).map_err(plain)
            })
        } else {
            let mut fds = fds.into_iter();
            let mut stream = |wanted: bool| {
                let fd = if wanted { fds.next() } else { None };
                fd.map_or_else(Stdio::null, Stdio::from)
            };
            let streams = Streams { input: stream(streams[0]), output: stream(streams[1]), error: stream(streams[2]) };
            arguments.push(id.into());
            self.runtime.run(&scratch, &arguments, streams, SLOW).map(|()| None)
        };
        let result = ran.and_then(|master| {
            let pid = read_pid(&pid_file)?;
            Ok((pid, process::pidfd_open(pid).map_err(plain)?, master))
        });
        let _ = fs::remove_file(&process_file);
        let _ = fs::remove_file(&pid_file);
        result
    }
}

fn read_pid(path: &Path) -> Result<i32, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("read {}: {e}", path.display()))?;
    text.trim().parse().map_err(|e| format!("read {}: {e}", path.display()))
}

/// Kills a process with all its descendants.
pub(super) fn kill_tree(pid: i32) {
    let mut seen = BTreeSet::new();
    for _ in 0..5 {
        let tree = descendants(pid);
        let fresh = tree.iter().any(|p| seen.insert(*p));
        for pid in tree {
            if let Ok(pidfd) = process::pidfd_open(pid) {
                let _ = process::pidfd_send_signal(pidfd.as_fd(), nix::libc::SIGKILL);
            }
        }
        if !fresh {
            break;
        }
    }
}

/// A process and its descendants, deepest last.
fn descendants(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut at = 0;
    while at < all.len() {
        for task in fs::read_dir(format!("/proc/{}/task", all[at])).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|c| c.parse::<i32>().ok()));
        }
        at += 1;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_killed_with_its_leaves() {
        let mut shell = std::process::Command::new("sh").args(["-c", "sleep 100 & sleep 100 & wait"]).spawn().unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while descendants(pid).len() < 3 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let tree = descendants(pid);
        assert_eq!(tree.len(), 3);
        kill_tree(pid);
        shell.wait().unwrap();
        let alive = |p: &i32| fs::read_to_string(format!("/proc/{p}/stat")).is_ok_and(|s| !s.contains(") Z"));
        // The signal is sent; dying takes its own time.
        while tree[1..].iter().any(alive) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!tree[1..].iter().any(alive));
    }
}
