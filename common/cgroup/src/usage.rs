//! What a group uses, in the same terms on every layout of hosts.

use std::fs;

use crate::group::Cgroup;
use crate::pressure::{self, Devices, Pressure};
use crate::stats::{self, Stats, V1Folders};

impl Cgroup {
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
}
