//! Writing a group's limits: what `plan` and `device` have decided goes to the kernel.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::fd::AsFd;

use crate::device;
use crate::error::{Error, Result};
use crate::group::{Cgroup, put};
use crate::plan::{self, Write};
use crate::resources::Resources;

impl Cgroup {
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
}
