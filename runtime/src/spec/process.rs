//! The container's program: who it is, what it may do, what it sees.

use std::path::PathBuf;

use serde::Deserialize;

/// The container's program.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Whether it gets a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// The terminal's size.
    pub console_size: Option<ConsoleSize>,
    /// Who it runs as.
    #[serde(default)]
    pub user: User,
    /// Program and arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment, `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working folder, absolute inside the container.
    pub cwd: PathBuf,
    /// Capability sets by name (`CAP_KILL`); none leaves them all empty.
    pub capabilities: Option<Capabilities>,
    /// Resource limits.
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// Whether exec may never give it more privileges.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// AppArmor profile.
    pub apparmor_profile: Option<String>,
    /// OOM killer's adjustment, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Scheduling policy.
    pub scheduler: Option<Scheduler>,
    /// SELinux label.
    pub selinux_label: Option<String>,
    /// I/O priority.
    pub io_priority: Option<IoPriority>,
    /// Processors of a program that `exec` starts.
    #[serde(rename = "execCPUAffinity")]
    pub exec_cpu_affinity: Option<CpuAffinity>,
}

/// Processors of a program that `exec` starts, as `0-3,7`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct CpuAffinity {
    /// Until it is in the container's cgroup.
    #[serde(default)]
    pub initial: String,
    /// From then on.
    #[serde(default, rename = "final")]
    pub last: String,
}

/// Rows and columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ConsoleSize {
    /// Lines.
    pub height: u16,
    /// Characters in a line.
    pub width: u16,
}

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// User id.
    #[serde(default)]
    pub uid: u32,
    /// Group id.
    #[serde(default)]
    pub gid: u32,
    /// File mode mask.
    pub umask: Option<u32>,
    /// Supplementary groups.
    #[serde(default)]
    pub additional_gids: Vec<u32>,
}

/// Capability sets by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Capabilities {
    /// What exec can ever give.
    #[serde(default)]
    pub bounding: Vec<String>,
    /// What counts.
    #[serde(default)]
    pub effective: Vec<String>,
    /// What file capabilities may keep.
    #[serde(default)]
    pub inheritable: Vec<String>,
    /// What may become effective.
    #[serde(default)]
    pub permitted: Vec<String>,
    /// What survives exec of an ordinary program.
    #[serde(default)]
    pub ambient: Vec<String>,
}

/// A resource limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// Hard limit.
    pub hard: u64,
    /// Soft limit.
    pub soft: u64,
}

/// Scheduling policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Scheduler {
    /// `SCHED_OTHER` and so on.
    pub policy: String,
    /// Niceness.
    #[serde(default)]
    pub nice: i32,
    /// Realtime priority.
    #[serde(default)]
    pub priority: i32,
    /// `SCHED_FLAG_*` names.
    #[serde(default)]
    pub flags: Vec<String>,
    /// Nanoseconds of the deadline policy.
    #[serde(default)]
    pub runtime: u64,
    /// Nanoseconds of the deadline policy.
    #[serde(default)]
    pub deadline: u64,
    /// Nanoseconds of the deadline policy.
    #[serde(default)]
    pub period: u64,
}

/// I/O priority.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_RT`, `IOPRIO_CLASS_BE`, `IOPRIO_CLASS_IDLE`.
    pub class: String,
    /// 0 (first) to 7.
    #[serde(default)]
    pub priority: i32,
}
