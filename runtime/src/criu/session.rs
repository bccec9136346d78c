//! One talk with criu: it is started, asked, answered at the points that it reaches, and waited for.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use gantry_sys::fd::receive_with_fds;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

use super::wire::{self, Message, Said, Work};
use crate::error::{Context, Error, Result};
use crate::fail;

/// criu, started and waiting for its work.
pub(super) struct Session {
    socket: OwnedFd,
    process: Child,
}

impl Session {
    /// Starts criu with the given descriptors besides; `quiet`: what it is to leave alone are our standard descriptors.
    pub(super) fn start(program: Option<&str>, inherited: &[OwnedFd], quiet: bool) -> Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .context(|| "make a socket pair".to_owned())?;
        for fd in inherited.iter().chain([&theirs]) {
            fcntl_setfd(fd, FdFlags::empty()).context(|| "pass a descriptor on to criu".to_owned())?;
        }
        let program = program.filter(|p| !p.is_empty()).unwrap_or("criu");
        let mut command = Command::new(program);
        command.arg("swrk").arg(theirs.as_raw_fd().to_string());
        if quiet {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
        match command.spawn() {
            Ok(process) => Ok(Self { socket: ours, process }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => fail!(
                "{program}: not found: checkpoint and restore need criu 3.14 or newer (the package `criu` of most distributions)"
            ),
            Err(e) => Err(e).context(|| format!("start {program}")),
        }
    }

    /// Its process id.
    pub(super) fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    /// Has it do its work. `reached` is called at each point with the process that criu means and what descriptors came; what
    /// it fails with ends the work, and criu undoes what it did. Answers the process that was made. `log` is where criu writes
    /// what it does.
    pub(super) fn work(
        mut self,
        work: Work,
        options: &Message,
        log: &Path,
        mut reached: impl FnMut(&str, i32, Vec<OwnedFd>) -> Result<()>,
    ) -> Result<i32> {
        let (socket, mut fault) = (self.socket.as_fd(), None);
        let say = |bytes: &[u8]| send(socket, bytes, SendFlags::NOSIGNAL).map(drop);
        let mut outcome = say(&wire::request(work, options)).context(|| "ask criu".to_owned()).map(|()| 0);
        let mut buffer = vec![0; 64 * 1024];
        while outcome.is_ok() {
            let (length, fds) = match receive_with_fds(socket, &mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // It has ended without reading what was asked.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => (0, Vec::new()),
                other => other.context(|| "hear from criu".to_owned())?,
            };
            if length == 0 {
                outcome = Err(Error::new("it ended before its work was done"));
                break;
            }
            match wire::said(&buffer[..length]) {
                Some(Said::Reached { point, pid }) => {
                    let handled = if fault.is_none() { reached(&point, pid, fds) } else { Ok(()) };
                    fault = fault.or(handled.err());
                    // The answer goes nowhere if criu is gone, and then nothing is heard of it next.
                    let _ = say(&wire::answer(fault.is_none()));
                }
                Some(Said::Done { pid }) => {
                    outcome = Ok(pid);
                    break;
                }
                Some(Said::Failed { errno, message }) => outcome = Err(failure(errno, &message)),
                None => outcome = Err(Error::new("it says something that is no message of criu's")),
            }
        }
        // After a pre-dump it waits for more, and takes the end of the talk for an error.
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
        let status = self.process.wait().context(|| "wait for criu".to_owned())?;
        if outcome.is_ok() && !status.success() && work != Work::PreDump {
            outcome = Err(Error::new(status.to_string()));
        }
        match (fault, outcome) {
            (Some(fault), _) => Err(fault),
            (None, Ok(pid)) => Ok(pid),
            (None, Err(error)) => {
                let words =
                    fs::read(log).map(|bytes| last_errors(&String::from_utf8_lossy(&bytes))).unwrap_or_default();
                let words = if words.is_empty() { error.to_string() } else { words };
                fail!("criu failed: {words} (log file: {})", log.display())
            }
        }
    }
}

impl Drop for Session {
    /// Whoever gives up before there was work leaves none behind: without its socket criu ends.
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        let _ = self.process.wait();
    }
}

fn failure(errno: i32, message: &str) -> Error {
    match (message, errno) {
        ("", 0) => Error::new("it does not say why"),
        ("", errno) => Error::new(rustix::io::Errno::from_raw_os_error(errno).to_string()),
        (message, _) => Error::new(message),
    }
}

/// The last errors of a log in their order: the first of them tells why, the others what failed by it.
fn last_errors(log: &str) -> String {
    let errors: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once("Error (")?.1.split_once("): ").map(|(_, text)| text.trim()))
        // Said on every host that does not let criu raise its limit on open files, where it matters or not.
        .filter(|text| !text.contains("Can't setup RLIMIT_NOFILE"))
        .collect();
    errors[errors.len().saturating_sub(3)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_errors_of_a_log_are_found() {
        let log = "(00.01) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: no\n\
                   (00.02) Dumping\n\
                   (00.03) pie: 1: Error (criu/a.c:1): first\n\
                   (00.04)  52: Error (criu/files-reg.c:1790): Can't lookup mount=27 for fd=1 path=/x\n\
                   (00.05) Warn  (criu/b.c:1): not this\n\
                   (00.06) Error (criu/cr-dump.c:1545): Dump files (pid: 3268) failed with -1\n\
                   (00.07) Error (criu/cr-dump.c:1975): Dumping FAILED.\n";
        let wanted = "Can't lookup mount=27 for fd=1 path=/x; Dump files (pid: 3268) failed with -1; Dumping FAILED.";
        assert_eq!(last_errors(log), wanted);
        assert_eq!(last_errors("(0) fine\nError ("), "");
    }

    #[test]
    fn criu_that_is_not_there_is_said_to_be_missing() {
        let error = Session::start(Some("/no/such/criu"), &[], true).err().unwrap().to_string();
        assert!(error.contains("/no/such/criu: not found") && error.contains("package `criu`"), "{error}");
    }
}
