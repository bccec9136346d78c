//! What one container or pod is measured by: its cgroup, its processes, its disk.

use std::collections::BTreeMap;
use std::fs;

use gantry_cgroup::{Cgroup, Devices, Pressure, Stats};
use proto::cri;

use crate::daemon::Daemon;

/// One container, or one pod.
#[derive(Default)]
pub(super) struct Measured {
    pub(super) stats: Stats,
    pub(super) cpu: Option<Pressure>,
    pub(super) memory: Option<Pressure>,
    pub(super) io: Option<Pressure>,
    pub(super) oom_kills: u64,
    /// By the name of the device, with its numbers.
    pub(super) devices: Vec<Device>,
    pub(super) processes: Processes,
    /// Bytes of huge pages by their size.
    pub(super) hugepages: Vec<(String, u64)>,
    /// Seconds since the epoch, 0 for pods.
    pub(super) started: u64,
    pub(super) limits: cri::LinuxContainerResources,
    /// Writable layer and the file system that it is on.
    pub(super) disk: Option<Disk>,
}

/// What one device carried.
pub(super) struct Device {
    pub(super) name: String,
    pub(super) number: (u32, u32),
    pub(super) io: gantry_cgroup::DeviceIo,
}

/// Of the processes.
#[derive(Default)]
pub(super) struct Processes {
    pub(super) count: u64,
    pub(super) files: u64,
    pub(super) sockets: u64,
    /// Most open files that the first one may have.
    pub(super) files_limit: Option<u64>,
}

/// A writable layer and its file system.
pub(super) struct Disk {
    pub(super) used: u64,
    pub(super) size: u64,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
}

impl Measured {
    /// Reads a cgroup and the processes in it. A process that ends meanwhile is left out.
    pub(super) fn of(daemon: &Daemon, path: &str, started: u64, limits: cri::LinuxContainerResources) -> Self {
        let Ok(cgroup) = daemon.host.cgroup(path) else { return Self::default() };
        Self {
            stats: cgroup.stats(),
            cpu: cgroup.pressure("cpu"),
            memory: cgroup.pressure("memory"),
            io: cgroup.pressure("io"),
            oom_kills: cgroup.oom_kills(),
            devices: named(cgroup.devices()),
            processes: processes(&cgroup.procs().unwrap_or_default()),
            hugepages: hugepages(&cgroup),
            started,
            limits,
            disk: None,
        }
    }
}

fn named(devices: Devices) -> Vec<Device> {
    let name = |(major, minor): (u32, u32)| {
        let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap_or_default();
        let name = text.lines().find_map(|l| l.strip_prefix("DEVNAME="));
        name.map_or_else(|| format!("{major}:{minor}"), |n| format!("/dev/{n}"))
    };
    devices.into_iter().map(|(number, io)| Device { name: name(number), number, io }).collect()
}

fn processes(pids: &[i32]) -> Processes {
    let mut all = Processes { count: pids.len() as u64, ..Processes::default() };
    for pid in pids {
        for file in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            all.files += 1;
            let target = fs::read_link(file.path()).unwrap_or_default();
            all.sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
        }
    }
    let limits = pids.first().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/limits")).ok());
    all.files_limit = limits.and_then(|text| open_files(&text));
    all
}

/// The soft limit of open files in a process' limits.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn hugepages(cgroup: &Cgroup) -> Vec<(String, u64)> {
    let Some(folder) = cgroup.folder("hugetlb") else { return Vec::new() };
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name.strip_prefix("hugetlb.").and_then(|n| {
            let (size, file) = n.split_once('.')?;
            matches!(file, "current" | "usage_in_bytes").then(|| size.to_owned())
        });
        let bytes = || fs::read_to_string(entry.path()).ok()?.trim().parse().ok();
        if let Some((size, bytes)) = size.and_then(|s| Some((s, bytes()?))) {
            found.insert(size, bytes);
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_measured() {
        let own = processes(&[std::process::id().cast_signed()]);
        assert!(own.count == 1 && own.files > 2 && own.files_limit > Some(2), "{} files", own.files);
        assert_eq!(processes(&[]).files_limit, None);
        assert_eq!(
            open_files("Limit  Soft  Hard\nMax open files            1024                 4096   files\n"),
            Some(1024)
        );
    }
}
