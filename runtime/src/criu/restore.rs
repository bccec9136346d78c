//! Making a container's processes again from files.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use gantry_cgroup::Cgroup;
use gantry_sys::mount;
use gantry_sys::namespaces::{Kind, enter, leave, loopback_up};
use gantry_sys::process::{pidfd_open, pidfd_send_signal, wait};
use rustix::fs::CWD;

use super::session::Session;
use super::wire::{self, Message, Work};
use super::{Asked, DESCRIPTORS, Options, outside_key, places};
use crate::cgroups::{self, Place};
use crate::error::{Context, Result};
use crate::fail;
use crate::hooks;
use crate::init::hand_over;
use crate::plan::rdt::plan as plan_rdt;
use crate::plan::{namespaces, resources};
use crate::rdt::{self, Group};
use crate::spec::Bundle;
use crate::state::{Container, Status, Store, process_start};

/// What `restore` is asked for.
pub(crate) struct Restore<'a> {
    pub(crate) id: &'a str,
    pub(crate) bundle: Bundle,
    pub(crate) console: Option<UnixStream>,
    /// Where resctrl is mounted.
    pub(crate) resctrl: &'a Path,
    pub(crate) systemd: bool,
    pub(crate) options: Options<'a>,
}

/// Makes a container whose processes are those of the images, children of this process's; on failure nothing of it stays.
///
/// # Errors
/// The configuration does not allow it, or criu cannot: in criu's words, with the name of its log.
pub(crate) fn restore(store: &Store, ask: Restore<'_>) -> Result<Container> {
    let spec = &ask.bundle.spec;
    let root = spec.root.as_ref().map(|r| ask.bundle.folder.join(&r.path)).unwrap_or_default();
    let rootfs = fs::canonicalize(&root).context(|| format!("root.path {}", root.display()))?;
    if spec.linux().intel_rdt.is_some() {
        rdt::require(ask.resctrl)?;
    }
    let limits = resources::plan(spec.linux().resources.as_ref())?;
    let images = &ask.options.images;
    let descriptors = images.join(DESCRIPTORS);
    let text = fs::read(&descriptors).context(|| format!("no images of a container in {}", images.display()))?;
    let descriptors: Vec<String> =
        serde_json::from_slice(&text).context(|| format!("parse {}", descriptors.display()))?;
    let place = Place::find(spec.linux().cgroups_path.as_ref(), ask.id, ask.systemd)?;
    place.require_free()?;
    // Undoing a restore that fails ends what is in the group.
    if cgroups::find(&place.cgroup)?.and_then(|g| g.procs().ok()).is_some_and(|pids| !pids.is_empty()) {
        fail!("linux.cgroupsPath {}: it has processes of something else", place.cgroup.display());
    }
    let mut container = store.reserve(ask.id, &ask.bundle, &rootfs, &place)?;
    let made = (|| {
        let group = cgroups::find(&place.cgroup)?;
        let holder = group.as_ref().map(|g| cgroups::create(g, &place, ask.id, &limits)).transpose()?.flatten();
        let mut made = revive(&mut container, &ask, &descriptors, group.as_ref());
        if let (Ok(()), Some(holder), Some(group)) = (&made, holder, &group) {
            made = holder.leave(group, &place);
        }
        if made.is_err() {
            end(&container);
            if let Some(group) = &group {
                let _ = group.kill();
            }
            let _ = cgroups::remove(group.as_ref(), &place);
            let _ = container.state.rdt.as_ref().map(Group::remove);
        }
        made
    })();
    match made {
        Ok(()) => Ok(container),
        Err(error) => {
            let _ = container.remove();
            Err(error)
        }
    }
}

/// Ends what was made before something else failed: a child of this process, or nothing.
fn end(container: &Container) {
    if let (true, Ok(pidfd)) = (container.state.pid > 0, pidfd_open(container.state.pid)) {
        let _ = pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        let _ = wait(container.state.pid);
    }
}

fn revive(container: &mut Container, ask: &Restore<'_>, descriptors: &[String], group: Option<&Cgroup>) -> Result<()> {
    let spec = &ask.bundle.spec;
    let mut options = Message::default();
    options.number(wire::EVASIVE_DEVICES, 1).number(wire::RST_SIBLING, 1);
    let texts =
        [(wire::LSM_PROFILE, ask.options.lsm_profile), (wire::LSM_MOUNT_CONTEXT, ask.options.lsm_mount_context)];
    for (field, text) in texts {
        if let Some(text) = text.filter(|t| !t.is_empty()) {
            options.text(field, text);
        }
    }
    let namespaces = namespaces::plan(&spec.linux());
    let mut inherited: Vec<OwnedFd> = Vec::new();
    for (kind, path) in &namespaces.joined {
        let what = || format!("the {} namespace {}", kind.proc_name(), path.display());
        match kind {
            Kind::Network | Kind::Pid => {
                let file = File::open(path).context(what)?;
                options.inherited(outside_key(*kind), &file);
                inherited.push(file.into());
            }
            Kind::Cgroup => fail!("{}: criu joins no cgroup namespace", what()),
            kind => drop(options.pair(wire::JOIN_NS, kind.proc_name(), &path.to_string_lossy())),
        }
    }
    // Pipes of the images that are ours to give; each other thing criu opens again by its path.
    for (i, name) in descriptors.iter().enumerate().take(3).filter(|(_, name)| name.contains("pipe:")) {
        let mut pipe = Message::default();
        pipe.text(1, name).number(2, i as u64);
        options.message(wire::INHERIT_FD, &pipe);
    }
    let (session, mut all) = in_private_mounts(container, ask, &namespaces, &options, &inherited)?;
    if let Some(group) = group {
        // What it makes is made there, and charged to it.
        group.add_process(session.pid()).context(|| "put criu in the container's cgroup".to_owned())?;
        name_cgroups(&mut all.options, session.pid())?;
    }
    if let Some(asked) = &spec.linux().intel_rdt {
        let plan = plan_rdt(asked, ask.id);
        // What it makes is made there too.
        Group::set_up(ask.resctrl, &plan, ask.id, session.pid(), |group| {
            container.state.rdt = Some(group.clone());
            container.save()
        })?;
    }
    let reached = |point: &str, pid: i32, fds: Vec<OwnedFd>| {
        match point {
            "setup-namespaces" => set_up_namespaces(ask, &namespaces, container, pid)?,
            "post-restore" => {
                container.state.pid = pid;
                container.state.start_time = process_start(pid).unwrap_or(0);
                container.save()?;
            }
            "orphan-pts-master" => {
                let (Some(console), Some(master)) = (&ask.console, fds.first()) else {
                    fail!("process.terminal: a terminal needs --console-socket")
                };
                hand_over(console, master)?;
            }
            _ => {}
        }
        Ok(())
    };
    let names = Names::of(&namespaces)?;
    let done = session.work(Work::Restore, &all.options, &all.log, reached);
    // criu gives the namespaces that it joins the names of the images; these belong to others too, such as a pod.
    let kept = names.map_or(Ok(()), |names| names.put_back());
    done?;
    kept?;
    if container.state.pid == 0 {
        fail!("criu does not say what it restored (log file: {})", all.log.display());
    }
    Ok(())
}

/// Starts criu in a mount namespace of its own, whose end takes away all that was mounted for it, however this ends.
fn in_private_mounts(
    container: &Container,
    ask: &Restore<'_>,
    namespaces: &namespaces::Namespaces,
    options: &Message,
    inherited: &[OwnedFd],
) -> Result<(Session, Asked)> {
    let private = || -> Result<()> {
        leave(Kind::Mount.flag()).context(|| "make a mount namespace for criu".to_owned())?;
        mount::set_propagation(Path::new("/"), libc::MS_SLAVE | libc::MS_REC)
            .context(|| "part from the host".to_owned())
    };
    let (spec, rootfs) = (&ask.bundle.spec, &container.state.rootfs);
    let here = std::env::current_dir().context(|| "find the working folder".to_owned())?;
    let own = File::open("/proc/self/ns/mnt").context(|| "open /proc/self/ns/mnt".to_owned())?;
    let back = || {
        enter(&own, Kind::Mount).context(|| "go back to the mount namespace".to_owned())?;
        std::env::set_current_dir(&here).context(|| format!("go back to {}", here.display()))
    };
    let made = (|| {
        let mut mounts = Message::default();
        // First one for the places of mounts, which may be inside of other mounts: criu wants to find none of these.
        private()?;
        let root = places::make_places(spec, &container.state.bundle, rootfs)?;
        let cgroup = &container.state.place.cgroup;
        for outside in places::outside(spec, &container.state.bundle, cgroup, namespaces)? {
            let place = places::resolved(&root, rootfs, &outside.destination);
            mounts.pair(wire::EXT_MNT, &place.to_string_lossy(), &outside.source.to_string_lossy());
        }
        if !spec.linux().masked_paths.is_empty() {
            mounts.pair(wire::EXT_MNT, "/dev/null", "/dev/null");
        }
        drop(root);
        back()?;
        private()?;
        // criu wants a root that is a mount, under a parent that is not mounted over.
        let root = container.folder.join("criu-root");
        let what = || format!("mount {} at {}", rootfs.display(), root.display());
        fs::create_dir(&root).context(what)?;
        let tree = mount::clone_tree(CWD, rootfs, true).context(what)?;
        let place = File::open(&root).context(what)?;
        mount::attach(tree.as_fd(), place.as_fd()).context(what)?;
        // criu mounts below its working folder, which must be one of its own namespace.
        let mut all = ask.options.message(spec, "restore.log")?;
        all.options.0.extend_from_slice(&options.0);
        all.options.0.extend_from_slice(&mounts.0);
        all.options.text(wire::ROOT, &root.to_string_lossy());
        Ok((Session::start(ask.options.program, inherited, false)?, all))
    })();
    back()?;
    made
}

/// The names of a host as others set them, in a namespace that the container joins.
struct Names {
    own: File,
    theirs: File,
    host: std::ffi::OsString,
    domain: Vec<u8>,
}

impl Names {
    fn of(namespaces: &namespaces::Namespaces) -> Result<Option<Self>> {
        let Some(path) = namespaces.joins(Kind::Uts) else { return Ok(None) };
        let what = || format!("read the names of {}", path.display());
        let (own, theirs) = (File::open("/proc/self/ns/uts").context(what)?, File::open(path).context(what)?);
        enter(&theirs, Kind::Uts).context(what)?;
        let now = rustix::system::uname();
        enter(&own, Kind::Uts).context(what)?;
        let host = std::ffi::OsStr::from_bytes(now.nodename().to_bytes()).to_owned();
        Ok(Some(Self { own, theirs, host, domain: now.domainname().to_bytes().to_vec() }))
    }

    fn put_back(&self) -> Result<()> {
        let what = || "put the host's name back".to_owned();
        enter(&self.theirs, Kind::Uts).context(what)?;
        let host = nix::unistd::sethostname(&self.host).context(what);
        let domain = rustix::system::setdomainname(&self.domain).context(what);
        enter(&self.own, Kind::Uts).context(what)?;
        host.and(domain)
    }
}

/// Names criu's cgroups, one per hierarchy, as those of the processes that it makes.
fn name_cgroups(options: &mut Message, pid: i32) -> Result<()> {
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).context(|| format!("read {path}"))?;
    for (controller, path) in hierarchies(&text) {
        options.pair(wire::CG_ROOT, controller, path);
    }
    Ok(())
}

/// (controller, path) of each controller in the text of /proc/PID/cgroup; version 2 has no name.
fn hierarchies(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines()
        .filter_map(|line| line.split_once(':')?.1.split_once(':'))
        .flat_map(|(controllers, path)| controllers.split(',').map(move |controller| (controller, path)))
}

/// What is the engine's and the runtime's part once the namespaces are made: hooks, and the loopback link.
fn set_up_namespaces(
    ask: &Restore<'_>,
    namespaces: &namespaces::Namespaces,
    container: &mut Container,
    pid: i32,
) -> Result<()> {
    container.state.pid = pid;
    if namespaces.makes(Kind::Network) {
        let what = || "bring the loopback link up".to_owned();
        let own = File::open("/proc/self/ns/net").context(what)?;
        let theirs = File::open(format!("/proc/{pid}/ns/net")).context(what)?;
        enter(&theirs, Kind::Network).context(what)?;
        let up = loopback_up().context(what);
        enter(&own, Kind::Network).context(what)?;
        up?;
    }
    if let Some(h) = &ask.bundle.spec.hooks {
        let state = container.public(Status::Creating);
        hooks::run("prestart", &h.prestart, &state)?;
        hooks::run("createRuntime", &h.create_runtime, &state)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_told_by_controller() {
        let text = "3:cpu,cpuacct:/a/b\n2:name=systemd:/s\n1:memory:/m:x\n0::/u\n";
        let wanted = [("cpu", "/a/b"), ("cpuacct", "/a/b"), ("name=systemd", "/s"), ("memory", "/m:x"), ("", "/u")];
        assert_eq!(hierarchies(text).collect::<Vec<_>>(), wanted);
    }
}
