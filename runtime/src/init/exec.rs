//! One more process in a running container.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use gantry_sys::namespaces::Kind;
use gantry_sys::process::{Cloned, clone3, pidfd_open, pidfd_send_signal, wait};
use nix::sched::{CloneFlags, setns};

use super::channel::Channel;
use super::child::{self, Job};
use super::launch::{capabilities_of, filter_of, hear, say_go, write_pid_file};
use crate::cgroups;
use crate::error::{Context, Result};
use crate::fail;
use crate::spec::{Process, Spec};
use crate::state::Container;

/// What `exec` is asked for.
pub(crate) struct Exec<'a> {
    /// The container's configuration.
    pub(crate) spec: &'a Spec,
    pub(crate) process: &'a Process,
    pub(crate) console: Option<UnixStream>,
    pub(crate) pid_file: Option<&'a Path>,
    pub(crate) preserved: i32,
    /// A cgroup below the container's own.
    pub(crate) sub_cgroup: Option<&'a Path>,
}

/// Starts the process; answers its process id.
pub(crate) fn exec(container: &Container, ask: Exec<'_>) -> Result<i32> {
    let linux = ask.spec.linux();
    let filter = filter_of(linux.seccomp.as_ref(), container.store())?;
    let caps = capabilities_of(ask.process);
    let ignored = gantry_sys::signal::ignored();
    let init = pidfd_open(container.state.pid).context(|| "open the container's first process".to_owned())?;
    // The number could have come to mean another process, of the host, before the descriptor was opened.
    if !container.is_alive() {
        fail!("cannot exec in a container that has stopped");
    }
    wait_for_program(container.state.pid);
    let flags = differing(container.state.pid);
    // The right to join the others comes with the user namespace, but for root, who has it and keeps the own identity.
    let early = match rustix::process::geteuid().is_root() {
        true => flags & Kind::Pid.flag(),
        false => flags & (Kind::Pid.flag() | Kind::User.flag()),
    };
    let path = match ask.sub_cgroup {
        Some(sub) => container.state.place.cgroup.join(sub.strip_prefix("/").unwrap_or(sub)),
        None => container.state.place.cgroup.clone(),
    };
    let group = cgroups::find(&path)?.filter(gantry_cgroup::Cgroup::exists);
    let entry = group.as_ref().map(gantry_cgroup::Cgroup::entry).transpose();
    let entry = entry.context(|| "open the container's cgroup".to_owned())?;
    let (ours, theirs) = Channel::pair()?;
    let into = entry.as_ref().and_then(gantry_cgroup::Entry::unified);
    if early != 0 {
        let what = || "join the container's pid namespace".to_owned();
        setns(&init, CloneFlags::from_bits_retain(early)).context(what)?;
    }
    super::launch::hide()?;
    // Before there is a process in the container's cgroup: what this one may run on, its copy may.
    let initial = ask.process.exec_cpu_affinity.as_ref().map_or("", |affinity| &affinity.initial);
    child::set_affinity(initial).context(|| "process.execCPUAffinity.initial".to_owned())?;
    let (pid, pidfd) = match clone3(0, into).context(|| "clone a process".to_owned())? {
        Cloned::Child => {
            drop(ours);
            let job = Job {
                channel: theirs,
                entry,
                process: ask.process,
                memory: linux.memory_policy.as_ref(),
                caps,
                filter,
                console: ask.console,
                preserved: ask.preserved,
                ignored,
            };
            child::become_process(job, init, flags, early)
        }
        Cloned::Parent(pid, pidfd) => (pid, pidfd),
    };
    drop(theirs);
    let followed = (|| {
        if let Some(warning) = super::identity::set_oom_score(ask.process, pid)? {
            crate::cli::warn(&warning);
        }
        match container.state.rdt.as_ref().map(|group| group.join(pid)) {
            // Whoever owns the group may have taken it away.
            Some(Err(e)) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).context(|| "linux.intelRdt: join the container's group".to_owned());
            }
            _ => {}
        }
        say_go(&ours)?;
        hear(&ours, linux.seccomp.as_ref(), container)?;
        write_pid_file(ask.pid_file, pid)?;
        say_go(&ours)
    })();
    if let Err(error) = followed {
        let _ = pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        let _ = wait(pid);
        return Err(error);
    }
    Ok(pid)
}

/// Waits until this process may look into the container's first one: that hides itself from all without rights over every
/// process until its program runs, which is a moment after `start` has answered. The kernel tells nobody when.
fn wait_for_program(pid: i32) {
    const PATIENCE: Duration = Duration::from_secs(10);
    let (link, end) = (format!("/proc/{pid}/ns/user"), Instant::now() + PATIENCE);
    let hidden = || std::fs::read_link(&link).is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
    while hidden() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The namespaces in which the container's first process is and this one is not, as `CLONE_NEW*` flags.
fn differing(pid: i32) -> i32 {
    use Kind::{Cgroup, Ipc, Mount, Network, Pid, Time, User, Uts};
    let link = |who: &str, kind: Kind| std::fs::read_link(format!("/proc/{who}/ns/{}", kind.proc_name())).ok();
    [User, Mount, Network, Ipc, Uts, Pid, Cgroup, Time]
        .into_iter()
        .filter(|k| link(&pid.to_string(), *k) != link("self", *k))
        .fold(0, |flags, k| flags | k.flag())
}
