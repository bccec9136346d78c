//! The processes of a group: moved in, listed, stopped and killed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::group::{Cgroup, children, put};
use crate::host::small;
use crate::stats;

impl Cgroup {
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
