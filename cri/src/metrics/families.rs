//! Every metric of containers and pods: cAdvisor's name, help, type, labels and where its values come from.

use proto::cri;

use super::NANO;
use super::measured::{Device, Disk, Measured};
use crate::daemon::now;

use cri::MetricType::{Counter, Gauge};

/// Values of one metric: those of the labels beside the common ones, and the number.
type Samples = Vec<(Vec<String>, u64)>;

/// Of what there is a metric.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// Containers and the cgroups of pods.
    Both,
    /// Containers only.
    Container,
}

/// Where values come from.
#[derive(Clone, Copy)]
pub(super) enum From {
    /// Always one.
    One(fn(&Measured) -> u64),
    /// One per labels, or none.
    Many(&'static [&'static str], fn(&Measured) -> Samples),
}

/// One metric.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: cri::MetricType,
    pub(super) of: Of,
    pub(super) from: From,
}

impl Family {
    /// Labels beside the common ones.
    pub(super) fn labels(&self) -> &'static [&'static str] {
        match self.from {
            From::One(_) => &[],
            From::Many(labels, _) => labels,
        }
    }

    /// Its values.
    pub(super) fn samples(&self, measured: &Measured) -> Samples {
        match self.from {
            From::One(value) => vec![(Vec::new(), value(measured))],
            From::Many(_, values) => values(measured),
        }
    }
}

const fn one(name: &'static str, kind: cri::MetricType, help: &'static str, value: fn(&Measured) -> u64) -> Family {
    Family { name, help, kind, of: Of::Both, from: From::One(value) }
}

const fn many(
    name: &'static str,
    kind: cri::MetricType,
    help: &'static str,
    labels: &'static [&'static str],
    values: fn(&Measured) -> Samples,
) -> Family {
    Family { name, help, kind, of: Of::Both, from: From::Many(labels, values) }
}

const fn own(family: Family) -> Family {
    Family { of: Of::Container, ..family }
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// Seconds of microseconds, if they are counted.
fn waited(us: Option<u64>) -> Samples {
    us.map(|us| (Vec::new(), us / 1_000_000)).into_iter().collect()
}

fn by_device(m: &Measured, value: fn(&Device) -> u64) -> Samples {
    m.devices.iter().map(|d| (vec![d.name.clone()], value(d))).collect()
}

/// The device of a writable layer is whatever the store is on: overlays have none of their own.
fn on_disk(m: &Measured, value: fn(&Disk) -> u64) -> Samples {
    m.disk.as_ref().map(|d| (vec![String::new()], value(d))).into_iter().collect()
}

fn failures(m: &Measured) -> Samples {
    let labels = |kind: &str| vec![kind.to_owned(), "hierarchy".to_owned()];
    vec![(labels("pgfault"), m.stats.page_faults), (labels("pgmajfault"), m.stats.major_page_faults)]
}

fn transfers(m: &Measured) -> Samples {
    let both = |d: &Device| {
        let labels = |operation: &str| {
            vec![d.name.clone(), d.number.0.to_string(), d.number.1.to_string(), operation.to_owned()]
        };
        [(labels("Read"), d.io.read_bytes), (labels("Write"), d.io.written_bytes)]
    };
    m.devices.iter().flat_map(both).collect()
}

const DEVICE: &[&str] = &["device"];

/// All of them.
pub(super) const FAMILIES: &[Family] = &[
    many(
        "container_blkio_device_usage_total",
        Counter,
        "Bytes that block devices carried.",
        &["device", "major", "minor", "operation"],
        transfers,
    ),
    one("container_cpu_usage_seconds_total", Counter, "Processor time in seconds.", |m| m.stats.cpu_ns / NANO),
    one("container_cpu_user_seconds_total", Counter, "Processor time of programs in seconds.", |m| {
        m.stats.cpu_user_ns / NANO
    }),
    one("container_cpu_system_seconds_total", Counter, "Processor time of the kernel in seconds.", |m| {
        m.stats.cpu_system_ns / NANO
    }),
    one("container_cpu_cfs_periods_total", Counter, "Periods in which a limit of processor time applied.", |m| {
        m.stats.cpu_periods
    }),
    one("container_cpu_cfs_throttled_periods_total", Counter, "Periods in which the container was held back.", |m| {
        m.stats.cpu_throttled_periods
    }),
    one("container_cpu_cfs_throttled_seconds_total", Counter, "Seconds for which the container was held back.", |m| {
        m.stats.cpu_throttled_ns / NANO
    }),
    one("container_file_descriptors", Gauge, "Files that the container's processes have open.", |m| m.processes.files),
    own(many("container_fs_inodes_free", Gauge, "Inodes that are free.", DEVICE, |m| on_disk(m, |d| d.inodes_free))),
    own(many("container_fs_inodes_total", Gauge, "Inodes in all.", DEVICE, |m| on_disk(m, |d| d.inodes))),
    own(many(
        "container_fs_limit_bytes",
        Gauge,
        "Bytes that the file system of the writable layer holds.",
        DEVICE,
        |m| on_disk(m, |d| d.size),
    )),
    own(many("container_fs_usage_bytes", Gauge, "Bytes of the container's writable layer.", DEVICE, |m| {
        on_disk(m, |d| d.used)
    })),
    many("container_fs_reads_bytes_total", Counter, "Bytes read.", DEVICE, |m| by_device(m, |d| d.io.read_bytes)),
    many("container_fs_reads_total", Counter, "Reads that were completed.", DEVICE, |m| by_device(m, |d| d.io.reads)),
    many("container_fs_writes_bytes_total", Counter, "Bytes written.", DEVICE, |m| {
        by_device(m, |d| d.io.written_bytes)
    }),
    many("container_fs_writes_total", Counter, "Writes that were completed.", DEVICE, |m| {
        by_device(m, |d| d.io.writes)
    }),
    many("container_hugetlb_usage_bytes", Gauge, "Huge pages in use in bytes.", &["pagesize"], |m| {
        m.hugepages.iter().map(|(size, bytes)| (vec![size.clone()], *bytes)).collect()
    }),
    one("container_last_seen", Gauge, "When the container was measured, in seconds since 1970.", |_| {
        unsigned(now()) / NANO
    }),
    one("container_memory_cache", Gauge, "Cached files in bytes.", |m| m.stats.cache),
    one("container_memory_failcnt", Counter, "How often memory was at its limit.", |m| m.stats.memory_failures),
    many("container_memory_failures_total", Counter, "Page faults, by kind.", &["failure_type", "scope"], failures),
    one("container_memory_kernel_usage", Gauge, "Memory that the kernel holds for it, in bytes.", |m| {
        m.stats.memory_kernel
    }),
    one("container_memory_mapped_file", Gauge, "Files mapped into memory, in bytes.", |m| m.stats.mapped_file),
    one("container_memory_max_usage_bytes", Gauge, "The most memory that was in use, in bytes.", |m| {
        m.stats.memory_peak
    }),
    one("container_memory_rss", Gauge, "Anonymous memory in bytes.", |m| m.stats.rss),
    one("container_memory_swap", Gauge, "Swap in use in bytes.", |m| m.stats.swap),
    one("container_memory_usage_bytes", Gauge, "Memory in use in bytes, cached files included.", |m| m.stats.memory),
    one(
        "container_memory_working_set_bytes",
        Gauge,
        "Memory in use beside files that could be dropped, in bytes.",
        |m| m.stats.working_set,
    ),
    one("container_oom_events_total", Counter, "How often the kernel ended a process for want of memory.", |m| {
        m.oom_kills
    }),
    many(
        "container_pressure_cpu_stalled_seconds_total",
        Counter,
        "Seconds for which all processes waited for a processor.",
        &[],
        |m| waited(m.cpu.map(|p| p.full.total_us)),
    ),
    many(
        "container_pressure_cpu_waiting_seconds_total",
        Counter,
        "Seconds for which some process waited for a processor.",
        &[],
        |m| waited(m.cpu.map(|p| p.some.total_us)),
    ),
    many(
        "container_pressure_io_stalled_seconds_total",
        Counter,
        "Seconds for which all processes waited for input or output.",
        &[],
        |m| waited(m.io.map(|p| p.full.total_us)),
    ),
    many(
        "container_pressure_io_waiting_seconds_total",
        Counter,
        "Seconds for which some process waited for input or output.",
        &[],
        |m| waited(m.io.map(|p| p.some.total_us)),
    ),
    many(
        "container_pressure_memory_stalled_seconds_total",
        Counter,
        "Seconds for which all processes waited for memory.",
        &[],
        |m| waited(m.memory.map(|p| p.full.total_us)),
    ),
    many(
        "container_pressure_memory_waiting_seconds_total",
        Counter,
        "Seconds for which some process waited for memory.",
        &[],
        |m| waited(m.memory.map(|p| p.some.total_us)),
    ),
    one("container_processes", Gauge, "Processes of the container.", |m| m.processes.count),
    one("container_sockets", Gauge, "Sockets that the container's processes have open.", |m| m.processes.sockets),
    own(one("container_spec_cpu_period", Gauge, "Period of the limit of processor time, in microseconds.", |m| {
        unsigned(m.limits.cpu_period)
    })),
    own(one("container_spec_cpu_quota", Gauge, "Processor time in each period, in microseconds.", |m| {
        unsigned(m.limits.cpu_quota)
    })),
    own(one("container_spec_cpu_shares", Gauge, "Weight when processors are short.", |m| {
        unsigned(m.limits.cpu_shares)
    })),
    own(one("container_spec_memory_limit_bytes", Gauge, "Limit of memory in bytes.", |m| {
        m.stats.memory_limit.unwrap_or(0)
    })),
    own(one("container_spec_memory_reservation_limit_bytes", Gauge, "Memory that is kept for it, in bytes.", |m| {
        m.stats.memory_reservation.unwrap_or(0)
    })),
    own(one("container_spec_memory_swap_limit_bytes", Gauge, "Limit of swap in bytes.", |m| {
        m.stats.swap_limit.unwrap_or(0)
    })),
    own(one("container_start_time_seconds", Gauge, "When the container was started, in seconds since 1970.", |m| {
        m.started
    })),
    one("container_threads", Gauge, "Threads of the container.", |m| m.stats.pids),
    one("container_threads_max", Gauge, "Limit of threads; 0 means none.", |m| m.stats.pids_limit.unwrap_or(0)),
    own(many("container_ulimits_soft", Gauge, "Soft limits of the first process.", &["ulimit"], |m| {
        m.processes.files_limit.map(|n| (vec!["max_open_files".to_owned()], n)).into_iter().collect()
    })),
];
