//! Limits in neutral terms, as the OCI specification, CRI and the kubelet write them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::device::DeviceRule;

/// Limits of one group. What is `None` or empty is left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Relative share of CPU time (2-262144).
    pub cpu_shares: Option<u64>,
    /// CPU time per period in microseconds; -1 for no limit.
    pub cpu_quota: Option<i64>,
    /// The period in microseconds (1000-1000000).
    pub cpu_period: Option<u64>,
    /// CPU time that may be saved up, in microseconds.
    pub cpu_burst: Option<u64>,
    /// Realtime microseconds per realtime period (version 1).
    pub cpu_rt_runtime: Option<i64>,
    /// The realtime period in microseconds (version 1).
    pub cpu_rt_period: Option<u64>,
    /// 1 makes the group run only when others idle.
    pub cpu_idle: Option<i64>,
    /// CPUs it may run on, such as `0-2,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes it may allocate from.
    pub cpuset_mems: Option<String>,
    /// Bytes of memory; -1 for no limit.
    pub memory_limit: Option<i64>,
    /// Bytes of memory and swap together; -1 for no limit.
    pub memory_swap: Option<i64>,
    /// Bytes below which the kernel reclaims last (version 1: soft limit; version 2: `memory.low`).
    pub memory_reservation: Option<i64>,
    /// Kernel's eagerness to swap, 0-100 (version 1).
    pub memory_swappiness: Option<u64>,
    /// Whether the OOM killer leaves this group alone (version 1).
    pub memory_disable_oom_killer: Option<bool>,
    /// Refuse a memory limit below what is in use.
    pub memory_check_before_update: Option<bool>,
    /// Tasks; -1 or 0 for no limit.
    pub pids_limit: Option<i64>,
    /// Huge pages by size.
    pub hugepages: Vec<HugepageLimit>,
    /// Block I/O.
    pub block_io: BlockIo,
    /// Class id of the group's packets (version 1).
    pub net_class: Option<u32>,
    /// Priority of the group's packets by interface (version 1).
    pub net_priorities: Vec<(String, u32)>,
    /// RDMA handles and objects by device: (handles, objects), `None` for no limit.
    pub rdma: BTreeMap<String, (Option<u32>, Option<u32>)>,
    /// Which devices may be used, in order; `None` leaves the devices as they are.
    pub devices: Option<Vec<DeviceRule>>,
    /// Version 2 files and their texts, written last and as they are.
    pub unified: BTreeMap<String, String>,
}

/// A limit on huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepageLimit {
    /// The size as the kernel names it: `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// Block I/O weights and throttles.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockIo {
    /// Weight, 10-1000.
    pub weight: Option<u16>,
    /// Weights by device: (major, minor, weight).
    pub weight_devices: Vec<(i64, i64, u16)>,
    /// Bytes a second read.
    pub read_bps: Vec<Throttle>,
    /// Bytes a second written.
    pub write_bps: Vec<Throttle>,
    /// Operations a second read.
    pub read_iops: Vec<Throttle>,
    /// Operations a second written.
    pub write_iops: Vec<Throttle>,
}

/// A rate on one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Per second; 0 for no limit.
    pub rate: u64,
}
