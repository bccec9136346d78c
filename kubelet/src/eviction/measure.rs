//! What the node has left and what pods take: reads files of the kernel and asks the runtime.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_cgroup::Host;
use k8s_openapi::api::core::v1::Pod;

use super::limits::{Storage, local_volumes};
use super::message::Taken;
use super::rank::{Disks, Space, Use};
use super::signal::Signal;
use super::state::{Observation, Observations};
use crate::cri::{CONTAINER_LABEL, UID_LABEL};
use crate::metrics::meminfo;
use crate::pod;
use crate::resources::qos;
use crate::shared::Shared;

/// Where things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileSystems {
    /// The kubelet's folder: volumes and logs.
    pub(crate) node: PathBuf,
    /// The runtime's images.
    pub(crate) images: PathBuf,
    /// Writable layers of containers.
    pub(crate) containers: PathBuf,
}

impl FileSystems {
    /// Asks the runtime; what it does not tell is taken to be where the kubelet is.
    pub(crate) async fn ask(shared: &Shared) -> Self {
        let node = shared.root.clone();
        let told = shared.cri.file_systems().await;
        if let Err(e) = &told {
            tracing::debug!(error = %e, "the runtime does not tell where its images are");
        }
        let told = told.unwrap_or_default();
        let first = |list: &[proto::cri::FilesystemUsage]| {
            let path = list.first().and_then(|f| f.fs_id.as_ref()).map(|id| PathBuf::from(&id.mountpoint));
            path.filter(|p| p.exists())
        };
        let images = first(&told.image_filesystems).unwrap_or_else(|| node.clone());
        let containers = first(&told.container_filesystems).unwrap_or_else(|| images.clone());
        Self { node, images, containers }
    }

    /// Which of them are the same.
    pub(crate) fn disks(&self) -> Disks {
        let device = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.dev());
        let (node, images, containers) = (device(&self.node), device(&self.images), device(&self.containers));
        let images_apart = images != node;
        Disks { images_apart, split: images_apart && containers == node }
    }
}

fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The node's working set: what is in use less file pages that are not used.
fn node_working_set() -> u64 {
    let otherwise = || meminfo("MemTotal").saturating_sub(meminfo("MemAvailable"));
    let Ok(root) = Host::detect().and_then(|h| h.cgroup("/")) else { return otherwise() };
    let stats = root.stats();
    if stats.memory > 0 {
        return stats.working_set;
    }
    // The root of version 2 has no memory.current.
    let text = root.folder("memory").and_then(|f| std::fs::read_to_string(f.join("memory.stat")).ok());
    let Some(text) = text else { return otherwise() };
    let inactive = text.lines().find_map(|l| l.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok()).unwrap_or(0);
    match stats.rss + stats.cache {
        0 => otherwise(),
        used => used.saturating_sub(inactive),
    }
}

fn pids() -> Option<Observation> {
    let file = |path: &str| std::fs::read_to_string(path).ok();
    let most = |path| file(path).and_then(|t| t.trim().parse::<i64>().ok());
    let limit = [most("/proc/sys/kernel/pid_max"), most("/proc/sys/kernel/threads-max")].into_iter().flatten().min()?;
    let used = file("/proc/loadavg")?.split('/').nth(1)?.split(' ').next()?.parse::<i64>().ok()?;
    Some(Observation { available: limit - used, capacity: limit })
}

/// Measures all signals. Blocks for some system calls; a file system that hangs would hang it.
pub(crate) fn node(places: &FileSystems, pods: Option<&gantry_cgroup::Cgroup>) -> Observations {
    let mut out = Observations::new();
    let capacity = number(meminfo("MemTotal"));
    if capacity > 0 {
        out.insert(Signal::Memory, Observation { available: capacity - number(node_working_set()), capacity });
    }
    if let Some(stats) = pods.filter(|g| g.exists()).map(gantry_cgroup::Cgroup::stats)
        && let Some(limit) = stats.memory_limit
    {
        let capacity = number(limit);
        let available = capacity - number(stats.working_set);
        out.insert(Signal::AllocatableMemory, Observation { available, capacity });
    }
    for (path, bytes, inodes) in [
        (&places.node, Signal::NodeFs, Signal::NodeFsInodes),
        (&places.images, Signal::ImageFs, Signal::ImageFsInodes),
        (&places.containers, Signal::ContainerFs, Signal::ContainerFsInodes),
    ] {
        let Ok(stat) = nix::sys::statvfs::statvfs(path.as_path()) else { continue };
        let size = |blocks: u64| number(blocks.saturating_mul(stat.fragment_size()));
        let (available, capacity) = (size(stat.blocks_available()), size(stat.blocks()));
        out.insert(bytes, Observation { available, capacity });
        // Some file systems do not count inodes; they cannot run out of them.
        if stat.files() > 0 {
            let (available, capacity) = (number(stat.files_free()), number(stat.files()));
            out.insert(inodes, Observation { available, capacity });
        }
    }
    out.extend(pids().map(|seen| (Signal::Pid, seen)));
    out
}

/// What the runtime tells of one container.
#[derive(Clone, Debug, Default)]
struct Layer {
    container: String,
    memory: Option<i64>,
    space: Option<Space>,
}

/// What the runtime tells of all containers, by pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layers(BTreeMap<String, Vec<Layer>>);

impl Layers {
    /// Asks the runtime.
    pub(crate) async fn ask(shared: &Shared) -> Self {
        let stats = shared.cri.container_stats().await.unwrap_or_else(|e| {
            tracing::warn!(error = %e, "the runtime does not tell what containers take");
            Vec::new()
        });
        let mut out = Self::default();
        for one in stats {
            let Some(attributes) = one.attributes else { continue };
            let label = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
            let value = |v: Option<&proto::cri::UInt64Value>| v.map_or(0, |v| number(v.value));
            out.0.entry(label(UID_LABEL)).or_default().push(Layer {
                container: label(CONTAINER_LABEL),
                memory: one.memory.and_then(|m| m.working_set_bytes).map(|v| number(v.value)),
                space: one
                    .writable_layer
                    .map(|f| Space { bytes: value(f.used_bytes.as_ref()), inodes: value(f.inodes_used.as_ref()) }),
            });
        }
        out
    }

    /// What a pod's containers take, logs included, for the message.
    pub(crate) fn taken(&self, log_dir: &Path, uid: &str) -> Vec<Taken> {
        let own = self.0.get(uid).into_iter().flatten();
        own.map(|layer| Taken {
            name: layer.container.clone(),
            memory: layer.memory,
            storage: layer.space.map(|s| s.bytes + folder(&log_dir.join(&layer.container)).bytes),
        })
        .collect()
    }

    fn of_pod(&self, uid: &str) -> Option<Space> {
        let mut sum = Space::default();
        for layer in self.0.get(uid).into_iter().flatten() {
            let own = layer.space?;
            sum = Space { bytes: sum.bytes + own.bytes, inodes: sum.inodes + own.inodes };
        }
        Some(sum)
    }
}

/// What is below a folder, itself included.
fn folder(path: &Path) -> Space {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Space::default() };
    let mut sum = Space { bytes: number(meta.blocks() * 512), inodes: 1 };
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            let own = folder(&entry.path());
            sum = Space { bytes: sum.bytes + own.bytes, inodes: sum.inodes + own.inodes };
        }
    }
    sum
}

/// What a pod takes, as far as `signal` needs it. Walks files where disk is concerned.
pub(crate) fn pod_use(shared: &Shared, pod: &Arc<Pod>, signal: Signal, layers: &Layers) -> Use {
    let uid = pod::uid(pod);
    let disk = !matches!(signal, Signal::Memory | Signal::AllocatableMemory | Signal::Pid);
    let group = Host::detect().ok().filter(|_| shared.config.cgroups_per_qos);
    let group = group.and_then(|h| h.cgroup(shared.cgroups.path(pod)).ok()).filter(|g| g.exists());
    let stats = group.map(|g| g.stats());
    let local = local_volumes(pod);
    let mut volumes = Space::default();
    if disk {
        for own in shared.volumes.usage(uid).into_iter().filter(|u| local.contains(&u.volume)) {
            volumes.bytes += number(own.used_bytes);
            volumes.inodes += number(own.inodes_used);
        }
    }
    let memory = layers.0.get(uid).map(|own| own.iter().filter_map(|l| l.memory).sum());
    let storage = |c: &k8s_openapi::api::core::v1::Container| {
        let asked = c.resources.as_ref()?.requests.as_ref()?.get("ephemeral-storage")?;
        gantry_kube::quantity::Quantity::parse(&asked.0).ok().map(|q| q.value())
    };
    Use {
        uid: uid.to_owned(),
        priority: pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0),
        memory: stats.as_ref().filter(|s| s.memory > 0).map(|s| number(s.working_set)).or(memory),
        memory_request: qos::of_pod(pod).memory_request.unwrap_or(0),
        processes: stats.as_ref().map(|s| number(s.pids)),
        layers: layers.of_pod(uid),
        logs: if disk { folder(&pod::log_dir(&shared.facts.log_root, pod)) } else { Space::default() },
        volumes,
        storage_request: pod::containers(pod).iter().filter_map(storage).sum(),
    }
}

/// What a pod with limits of disk takes.
pub(crate) fn storage(shared: &Shared, pod: &Pod, layers: &Layers) -> Storage {
    let logs = pod::log_dir(&shared.facts.log_root, pod);
    let taken = layers.taken(&logs, pod::uid(pod)).into_iter();
    Storage {
        volumes: shared.volumes.usage(pod::uid(pod)).into_iter().map(|u| (u.volume, number(u.used_bytes))).collect(),
        containers: taken.filter_map(|t| Some((t.name, t.storage?))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().to_path_buf();
        let places = FileSystems { node: here.clone(), images: here.clone(), containers: here };
        let seen = node(&places, None);
        for signal in [Signal::Memory, Signal::NodeFs, Signal::ImageFs, Signal::Pid] {
            let one = seen[&signal];
            assert!(one.available > 0 && one.available <= one.capacity, "{signal:?} {one:?}");
        }
        assert_eq!(places.disks(), Disks::default());
    }

    #[test]
    fn a_folder_counts_its_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/log"), vec![1; 10_000]).unwrap();
        let got = folder(dir.path());
        assert!(got.bytes >= 10_000 && got.inodes == 3, "{got:?}");
    }
}
