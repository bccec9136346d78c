//! One container as the monitor holds it: its streams, log, attached clients and end.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use gantry_cgroup::{Cgroup, Host};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::runtime::Started;
use crate::log::{LogFile, Splitter, now};
use crate::protocol::Answer;
use crate::record::ExitRecord;

/// Most bytes that wait for a slow attached client before it is cut off.
const LARGEST_BACKLOG: usize = 1 << 20;

/// An output stream of a container: a pipe or the terminal.
pub(super) struct Source {
    pub(super) file: File,
    splitter: Splitter,
    /// 0 for standard output (and terminals), 1 for standard error.
    which: usize,
}

/// Where an attached client wants output.
pub(super) struct Sink {
    pub(super) file: File,
    which: usize,
    pub(super) backlog: Vec<u8>,
}

/// A container.
pub(super) struct Container {
    pub(super) pid: i32,
    pub(super) pidfd: Option<OwnedFd>,
    /// When it was started, in nanoseconds since the epoch.
    pub(super) since: Option<i64>,
    pub(super) bundle: PathBuf,
    pub(super) terminal: bool,
    pub(super) input: Option<OwnedFd>,
    pub(super) sources: Vec<Source>,
    pub(super) sinks: Vec<Sink>,
    pub(super) log: LogFile,
    pub(super) exit_file: PathBuf,
    pub(super) exit: Option<ExitRecord>,
    pub(super) deletion: Deletion,
    cgroup: Option<Cgroup>,
}

/// The runtime's `delete` of a container that has ended, which nobody waits for until it is asked for.
#[derive(Default)]
pub(super) enum Deletion {
    /// Not begun, or it failed: whoever asks for it does it again and hears why.
    #[default]
    Open,
    /// At work.
    Running(Started),
    /// Done.
    Done,
}

/// Nanoseconds since the epoch.
pub(super) fn clock() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}

/// Makes reads and writes of a descriptor return at once.
pub(super) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

impl Source {
    pub(super) fn new(fd: OwnedFd, which: usize) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        let splitter = Splitter::new(if which == 0 { "stdout" } else { "stderr" });
        Ok(Self { file: File::from(fd), splitter, which })
    }
}

impl Container {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        pid: i32,
        bundle: PathBuf,
        terminal: bool,
        input: Option<OwnedFd>,
        sources: Vec<Source>,
        log: LogFile,
        exit_file: PathBuf,
        cgroup: &Path,
    ) -> io::Result<Self> {
        let cgroup = Host::detect().and_then(|host| host.cgroup(cgroup)).ok();
        let pidfd = Some(gantry_sys::process::pidfd_open(pid)?);
        Ok(Self {
            pid,
            pidfd,
            since: None,
            bundle,
            terminal,
            input,
            sources,
            sinks: Vec::new(),
            log,
            exit_file,
            exit: None,
            deletion: Deletion::Open,
            cgroup,
        })
    }

    /// How far it has come.
    pub(super) fn progress(&self) -> Answer {
        match self.since {
            Some(since) => Answer::Running { pid: self.pid, since },
            None => Answer::Created { pid: self.pid },
        }
    }

    /// Whether its output may be read now: not while log lines wait for the disk.
    pub(super) fn readable(&self) -> bool {
        !self.log.is_blocked()
    }

    /// Adds an attached client.
    pub(super) fn attach(&mut self, fd: OwnedFd, which: usize) -> io::Result<()> {
        set_nonblocking(&fd)?;
        self.sinks.push(Sink { file: File::from(fd), which, backlog: Vec::new() });
        Ok(())
    }

    /// Reads what source `index` has now (bounded), logs it and hands it to attached clients. False at its end.
    pub(super) fn pump(&mut self, index: usize, buffer: &mut [u8]) -> bool {
        for _ in 0..16 {
            if self.log.is_blocked() {
                return true;
            }
            let source = &mut self.sources[index];
            match source.file.read(buffer) {
                Ok(0) => return false,
                Ok(n) => {
                    let time = now();
                    source.splitter.push(&buffer[..n], &time, self.log.buffer());
                    let which = source.which;
                    self.log.flush();
                    self.sinks.retain_mut(|sink| sink.which != which || sink.push(&buffer[..n]));
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                // A terminal whose last user has gone answers EIO.
                Err(_) => return false,
            }
        }
        true
    }

    /// Source `index` has ended.
    pub(super) fn close_source(&mut self, index: usize) {
        let mut source = self.sources.remove(index);
        source.splitter.finish(&now(), self.log.buffer());
        self.log.flush();
        self.sinks.retain(|sink| sink.which != source.which || !sink.backlog.is_empty());
    }

    /// Reads all that is there now.
    pub(super) fn drain(&mut self, buffer: &mut [u8]) {
        let mut index = 0;
        while index < self.sources.len() {
            if self.pump(index, buffer) {
                index += 1;
            } else {
                self.close_source(index);
            }
        }
    }

    /// Its init has ended with `code`: writes the exit record.
    pub(super) fn ended(&mut self, code: i32, buffer: &mut [u8]) -> ExitRecord {
        let finished_at = clock();
        let killed = self.cgroup.as_ref().is_some_and(|c| c.oom_kills() > 0);
        let record = ExitRecord { code, finished_at, oom_killed: killed && code != 0 };
        self.drain(buffer);
        self.input = None;
        if let Err(e) = record.write(&self.exit_file) {
            super::complain(&format!("write {}: {e}", self.exit_file.display()));
        }
        self.pidfd = None;
        self.exit = Some(record.clone());
        record
    }
}

impl Sink {
    /// Writes or queues; false when the client is gone or too slow.
    fn push(&mut self, bytes: &[u8]) -> bool {
        self.backlog.extend_from_slice(bytes);
        self.flush() && self.backlog.len() <= LARGEST_BACKLOG
    }

    /// Writes what waits; false when the client is gone.
    pub(super) fn flush(&mut self) -> bool {
        while !self.backlog.is_empty() {
            match self.file.write(&self.backlog) {
                Ok(0) => return false,
                Ok(n) => drop(self.backlog.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}
