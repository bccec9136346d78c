//! Processes: clone3 into namespaces and cgroups, pidfds, reaping, and the prctl calls of a container's init.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Which side of [`clone3`] this is.
#[derive(Debug)]
pub enum Cloned {
    /// The caller: the child's process id in the caller's namespace, and a pidfd (close-on-exec) for it.
    Parent(i32, OwnedFd),
    /// The new process.
    Child,
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks with the given `CLONE_NEW*` flags, optionally straight into the cgroup v2 folder `cgroup`.
///
/// The child is a copy of the caller that runs on with ordinary code; that is only sound while the caller has one
/// thread, so this looks first.
///
/// # Errors
/// The caller has more than one thread (`InvalidInput`), or the kernel refuses (its error).
pub fn clone3(namespaces: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    clone_as(namespaces as u64, libc::SIGCHLD as u64, cgroup)
}

/// As [`clone3`], but the child becomes a child of the caller's own parent, as a container's init that outlives the
/// runtime needs when there is no subreaper between.
///
/// # Errors
/// As [`clone3`].
pub fn clone3_sibling(namespaces: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    clone_as(namespaces as u64 | libc::CLONE_PARENT as u64, 0, cgroup)
}

/// Forks as [`clone3`], but inside the user namespace `user`, as its root: namespaces made by the flags belong to it. The caller
/// itself stays outside; the new process is its child all the same.
///
/// # Errors
/// As [`clone3`], or the user namespace cannot be entered, or maps no id 0.
pub fn clone3_within(user: BorrowedFd<'_>, namespaces: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // Nobody comes back from a user namespace: a process between this one and the new one enters it.
    let between = match clone3(0, cgroup)? {
        Cloned::Parent(pid, _) => pid,
        Cloned::Child => {
            drop(ours);
            let enter = || {
                set_dumpable(false)?;
                crate::namespaces::enter(user, crate::namespaces::Kind::User)?;
                set_gid(0)?;
                set_uid(0)?;
                clone3_sibling(namespaces, None)
            };
            let (told, code) = match enter() {
                Ok(Cloned::Child) => return Ok(Cloned::Child),
                Ok(Cloned::Parent(_, pidfd)) => (crate::fd::send_with_fds(theirs.as_fd(), b"0", &[pidfd.as_fd()]), 0),
                Err(e) => (crate::fd::send_with_fds(theirs.as_fd(), e.to_string().as_bytes(), &[]), 1),
            };
            exit_now(if told.is_ok() { code } else { 2 })
        }
    };
    drop(theirs);
    let mut text = [0; 256];
    let received = crate::fd::receive_with_fds(ours.as_fd(), &mut text);
    wait(between)?;
    let (length, mut fds) = received?;
    let Some(pidfd) = fds.pop() else {
        return Err(io::Error::other(String::from_utf8_lossy(&text[..length]).into_owned()));
    };
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = info.lines().find_map(|l| l.strip_prefix("Pid:")?.trim().parse().ok());
    let pid = pid.filter(|p| *p > 0).ok_or_else(|| io::Error::other("the new process has ended already"))?;
    Ok(Cloned::Parent(pid, pidfd))
}

fn clone_as(flags: u64, exit_signal: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    // A folder has a link from its parent, one from itself and one from each folder in it: here, one for each thread.
    use std::os::unix::fs::MetadataExt;
    if fs::metadata("/proc/self/task")?.nlink() != 3 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "clone3: this process has more than one thread"));
    }
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal,
        ..CloneArgs::default()
    };
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: the arguments live across the call; without CLONE_VM the child has its own copy of memory, and the check
    // above upholds that no other thread held a lock that the child would wait for.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        // SAFETY: on success the kernel stored a new descriptor in `pidfd`, which nothing else owns.
        _ => Ok(Cloned::Parent(pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) })),
    }
}

/// A descriptor for a running (or not yet reaped) process.
///
/// # Errors
/// There is no such process.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

/// Sends a signal to the process behind a pidfd.
///
/// # Errors
/// The process is gone (`ESRCH`) or the signal is not allowed.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo pointer is allowed and means the information that kill(2) would give.
    let done = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    check(done)
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It left with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// The code as shells and engines count it: 128 + signal for a process that a signal ended.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// Waits for one child and reaps it.
///
/// # Errors
/// It is no child of the caller.
pub fn wait(pid: i32) -> io::Result<Exit> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is valid for a write of one int.
        let got = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if got >= 0 {
            return Ok(exit_of(status));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Reaps any child that has ended: its process id and how it ended, or nothing when none has (or there is no child).
///
/// # Errors
/// The kernel's, beyond "no child".
pub fn reap_any() -> io::Result<Option<(i32, Exit)>> {
    let mut status = 0;
    // SAFETY: `status` is valid for a write of one int.
    let got = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    match got {
        0 => Ok(None),
        -1 if io::Error::last_os_error().raw_os_error() == Some(libc::ECHILD) => Ok(None),
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Some((pid, exit_of(status)))),
    }
}

fn exit_of(status: i32) -> Exit {
    if libc::WIFSIGNALED(status) { Exit::Signal(libc::WTERMSIG(status)) } else { Exit::Code(libc::WEXITSTATUS(status)) }
}

/// Ends the process at once, without running any exit handler: what a forked child does when it cannot go on.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Makes orphaned descendants children of this process.
///
/// # Errors
/// The kernel's.
pub fn set_child_subreaper(on: bool) -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, u64::from(on))
}

/// Whether others may look into this process (`/proc/PID/exe`, ptrace, core dumps).
///
/// # Errors
/// The kernel's.
pub fn set_dumpable(on: bool) -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, u64::from(on))
}

/// Forbids gaining privileges by exec, for this process and all it starts, for ever.
///
/// # Errors
/// The kernel's.
pub fn set_no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// Whether permitted capabilities survive the next change of user ids.
///
/// # Errors
/// The kernel's.
pub fn set_keep_capabilities(on: bool) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, u64::from(on))
}

/// The signal this process gets when its parent ends; 0 for none.
///
/// # Errors
/// The kernel's.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as u64)
}

pub(crate) fn prctl(option: i32, value: u64) -> io::Result<()> {
    // SAFETY: the options used in this crate take plain integers, never pointers.
    let done = unsafe { libc::prctl(option, value, 0_u64, 0_u64, 0_u64) };
    check(i64::from(done))
}

/// Sets the memory policy of the calling (only) thread, which programs that it starts inherit: `mode` is `MPOL_*` with its flags,
/// about these memory nodes.
///
/// # Errors
/// The kernel has no such mode, or the machine no such node.
pub fn set_memory_policy(mode: i32, nodes: &[u32]) -> io::Result<()> {
    let Some(most) = nodes.iter().max() else {
        // SAFETY: without a mask the kernel reads nothing.
        return check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, std::ptr::null::<u64>(), 0) });
    };
    let mut mask = vec![0_u64; *most as usize / 64 + 1];
    for node in nodes {
        mask[*node as usize / 64] |= 1 << (node % 64);
    }
    // The kernel leaves out the last bit that it is told of.
    let bits = mask.len() * 64 + 1;
    // SAFETY: the mask has one word for each 64 bits told, and lives across the call.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask.as_ptr(), bits) })
}

/// Lets the calling (only) thread run on these processors only, and programs that it starts.
///
/// # Errors
/// The machine has none of them.
pub fn set_affinity(processors: &[u32]) -> io::Result<()> {
    let most = processors.iter().max().copied().unwrap_or_default();
    let mut mask = vec![0_u64; most as usize / 64 + 1];
    for processor in processors {
        mask[*processor as usize / 64] |= 1 << (processor % 64);
    }
    // SAFETY: pointer and length describe the mask, which lives across the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&mask[..]), mask.as_ptr()) })
}

/// A mask of the calling process as /proc/self/status shows it, by its word there (`CapBnd:`).
pub(crate) fn status_mask(word: &str) -> Option<u64> {
    let mut buffer = [0; 4096];
    let length = fs::File::open("/proc/self/status").and_then(|mut f| io::Read::read(&mut f, &mut buffer)).ok()?;
    let text = std::str::from_utf8(&buffer[..length]).ok()?;
    let mask = text.lines().find_map(|line| line.strip_prefix(word))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Sets the supplementary groups of the calling (only) thread.
///
/// # Errors
/// The caller lacks CAP_SETGID or there are too many groups.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length describe the slice.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
}

/// Sets real, effective and saved group id.
///
/// # Errors
/// The caller lacks CAP_SETGID, or the id is not mapped.
pub fn set_gid(gid: u32) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })
}

/// Sets real, effective and saved user id.
///
/// # Errors
/// The caller lacks CAP_SETUID, or the id is not mapped.
pub fn set_uid(uid: u32) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })
}

/// Makes the terminal `fd` the controlling terminal of this session.
///
/// # Errors
/// The caller is no session leader or `fd` is no terminal.
pub fn set_controlling_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a plain integer.
    check(i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }))
}

/// Sets the I/O priority of the calling process: class (1 realtime, 2 best effort, 3 idle) and level 0-7.
///
/// # Errors
/// The class needs privileges.
pub fn set_io_priority(class: i32, level: i32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, (class << 13) | level) })
}

/// What sched_setattr(2) sets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scheduler {
    /// `SCHED_*` number.
    pub policy: u32,
    /// `SCHED_FLAG_*` bits.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub runtime: u64,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub deadline: u64,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub period: u64,
}

/// Sets the scheduling policy of the calling thread.
///
/// # Errors
/// The values do not fit together or need privileges.
pub fn set_scheduler(s: Scheduler) -> io::Result<()> {
    #[repr(C)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: s.policy,
        flags: s.flags,
        nice: s.nice,
        priority: s.priority,
        runtime: s.runtime,
        deadline: s.deadline,
        period: s.period,
    };
    // SAFETY: the structure says its own size and lives across the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })
}

/// Replaces this process by the program behind `fd`.
///
/// # Errors
/// Always, when it returns.
pub fn exec_fd(fd: BorrowedFd<'_>, argv: &[std::ffi::CString], envp: &[std::ffi::CString]) -> io::Error {
    match nix::unistd::fexecve(fd, argv, envp) {
        Ok(never) => match never {},
        Err(error) => error.into(),
    }
}

pub(crate) fn check(result: i64) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pidfd_signals_its_process() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let fd = pidfd_open(child.id() as i32).unwrap();
        use std::os::fd::AsFd;
        pidfd_send_signal(fd.as_fd(), libc::SIGKILL).unwrap();
        assert_eq!(wait(child.id() as i32).unwrap(), Exit::Signal(libc::SIGKILL));
        let _ = child.try_wait();
    }

    #[test]
    fn exits_count_as_shells_count_them() {
        assert_eq!(Exit::Signal(9).code(), 137);
        assert_eq!(Exit::Code(3).code(), 3);
    }
}
