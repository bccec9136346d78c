//! One control group: found, made and removed. `limits`, `processes` and `usage` do the rest of what can be done with one.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};
use crate::host::{Host, Version, small};

/// A control group by its path; making the value makes nothing on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    pub(crate) host: Host,
    pub(crate) path: PathBuf,
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

    pub(crate) fn is_v2(&self) -> bool {
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

pub(crate) fn children(folder: &Path) -> Vec<PathBuf> {
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

pub(crate) fn put(path: &Path, value: &str) -> Result<()> {
    let written = OpenOptions::new().write(true).open(path).and_then(|mut f| f.write_all(value.as_bytes()));
    written.map_err(|source| Error::Limit { path: path.to_owned(), value: value.to_owned(), source })
}
