//! What the node knows about a pod beyond its spec: addresses and the node's limits.

/// What the node can give to pods; stands in where a container states no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocatable {
    /// CPU in thousandths of a core.
    pub cpu_milli: i64,
    /// Memory in bytes.
    pub memory_bytes: i64,
    /// Local storage in bytes.
    pub ephemeral_storage_bytes: i64,
}

/// Facts of the node and the sandbox that fields, environment and files of a pod refer to.
#[derive(Clone, Debug, Default)]
pub struct PodContext {
    /// The node's name (`spec.nodeName`).
    pub node_name: String,
    /// The node's addresses, the main one first (`status.hostIP`, `status.hostIPs`).
    pub host_ips: Vec<String>,
    /// The pod's addresses, the main one first; empty before the sandbox exists. For pods on the host network the
    /// caller passes the host's.
    pub pod_ips: Vec<String>,
    /// The node's allocatable resources.
    pub allocatable: Allocatable,
    /// The cluster's DNS domain, for example `cluster.local`; may be empty.
    pub cluster_domain: String,
}
