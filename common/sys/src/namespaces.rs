//! Namespaces that outlive every process: made in a short-lived thread and pinned by a bind mount.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};

/// The namespace kinds of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Host and domain name.
    Uts,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Network.
    Network,
    /// Mounts.
    Mount,
    /// Process ids.
    Pid,
    /// User and group ids.
    User,
    /// Cgroup root.
    Cgroup,
    /// Clock offsets.
    Time,
}

impl Kind {
    /// The name below `/proc/PID/ns`.
    pub fn proc_name(self) -> &'static str {
        match self {
            Self::Uts => "uts",
            Self::Ipc => "ipc",
            Self::Network => "net",
            Self::Mount => "mnt",
            Self::Pid => "pid",
            Self::User => "user",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }

    /// The `CLONE_NEW*` flag.
    pub fn flag(self) -> i32 {
        match self {
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Network => libc::CLONE_NEWNET,
            Self::Mount => libc::CLONE_NEWNS,
            Self::Pid => libc::CLONE_NEWPID,
            Self::User => libc::CLONE_NEWUSER,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Time => 0x80,
        }
    }
}

/// Makes the namespaces of a pod and pins each at its path. The host name and the sysctls (`kernel.shm_rmid_forced` =
/// `1`) are set inside. Takes a thread of its own, so it may be called from any program. On failure nothing stays pinned.
///
/// Only network, IPC, UTS and cgroup namespaces can be made this way.
///
/// # Errors
/// The caller lacks CAP_SYS_ADMIN, a path exists already as a mount, or a sysctl is unknown (the message names it).
pub fn create_pinned(
    namespaces: &[(Kind, PathBuf)],
    hostname: Option<&str>,
    sysctls: &[(String, String)],
) -> io::Result<()> {
    let (namespaces, hostname, sysctls) = (namespaces.to_vec(), hostname.map(str::to_owned), sysctls.to_vec());
    let thread = std::thread::Builder::new().name("pin-namespaces".to_owned());
    let worker = thread.spawn(move || {
        let made = make(&namespaces, hostname.as_deref(), &sysctls);
        if made.is_err() {
            for (_, path) in &namespaces {
                let _ = unpin(path);
            }
        }
        made
    })?;
    worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes namespaces panicked")))
}

/// As [`create_pinned`], but all inside a new user namespace, which is pinned at `user` and maps ids by the lines `uids` and
/// `gids` (container id, host id, length). Forks, so the caller must have one thread.
///
/// # Errors
/// As [`create_pinned`]; the caller has more than one thread; the kernel refuses the maps.
pub fn create_pinned_within(
    (user, uids, gids): (&Path, &str, &str),
    namespaces: &[(Kind, PathBuf)],
    hostname: Option<&str>,
    sysctls: &[(String, String)],
) -> io::Result<()> {
    use crate::process::{Cloned, clone3, exit_now, pidfd_send_signal, set_gid, set_uid, wait};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let context = |what: &'static str| move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    let (pid, pidfd) = match clone3(Kind::User.flag(), None).map_err(context("make a user namespace"))? {
        Cloned::Parent(pid, pidfd) => (pid, pidfd),
        Cloned::Child => {
            drop(ours);
            let made = theirs
                .read_exact(&mut [0])
                .and_then(|()| set_gid(0))
                .and_then(|()| set_uid(0))
                .and_then(|()| own(namespaces, hostname, sysctls));
            let _ = theirs.write_all(made.map_or_else(|e| e.to_string(), |()| "ok".to_owned()).as_bytes());
            let _ = theirs.shutdown(std::net::Shutdown::Write);
            // Held until the parent has pinned what this process has.
            let _ = theirs.read(&mut [0]);
            exit_now(0)
        }
    };
    drop(theirs);
    let mut pinned: Vec<&Path> = Vec::new();
    let mut pin_all = || {
        fs::write(format!("/proc/{pid}/gid_map"), gids).map_err(context("write the gid map"))?;
        fs::write(format!("/proc/{pid}/uid_map"), uids).map_err(context("write the uid map"))?;
        ours.write_all(b"g")?;
        let mut said = String::new();
        ours.read_to_string(&mut said)?;
        if said != "ok" {
            return Err(io::Error::other(if said.is_empty() { "the process in it ended".to_owned() } else { said }));
        }
        let all = namespaces.iter().map(|(kind, path)| (*kind, path.as_path())).chain([(Kind::User, user)]);
        for (kind, path) in all {
            pinned.push(path);
            pin(&PathBuf::from(format!("/proc/{pid}/ns/{}", kind.proc_name())), kind, path)?;
        }
        Ok(())
    };
    let done = pin_all();
    let _ = pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
    let _ = wait(pid);
    if done.is_err() {
        for path in pinned {
            let _ = unpin(path);
        }
    }
    done
}

fn pin(source: &Path, kind: Kind, path: &Path) -> io::Result<()> {
    let context = |what: String| move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create(path).map_err(context(format!("create {}", path.display())))?;
    let what = format!("pin the {} namespace at {}", kind.proc_name(), path.display());
    crate::mount::bind(source, path, false).map_err(context(what))
}

/// Moves the calling thread into new namespaces and sets names and sysctls there.
fn own(namespaces: &[(Kind, PathBuf)], hostname: Option<&str>, sysctls: &[(String, String)]) -> io::Result<()> {
    let context = |what: String| move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    let flags =
        namespaces.iter().fold(CloneFlags::empty(), |f, (kind, _)| f | CloneFlags::from_bits_retain(kind.flag()));
    unshare(flags).map_err(io::Error::from).map_err(context("unshare namespaces".to_owned()))?;
    if let Some(name) = hostname {
        nix::unistd::sethostname(name).map_err(io::Error::from).map_err(context(format!("set host name {name}")))?;
    }
    for (key, value) in sysctls {
        let path = sysctl_path(key)?;
        fs::write(&path, value).map_err(context(format!("sysctl {key} = {value}")))?;
    }
    Ok(())
}

fn make(namespaces: &[(Kind, PathBuf)], hostname: Option<&str>, sysctls: &[(String, String)]) -> io::Result<()> {
    own(namespaces, hostname, sysctls)?;
    for (kind, path) in namespaces {
        pin(&PathBuf::from(format!("/proc/thread-self/ns/{}", kind.proc_name())), *kind, path)?;
    }
    Ok(())
}

/// Lets go of a pinned namespace; nothing there is nothing to do.
///
/// # Errors
/// The kernel's.
pub fn unpin(path: &Path) -> io::Result<()> {
    crate::mount::unmount_all(path)?;
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Moves the calling thread into the namespace behind a file.
///
/// # Errors
/// The file is no namespace of that kind, or the caller lacks CAP_SYS_ADMIN over it.
pub fn enter(namespace: impl AsFd, kind: Kind) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::from_bits_retain(kind.flag()))?)
}

/// Moves the calling thread into new namespaces.
///
/// # Errors
/// The kernel's.
pub fn leave(flags: i32) -> io::Result<()> {
    Ok(unshare(CloneFlags::from_bits_retain(flags))?)
}

/// Runs `work` in a thread that is inside the network namespace at `path`.
///
/// # Errors
/// The namespace cannot be entered, or `work` fails.
pub fn within_network<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let file = File::open(path)?;
    let worker = std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        enter(&file, Kind::Network)?;
        work()
    })?;
    worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the network namespace panicked")))
}

/// The number of the calling thread's network namespace, which no other gets until the next boot.
///
/// # Errors
/// The kernel is older than 5.14 and has none.
pub fn network_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None)?;
    let (mut cookie, mut length) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: both live across the call, and the length is that of the number.
    crate::process::check(i64::from(unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    }))?;
    Ok(cookie)
}

/// Brings up the loopback link of the network namespace that the calling thread is in.
///
/// # Errors
/// The caller lacks CAP_NET_ADMIN there.
pub fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    use std::os::fd::AsRawFd;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives across the call.
    crate::process::check(i64::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &raw const request)
    }))
}

/// Whether a path is a pinned namespace.
pub fn is_pinned(path: &Path) -> bool {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type == NSFS_MAGIC)
}

/// The file below `/proc/sys` of a sysctl written with dots (or slashes, as `net/ipv4/conf/eth0.1/...` needs).
///
/// # Errors
/// The name would leave `/proc/sys`.
pub fn sysctl_path(name: &str) -> io::Result<PathBuf> {
    let first_slash = name.find('/').unwrap_or(usize::MAX);
    let first_dot = name.find('.').unwrap_or(usize::MAX);
    let path = if first_slash < first_dot {
        name.to_owned()
    } else {
        name.replace('.', "\0").replace('/', ".").replace('\0', "/")
    };
    let plain = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if plain {
        Ok(Path::new("/proc/sys").join(path))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no sysctl")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_stay_below_proc_sys() {
        let text = |n: &str| sysctl_path(n).map(|p| p.display().to_string()).ok();
        assert_eq!(text("net.ipv4.ip_forward").as_deref(), Some("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(text("net/ipv4/conf/eth0.1/x").as_deref(), Some("/proc/sys/net/ipv4/conf/eth0.1/x"));
        assert_eq!(text("net.ipv4.conf.eth0/1.x").as_deref(), Some("/proc/sys/net/ipv4/conf/eth0.1/x"));
        assert_eq!(text("../../etc/passwd"), None);
        assert_eq!(text("a..b"), None);
        assert_eq!(text(""), None);
    }

    #[test]
    fn pinned_namespaces_stay_until_unpinned() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |k: Kind| (k, dir.path().join(k.proc_name()));
        let all = [path(Kind::Network), path(Kind::Ipc), path(Kind::Uts)];
        let sysctls = [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())];
        create_pinned(&all, Some("pinned"), &sysctls).unwrap();
        assert!(all.iter().all(|(_, p)| is_pinned(p)));
        let links = within_network(&all[0].1, || fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
        assert_eq!(links.lines().filter(|l| l.contains(':')).count(), 1, "{links}");
        for (_, p) in &all {
            unpin(p).unwrap();
            unpin(p).unwrap();
            assert!(!p.exists());
        }
        let wrong = [("kernel.no_such".to_owned(), "1".to_owned())];
        let error = create_pinned(&all, None, &wrong).unwrap_err();
        assert!(error.to_string().contains("kernel.no_such"), "{error}");
        assert!(all.iter().all(|(_, p)| !p.exists()));
    }
}
