//! The monitor's loop: one thread, one poll over sockets, pidfds and streams.

mod container;
mod operations;
mod runtime;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use gantry_sys::{memory, process};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::frame;
use crate::protocol::{Answer, Request};
use container::{Container, Deletion};
use runtime::Runtime;

/// The runtime's log of a deletion that nobody waits for, in the bundle.
const DELETE_LOG: &str = "delete.json";

/// A monitor that had nothing to do for so long gives back what only work needs.
const QUIET: Duration = Duration::from_secs(1);

/// How a monitor was started.
#[derive(Debug)]
pub struct Settings {
    /// Where it listens (the socket itself is standard input).
    pub socket: PathBuf,
    /// OCI runtime program.
    pub runtime: PathBuf,
    /// The runtime's `--root`.
    pub root: PathBuf,
    /// Whether containers' cgroups are units of systemd.
    pub systemd: bool,
}

/// What a connection is for.
enum Role {
    Requests,
    Events,
    Exec {
        pid: i32,
        pidfd: OwnedFd,
    },
    /// An exec that was killed because its client said no more; told when it is gone.
    Ending {
        pid: i32,
        pidfd: OwnedFd,
    },
}

struct Peer {
    stream: UnixStream,
    role: Role,
}

struct Monitor {
    runtime: Runtime,
    socket: PathBuf,
    containers: BTreeMap<String, Container>,
    peers: BTreeMap<u64, Peer>,
    next_peer: u64,
    pause: Option<(i32, OwnedFd)>,
    buffer: Vec<u8>,
    /// Something was done since the code of this program was last given back.
    worked: bool,
    finished: bool,
}

/// What became ready.
enum Ready {
    Listener,
    Peer(u64),
    Pid,
    Source(String, usize),
    Sink(String),
}

/// Tells the operator, when anyone listens.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "gantry-monitor: {text}");
}

/// Runs until told to shut down.
///
/// # Errors
/// Standard input is no listening socket, or this process may not become a subreaper.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    let _ = nix::unistd::setsid();
    process::set_child_subreaper(true).context("become a subreaper")?;
    std::env::set_current_dir("/").context("change to /")?;
    let input = io::stdin().as_fd().try_clone_to_owned().context("take the listening socket from standard input")?;
    let listener = UnixListener::from(input);
    listener.local_addr().context("standard input is no listening socket")?;
    listener.set_nonblocking(true)?;
    let mut monitor = Monitor {
        runtime: Runtime { program: settings.runtime, root: settings.root, systemd: settings.systemd },
        socket: settings.socket,
        containers: BTreeMap::new(),
        peers: BTreeMap::new(),
        next_peer: 0,
        pause: None,
        buffer: vec![0; 32 * 1024],
        worked: true,
        finished: false,
    };
    while !monitor.finished {
        monitor.turn(&listener)?;
    }
    Ok(())
}

/// The init of a pod's PID namespace: reaps and does nothing else, for ever.
///
/// # Errors
/// The signal mask cannot be set.
pub fn pause() -> io::Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    memory::give_back_code();
    loop {
        while let Ok(Some(_)) = process::reap_any() {}
        let _ = children.wait();
    }
}

impl Monitor {
    fn turn(&mut self, listener: &UnixListener) -> anyhow::Result<()> {
        let mut tokens = vec![Ready::Listener];
        let mut fds = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let mut blocked = false;
        for (key, peer) in &self.peers {
            // One that has said no more would be readable for ever.
            if !matches!(peer.role, Role::Ending { .. }) {
                tokens.push(Ready::Peer(*key));
                fds.push(PollFd::new(peer.stream.as_fd(), PollFlags::POLLIN));
            }
            if let Role::Exec { pidfd, .. } | Role::Ending { pidfd, .. } = &peer.role {
                tokens.push(Ready::Pid);
                fds.push(PollFd::new(pidfd.as_fd(), PollFlags::POLLIN));
            }
        }
        for (id, container) in &self.containers {
            let deletion = match &container.deletion {
                Deletion::Running(started) => Some(&started.pidfd),
                _ => None,
            };
            for pidfd in container.pidfd.iter().chain(deletion) {
                tokens.push(Ready::Pid);
                fds.push(PollFd::new(pidfd.as_fd(), PollFlags::POLLIN));
            }
            blocked |= !container.readable();
            for (index, source) in container.sources.iter().enumerate().filter(|_| container.readable()) {
                tokens.push(Ready::Source(id.clone(), index));
                fds.push(PollFd::new(source.file.as_fd(), PollFlags::POLLIN));
            }
            for sink in &container.sinks {
                let interest = if sink.backlog.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
                tokens.push(Ready::Sink(id.clone()));
                fds.push(PollFd::new(sink.file.as_fd(), interest));
            }
        }
        if let Some((_, pidfd)) = &self.pause {
            tokens.push(Ready::Pid);
            fds.push(PollFd::new(pidfd.as_fd(), PollFlags::POLLIN));
        }
        let wait = match (blocked, self.worked) {
            (true, _) => Duration::from_millis(500),
            (false, true) => QUIET,
            (false, false) => Duration::from_secs(30),
        };
        let count = match poll(&mut fds, PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)) {
            Err(nix::errno::Errno::EINTR) => return Ok(()),
            other => other.context("poll")?,
        };
        let ready: Vec<Ready> =
            tokens.into_iter().zip(&fds).filter(|(_, f)| f.any().unwrap_or(true)).map(|(t, _)| t).collect();
        drop(fds);
        if blocked {
            for container in self.containers.values_mut() {
                container.log.flush();
            }
        }
        if count == 0 {
            self.idle();
            if std::mem::take(&mut self.worked) {
                memory::give_back_code();
            }
        } else {
            self.worked = true;
        }
        // Sources from the last to the first: closing one moves those behind it.
        for what in ready.into_iter().rev() {
            match what {
                Ready::Listener => self.accept(listener),
                Ready::Peer(key) => self.hear(key),
                Ready::Pid => self.reap(),
                Ready::Source(id, index) => self.pump(&id, index),
                Ready::Sink(id) => {
                    if let Some(container) = self.containers.get_mut(&id) {
                        container.sinks.retain_mut(|s| s.flush() && !peer_closed(&s.file));
                    }
                }
            }
        }
        Ok(())
    }

    fn idle(&mut self) {
        self.reap();
        let alone = self.containers.values().all(|c| c.exit.is_some()) && self.peers.is_empty();
        if alone && !self.socket.exists() {
            self.finished = true;
        }
    }

    fn accept(&mut self, listener: &UnixListener) {
        while let Ok((stream, _)) = listener.accept() {
            let limit = Some(Duration::from_secs(5));
            let usable = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(limit));
            if usable.and_then(|()| stream.set_write_timeout(limit)).is_ok() {
                self.next_peer += 1;
                self.peers.insert(self.next_peer, Peer { stream, role: Role::Requests });
            }
        }
    }

    fn pump(&mut self, id: &str, index: usize) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if index < container.sources.len() && !container.pump(index, &mut self.buffer) {
            container.close_source(index);
        }
    }

    /// A peer has sent something or hung up.
    fn hear(&mut self, key: u64) {
        let Some(peer) = self.peers.get(&key) else { return };
        match frame::receive::<Request>(&peer.stream) {
            Ok(Some((request, fds))) => self.serve(key, request, fds),
            Ok(None) => self.said_no_more(key),
            Err(e) => {
                let _ = frame::send(&peer.stream, &Answer::Failed { message: format!("bad request: {e}") }, &[]);
                self.forget(key);
            }
        }
    }

    fn said_no_more(&mut self, key: u64) {
        if let Some(Peer { stream, role: Role::Exec { pid, pidfd } }) = self.peers.remove(&key) {
            operations::kill_tree(pid);
            self.peers.insert(key, Peer { stream, role: Role::Ending { pid, pidfd } });
        }
    }

    fn forget(&mut self, key: u64) {
        if let Some(Peer { role: Role::Exec { pid, .. }, .. }) = self.peers.remove(&key) {
            operations::kill_tree(pid);
        }
    }

    fn answer(&mut self, key: u64, answer: &Answer, fds: &[std::os::fd::BorrowedFd<'_>]) {
        if let Some(peer) = self.peers.get(&key)
            && frame::send(&peer.stream, answer, fds).is_err()
        {
            self.forget(key);
        }
    }

    /// Collects every child that has ended.
    fn reap(&mut self) {
        while let Ok(Some((pid, exit))) = process::reap_any() {
            self.child_ended(pid, exit.code());
        }
    }

    fn child_ended(&mut self, pid: i32, code: i32) {
        if self.pause.as_ref().is_some_and(|(p, _)| *p == pid) {
            self.pause = None;
        }
        let found = self.containers.iter_mut().find(|(_, c)| c.pid == pid && c.exit.is_none());
        if let Some((id, container)) = found {
            let record = container.ended(code, &mut self.buffer);
            let event = Answer::Exit { id: id.clone(), record };
            self.peers.retain(|_, p| !matches!(p.role, Role::Events) || frame::send(&p.stream, &event, &[]).is_ok());
            // What it holds is let go of now, not when somebody asks for its removal.
            let log = container.bundle.join(DELETE_LOG);
            if matches!(container.deletion, Deletion::Open)
                && let Ok(started) = self.runtime.start(&log, &["delete", "--force", id])
            {
                container.deletion = Deletion::Running(started);
            }
        }
        for container in self.containers.values_mut() {
            if matches!(&container.deletion, Deletion::Running(started) if started.pid == pid) {
                let _ = std::fs::remove_file(container.bundle.join(DELETE_LOG));
                container.deletion = if code == 0 { Deletion::Done } else { Deletion::Open };
            }
        }
        let exec = self
            .peers
            .iter()
            .find(|(_, p)| matches!(p.role, Role::Exec { pid: q, .. } | Role::Ending { pid: q, .. } if q == pid));
        if let Some((key, peer)) = exec.map(|(k, p)| (*k, p)) {
            let _ = frame::send(&peer.stream, &Answer::Exited { code }, &[]);
            self.peers.remove(&key);
        }
    }
}

/// The reading end of this pipe is gone.
fn peer_closed(file: &std::fs::File) -> bool {
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::empty())];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    fds[0].revents().is_some_and(|r| r.intersects(PollFlags::POLLERR | PollFlags::POLLHUP))
}
