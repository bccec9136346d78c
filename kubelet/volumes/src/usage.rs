//! How much a volume holds, for stats and eviction.

/// Space and inodes of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Name of the volume in the pod's spec (or on disk).
    pub volume: String,
    /// Bytes used by the volume's files.
    pub used_bytes: u64,
    /// Inodes used by the volume's files.
    pub inodes_used: u64,
    /// Size of the file system that holds it.
    pub capacity_bytes: u64,
    /// What is left there.
    pub available_bytes: u64,
    /// All inodes of that file system.
    pub inodes: u64,
    /// Free inodes there.
    pub inodes_free: u64,
}
