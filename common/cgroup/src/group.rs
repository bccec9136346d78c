//! One control group: made, limited, measured, emptied and removed. The system calls of this crate.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use crate::device;
use crate::error::{Error, Result};
use crate::host::{Host, Version, small};
use crate::plan::{self, Write};
use crate::pressure::{self, Devices, Pressure};
use crate::resources::Resources;
use crate::stats::{self, Stats, V1Folders};

/// A control group by its path; making the value makes nothing on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    host: Host,
    path: PathBuf,
}

impl Cgroup {
    pub(crate) fn new(host: Host, path: &Path) -> Result<Self> {
        if path.components().any(|c| matches!(c, Component::ParentDir)) {
            return Err(Error::Invalid(format!("cgroup path {} must not contain ..", path.display())));
        }
        let path = path.strip_prefix("/").unwrap_or(path).to_owned();
        Ok(Self { host, path })
    }

    /// Its path below every mount, absolute.
    pub fn path(&self) -> PathBuf {
        Path::new("/").join(&self.path)
    }

    /// The folder that a controller's files of this group are in, where the host has that controller.
    pub fn folder(&self, controller: &str) -> Option<PathBuf> {
        if let Some(point) = self.host.v1.get(controller) {
            return Some(point.join(&self.path));
        }
        let root = self.host.unified.as_ref()?;
        self.host.unified_controllers.iter().any(|c| c == controller).then(|| root.join(&self.path))
    }

    /// The folder in the unified tree, where there is one.
    pub fn unified_folder(&self) -> Option<PathBuf> {
        self.host.unified.as_ref().map(|root| root.join(&self.path))
    }

    /// The layout of the host that it is on.
    pub fn version(&self) -> Version {
        self.host.version()
    }

    fn is_v2(&self) -> bool {
        self.host.version() == Version::V2
    }

    /// Every folder of this group: one per mounted hierarchy.
    pub(crate) fn folders(&self) -> BTreeSet<PathBuf> {
        self.host.v1.values().chain(&self.host.unified).map(|point| point.join(&self.path)).collect()
    }

    /// Whether it exists in any hierarchy.
    pub fn exists(&self) -> bool {
        self.folders().iter().any(|f| f.exists())
    }

    /// Makes it, with its parents, in every hierarchy. Made already is fine. What was made before a failure stays: call
    /// [`Cgroup::destroy`].
    ///
    /// # Errors
    /// A folder cannot be made.
    pub fn create(&self) -> Result<()> {
        if self.is_v2() {
            return self.create_v2();
        }
        let cpuset = self.host.v1.get("cpuset").map(|point| point.join(&self.path));
        for folder in self.folders() {
            // Most often the parent is there already.
            let new = fs::create_dir(&folder).is_ok();
            if !new {
                fs::create_dir_all(&folder).map_err(Error::io("create cgroup", &folder))?;
            }
            if cpuset.as_ref() == Some(&folder) && !(new && inherit_from_parent(&folder)) {
                self.inherit_cpuset()?;
            }
        }
        Ok(())
    }

    /// Version 1 starts cpusets empty, and an empty one takes no process: fill them from their parents, top down.
    fn inherit_cpuset(&self) -> Result<()> {
        let Some(root) = self.host.v1.get("cpuset") else { return Ok(()) };
        let mut at = root.clone();
        for part in self.path.components() {
            let parent = at.clone();
            at.push(part);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let own = at.join(file);
                let text = small(&own).map_err(Error::io("read", &own))?;
                if text.trim().is_empty() {
                    let from = parent.join(file);
                    let value = small(&from).map_err(Error::io("read", &from))?;
                    put(&own, value.trim())?;
                }
            }
        }
        Ok(())
    }

    fn create_v2(&self) -> Result<()> {
        let Some(root) = &self.host.unified else { return Ok(()) };
        let enable: String = self.host.unified_controllers.iter().map(|c| format!("+{c} ")).collect();
        let mut at = root.clone();
        for part in self.path.components() {
            let control = at.join("cgroup.subtree_control");
            // All at once is one call; where one controller is refused (threaded, delegated), take what can be had.
            if !enable.is_empty() && put(&control, enable.trim()).is_err() {
                for one in enable.split_whitespace() {
                    let _ = put(&control, one);
                }
            }
            at.push(part);
            match fs::create_dir(&at) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("create cgroup", &at)(e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// A descriptor of the version 2 folder, to start a process right inside (`CLONE_INTO_CGROUP`).
    ///
    /// # Errors
    /// It cannot be opened. Nothing on hosts that are not purely version 2.
    pub fn open_v2(&self) -> Result<Option<OwnedFd>> {
        let Some(folder) = self.unified_folder().filter(|_| self.is_v2()) else { return Ok(None) };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&folder, flags, Mode::empty()).map_err(io::Error::from);
        Ok(Some(fd.map_err(Error::io("open cgroup", &folder))?))
    }

    /// Moves a process into it, in every hierarchy.
    ///
    /// # Errors
    /// The group or the process does not exist, or a controller refuses.
    pub fn add_process(&self, pid: i32) -> Result<()> {
        for folder in self.folders() {
            put(&folder.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Sets limits; what is `None` stays as it is.
    ///
    /// # Errors
    /// A controller is missing for a limit that was asked for, or the kernel refuses a value.
    pub fn apply(&self, resources: &Resources) -> Result<()> {
        let v2 = self.is_v2();
        if resources.memory_check_before_update == Some(true) {
            self.check_memory(resources)?;
        }
        for w in if v2 { plan::v2(resources)? } else { plan::v1(resources) } {
            self.write(&w)?;
        }
        if v2 {
            return self.apply_devices_v2(resources);
        }
        if let Some(file) = resources.unified.keys().next() {
            return Err(Error::Invalid(format!("cannot set unified resource {file}: this host has cgroup version 1")));
        }
        self.apply_memory_v1(resources)?;
        let Some(devices) = self.host.v1.get("devices").map(|p| p.join(&self.path)) else { return Ok(()) };
        let rules: Vec<_> = resources.devices.iter().flatten().map(device::DeviceRule::v1).collect();
        // One rule a write, in order; rules in a row for one file share its descriptor.
        for run in rules.chunk_by(|a, b| a.0 == b.0) {
            let path = devices.join(run[0].0);
            let mut file = OpenOptions::new().write(true).open(&path).map_err(Error::io("open", &path))?;
            for (_, line) in run {
                let limit = |source| Error::Limit { path: path.clone(), value: line.clone(), source };
                file.write_all(line.as_bytes()).map_err(limit)?;
            }
        }
        Ok(())
    }

    fn write(&self, w: &Write) -> Result<()> {
        if w.controller == "cgroup" {
            let folder = self.unified_folder().unwrap_or_default();
            return put(&folder.join(&w.file), &w.value);
        }
        match self.folder(w.controller) {
            Some(folder) if !self.is_v2() && !self.host.v1.contains_key(w.controller) => {
                // A hybrid host with this controller in the unified tree, where it is switched on only when asked for and
                // the file has version 2's name.
                self.enable_unified(w.controller);
                put(&folder.join(w.file.replace(".limit_in_bytes", ".max")), &w.value)
            }
            Some(folder) => put(&folder.join(&w.file), &w.value),
            None => Err(Error::NoController { limit: w.file.clone(), controller: w.controller.to_owned() }),
        }
    }

    /// Switches a controller on in every group above this one. Where that is refused, the limit's file is missing, and
    /// writing it tells.
    fn enable_unified(&self, controller: &str) {
        let Some(root) = &self.host.unified else { return };
        let mut at = root.clone();
        for part in self.path.components() {
            let _ = put(&at.join("cgroup.subtree_control"), &format!("+{controller}"));
            at.push(part);
        }
    }

    /// The kernel keeps memory <= memory+swap at all times, so growing writes the pair's larger one first.
    fn apply_memory_v1(&self, resources: &Resources) -> Result<()> {
        let (memory, both) = plan::v1_memory(resources);
        if memory.is_none() && both.is_none() {
            return Ok(());
        }
        let missing = || Error::NoController { limit: "memory limit".to_owned(), controller: "memory".to_owned() };
        let folder = self.folder("memory").ok_or_else(missing)?;
        let limit = memory.map(|m| (folder.join("memory.limit_in_bytes"), m));
        let swap = both.map(|m| (folder.join("memory.memsw.limit_in_bytes"), m));
        // Hosts without swap accounting have no such file: what limits memory alone still holds.
        let swap = swap.filter(|(path, _)| path.exists());
        match (limit, swap) {
            (Some((a, x)), Some((b, y))) => {
                put(&a, &x).and_then(|()| put(&b, &y)).or_else(|_| put(&b, &y).and_then(|()| put(&a, &x)))
            }
            (Some((a, x)), None) | (None, Some((a, x))) => put(&a, &x),
            (None, None) => Ok(()),
        }
    }

    fn check_memory(&self, resources: &Resources) -> Result<()> {
        let used = self.stats().memory;
        match resources.memory_limit {
            Some(limit) if limit > 0 && used > limit as u64 => {
                Err(Error::Invalid(format!("cannot set the memory limit to {limit}: {used} bytes are in use")))
            }
            _ => Ok(()),
        }
    }

    fn apply_devices_v2(&self, resources: &Resources) -> Result<()> {
        let (Some(rules), Some(folder)) = (&resources.devices, self.unified_folder()) else { return Ok(()) };
        let program = gantry_sys::bpf::load_device_program(&device::program(rules));
        let program = program.map_err(Error::io("load the device program for", &folder))?;
        if let Some(fd) = self.open_v2()? {
            let attached = gantry_sys::bpf::attach_device_program(fd.as_fd(), program.as_fd());
            attached.map_err(Error::io("attach the device program to", &folder))?;
        }
        Ok(())
    }

    /// What it uses now.
    pub fn stats(&self) -> Stats {
        if self.is_v2() {
            return self.unified_folder().map(|f| stats::read_v2(&f)).unwrap_or_default();
        }
        let f = |controller: &str| self.folder(controller);
        let (cpuacct, cpu, memory, pids, blkio) = (f("cpuacct"), f("cpu"), f("memory"), f("pids"), f("blkio"));
        stats::read_v1(&V1Folders {
            cpuacct: cpuacct.as_deref(),
            cpu: cpu.as_deref(),
            memory: memory.as_deref(),
            pids: pids.as_deref(),
            blkio: blkio.as_deref(),
        })
    }

    /// How long its tasks waited for `cpu`, `memory` or `io`; `None` where that is not counted. Hybrid hosts count it in the
    /// unified tree.
    pub fn pressure(&self, resource: &str) -> Option<Pressure> {
        pressure::read(&self.unified_folder()?, resource)
    }

    /// What it read and wrote, by device.
    pub fn devices(&self) -> Devices {
        if self.is_v2() {
            return pressure::devices_v2(&stats::text(self.unified_folder().as_deref(), "io.stat"));
        }
        let folder = self.folder("blkio");
        let read = |file| stats::text(folder.as_deref(), file);
        pressure::devices_v1(
            &read("blkio.throttle.io_service_bytes_recursive"),
            &read("blkio.throttle.io_serviced_recursive"),
        )
    }

    /// How many processes the OOM killer has taken from it.
    pub fn oom_kills(&self) -> u64 {
        let file = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        let text = self.folder("memory").and_then(|f| fs::read_to_string(f.join(file)).ok());
        text.map_or(0, |t| stats::keyed(&t, "oom_kill"))
    }

    /// Its processes, those of groups below included.
    ///
    /// # Errors
    /// A list cannot be read (a group that does not exist has no processes).
    pub fn procs(&self) -> Result<Vec<i32>> {
        let mut pids = BTreeSet::new();
        for folder in self.folders() {
            collect_procs(&folder, &mut pids)?;
        }
        Ok(pids.into_iter().collect())
    }

    /// Kills every process in it and below, and waits until they are gone (five seconds at most; a process that the kernel
    /// holds uninterruptibly may remain).
    ///
    /// # Errors
    /// Processes remain.
    pub fn kill(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut pause = Duration::from_millis(1);
        loop {
            let at_once = self.unified_folder().map(|f| f.join("cgroup.kill"));
            let killed = at_once.filter(|f| f.exists()).is_some_and(|f| put(&f, "1").is_ok());
            let pids = self.procs()?;
            if pids.is_empty() {
                return Ok(());
            }
            if !killed || pause > Duration::from_millis(4) {
                for pid in &pids {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
                }
            }
            if Instant::now() > deadline {
                let who: Vec<String> = pids.iter().map(ToString::to_string).collect();
                return Err(Error::Invalid(format!("processes {} do not die", who.join(", "))));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Stops all its processes until [`Cgroup::thaw`].
    ///
    /// # Errors
    /// The host has no freezer, or the processes do not stop within two seconds.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true)
    }

    /// Lets its processes go on.
    ///
    /// # Errors
    /// The host has no freezer.
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    /// Whether its processes are stopped.
    pub fn is_frozen(&self) -> bool {
        match self.freezer() {
            Some((file, true)) => small(&file).is_ok_and(|t| matches!(t.trim(), "FROZEN" | "FREEZING")),
            Some((file, false)) => small(&file).is_ok_and(|t| t.trim() == "1"),
            None => false,
        }
    }

    /// The freezer's file, and whether it speaks version 1.
    fn freezer(&self) -> Option<(PathBuf, bool)> {
        if let Some(point) = self.host.v1.get("freezer") {
            return Some((point.join(&self.path).join("freezer.state"), true));
        }
        self.unified_folder().map(|f| (f.join("cgroup.freeze"), false))
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        let missing = || Error::NoController { limit: "frozen".to_owned(), controller: "freezer".to_owned() };
        let (file, v1) = self.freezer().ok_or_else(missing)?;
        let value = match (v1, frozen) {
            (true, true) => "FROZEN",
            (true, false) => "THAWED",
            (false, true) => "1",
            (false, false) => "0",
        };
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            put(&file, value)?;
            let state = if v1 {
                fs::read_to_string(&file).unwrap_or_default().trim() == value
            } else {
                let events = self.unified_folder().map(|f| f.join("cgroup.events"));
                let events = events.and_then(|f| fs::read_to_string(f).ok()).unwrap_or_default();
                stats::keyed(&events, "frozen") == u64::from(frozen)
            };
            if state || !frozen {
                return Ok(());
            }
            if Instant::now() > deadline {
                put(&file, if v1 { "THAWED" } else { "0" })?;
                return Err(Error::Invalid(format!("cgroup {} does not freeze", self.path().display())));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Removes it and everything below, in every hierarchy; nothing there is nothing to do. Processes must be gone:
    /// a group that stays busy for two seconds is an error.
    ///
    /// # Errors
    /// A folder cannot be removed.
    pub fn destroy(&self) -> Result<()> {
        if self.path.as_os_str().is_empty() {
            return Err(Error::Invalid("the root cgroup cannot be removed".to_owned()));
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        for folder in self.folders() {
            remove(&folder, deadline)?;
        }
        Ok(())
    }
}

/// Fills a new cpuset from its parent; false where that one is empty itself, or anything else is not as usual.
fn inherit_from_parent(folder: &Path) -> bool {
    let Some(parent) = folder.parent() else { return false };
    ["cpuset.cpus", "cpuset.mems"].iter().all(|file| {
        let value = small(&parent.join(file)).unwrap_or_default();
        !value.trim().is_empty() && put(&folder.join(file), value.trim()).is_ok()
    })
}

fn collect_procs(folder: &Path, into: &mut BTreeSet<i32>) -> Result<()> {
    let path = folder.join("cgroup.procs");
    match fs::read_to_string(&path) {
        Ok(text) => into.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|&p| p > 0)),
        // ENODEV and ENOENT: it was removed just now.
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        Err(e) => return Err(Error::io("read", &path)(e)),
    }
    for child in children(folder) {
        collect_procs(&child, into)?;
    }
    Ok(())
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn remove(folder: &Path, deadline: Instant) -> Result<()> {
    let mut pause = Duration::from_micros(500);
    loop {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if Instant::now() > deadline => return Err(Error::io("remove cgroup", folder)(e)),
            // Busy: groups below, or a process that is just ending.
            Err(_) => {
                for child in children(folder) {
                    remove(&child, deadline)?;
                }
            }
        }
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn put(path: &Path, value: &str) -> Result<()> {
    let written = OpenOptions::new().write(true).open(path).and_then(|mut f| f.write_all(value.as_bytes()));
    written.map_err(|source| Error::Limit { path: path.to_owned(), value: value.to_owned(), source })
}
