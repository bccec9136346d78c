//! The Linux part of a configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything about Linux.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    /// User ids of a user namespace.
    pub uid_mappings: Vec<IdMapping>,
    /// Group ids of a user namespace.
    pub gid_mappings: Vec<IdMapping>,
    /// Kernel parameters.
    pub sysctl: BTreeMap<String, String>,
    /// Limits.
    pub resources: Option<Resources>,
    /// The cgroup's path.
    pub cgroups_path: Option<PathBuf>,
    /// Namespaces, new or joined.
    pub namespaces: Vec<Namespace>,
    /// Devices to make.
    pub devices: Vec<Device>,
    /// System call filter.
    pub seccomp: Option<Seccomp>,
    /// Propagation of the root's mount: `private`, `rslave` and so on.
    pub rootfs_propagation: Option<String>,
    /// Paths to hide.
    pub masked_paths: Vec<PathBuf>,
    /// Paths to make read-only.
    pub readonly_paths: Vec<PathBuf>,
    /// SELinux label of mounts.
    pub mount_label: Option<String>,
    /// Clock offsets of a time namespace: `monotonic`, `boottime`.
    pub time_offsets: BTreeMap<String, TimeOffset>,
    /// Execution domain.
    pub personality: Option<Personality>,
    /// Where its memory comes from on machines with several memory nodes.
    pub memory_policy: Option<MemoryPolicy>,
    /// Network devices of the host to move into its network namespace, by their name there.
    pub net_devices: BTreeMap<String, NetDevice>,
    /// Shares of processor caches and memory bandwidth (resctrl).
    pub intel_rdt: Option<IntelRdt>,
}

/// Where memory comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct MemoryPolicy {
    /// `MPOL_BIND` and so on.
    pub mode: String,
    /// Nodes, as `0-1,3`.
    #[serde(default)]
    pub nodes: String,
    /// `MPOL_F_*`.
    #[serde(default)]
    pub flags: Vec<String>,
}

/// A network device to move.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct NetDevice {
    /// Its name in the container; as on the host without one.
    #[serde(default)]
    pub name: String,
}

/// Shares of processor caches and memory bandwidth.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IntelRdt {
    /// The group of resctrl; one with the container's name without it, the root for `/`.
    #[serde(rename = "closID")]
    pub clos_id: Option<String>,
    /// Lines for caches, `L3:0=ff`.
    pub l3_cache_schema: Option<String>,
    /// The line for memory bandwidth, `MB:0=50`.
    pub mem_bw_schema: Option<String>,
    /// Lines of any kind, written last.
    pub schemata: Vec<String>,
    /// Whether the container is counted by itself.
    pub enable_monitoring: bool,
}

/// A range of ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdMapping {
    /// First id inside.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id outside.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Namespace {
    /// `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup`, `time`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The one to join; a new one without it.
    #[serde(default, deserialize_with = "filled")]
    pub path: Option<PathBuf>,
}

/// An empty path is no path, as programs in Go write it.
fn filled<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<PathBuf>, D::Error> {
    Ok(Option::<PathBuf>::deserialize(d)?.filter(|p| !p.as_os_str().is_empty()))
}

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Where, inside the container.
    pub path: PathBuf,
    /// `c`, `b`, `u` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major number.
    #[serde(default)]
    pub major: i64,
    /// Minor number.
    #[serde(default)]
    pub minor: i64,
    /// Permissions.
    pub file_mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// A clock offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct TimeOffset {
    /// Seconds.
    #[serde(default)]
    pub secs: i64,
    /// Nanoseconds.
    #[serde(default)]
    pub nanosecs: u32,
}

/// Execution domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Personality {
    /// `LINUX` or `LINUX32`.
    pub domain: String,
}

/// Limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// Device rules, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceCgroup>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<Pids>,
    /// Block devices.
    #[serde(rename = "blockIO", skip_serializing_if = "Option::is_none")]
    pub block_io: Option<BlockIo>,
    /// Huge pages.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// RDMA by device.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rdma: BTreeMap<String, Rdma>,
    /// Version 2 files.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unified: BTreeMap<String, String>,
}

/// A device rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCgroup {
    /// Whether it allows.
    pub allow: bool,
    /// `a`, `c`, `b`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none", default)]
    pub kind: Option<String>,
    /// Major number, all without it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub major: Option<i64>,
    /// Minor number, all without it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub minor: Option<i64>,
    /// `rwm`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub access: Option<String>,
}

/// Memory limits in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// Memory; -1 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// What reclaim leaves longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservation: Option<i64>,
    /// Memory and swap together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<i64>,
    /// 0-100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swappiness: Option<u64>,
    /// Whether the OOM killer is off.
    #[serde(rename = "disableOOMKiller", skip_serializing_if = "Option::is_none")]
    pub disable_oom_killer: Option<bool>,
    /// Refuse a limit below what is in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_before_update: Option<bool>,
}

/// CPU limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cpu {
    /// Relative share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<u64>,
    /// Microseconds in a period; -1 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<i64>,
    /// Microseconds that may be saved up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// Microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<u64>,
    /// Realtime microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realtime_runtime: Option<i64>,
    /// Microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realtime_period: Option<u64>,
    /// CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<String>,
    /// Memory nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mems: Option<String>,
    /// 1 for only when others idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<i64>,
}

/// Task limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pids {
    /// Tasks; 0 or below for no limit.
    #[serde(default)]
    pub limit: Option<i64>,
}

/// Block device limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockIo {
    /// 10-1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// By device.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weight_device: Vec<WeightDevice>,
    /// Bytes a second.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    /// Bytes a second.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    /// Operations a second.
    #[serde(rename = "throttleReadIOPSDevice", skip_serializing_if = "Vec::is_empty")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    /// Operations a second.
    #[serde(rename = "throttleWriteIOPSDevice", skip_serializing_if = "Vec::is_empty")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// Weight of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightDevice {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// 10-1000.
    #[serde(default)]
    pub weight: Option<u16>,
}

/// Rate of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrottleDevice {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Per second.
    pub rate: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HugepageLimit {
    /// `2MB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// Packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Class id.
    #[serde(rename = "classID", skip_serializing_if = "Option::is_none", default)]
    pub class_id: Option<u32>,
    /// By interface.
    #[serde(default)]
    pub priorities: Vec<NetworkPriority>,
}

/// Priority of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPriority {
    /// Interface.
    pub name: String,
    /// Priority.
    pub priority: u32,
}

/// RDMA of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rdma {
    /// Handles.
    pub hca_handles: Option<u32>,
    /// Objects.
    pub hca_objects: Option<u32>,
}

/// System call filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seccomp {
    /// What happens to calls that no rule names.
    pub default_action: String,
    /// Error number of the default action.
    pub default_errno_ret: Option<u32>,
    /// `SCMP_ARCH_*`.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_*`.
    #[serde(default)]
    pub flags: Vec<String>,
    /// Socket that takes the notification descriptor.
    pub listener_path: Option<PathBuf>,
    /// Passed to the listener.
    pub listener_metadata: Option<String>,
    /// Rules.
    #[serde(default)]
    pub syscalls: Vec<SeccompRule>,
}

/// A rule for some system calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeccompRule {
    /// Calls by name; unknown ones are ignored.
    pub names: Vec<String>,
    /// `SCMP_ACT_*`.
    pub action: String,
    /// Error number.
    pub errno_ret: Option<u32>,
    /// Conditions on arguments, all of which must hold.
    #[serde(default)]
    pub args: Vec<SeccompArg>,
}

/// A condition on one argument.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeccompArg {
    /// 0-5.
    pub index: u32,
    /// What to compare with (the mask for `SCMP_CMP_MASKED_EQ`).
    pub value: u64,
    /// What the masked argument must equal.
    #[serde(default)]
    pub value_two: u64,
    /// `SCMP_CMP_*`.
    pub op: String,
}
