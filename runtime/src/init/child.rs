//! The new process: from the clone to the container's program. Its errors go to the runtime, which reports them.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use gantry_cgroup::Entry;
use gantry_sys::namespaces::{Kind, enter, leave, sysctl_path};
use gantry_sys::process as sys;
use rustix::fs::{Access, FileType, Mode, OFlags};

use super::channel::{Channel, Message};
use super::identity::{self, Filter};
use super::mounts::Made;
use super::procfs::Procfs;
use super::rootfs::{self, View};
use super::terminal;
use crate::error::{Context, Error, Result};
use crate::fail;
use crate::hooks;
use crate::plan::{capabilities, namespaces::Namespaces, process as names};
use crate::spec::{MemoryPolicy, Process, Spec};

/// Everything the new process needs, decided before it was made.
pub(crate) struct Job<'a> {
    pub(crate) channel: Channel,
    /// The ways into its cgroups, where it has any.
    pub(crate) entry: Option<Entry>,
    pub(crate) process: &'a Process,
    /// Where its memory comes from.
    pub(crate) memory: Option<&'a MemoryPolicy>,
    pub(crate) caps: capabilities::Plan,
    pub(crate) filter: Option<Filter>,
    pub(crate) console: Option<UnixStream>,
    /// Descriptors beyond standard error that the program keeps.
    pub(crate) preserved: i32,
    /// Signals that the runtime was started with ignored, which the program shall not be.
    pub(crate) ignored: u64,
}

/// The parts that only a new container has.
pub(crate) struct Container<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) namespaces: &'a Namespaces,
    /// Opened files of the namespaces to join (without the PID namespace, which the runtime has joined).
    pub(crate) joined: Vec<(Kind, File)>,
    pub(crate) rootfs: &'a Path,
    pub(crate) bundle: &'a Path,
    pub(crate) cgroup: &'a Path,
    /// The fifo to wait at, open for both directions: reading it waits for a writer.
    pub(crate) fifo: OwnedFd,
    /// State for hooks.
    pub(crate) state: &'a str,
    pub(crate) no_pivot: bool,
    /// Whether the runtime has to do something with the new process before that does anything itself.
    pub(crate) waits: bool,
    /// Mounts that were made with the host's rights, each in its mount's place; or none at all.
    pub(crate) ahead: Vec<Option<Made>>,
    /// A mount namespace to copy instead of the host's, which this process is in then until it builds its root.
    pub(crate) bare: Option<File>,
    /// Whether the runtime has something to do when the namespaces are made.
    pub(crate) attended: bool,
}

/// Becomes the container's program, or tells the runtime why not and ends.
pub(crate) fn become_container(mut job: Job<'_>, mut container: Container<'_>) -> ! {
    let error = match set_up(&mut job, &mut container) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let _ = job.channel.send(&Message::Failed(error.to_string()));
    sys::exit_now(1)
}

/// Sets the new process up. What it holds of the host (procfs, cgroups, namespaces, its root) is let go of before anything
/// is looked up inside: a path of the image could lead through it (CVE-2024-21626).
fn set_up(job: &mut Job<'_>, c: &mut Container<'_>) -> Result<std::convert::Infallible> {
    if c.waits {
        job.channel.wait_go()?;
    }
    hide()?;
    enter_cgroups(job)?;
    rustix::process::setsid().context(|| "start a session".to_owned())?;
    for (kind, file) in c.joined.drain(..) {
        enter(&file, kind).context(|| format!("join the {} namespace", kind.proc_name()))?;
    }
    if c.namespaces.makes(Kind::User) || c.namespaces.joins(Kind::User).is_some() {
        sys::set_gid(0).context(|| "become root of the user namespace".to_owned())?;
        sys::set_uid(0).context(|| "become root of the user namespace".to_owned())?;
    }
    if c.namespaces.makes(Kind::Cgroup) {
        // Only now is this process in its cgroup, which becomes the root that the new namespace shows.
        leave(Kind::Cgroup.flag()).context(|| "make a cgroup namespace".to_owned())?;
    }
    if c.namespaces.makes(Kind::Network) {
        gantry_sys::namespaces::loopback_up().context(|| "bring the loopback link up".to_owned())?;
    }
    set_names(c.spec)?;
    let linux = c.spec.linux();
    let proc = Procfs::open()?;
    for (key, value) in &linux.sysctl {
        let path = sysctl_path(key).context(|| "linux.sysctl".to_owned())?;
        let path = path.strip_prefix("/proc").unwrap_or(&path).to_string_lossy();
        proc.write(&path, value).context(|| format!("linux.sysctl: set {key} to {value}"))?;
    }
    let isolated = c.namespaces.makes(Kind::Mount);
    let root = if isolated {
        let view = View::new(c.spec, &linux, c.namespaces, (c.bundle, c.rootfs), c.cgroup);
        rootfs::build(view, std::mem::take(&mut c.ahead), c.bare.take().as_ref(), &proc)?
    } else {
        gantry_sys::root::Root::open(c.rootfs).context(|| format!("open {}", c.rootfs.display()))?
    };
    // The runtime does its part now, hooks too: all namespaces are made, the root is not entered. Where it has none it has said
    // so by now, most often, and neither process waits for the other.
    if c.attended {
        job.channel.send(&Message::Go).context(|| "talk to the runtime".to_owned())?;
    }
    job.channel.wait_go()?;
    if let Some(h) = &c.spec.hooks {
        hooks::run("createContainer", &h.create_container, c.state)?;
    }
    if isolated && !c.no_pivot {
        rootfs::enter(&root, linux.rootfs_propagation.as_deref())?;
    } else {
        rootfs::enter_by_chroot(&root, isolated)?;
    }
    drop(root);
    let terminal = open_terminal(job, isolated)?;
    if isolated {
        own_null()?;
        rootfs::restrict(&linux, c.spec.root.as_ref().is_some_and(|r| r.readonly))?;
    }
    prepare(job, &proc)?;
    drop(proc);
    if let Some(p) = &linux.personality {
        set_personality(&p.domain)?;
    }
    let (program, argv, envp) = program(job.process)?;
    drop(terminal);
    finish(job)?;
    check_runnable(&program, job.process)?;
    job.channel.send(&Message::Go).context(|| "talk to the runtime".to_owned())?;
    while let Err(e) = rustix::io::read(&c.fifo, &mut [0; 1]) {
        if e != rustix::io::Errno::INTR {
            return Err(e).context(|| "wait for start".to_owned());
        }
    }
    if let Some(h) = &c.spec.hooks {
        hooks::run("startContainer", &h.start_container, c.state)?;
    }
    run(&program, &argv, &envp, job.ignored)
}

/// Nobody in a namespace that is joined now may look into this process, its memory or its descriptors. The runtime hides
/// itself, and with it this copy, when it can; without root's rights it must see its child's files until here.
fn hide() -> Result<()> {
    sys::set_dumpable(false).context(|| "hide this process".to_owned())
}

/// Goes into the version 1 groups before anything is made or charged.
fn enter_cgroups(job: &mut Job<'_>) -> Result<()> {
    match job.entry.take() {
        Some(entry) => entry.enter().context(|| "enter the container's cgroup".to_owned()),
        None => Ok(()),
    }
}

/// Sets the host's and domain's name. A joined namespace has its names already, and may not let this process set them.
fn set_names(spec: &Spec) -> Result<()> {
    let now = rustix::system::uname();
    if let Some(name) = spec.hostname.as_deref().filter(|n| !n.is_empty() && n.as_bytes() != now.nodename().to_bytes())
    {
        nix::unistd::sethostname(name).context(|| format!("set the host name to {name}"))?;
    }
    if let Some(name) =
        spec.domainname.as_deref().filter(|n| !n.is_empty() && n.as_bytes() != now.domainname().to_bytes())
    {
        rustix::system::setdomainname(name.as_bytes()).context(|| format!("set the domain name to {name}"))?;
    }
    Ok(())
}

/// The last privileges go; what is left is what the program will have.
fn finish(job: &Job<'_>) -> Result<()> {
    gantry_sys::fd::close_on_exec_from(3 + job.preserved).context(|| "close descriptors".to_owned())?;
    if let Some(fd) = identity::become_user(job.process, &job.caps, job.filter.as_ref())? {
        job.channel.send(&Message::Listener(fd)).context(|| "talk to the runtime".to_owned())?;
    }
    Ok(())
}

/// A process beside a running container's own, in those of its namespaces that `flags` are; it is in some `early`.
pub(crate) fn become_process(mut job: Job<'_>, container: OwnedFd, flags: i32, early: i32) -> ! {
    let job = &mut job;
    let mut set_up = || -> Result<std::convert::Infallible> {
        job.channel.wait_go()?;
        hide()?;
        enter_cgroups(job)?;
        let last = job.process.exec_cpu_affinity.as_ref().map_or("", |affinity| &affinity.last);
        set_affinity(last).context(|| "process.execCPUAffinity.final".to_owned())?;
        rustix::process::setsid().context(|| "start a session".to_owned())?;
        let proc = Procfs::open()?;
        let late = nix::sched::CloneFlags::from_bits_retain(flags & !early);
        if !late.is_empty() {
            nix::sched::setns(&container, late).context(|| "join the container's namespaces".to_owned())?;
        }
        if flags & Kind::User.flag() != 0 {
            sys::set_gid(0).context(|| "become root of the user namespace".to_owned())?;
            sys::set_uid(0).context(|| "become root of the user namespace".to_owned())?;
        }
        let terminal = open_terminal(job, false)?;
        prepare(job, &proc)?;
        drop(proc);
        let (program, argv, envp) = program(job.process)?;
        drop(terminal);
        finish(job)?;
        check_runnable(&program, job.process)?;
        job.channel.send(&Message::Go).context(|| "talk to the runtime".to_owned())?;
        job.channel.wait_go()?;
        run(&program, &argv, &envp, job.ignored)
    };
    let error = match set_up() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let _ = job.channel.send(&Message::Failed(error.to_string()));
    sys::exit_now(255)
}

/// Sets the processors to run on, where a list says which.
pub(crate) fn set_affinity(list: &str) -> io::Result<()> {
    match names::numbers_of(list) {
        Some(processors) if !processors.is_empty() => sys::set_affinity(&processors),
        _ => Ok(()),
    }
}

fn set_memory_policy(policy: &MemoryPolicy) -> Result<()> {
    let (mode, _) = names::memory_mode_of(&policy.mode)?;
    let nodes = names::numbers_of(&policy.nodes).unwrap_or_default();
    let mode = mode | names::memory_flags_of(&policy.flags)?;
    sys::set_memory_policy(mode, &nodes).context(|| format!("linux.memoryPolicy: set {} {}", policy.mode, policy.nodes))
}

fn prepare(job: &Job<'_>, proc: &Procfs) -> Result<()> {
    if let Some(policy) = job.memory {
        set_memory_policy(policy)?;
    }
    for warning in identity::before_ids(job.process)? {
        let _ = job.channel.send(&Message::Warning(warning));
    }
    let umask = job.process.user.umask.unwrap_or(0o022);
    rustix::process::umask(Mode::from_raw_mode(umask));
    identity::labels(job.process, proc)
}

/// Makes the program's terminal, hands its other end over, and puts it on 0, 1 and 2.
fn open_terminal(job: &mut Job<'_>, show: bool) -> Result<Option<OwnedFd>> {
    if !job.process.terminal {
        return Ok(None);
    }
    let Some(console) = job.console.take() else { fail!("process.terminal: a terminal needs --console-socket") };
    let what = || "open a terminal".to_owned();
    let (master, terminal) = gantry_sys::pty::open(Path::new("/dev/pts/ptmx"))
        .or_else(|_| gantry_sys::pty::open(Path::new("/dev/ptmx")))
        .context(what)?;
    if let Some(size) = job.process.console_size {
        let size = gantry_sys::pty::Size { rows: size.height, columns: size.width };
        gantry_sys::pty::resize(&master, size).context(what)?;
    }
    if show {
        rootfs::show_console(terminal.as_fd())?;
    }
    rustix::fs::fchown(&terminal, Some(rustix::fs::Uid::from_raw(job.process.user.uid)), None).context(what)?;
    terminal::hand_over(&console, &master)?;
    sys::set_controlling_terminal(terminal.as_fd()).context(|| "take the terminal".to_owned())?;
    rustix::stdio::dup2_stdin(&terminal).context(what)?;
    rustix::stdio::dup2_stdout(&terminal).context(what)?;
    rustix::stdio::dup2_stderr(&terminal).context(what)?;
    Ok(Some(terminal))
}

/// Standard descriptors that are the host's null device become the container's own: a checkpoint can name only what is inside.
fn own_null() -> Result<()> {
    let what = || "open the container's /dev/null".to_owned();
    let is_null = |fd: BorrowedFd<'_>| {
        rustix::fs::fstat(fd).is_ok_and(|s| {
            FileType::from_raw_mode(s.st_mode) == FileType::CharacterDevice && s.st_rdev == rustix::fs::makedev(1, 3)
        })
    };
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let [input, output, error] = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()].map(is_null);
    if !(input || output || error) {
        return Ok(());
    }
    let root = gantry_sys::root::Root::open(Path::new("/")).context(what)?;
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    // Where the image's is something else the host's does as well.
    let Ok(own) = root.open_in(Path::new("/dev/null"), flags, Mode::empty()) else { return Ok(()) };
    if !is_null(own.as_fd()) {
        return Ok(());
    }
    if input {
        rustix::stdio::dup2_stdin(&own).context(what)?;
    }
    if output {
        rustix::stdio::dup2_stdout(&own).context(what)?;
    }
    if error {
        rustix::stdio::dup2_stderr(&own).context(what)?;
    }
    Ok(())
}

/// The program's path, arguments and environment, looked up inside the container from its working folder.
fn program(process: &Process) -> Result<(PathBuf, Vec<CString>, Vec<CString>)> {
    let cwd = &process.cwd;
    if let Err(e) = std::env::set_current_dir(cwd) {
        // A missing working folder is made, as engines expect of images that name one.
        if e.kind() != io::ErrorKind::NotFound {
            return Err(e).context(|| format!("chdir to cwd ({}) set in config.json failed", cwd.display()));
        }
        std::fs::create_dir_all(cwd).context(|| format!("make the working folder {}", cwd.display()))?;
        let _ = std::os::unix::fs::chown(cwd, Some(process.user.uid), Some(process.user.gid));
        std::env::set_current_dir(cwd)
            .context(|| format!("chdir to cwd ({}) set in config.json failed", cwd.display()))?;
    }
    // The folder must be inside the container: a leaked descriptor of the host would be a way out (CVE-2024-21626).
    let here = rustix::process::getcwd(Vec::new()).context(|| "find the working folder".to_owned())?;
    if !here.to_bytes().starts_with(b"/") {
        fail!("process.cwd: {} is outside of the container", cwd.display());
    }
    let Some(name) = process.args.first() else { fail!("process.args: empty") };
    let found = find_program(name, &process.env)?;
    let c = |bytes: &[u8]| CString::new(bytes).context(|| "process.args or env: a NUL byte".to_owned());
    let argv = process.args.iter().map(|a| c(a.as_bytes())).collect::<Result<Vec<_>>>()?;
    let mut envp = process.env.iter().map(|e| c(e.as_bytes())).collect::<Result<Vec<_>>>()?;
    if !process.env.iter().any(|e| e.starts_with("HOME=")) {
        let passwd = passwd().unwrap_or_default();
        envp.push(c(format!("HOME={}", names::home_of(&passwd, process.user.uid)).as_bytes())?);
    }
    Ok((found, argv, envp))
}

/// The image's list of users: a plain file of bearable size, not a fifo that never answers or a device that never ends.
fn passwd() -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&fd).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size > 1 << 20 {
        return None;
    }
    let mut text = Vec::with_capacity(stat.st_size as usize);
    io::Read::read_to_end(&mut io::Read::take(File::from(fd), 1 << 20), &mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn find_program(name: &str, env: &[String]) -> Result<PathBuf> {
    let mut refused = None;
    for path in names::candidates(name, env) {
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => refused = Some("is a directory"),
            Ok(meta) => {
                use std::os::unix::fs::PermissionsExt;
                if meta.permissions().mode() & 0o111 != 0 {
                    return Ok(path);
                }
                refused = Some("permission denied");
            }
            Err(_) => {}
        }
    }
    let reason = match refused {
        Some(reason) => reason,
        None if name.contains('/') => {
            return Err(Error::new(format!("exec: {name:?}: stat {name}: no such file or directory")));
        }
        None => "executable file not found in $PATH",
    };
    Err(Error::new(format!("exec: {name:?}: {reason}")))
}

/// The program's user must be able to run it: better said before `start` than after. A system call filter may not know
/// the call that asks; then exec itself tells.
fn check_runnable(program: &Path, process: &Process) -> Result<()> {
    let name = process.args.first().map_or("", String::as_str);
    match rustix::fs::accessat(rustix::fs::CWD, program, Access::EXEC_OK, rustix::fs::AtFlags::EACCESS) {
        Err(e @ rustix::io::Errno::ACCESS) => Err(e).context(|| format!("exec: {name:?}")),
        _ => Ok(()),
    }
}

fn run(program: &Path, argv: &[CString], envp: &[CString], ignored: u64) -> Result<std::convert::Infallible> {
    let path = CString::new(program.as_os_str().as_bytes()).context(|| "process.args: a NUL byte".to_owned())?;
    gantry_sys::signal::reset(ignored).context(|| "reset signals".to_owned())?;
    nix::unistd::execve(&path, argv, envp).context(|| format!("exec {}", program.display()))
}

fn set_personality(domain: &str) -> Result<()> {
    use nix::sys::personality::{Persona, set};
    let persona = match domain {
        "LINUX" => Persona::empty(),
        "LINUX32" => Persona::from_bits_retain(0x0008),
        other => fail!("linux.personality.domain: unknown domain {other:?}"),
    };
    set(persona).map(drop).context(|| format!("set personality {domain}"))
}
