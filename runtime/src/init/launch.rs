//! Making a container, from the runtime's side. Every step that fails undoes those before it.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use gantry_cgroup::{Cgroup, Entry};
use gantry_files::{Access, Outlives};
use gantry_sys::capability;
use gantry_sys::namespaces::{Kind, enter};
use gantry_sys::process::{Cloned, clone3, clone3_within, pidfd_send_signal, wait};

use super::bare;
use super::channel::{Channel, Message};
use super::child::{self, Job};
use super::devices;
use super::identity::{self, Filter};
use super::procfs::Procfs;
use super::rootfs::{self, View};
use super::terminal;
use crate::cgroups::{self, Place};
use crate::error::{Context, Error, Result};
use crate::fail;
use crate::hooks;
use crate::plan::rdt::plan as plan_rdt;
use crate::plan::{capabilities, namespaces, resources};
use crate::rdt::{self, Group};
use crate::seccomp;
use crate::spec::{Bundle, Linux, Process, Seccomp, Spec};
use crate::state::{Container, Status, Store, process_start};

/// What `create` and `run` are asked for.
pub(crate) struct Create<'a> {
    pub(crate) id: &'a str,
    pub(crate) bundle: Bundle,
    pub(crate) console: Option<UnixStream>,
    pub(crate) pid_file: Option<&'a Path>,
    pub(crate) preserved: i32,
    pub(crate) no_pivot: bool,
    /// Where resctrl is mounted.
    pub(crate) resctrl: &'a Path,
    /// Whether `linux.cgroupsPath` names a unit of systemd.
    pub(crate) systemd: bool,
}

/// Makes a container up to the point where its program waits for `start`.
pub(crate) fn create(store: &Store, mut ask: Create<'_>) -> Result<Container> {
    let mut console = ask.console.take();
    let spec = &ask.bundle.spec;
    let Some(process) = &spec.process else { fail!("config.json: process: missing") };
    if process.terminal != console.is_some() {
        fail!("process.terminal and --console-socket must be given together");
    }
    let linux = spec.linux();
    let root = spec.root.as_ref().map(|r| ask.bundle.folder.join(&r.path)).unwrap_or_default();
    let rootfs = fs::canonicalize(&root).context(|| format!("root.path {}", root.display()))?;
    if !rootfs.is_dir() {
        fail!("root.path {}: not a directory", root.display());
    }
    own_network_only(&linux)?;
    if linux.intel_rdt.is_some() {
        rdt::require(ask.resctrl)?;
    }
    let limits = resources::plan(linux.resources.as_ref())?;
    let filter = filter_of(linux.seccomp.as_ref(), store.root())?;
    let place = Place::find(linux.cgroups_path.as_ref(), ask.id, ask.systemd)?;
    place.require_free()?;
    let mut container = store.reserve(ask.id, &ask.bundle, &rootfs, &place)?;
    let made = (|| {
        let asked = linux.cgroups_path.as_ref();
        let group = cgroups::find(&place.cgroup)?
            .filter(|group| place.unit.is_some() || !cgroups::goes_without(group, asked, &limits));
        let id = ask.id;
        let holder = group.as_ref().map(|group| cgroups::create(group, &place, id, &limits)).transpose()?.flatten();
        let mut started = start_child(&mut container, spec, process, filter, group.as_ref(), &ask, &mut console);
        if let (Ok(()), Some(holder), Some(group)) = (&started, holder, &group) {
            started = holder.leave(group, &place);
        }
        if started.is_err() {
            if let Some(group) = &group {
                let _ = group.kill();
            }
            let _ = cgroups::remove(group.as_ref(), &place);
            let _ = container.state.rdt.as_ref().map(Group::remove);
        }
        started
    })();
    match made {
        Ok(()) => Ok(container),
        Err(error) => {
            let _ = container.remove();
            Err(error)
        }
    }
}

/// Kernel parameters of a network must not change the host's, which a container may join by path.
fn own_network_only(linux: &Linux) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let Some(key) = linux.sysctl.keys().find(|k| k.starts_with("net")) else { return Ok(()) };
    let joined = linux.namespaces.iter().find(|n| n.kind == "network").and_then(|n| n.path.as_ref());
    let file = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    if joined.is_some_and(|j| file(j).is_some() && file(j) == file(Path::new("/proc/self/ns/net"))) {
        fail!("linux.sysctl: {key} would change the host's network");
    }
    Ok(())
}

/// The compiled filter of a profile; `store`, the containers' folder, keeps it.
pub(crate) fn filter_of(profile: Option<&Seccomp>, store: &Path) -> Result<Option<Filter>> {
    let compiled = |p: &Seccomp| Ok(Filter { code: seccomp::compiled(store, p)?, flags: seccomp::flags(p)? });
    profile.map(compiled).transpose()
}

/// Capabilities to set on this host; what it cannot give is said on standard error.
pub(crate) fn capabilities_of(process: &Process) -> capabilities::Plan {
    let plan = capabilities::plan(process.capabilities.as_ref(), capability::bounding());
    if !plan.missing.is_empty() {
        crate::cli::warn(&format!("capabilities not available here are left out: {}", plan.missing.join(", ")));
    }
    plan
}

fn start_child(
    container: &mut Container,
    spec: &Spec,
    process: &Process,
    filter: Option<Filter>,
    group: Option<&Cgroup>,
    ask: &Create<'_>,
    console: &mut Option<UnixStream>,
) -> Result<()> {
    let linux = spec.linux();
    let namespaces = namespaces::plan(&linux);
    let caps = capabilities_of(process);
    let ignored = gantry_sys::signal::ignored();
    let fifo = container.fifo();
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600))
        .context(|| "make the start fifo".to_owned())?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let place =
        rustix::fs::open(&fifo, flags, rustix::fs::Mode::empty()).context(|| "open the start fifo".to_owned())?;
    let mut joined = Vec::new();
    for (kind, path) in &namespaces.joined {
        let file =
            File::open(path).context(|| format!("open the {} namespace {}", kind.proc_name(), path.display()))?;
        if matches!(kind, Kind::Pid | Kind::Time) {
            // These change the children of a process, not itself.
            enter(&file, *kind).context(|| format!("join the {} namespace {}", kind.proc_name(), path.display()))?;
        } else {
            joined.push((*kind, file));
        }
    }
    if namespaces.makes(Kind::Time) {
        make_time_namespace(&linux.time_offsets)?;
    }
    // A process in a new user namespace has no rights over namespaces that others own: this one joins them for it.
    let mut lent = Vec::new();
    if namespaces.makes(Kind::User) {
        let (now, later): (Vec<_>, Vec<_>) = joined.into_iter().partition(|(kind, _)| *kind != Kind::Mount);
        joined = later;
        for (kind, file) in now {
            let own = format!("/proc/self/ns/{}", kind.proc_name());
            lent.push((kind, File::open(&own).context(|| format!("open {own}"))?));
            enter(&file, kind).context(|| format!("join the {} namespace", kind.proc_name()))?;
        }
    }
    // Ids are mapped from outside, and a process that has hidden itself is out of a user's reach.
    let waits = namespaces.makes(Kind::User) || namespaces.joins(Kind::User).is_some();
    let early = spec.hooks.as_ref().filter(|h| !h.prestart.is_empty() || !h.create_runtime.is_empty());
    // A mount namespace beside a user namespace belongs to that one, and so must what it is a copy of.
    let own_mounts = namespaces.makes(Kind::Mount) && !waits && !ask.no_pivot;
    let bare = (own_mounts && bare::suits(spec, &container.state.bundle, &container.state.rootfs))
        .then(|| bare::open(container.store()))
        .flatten();
    let ahead = if waits && namespaces.makes(Kind::Mount) && rustix::process::geteuid().is_root() {
        let state = &container.state;
        rootfs::make_ahead(View::new(spec, &linux, &namespaces, (&state.bundle, &state.rootfs), &state.place.cgroup))?
    } else {
        Vec::new()
    };
    let attended = early.is_some() || !linux.net_devices.is_empty();
    let (ours, theirs) = Channel::pair()?;
    let state = container.public(Status::Creating);
    let entry = group.map(Cgroup::entry).transpose().context(|| "open the cgroup".to_owned())?;
    hide()?;
    // The cgroup namespace is made by the child, once it is in its cgroup.
    let mut flags = namespaces.new & !(Kind::Cgroup.flag() | Kind::Time.flag());
    if bare.is_some() {
        flags &= !Kind::Mount.flag();
    }
    let into = entry.as_ref().and_then(Entry::unified);
    // What a container makes beside a user namespace that it joins must belong to that one.
    let (mut users, joined): (Vec<_>, Vec<_>) = joined.into_iter().partition(|(kind, _)| *kind == Kind::User);
    let cloned = match users.pop() {
        Some((_, user)) => clone3_within(user.as_fd(), flags, into),
        None => clone3(flags, into),
    };
    let (pid, pidfd) = match cloned.context(|| "clone the container's first process".to_owned())? {
        Cloned::Child => {
            drop(ours);
            container.leave_lock();
            let job = Job {
                channel: theirs,
                entry,
                process,
                memory: linux.memory_policy.as_ref(),
                caps,
                filter,
                console: console.take(),
                preserved: ask.preserved,
                ignored,
            };
            let parts = child::Container {
                spec,
                namespaces: &namespaces,
                joined,
                rootfs: &container.state.rootfs,
                bundle: &container.state.bundle,
                cgroup: &container.state.place.cgroup,
                fifo: place,
                state: &state,
                no_pivot: ask.no_pivot,
                waits,
                ahead,
                bare,
                attended,
            };
            child::become_container(job, parts)
        }
        Cloned::Parent(pid, pidfd) => (pid, pidfd),
    };
    drop(theirs);
    let followed = (|| {
        for (kind, file) in &lent {
            enter(file, *kind).context(|| format!("go back to the {} namespace", kind.proc_name()))?;
        }
        container.state.pid = pid;
        container.state.start_time = process_start(pid).unwrap_or(0);
        container.save()?;
        if let Some(asked) = &linux.intel_rdt {
            let plan = plan_rdt(asked, ask.id);
            Group::set_up(ask.resctrl, &plan, ask.id, pid, |group| {
                container.state.rdt = Some(group.clone());
                container.save()
            })?;
        }
        if let Some(warning) = identity::set_oom_score(process, pid)? {
            crate::cli::warn(&warning);
        }
        if namespaces.makes(Kind::User) {
            identity::write_maps(pid, &linux.uid_mappings, &linux.gid_mappings)?;
        }
        if waits {
            say_go(&ours)?;
        }
        if attended {
            hear(&ours, linux.seccomp.as_ref(), container)?;
            if !linux.net_devices.is_empty() {
                let network = format!("/proc/{pid}/ns/net");
                let network = File::open(&network).context(|| format!("open {network}"))?;
                devices::move_in(&linux.net_devices, &network)?;
            }
        }
        if let Some(h) = early {
            let state = container.public(Status::Creating);
            hooks::run("prestart", &h.prestart, &state)?;
            hooks::run("createRuntime", &h.create_runtime, &state)?;
        }
        say_go(&ours)?;
        hear(&ours, linux.seccomp.as_ref(), container)?;
        write_pid_file(ask.pid_file, pid)
    })();
    if followed.is_err() {
        let _ = pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        let _ = wait(pid);
    }
    followed
}

/// Hides this process, and so the copy of it that is to be made, from whoever is in a namespace that the copy joins: there is
/// no moment in which they could look into it.
pub(crate) fn hide() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    gantry_sys::process::set_dumpable(false).context(|| "hide this process".to_owned())
}

fn make_time_namespace(offsets: &std::collections::BTreeMap<String, crate::spec::TimeOffset>) -> Result<()> {
    gantry_sys::namespaces::leave(Kind::Time.flag()).context(|| "make a time namespace".to_owned())?;
    let text: String = offsets.iter().map(|(clock, o)| format!("{clock} {} {}\n", o.secs, o.nanosecs)).collect();
    if text.is_empty() {
        return Ok(());
    }
    Procfs::open()?.write("self/timens_offsets", &text).context(|| "linux.timeOffsets".to_owned())
}

/// A child that has ended has said why, or cannot: hearing it tells which.
pub(crate) fn say_go(channel: &Channel) -> Result<()> {
    let _ = channel.send(&Message::Go);
    Ok(())
}

/// Listens until the child reaches its next point, passing on what it says meanwhile.
pub(crate) fn hear(channel: &Channel, profile: Option<&Seccomp>, container: &Container) -> Result<()> {
    loop {
        match channel.receive()? {
            Message::Go => return Ok(()),
            Message::Warning(text) => crate::cli::warn(&text),
            Message::Failed(text) => return Err(Error::new(text)),
            Message::Listener(fd) => hand_over_listener(&fd, profile, container)?,
        }
    }
}

/// Gives the notification descriptor to the profile's listener, with the state that the specification defines.
fn hand_over_listener(fd: &OwnedFd, profile: Option<&Seccomp>, container: &Container) -> Result<()> {
    let Some(path) = profile.and_then(|p| p.listener_path.as_ref()) else {
        fail!("linux.seccomp.listenerPath: SCMP_ACT_NOTIFY needs one")
    };
    let state = serde_json::json!({
        "ociVersion": crate::spec::VERSION,
        "fds": ["seccompFd"],
        "pid": container.state.pid,
        "metadata": profile.and_then(|p| p.listener_metadata.as_deref()).unwrap_or_default(),
        "state": serde_json::from_str::<serde_json::Value>(&container.public(Status::Creating)).unwrap_or_default(),
    });
    let what = || format!("hand the seccomp listener to {}", path.display());
    let socket = UnixStream::connect(path).context(what)?;
    gantry_sys::fd::send_with_fds(socket.as_fd(), state.to_string().as_bytes(), &[fd.as_fd()]).context(what)
}

/// Writes a pid file whole: a reader sees all of it or nothing.
pub(crate) fn write_pid_file(path: Option<&Path>, pid: i32) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    gantry_files::replace(path, pid.to_string().as_bytes(), Access::Umask, Outlives::Program)
        .context(|| format!("write {}", path.display()))
}

/// Connects to a console socket where one is asked for.
pub(crate) fn console(path: Option<&Path>) -> Result<Option<UnixStream>> {
    path.map(terminal::connect).transpose()
}
