//! What stays on disk between two commands: one folder per container, written whole, locked while a command works on it.

mod clock;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use gantry_files::{Access, Outlives};
use serde::{Deserialize, Serialize};

pub(crate) use clock::now;

use crate::cgroups::{self, Place};
use crate::error::{Context, Result};
use crate::fail;
use crate::rdt::Group;
use crate::spec::{Bundle, Hooks, Resources, Spec, VERSION};

/// The folder of all containers of one `--root`.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

/// One container on disk, held under its lock.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// What is known of it.
    pub(crate) state: State,
    /// Held until the command is done; the container's first process gives up its copy at once.
    lock: Option<File>,
}

/// What is known of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// Version of this file's form.
    pub(crate) version: u32,
    pub(crate) id: String,
    /// Its first process; 0 until there is one.
    pub(crate) pid: i32,
    /// When that started, in clock ticks since boot: tells it from a later process with the same number.
    pub(crate) start_time: u64,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    #[serde(flatten)]
    pub(crate) place: Place,
    pub(crate) created: String,
    /// What is needed of the configuration by commands that do not read all of it; that is in a file of its own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hooks: Option<Hooks>,
    /// The limits that hold now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resources: Option<Resources>,
    /// Its group of resctrl.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rdt: Option<Group>,
    /// Whether all its processes are in a PID namespace of its own, and so end with the first.
    #[serde(default)]
    pub(crate) own_pids: bool,
}

/// What the specification calls a container's status, and runc's `paused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The state that the specification defines, as hooks and `state` get it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Public<'a> {
    pub(crate) oci_version: &'a str,
    pub(crate) id: &'a str,
    pub(crate) pid: i32,
    pub(crate) status: &'a str,
    pub(crate) bundle: &'a Path,
    pub(crate) rootfs: &'a Path,
    pub(crate) created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: &'a BTreeMap<String, String>,
    pub(crate) owner: &'a str,
}

impl Store {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where the containers' folders are.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn folder(&self, id: &str) -> Result<PathBuf> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
        if id.is_empty() || id == "." || id == ".." || id.len() > 255 || !id.chars().all(plain) {
            fail!("invalid container id {id:?}: use letters, digits and _ + - .");
        }
        Ok(self.root.join(id))
    }

    /// Takes an id for a new container.
    pub(crate) fn reserve(&self, id: &str, bundle: &Bundle, rootfs: &Path, place: &Place) -> Result<Container> {
        let folder = self.folder(id)?;
        let builder = |recursive| {
            let mut builder = fs::DirBuilder::new();
            builder.mode(0o700).recursive(recursive);
            builder
        };
        builder(true).create(&self.root).context(|| format!("create {}", self.root.display()))?;
        match builder(false).create(&folder) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => fail!("container with given ID already exists: {id}"),
            Err(e) => return Err(e).context(|| format!("create {}", folder.display())),
        }
        let lock = lock(&folder)?;
        let (spec, linux) = (&bundle.spec, bundle.spec.linux());
        let state = State {
            version: 2,
            id: id.to_owned(),
            pid: 0,
            start_time: 0,
            bundle: bundle.folder.clone(),
            rootfs: rootfs.to_owned(),
            place: place.clone(),
            created: now(),
            annotations: spec.annotations.clone(),
            hooks: spec.hooks.clone(),
            resources: linux.resources.clone(),
            rdt: None,
            own_pids: linux.namespaces.iter().any(|n| n.kind == "pid" && n.path.is_none()),
        };
        let container = Container { folder, state, lock: Some(lock) };
        // As it was when the container was made: the engine may change its own.
        let copy = container.folder.join(CONFIGURATION);
        fs::write(&copy, &bundle.text).context(|| format!("write {}", copy.display()))?;
        container.save()?;
        Ok(container)
    }

    /// Finds a container and locks it.
    pub(crate) fn open(&self, id: &str) -> Result<Container> {
        let folder = self.folder(id)?;
        let missing = || crate::Error::new("container does not exist".to_owned());
        if !folder.is_dir() {
            return Err(missing());
        }
        let lock = lock(&folder)?;
        let path = folder.join("state.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !folder.is_dir() => return Err(missing()),
            Err(e) => return Err(e).context(|| format!("container {id}: read {}", path.display())),
        };
        let state = serde_json::from_slice(&bytes).context(|| format!("container {id}: parse {}", path.display()))?;
        Ok(Container { folder, state, lock: Some(lock) })
    }

    /// Removes what a killed `create` left: a folder without a readable state. Tells whether there was one.
    pub(crate) fn remove_remains(&self, id: &str) -> Result<bool> {
        let folder = self.folder(id)?;
        discard(&folder).context(|| format!("remove {}", folder.display()))
    }

    /// The ids of all containers, sorted.
    pub(crate) fn ids(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let folders = entries.filter(|e| e.path().join("state.json").exists());
        let names = folders.filter_map(|e| e.file_name().into_string().ok());
        let mut ids: Vec<String> = names.filter(|name| !name.contains(DISCARDED)).collect();
        ids.sort();
        ids
    }
}

/// The copy of the configuration in a container's folder.
const CONFIGURATION: &str = "config.json";

/// In the names of folders that are being removed; no id has it.
const DISCARDED: char = '~';

/// Removes a folder: first out of the way, so that no other command opens its lock while it is being emptied. Tells whether
/// there was one.
fn discard(folder: &Path) -> io::Result<bool> {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(format!("{DISCARDED}{}", std::process::id()));
    let aside = folder.with_file_name(name);
    match fs::rename(folder, &aside) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    }
    // By name first: nothing else is in there.
    for name in ["lock", "state.json", CONFIGURATION] {
        let _ = fs::remove_file(aside.join(name));
    }
    if fs::remove_dir(&aside).is_err() {
        fs::remove_dir_all(&aside)?;
    }
    // What a command that was killed here left.
    for entry in fs::read_dir(folder.parent().unwrap_or(folder))?.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|n| n.rsplit_once(DISCARDED)).and_then(|(_, pid)| pid.parse().ok());
        if owner.is_some_and(|pid| process_start(pid).is_none()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(true)
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    if file.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        fail!("container does not exist");
    }
    let file = file.context(|| format!("open {}", path.display()))?;
    file.lock().context(|| format!("lock {}", path.display()))?;
    // While this command waited, the one before may have deleted the container, and a third may have made a new one.
    use std::os::unix::fs::MetadataExt;
    let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    match (file.metadata(), fs::metadata(&path)) {
        (Ok(held), Ok(there)) if same(&held, &there) => Ok(file),
        _ => fail!("container does not exist"),
    }
}

impl Drop for Container {
    /// Unlocks by word: a forked process may still hold a copy of the descriptor, which alone would keep the lock.
    fn drop(&mut self) {
        if let Some(lock) = &self.lock {
            let _ = lock.unlock();
        }
    }
}

impl Container {
    /// In a forked process: gives up its copy of the lock, which stays with the command.
    pub(crate) fn leave_lock(&mut self) {
        self.lock = None;
    }

    /// The folder of all containers, which its own is in.
    pub(crate) fn store(&self) -> &Path {
        self.folder.parent().unwrap_or(&self.folder)
    }

    /// The configuration that it was made from.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn spec(&self) -> Result<Spec> {
        let path = self.folder.join(CONFIGURATION);
        let bytes = match fs::read(&path) {
            // Containers of before there was a copy.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Bundle::read(&self.state.bundle).map(|b| b.spec),
            other => other.context(|| format!("read {}", path.display()))?,
        };
        crate::spec::parse(&bytes).context(|| format!("parse {}", path.display()))
    }

    /// Writes the state whole.
    pub(crate) fn save(&self) -> Result<()> {
        let path = self.folder.join("state.json");
        let bytes = serde_json::to_vec(&self.state).context(|| "write the state".to_owned())?;
        gantry_files::replace(&path, &bytes, Access::Umask, Outlives::Program)
            .context(|| format!("write {}", path.display()))
    }

    /// The fifo at which a created container waits for `start`.
    pub(crate) fn fifo(&self) -> PathBuf {
        self.folder.join("exec.fifo")
    }

    /// Whether its first process is still there (one that has ended and waits to be reaped is not).
    pub(crate) fn is_alive(&self) -> bool {
        self.state.pid > 0 && process_start(self.state.pid) == Some(self.state.start_time)
    }

    pub(crate) fn status(&self) -> Status {
        if self.state.pid == 0 {
            return Status::Creating;
        }
        if !self.is_alive() {
            return Status::Stopped;
        }
        if self.fifo().exists() {
            return Status::Created;
        }
        let group = cgroups::find(&self.state.place.cgroup).ok().flatten();
        if group.is_some_and(|g| g.is_frozen()) { Status::Paused } else { Status::Running }
    }

    /// The public state as JSON, with this status (hooks see a status that the kernel cannot tell yet).
    pub(crate) fn public(&self, status: Status) -> String {
        let alive = !matches!(status, Status::Stopped | Status::Creating) || self.is_alive();
        let public = Public {
            oci_version: VERSION,
            id: &self.state.id,
            pid: if alive { self.state.pid } else { 0 },
            status: status.name(),
            bundle: &self.state.bundle,
            rootfs: &self.state.rootfs,
            created: &self.state.created,
            annotations: &self.state.annotations,
            owner: "",
        };
        serde_json::to_string_pretty(&public).unwrap_or_default()
    }

    /// Forgets the container.
    pub(crate) fn remove(self) -> Result<()> {
        discard(&self.folder).map(drop).context(|| format!("remove {}", self.folder.display()))
    }
}

/// When a process started (clock ticks since boot); nothing when it is gone or waits to be reaped.
pub(crate) fn process_start(pid: i32) -> Option<u64> {
    let mut buffer = [0; 1024];
    let length = File::open(format!("/proc/{pid}/stat")).and_then(|mut f| f.read(&mut buffer)).ok()?;
    let stat = std::str::from_utf8(&buffer[..length]).ok()?;
    let after = stat.rsplit_once(") ")?.1;
    let mut fields = after.split(' ');
    if matches!(fields.next()?, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}
