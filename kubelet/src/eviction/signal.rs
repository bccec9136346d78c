//! What can run out, and what each is called in configuration, conditions and messages.

/// Something that is measured against thresholds. The order is that in which pressure is dealt with: memory first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Signal {
    /// Memory of the node.
    Memory,
    /// Memory that pods may take together.
    AllocatableMemory,
    /// Bytes of the file system of volumes and logs.
    NodeFs,
    /// Its inodes.
    NodeFsInodes,
    /// Bytes of the file system of images.
    ImageFs,
    /// Its inodes.
    ImageFsInodes,
    /// Bytes of the file system of containers' writable layers.
    ContainerFs,
    /// Its inodes.
    ContainerFsInodes,
    /// Process ids.
    Pid,
}

/// A condition of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Condition {
    /// `MemoryPressure`
    Memory,
    /// `DiskPressure`
    Disk,
    /// `PIDPressure`
    Pid,
}

impl Condition {
    /// All of them, in the order in which a node lists them.
    pub(crate) const ALL: [Self; 3] = [Self::Memory, Self::Disk, Self::Pid];

    /// As the API writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }

    /// The taint that keeps new pods away from a node in this condition.
    pub(crate) fn taint(self) -> &'static str {
        match self {
            Self::Memory => "node.kubernetes.io/memory-pressure",
            Self::Disk => "node.kubernetes.io/disk-pressure",
            Self::Pid => "node.kubernetes.io/pid-pressure",
        }
    }

    /// Reason and message of the condition, in upstream's words.
    pub(crate) fn words(self, bad: bool) -> (&'static str, &'static str) {
        match (self, bad) {
            (Self::Memory, true) => ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            (Self::Memory, false) => ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            (Self::Disk, true) => ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            (Self::Disk, false) => ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            (Self::Pid, true) => ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            (Self::Pid, false) => ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        }
    }

    /// The reason of the node's event when the condition changes.
    pub(crate) fn event(self, bad: bool) -> &'static str {
        match (self, bad) {
            (Self::Memory, true) => "NodeHasInsufficientMemory",
            (Self::Memory, false) => "NodeHasSufficientMemory",
            (Self::Disk, true) => "NodeHasDiskPressure",
            (Self::Disk, false) => "NodeHasNoDiskPressure",
            (Self::Pid, true) => "NodeHasInsufficientPID",
            (Self::Pid, false) => "NodeHasSufficientPID",
        }
    }
}

impl Signal {
    /// All of them.
    pub(crate) const ALL: [Self; 9] = [
        Self::Memory,
        Self::AllocatableMemory,
        Self::NodeFs,
        Self::NodeFsInodes,
        Self::ImageFs,
        Self::ImageFsInodes,
        Self::ContainerFs,
        Self::ContainerFsInodes,
        Self::Pid,
    ];

    /// As the configuration writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::AllocatableMemory => "allocatableMemory.available",
            Self::NodeFs => "nodefs.available",
            Self::NodeFsInodes => "nodefs.inodesFree",
            Self::ImageFs => "imagefs.available",
            Self::ImageFsInodes => "imagefs.inodesFree",
            Self::ContainerFs => "containerfs.available",
            Self::ContainerFsInodes => "containerfs.inodesFree",
            Self::Pid => "pid.available",
        }
    }

    /// The signal of a name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }

    /// What the node reports while the signal is below its threshold.
    pub(crate) fn condition(self) -> Condition {
        match self {
            Self::Memory | Self::AllocatableMemory => Condition::Memory,
            Self::Pid => Condition::Pid,
            _ => Condition::Disk,
        }
    }

    /// The name of what is short, in messages and in requests.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Self::Memory | Self::AllocatableMemory => "memory",
            Self::NodeFs | Self::ImageFs | Self::ContainerFs => "ephemeral-storage",
            Self::NodeFsInodes | Self::ImageFsInodes | Self::ContainerFsInodes => "inodes",
            Self::Pid => "pids",
        }
    }

    /// Whether it is about inodes.
    pub(crate) fn inodes(self) -> bool {
        self.resource() == "inodes"
    }
}
