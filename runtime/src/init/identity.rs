//! Who the program runs as and what it may do: ids, capabilities, limits, labels, filters. The last steps before exec.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use gantry_sys::process as sys;
use gantry_sys::{capability, seccomp};

use super::procfs::Procfs;
use crate::error::{Context, Result};
use crate::fail;
use crate::plan::{capabilities, process as names};
use crate::spec::{IdMapping, Process};

/// A compiled filter and how to load it.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    pub(crate) code: Vec<seccomp::Instruction>,
    pub(crate) flags: u32,
}

/// Limits and priorities: what needs privileges that will be given up. Answers warnings about what
/// the host does not allow.
pub(crate) fn before_ids(process: &Process) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for limit in &process.rlimits {
        set_limit(limit.soft, limit.hard, names::rlimit_of(&limit.kind)?, &limit.kind, &mut warnings)?;
    }
    if let Some(s) = &process.scheduler {
        let attributes = sys::Scheduler {
            policy: names::scheduler_of(&s.policy)?,
            flags: names::scheduler_flags(&s.flags)?,
            nice: s.nice,
            priority: s.priority.unsigned_abs(),
            runtime: s.runtime,
            deadline: s.deadline,
            period: s.period,
        };
        sys::set_scheduler(attributes).context(|| "set the scheduler".to_owned())?;
    }
    if let Some(io) = &process.io_priority {
        sys::set_io_priority(names::io_class_of(&io.class)?, io.priority)
            .context(|| "set the I/O priority".to_owned())?;
    }
    Ok(warnings)
}

/// Sets one limit; where raising the hard limit is not allowed, the most that is.
fn set_limit(soft: u64, hard: u64, number: u32, name: &str, warnings: &mut Vec<String>) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const ALL: [Resource; 16] = [
        Resource::RLIMIT_CPU,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_DATA,
        Resource::RLIMIT_STACK,
        Resource::RLIMIT_CORE,
        Resource::RLIMIT_RSS,
        Resource::RLIMIT_NPROC,
        Resource::RLIMIT_NOFILE,
        Resource::RLIMIT_MEMLOCK,
        Resource::RLIMIT_AS,
        Resource::RLIMIT_LOCKS,
        Resource::RLIMIT_SIGPENDING,
        Resource::RLIMIT_MSGQUEUE,
        Resource::RLIMIT_NICE,
        Resource::RLIMIT_RTPRIO,
        Resource::RLIMIT_RTTIME,
    ];
    let Some(resource) = ALL.get(number as usize).copied() else { return Ok(()) };
    match setrlimit(resource, soft, hard) {
        Err(nix::errno::Errno::EPERM) => {
            let (_, most) = getrlimit(resource).context(|| format!("read {name}"))?;
            warnings.push(format!("{name}: this host does not allow {hard}, set to {most}"));
            setrlimit(resource, soft.min(most), hard.min(most)).context(|| format!("set {name}"))
        }
        other => other.context(|| format!("set {name} to {soft}:{hard}")),
    }
}

/// Sets a process's OOM adjustment from outside, where a user namespace takes no rights away. Lowering it needs
/// CAP_SYS_RESOURCE: without that the score stays where it is. Answers a warning then.
pub(crate) fn set_oom_score(process: &Process, pid: i32) -> Result<Option<String>> {
    let Some(adjustment) = process.oom_score_adj else { return Ok(None) };
    match Procfs::open()?.write(&format!("{pid}/oom_score_adj"), &adjustment.to_string()) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            Ok(Some(format!("oom_score_adj: this host does not allow {adjustment}, left as it is")))
        }
        other => other.map(|()| None).context(|| format!("set oom_score_adj to {adjustment}")),
    }
}

/// Labels that the next exec takes on.
pub(crate) fn labels(process: &Process, proc: &Procfs) -> Result<()> {
    if let Some(profile) = process.apparmor_profile.as_deref().filter(|p| !p.is_empty()) {
        let text = format!("exec {profile}");
        proc.write("thread-self/attr/apparmor/exec", &text)
            .or_else(|_| proc.write("thread-self/attr/exec", &text))
            .context(|| format!("apply AppArmor profile {profile}"))?;
    }
    if let Some(label) = process.selinux_label.as_deref().filter(|l| !l.is_empty()) {
        proc.write("thread-self/attr/exec", label).context(|| format!("apply SELinux label {label}"))?;
    }
    Ok(())
}

/// Gives up what the process may not do: capabilities, groups, ids. `filter` is loaded while that is still allowed, or at
/// the end under no-new-privileges, where it has less to let through. Answers the descriptor for notifications.
pub(crate) fn become_user(
    process: &Process,
    caps: &capabilities::Plan,
    filter: Option<&Filter>,
) -> Result<Option<OwnedFd>> {
    let load = |f: &Filter| seccomp::load(&f.code, f.flags).context(|| "load the seccomp filter".to_owned());
    let mut listener = None;
    if process.no_new_privileges {
        sys::set_no_new_privileges().context(|| "set no_new_privs".to_owned())?;
    } else if let Some(f) = filter {
        listener = load(f)?;
    }
    capability::limit_bounding(caps.bounding).context(|| "limit the bounding capabilities".to_owned())?;
    sys::set_keep_capabilities(true).context(|| "keep capabilities".to_owned())?;
    let user = &process.user;
    match sys::set_groups(&user.additional_gids) {
        // A user namespace that maps no groups of its owner's denies this call; without groups there is nothing to lose.
        Err(e) if user.additional_gids.is_empty() && e.raw_os_error() == Some(libc::EPERM) => {}
        other => other.context(|| "set supplementary groups".to_owned())?,
    }
    sys::set_gid(user.gid).context(|| format!("set group id {}", user.gid))?;
    sys::set_uid(user.uid).context(|| format!("set user id {}", user.uid))?;
    sys::set_keep_capabilities(false).context(|| "keep capabilities".to_owned())?;
    capability::set(caps.sets).context(|| "set capabilities".to_owned())?;
    capability::set_ambient(caps.ambient).context(|| "set ambient capabilities".to_owned())?;
    if let (true, Some(f)) = (process.no_new_privileges, filter) {
        listener = load(f)?;
    }
    Ok(listener)
}

/// A user namespace with these maps and no process in it.
pub(crate) fn user_namespace(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd> {
    let what = || "make a user namespace for mapped ids".to_owned();
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context(what)?;
    match sys::clone3(libc::CLONE_NEWUSER, None).context(what)? {
        sys::Cloned::Child => {
            drop(writer);
            let _ = rustix::io::read(&reader, &mut [0; 1]);
            sys::exit_now(0)
        }
        sys::Cloned::Parent(pid, _pidfd) => {
            drop(reader);
            let made = write_maps(pid, uids, gids)
                .and_then(|()| File::open(format!("/proc/{pid}/ns/user")).map(OwnedFd::from).context(what));
            drop(writer);
            let _ = sys::wait(pid);
            made
        }
    }
}

/// Writes the id maps of a process that is alone in a new user namespace. A user may map but the own id; the rest of what
/// /etc/subuid and /etc/subgid lend is mapped by the setuid programs newuidmap and newgidmap.
pub(crate) fn write_maps(pid: i32, uids: &[IdMapping], gids: &[IdMapping]) -> Result<()> {
    let text = |maps: &[IdMapping]| -> String {
        maps.iter().map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size)).collect()
    };
    let proc = Procfs::open()?;
    let user = rustix::process::geteuid();
    if !user.is_root() && !is_only(gids, rustix::process::getegid().as_raw()) {
        map_by("newgidmap", pid, gids)?;
    } else {
        if !user.is_root() {
            proc.write(&format!("{pid}/setgroups"), "deny").context(|| "deny setgroups".to_owned())?;
        }
        proc.write(&format!("{pid}/gid_map"), &text(gids)).context(|| "write the gid map".to_owned())?;
    }
    if !user.is_root() && !is_only(uids, user.as_raw()) {
        return map_by("newuidmap", pid, uids);
    }
    proc.write(&format!("{pid}/uid_map"), &text(uids)).context(|| "write the uid map".to_owned())
}

/// Whether a map has one id, the given one of the host.
fn is_only(maps: &[IdMapping], id: u32) -> bool {
    matches!(maps, [one] if one.size == 1 && one.host_id == id)
}

/// Has a setuid program write a map.
fn map_by(program: &str, pid: i32, maps: &[IdMapping]) -> Result<()> {
    let mut command = std::process::Command::new(program);
    command.arg(pid.to_string());
    for m in maps {
        command.args([m.container_id, m.host_id, m.size].map(|n| n.to_string()));
    }
    let ran = match command.stdin(std::process::Stdio::null()).output() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fail!("map more ids than the user's own: {program} is not installed (Debian: package uidmap)")
        }
        ran => ran.context(|| format!("run {program}"))?,
    };
    if !ran.status.success() {
        fail!("map ids: {}", String::from_utf8_lossy(&ran.stderr).trim().replace('\n', "; "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_maps_the_own_id_alone() {
        let map = |host_id, size| IdMapping { container_id: 0, host_id, size };
        assert!(is_only(&[map(1000, 1)], 1000));
        for others in [vec![], vec![map(1000, 2)], vec![map(1001, 1)], vec![map(1000, 1), map(200_000, 10)]] {
            assert!(!is_only(&others, 1000), "{others:?}");
        }
    }
}
