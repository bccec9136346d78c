//! What the machine is made of: CPUs in cores, sockets and NUMA nodes, and the memory of each node.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::CpuSet;
use crate::hint::Nodes;

/// A logical CPU. Numbers of cores and caches are unique on the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// The kernel's number.
    pub id: u32,
    /// The core that it is a thread of.
    pub core: u32,
    /// The package.
    pub socket: u32,
    /// The NUMA node.
    pub node: u32,
    /// The last-level cache that it shares.
    pub cache: u32,
}

/// The memory of a NUMA node: `memory` and `hugepages-2Mi` and the like, in bytes.
pub type NodeMemory = BTreeMap<String, u64>;

/// The machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    /// Its CPUs that are online.
    pub cpus: Vec<Cpu>,
    /// Its NUMA nodes with their memory.
    pub nodes: BTreeMap<u32, NodeMemory>,
    /// How far nodes are from each other: from, to.
    pub distances: BTreeMap<(u32, u32), u32>,
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|t| t.trim().to_owned())
}

fn set(path: &Path) -> Option<CpuSet> {
    read(path)?.parse().ok()
}

/// `hugepages-2048kB` as Kubernetes names it: `hugepages-2Mi`.
pub(crate) fn page_name(folder: &str) -> Option<(String, u64)> {
    let kb: u64 = folder.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    let unit = if kb >= 1 << 20 { format!("{}Gi", kb >> 20) } else { format!("{}Mi", kb >> 10) };
    Some((format!("hugepages-{unit}"), kb * 1024))
}

fn memory_of(folder: &Path) -> NodeMemory {
    let mut out = NodeMemory::new();
    let text = read(&folder.join("meminfo")).unwrap_or_default();
    let total = text.lines().find(|l| l.contains("MemTotal:"));
    let total = total.and_then(|l| l.split_whitespace().rev().nth(1)?.parse::<u64>().ok()).unwrap_or(0) * 1024;
    let mut huge = 0;
    for entry in fs::read_dir(folder.join("hugepages")).into_iter().flatten().flatten() {
        let Some((name, size)) = page_name(&entry.file_name().to_string_lossy()) else { continue };
        let count = read(&entry.path().join("nr_hugepages")).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
        huge += count * size;
        out.insert(name, count * size);
    }
    out.insert("memory".to_owned(), total.saturating_sub(huge));
    out
}

impl Machine {
    /// Reads `/sys`, or a copy of it below `root`.
    pub fn read(root: &Path) -> Self {
        let (cpu, node) = (root.join("devices/system/cpu"), root.join("devices/system/node"));
        let mut out = Self::default();
        let mut of_cpu = BTreeMap::new();
        for n in set(&node.join("online")).unwrap_or_default().iter() {
            let folder = node.join(format!("node{n}"));
            for id in set(&folder.join("cpulist")).unwrap_or_default().iter() {
                of_cpu.insert(id, n);
            }
            let far = read(&folder.join("distance")).unwrap_or_default();
            for (to, far) in far.split_whitespace().enumerate() {
                if let (Ok(to), Ok(far)) = (u32::try_from(to), far.parse()) {
                    out.distances.insert((n, to), far);
                }
            }
            out.nodes.insert(n, memory_of(&folder));
        }
        if out.nodes.is_empty() {
            // A kernel without NUMA is one node.
            let total = read(Path::new("/proc/meminfo")).unwrap_or_default();
            let kb = total.lines().next().and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0);
            out.nodes.insert(0, [("memory".to_owned(), kb * 1024)].into());
        }
        for id in set(&cpu.join("online")).unwrap_or_default().iter() {
            let folder = cpu.join(format!("cpu{id}"));
            let first = |name: &str| set(&folder.join(name)).and_then(|s| s.iter().next());
            let siblings = first("topology/core_cpus_list").or_else(|| first("topology/thread_siblings_list"));
            let socket = read(&folder.join("topology/physical_package_id")).and_then(|t| t.parse().ok());
            let node = of_cpu.get(&id).copied().unwrap_or(0);
            out.cpus.push(Cpu {
                id,
                core: siblings.unwrap_or(id),
                socket: socket.unwrap_or(0),
                node,
                cache: first("cache/index3/shared_cpu_list").unwrap_or(u32::MAX - node),
            });
        }
        out
    }

    /// All CPUs.
    pub fn all(&self) -> CpuSet {
        self.cpus.iter().map(|c| c.id).collect()
    }

    /// All NUMA nodes.
    pub fn all_nodes(&self) -> Nodes {
        Nodes::of(self.nodes.keys().copied())
    }

    /// CPUs of these nodes.
    pub fn of_nodes(&self, nodes: Nodes) -> CpuSet {
        self.cpus.iter().filter(|c| nodes.iter().any(|n| n == c.node)).map(|c| c.id).collect()
    }

    /// Threads of each core.
    pub fn threads_per_core(&self) -> usize {
        let cores: CpuSet = self.cpus.iter().map(|c| c.core).collect();
        self.cpus.len().checked_div(cores.len()).unwrap_or(1).max(1)
    }

    /// The average distance between nodes of a set.
    pub fn distance(&self, nodes: Nodes) -> f64 {
        let pairs = nodes.iter().flat_map(|a| nodes.iter().map(move |b| (a, b)));
        let (sum, count) = pairs.fold((0.0, 0.0), |(sum, count), pair| {
            (sum + f64::from(self.distances.get(&pair).copied().unwrap_or(10)), count + 1.0)
        });
        if count > 0.0 { sum / count } else { 0.0 }
    }

    /// A made-up machine for tests: sockets are NUMA nodes; the threads of a core are numbered as Linux does it.
    #[cfg(test)]
    pub(crate) fn made(sockets: u32, cores: u32, threads: u32, gib: u64) -> Self {
        let all = sockets * cores;
        let cpus = (0..all * threads).map(|id| {
            let core = id % all;
            Cpu { id, core, socket: core / cores, node: core / cores, cache: core / cores }
        });
        Self {
            cpus: cpus.collect(),
            nodes: (0..sockets).map(|n| (n, [("memory".to_owned(), gib << 30)].into())).collect(),
            distances: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysfs_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join("devices/system").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("cpu/online", "0-3\n");
        put("node/online", "0-1\n");
        for node in 0..2 {
            put(&format!("node/node{node}/cpulist"), &format!("{node},{}\n", node + 2));
            put(&format!("node/node{node}/meminfo"), &format!("Node {node} MemTotal:       4194304 kB\n"));
            put(&format!("node/node{node}/hugepages/hugepages-2048kB/nr_hugepages"), "512\n");
            put(&format!("node/node{node}/distance"), if node == 0 { "10 21\n" } else { "21 10\n" });
        }
        for id in 0..4 {
            put(&format!("cpu/cpu{id}/topology/core_cpus_list"), &format!("{},{}\n", id % 2, id % 2 + 2));
            put(&format!("cpu/cpu{id}/topology/physical_package_id"), &format!("{}\n", id % 2));
        }
        let machine = Machine::read(dir.path());
        assert_eq!(machine.all().to_string(), "0-3");
        assert_eq!(machine.of_nodes(Nodes::of([1])).to_string(), "1,3");
        assert_eq!(machine.threads_per_core(), 2);
        assert_eq!(machine.nodes[&0]["memory"], 3 << 30);
        assert_eq!(machine.nodes[&1]["hugepages-2Mi"], 1 << 30);
        assert!((machine.distance(Nodes::of([0, 1])) - 15.5).abs() < 0.01);
    }

    #[test]
    fn this_machine_has_cpus_and_memory() {
        let machine = Machine::read(Path::new("/sys"));
        assert!(!machine.cpus.is_empty());
        assert!(machine.nodes.values().any(|n| n["memory"] > 0));
    }
}
