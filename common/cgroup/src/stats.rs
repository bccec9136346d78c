//! What a group uses, read from its files.

use std::fs;
use std::path::Path;

/// A snapshot of one group. What the host does not count is 0 or `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time in nanoseconds.
    pub cpu_ns: u64,
    /// CPU time in user mode, nanoseconds.
    pub cpu_user_ns: u64,
    /// CPU time in the kernel, nanoseconds.
    pub cpu_system_ns: u64,
    /// Scheduling periods with a limit.
    pub cpu_periods: u64,
    /// Periods in which the limit was hit.
    pub cpu_throttled_periods: u64,
    /// Nanoseconds waited because of the limit.
    pub cpu_throttled_ns: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes that cannot be reclaimed easily: memory less inactive file pages.
    pub working_set: u64,
    /// Bytes of anonymous memory.
    pub rss: u64,
    /// Bytes of page cache.
    pub cache: u64,
    /// Bytes of mapped files.
    pub mapped_file: u64,
    /// Most bytes ever (0 where not counted).
    pub memory_peak: u64,
    /// Bytes allowed; `None` for no limit.
    pub memory_limit: Option<u64>,
    /// Bytes that the kernel leaves it when memory gets short; `None` for none.
    pub memory_reservation: Option<u64>,
    /// How often the limit was hit.
    pub memory_failures: u64,
    /// Bytes of the kernel's own memory for it.
    pub memory_kernel: u64,
    /// Minor and major page faults.
    pub page_faults: u64,
    /// Major page faults.
    pub major_page_faults: u64,
    /// Bytes of swap.
    pub swap: u64,
    /// Bytes of swap allowed; `None` for no limit or not counted.
    pub swap_limit: Option<u64>,
    /// Tasks.
    pub pids: u64,
    /// Tasks allowed; `None` for no limit.
    pub pids_limit: Option<u64>,
    /// Bytes read from block devices.
    pub io_read_bytes: u64,
    /// Bytes written to block devices.
    pub io_write_bytes: u64,
}

fn number(dir: Option<&Path>, file: &str) -> Option<u64> {
    fs::read_to_string(dir?.join(file)).ok()?.trim().parse().ok()
}

pub(crate) fn text(dir: Option<&Path>, file: &str) -> String {
    dir.and_then(|d| fs::read_to_string(d.join(file)).ok()).unwrap_or_default()
}

/// The value behind `key` in a flat keyed file.
pub(crate) fn keyed(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
    line.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

/// Reads a version 2 group.
pub(crate) fn read_v2(dir: &Path) -> Stats {
    let d = Some(dir);
    let (cpu, memory) = (text(d, "cpu.stat"), text(d, "memory.stat"));
    let us = |key| keyed(&cpu, key) * 1000;
    let used = number(d, "memory.current").unwrap_or(0);
    let io = text(d, "io.stat");
    let sum = |key: &str| io.split_whitespace().filter_map(|w| w.strip_prefix(key)?.parse::<u64>().ok()).sum();
    Stats {
        cpu_ns: us("usage_usec"),
        cpu_user_ns: us("user_usec"),
        cpu_system_ns: us("system_usec"),
        cpu_periods: keyed(&cpu, "nr_periods"),
        cpu_throttled_periods: keyed(&cpu, "nr_throttled"),
        cpu_throttled_ns: us("throttled_usec"),
        memory: used,
        working_set: used.saturating_sub(keyed(&memory, "inactive_file")),
        rss: keyed(&memory, "anon"),
        cache: keyed(&memory, "file"),
        mapped_file: keyed(&memory, "file_mapped"),
        memory_peak: number(d, "memory.peak").unwrap_or(0),
        memory_limit: number(d, "memory.max"),
        memory_reservation: number(d, "memory.low").filter(|n| *n > 0),
        memory_failures: keyed(&text(d, "memory.events"), "max"),
        memory_kernel: keyed(&memory, "kernel"),
        page_faults: keyed(&memory, "pgfault"),
        major_page_faults: keyed(&memory, "pgmajfault"),
        swap: number(d, "memory.swap.current").unwrap_or(0),
        swap_limit: number(d, "memory.swap.max"),
        pids: number(d, "pids.current").unwrap_or(0),
        pids_limit: number(d, "pids.max"),
        io_read_bytes: sum("rbytes="),
        io_write_bytes: sum("wbytes="),
    }
}

/// The version 1 folders of a group, by controller.
pub(crate) struct V1Folders<'a> {
    pub(crate) cpuacct: Option<&'a Path>,
    pub(crate) cpu: Option<&'a Path>,
    pub(crate) memory: Option<&'a Path>,
    pub(crate) pids: Option<&'a Path>,
    pub(crate) blkio: Option<&'a Path>,
}

/// Reads a version 1 group.
pub(crate) fn read_v1(f: &V1Folders<'_>) -> Stats {
    const TICK_NS: u64 = 10_000_000; // USER_HZ is 100 on every architecture that we build for.
    const UNLIMITED: u64 = i64::MAX as u64 / 4096 * 4096;
    let (accounting, cpu, memory) =
        (text(f.cpuacct, "cpuacct.stat"), text(f.cpu, "cpu.stat"), text(f.memory, "memory.stat"));
    let used = number(f.memory, "memory.usage_in_bytes").unwrap_or(0);
    let limit = |file| number(f.memory, file).filter(|&l| l < UNLIMITED);
    let io = text(f.blkio, "blkio.throttle.io_service_bytes_recursive");
    let sum = |word: &str| {
        let of_line = |l: &str| l.split_once(word).and_then(|(_, n)| n.trim().parse::<u64>().ok());
        io.lines().filter_map(of_line).sum()
    };
    let both = number(f.memory, "memory.memsw.usage_in_bytes").unwrap_or(0);
    let faults = keyed(&memory, "total_pgfault");
    Stats {
        cpu_ns: number(f.cpuacct, "cpuacct.usage").unwrap_or(0),
        cpu_user_ns: keyed(&accounting, "user") * TICK_NS,
        cpu_system_ns: keyed(&accounting, "system") * TICK_NS,
        cpu_periods: keyed(&cpu, "nr_periods"),
        cpu_throttled_periods: keyed(&cpu, "nr_throttled"),
        cpu_throttled_ns: keyed(&cpu, "throttled_time"),
        memory: used,
        working_set: used.saturating_sub(keyed(&memory, "total_inactive_file")),
        rss: keyed(&memory, "total_rss"),
        cache: keyed(&memory, "total_cache"),
        mapped_file: keyed(&memory, "total_mapped_file"),
        memory_peak: number(f.memory, "memory.max_usage_in_bytes").unwrap_or(0),
        memory_limit: limit("memory.limit_in_bytes"),
        memory_reservation: limit("memory.soft_limit_in_bytes"),
        memory_failures: number(f.memory, "memory.failcnt").unwrap_or(0),
        memory_kernel: number(f.memory, "memory.kmem.usage_in_bytes").unwrap_or(0),
        page_faults: faults,
        major_page_faults: keyed(&memory, "total_pgmajfault"),
        swap: both.saturating_sub(used),
        swap_limit: limit("memory.memsw.limit_in_bytes"),
        pids: number(f.pids, "pids.current").unwrap_or(0),
        pids_limit: number(f.pids, "pids.max"),
        io_read_bytes: sum(" Read "),
        io_write_bytes: sum(" Write "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_files_are_read_as_the_kernel_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nthrottled_usec 9\n"),
            ("memory.current", "1000\n"),
            ("memory.max", "max\n"),
            ("memory.low", "70\n"),
            ("memory.events", "low 0\nhigh 1\nmax 6\noom 2\n"),
            ("memory.stat", "anon 300\nfile 600\nkernel 30\ninactive_file 400\npgfault 8\n"),
            ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=1\n8:16 rbytes=1 wbytes=2\n"),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let s = read_v2(dir.path());
        assert_eq!((s.cpu_ns, s.cpu_periods, s.cpu_throttled_ns), (5000, 7, 9000));
        assert_eq!((s.memory, s.working_set, s.memory_limit), (1000, 600, None));
        assert_eq!((s.memory_reservation, s.memory_failures, s.memory_kernel), (Some(70), 6, 30));
        assert_eq!((s.io_read_bytes, s.io_write_bytes, s.page_faults), (11, 22, 8));
    }
}
