//! A container's share of processor caches and memory bandwidth: its group in resctrl, made, joined and removed.
//!
//! Whoever makes or removes groups holds the lock that the kernel's documentation gives them, on the file system's root.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::fail;
use crate::plan::rdt::{Plan, mismatch};

/// Where resctrl is mounted on a host that does not say otherwise.
pub(crate) const USUAL: &str = "/sys/fs/resctrl";

/// A container's group, as its state keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    /// The root of the file system.
    root: PathBuf,
    /// The group's folder.
    path: PathBuf,
    /// Whether it was made for this container, and so goes with it.
    made: bool,
    /// Whether nobody else knows it by name.
    own: bool,
    /// The folder that counts this container by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    monitor: Option<PathBuf>,
}

/// Checks the file system at `root`.
///
/// # Errors
/// It is not mounted there.
pub(crate) fn require(root: &Path) -> Result<()> {
    const RDTGROUP_SUPER_MAGIC: i64 = 0x765_5821;
    // A folder that was named is taken as it is.
    let there = if root == Path::new(USUAL) {
        rustix::fs::statfs(root).is_ok_and(|s| s.f_type == RDTGROUP_SUPER_MAGIC)
    } else {
        root.is_dir()
    };
    if !there {
        fail!(
            "linux.intelRdt: no resctrl file system is mounted at {} (the processor or the kernel lacks Intel RDT, or mount -t resctrl \
             resctrl {USUAL} is missing)",
            root.display()
        );
    }
    Ok(())
}

impl Group {
    /// Makes or joins the group that `plan` names. `record` puts what is about to be made on disk before it is.
    ///
    /// # Errors
    /// The group is missing or allows something else, or the kernel refuses a line; what was made is gone again.
    pub(crate) fn set_up(
        root: &Path,
        plan: &Plan,
        id: &str,
        pid: i32,
        record: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Self> {
        let _turn = turn(root)?;
        if plan.own && matches!(id, "info" | "mon_groups" | "mon_data") {
            fail!("linux.intelRdt: no group can have the container's name {id:?}: give a closID");
        }
        let path = root.join(&plan.group);
        let there = path.is_dir();
        if plan.must_exist && !there {
            fail!("linux.intelRdt.closID: there is no group {}, and no schema to make it with", path.display());
        }
        let monitor = plan.monitored.then(|| path.join("mon_groups").join(id));
        // Whatever has the container's own name is its own, or was left by one before it.
        let group = Self { root: root.to_owned(), path, made: !there || plan.own, own: plan.own, monitor };
        record(&group)?;
        let made = group.make(plan, there, pid);
        if made.is_err() {
            let _ = group.discard();
        }
        made.map(|()| group)
    }

    fn make(&self, plan: &Plan, there: bool, pid: i32) -> Result<()> {
        if !there {
            fs::create_dir(&self.path).context(|| format!("linux.intelRdt: make {}", self.path.display()))?;
        }
        if self.made {
            self.write(&plan.fixed)?;
        } else if !plan.fixed.is_empty() {
            let path = self.path.join("schemata");
            let has = fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
            let step = fs::read_to_string(self.root.join("info/MB/bandwidth_gran")).unwrap_or_default();
            if let Some(line) = mismatch(&plan.fixed, &has, step.trim().parse().unwrap_or(1))? {
                fail!("linux.intelRdt: {line} is not what {} has", path.display());
            }
        }
        self.write(&plan.last)?;
        if let Some(monitor) = &self.monitor {
            match fs::create_dir_all(monitor) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(e).context(|| format!("linux.intelRdt.enableMonitoring: make {}", monitor.display()));
                }
                _ => {}
            }
        }
        self.join(pid).context(|| format!("linux.intelRdt: join {}", self.path.display()))
    }

    /// Writes lines of the schemata, all at once or none.
    ///
    /// # Errors
    /// The kernel refuses them; its own words are with the error.
    pub(crate) fn write(&self, lines: &[String]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let path = self.path.join("schemata");
        let text = lines.join("\n") + "\n";
        fs::write(&path, &text).context(|| {
            let words = fs::read_to_string(self.root.join("info/last_cmd_status")).unwrap_or_default();
            format!("linux.intelRdt: write {:?} to {} ({})", text.trim(), path.display(), words.trim())
        })
    }

    /// Puts a process, and those that it will start, into the group.
    ///
    /// # Errors
    /// The kernel's; `NotFound` where the group is gone.
    pub(crate) fn join(&self, pid: i32) -> io::Result<()> {
        let write = |folder: &Path| fs::write(folder.join("tasks"), pid.to_string());
        write(&self.path)?;
        self.monitor.as_deref().map_or(Ok(()), write)
    }

    /// Removes what was made for the container, whose processes are gone: a group that others found by name meanwhile stays
    /// theirs.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn remove(&self) -> Result<()> {
        if !self.root.is_dir() {
            return Ok(());
        }
        let _turn = turn(&self.root)?;
        self.discard().context(|| format!("remove {}", self.path.display()))
    }

    fn discard(&self) -> io::Result<()> {
        if let Some(monitor) = &self.monitor {
            remove_group(monitor)?;
        }
        let used = || fs::read_to_string(self.path.join("tasks")).is_ok_and(|tasks| !tasks.trim().is_empty());
        if self.made && (self.own || !used()) { remove_group(&self.path) } else { Ok(()) }
    }
}

fn turn(root: &Path) -> Result<File> {
    let what = || format!("lock {}", root.display());
    let file = File::open(root).context(what)?;
    file.lock().context(what)?;
    Ok(file)
}

/// The kernel removes a group with what is in it.
fn remove_group(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // A plain folder that stands in for the file system.
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => fs::remove_dir_all(path),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::rdt::plan;
    use crate::spec::IntelRdt;

    fn asked(clos: Option<&str>, l3: Option<&str>, schemata: &[&str], monitored: bool) -> Plan {
        let asked = IntelRdt {
            clos_id: clos.map(str::to_owned),
            l3_cache_schema: l3.map(str::to_owned),
            schemata: schemata.iter().map(|s| (*s).to_owned()).collect(),
            enable_monitoring: monitored,
            ..IntelRdt::default()
        };
        plan(&asked, "id")
    }

    fn set_up(root: &Path, plan: &Plan) -> Result<Group> {
        Group::set_up(root, plan, "id", 42, |_| Ok(()))
    }

    #[test]
    fn an_own_group_comes_and_goes_with_its_container() {
        let dir = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        let group = set_up(dir.path(), &asked(None, Some("L3:0=f"), &[], true)).unwrap();
        assert_eq!((read("id/schemata"), read("id/tasks")), ("L3:0=f\n".to_owned(), "42".to_owned()));
        assert_eq!(read("id/mon_groups/id/tasks"), "42");
        group.write(&["L3:0=3".to_owned()]).unwrap();
        assert_eq!(read("id/schemata"), "L3:0=3\n");
        group.remove().unwrap();
        group.remove().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_named_group_is_shared() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = dir.path().join("gold/tasks");
        let error = set_up(dir.path(), &asked(Some("gold"), None, &[], false)).unwrap_err().to_string();
        assert!(error.contains("closID"), "{error}");
        let first = set_up(dir.path(), &asked(Some("gold"), Some("L3:0=f"), &[], false)).unwrap();
        let second = set_up(dir.path(), &asked(Some("gold"), Some("L3:0=0f"), &[], true)).unwrap();
        let error = set_up(dir.path(), &asked(Some("gold"), Some("L3:0=7"), &[], false)).unwrap_err().to_string();
        assert!(error.contains("L3:0=7"), "{error}");
        assert!(tasks.exists(), "a wrong container takes nothing away");
        first.remove().unwrap();
        assert!(tasks.exists(), "somebody is in it");
        second.remove().unwrap();
        assert!(tasks.exists() && !dir.path().join("gold/mon_groups/id").exists());
        fs::write(&tasks, "").unwrap();
        first.remove().unwrap();
        assert!(!dir.path().join("gold").exists());
    }

    #[test]
    fn a_group_of_the_administrator_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("gold")).unwrap();
        set_up(dir.path(), &asked(Some("gold"), None, &[], false)).unwrap().remove().unwrap();
        assert!(dir.path().join("gold").exists());
        let root = set_up(dir.path(), &asked(Some("/"), None, &["L3:0=1"], false)).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("schemata")).unwrap(), "L3:0=1\n");
        root.remove().unwrap();
        assert!(dir.path().join("tasks").exists());
    }

    #[test]
    fn what_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("id"), "in the way").unwrap();
        assert!(set_up(dir.path(), &asked(None, None, &[], false)).is_err());
        fs::remove_file(dir.path().join("id")).unwrap();
        let refused = Group::set_up(dir.path(), &asked(None, None, &[], false), "id", 42, |_| fail!("disk full"));
        assert!(refused.is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(require(&dir.path().join("missing")).is_err());
    }
}
