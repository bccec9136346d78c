//! `/stats/summary`: what the node and its pods use, in the document that metrics-server's ancestors and dashboards read.
//!
//! What costs little is read when it is asked for. Volumes have to be walked; that is done at most once in
//! `volumeStatsAggPeriod`, and never by the thread that answers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, Volume};
use kubelet_volumes::Usage;
use proto::cri;
use serde_json::{Value, json};

use crate::cri::{CONTAINER_LABEL, CriError, UID_LABEL};
use crate::metrics;
use crate::pod;
use crate::shared::Shared;

/// How long a walk over one pod's volumes may hold up an answer; it goes on behind it.
const WALK: Duration = Duration::from_secs(2);

type Known = HashMap<String, (Instant, Vec<Usage>)>;

/// What was last measured of volumes, by the pod's uid.
#[derive(Clone, Default)]
pub(crate) struct Volumes(Arc<Mutex<Known>>, Arc<Mutex<HashSet<String>>>);

/// A pod whose volumes are being measured, until this is dropped.
struct Measuring {
    all: Arc<Mutex<HashSet<String>>>,
    uid: String,
}

impl Measuring {
    /// None where somebody is at it already: a driver that does not answer is not asked by each scrape anew.
    fn begin(all: &Arc<Mutex<HashSet<String>>>, uid: &str) -> Option<Self> {
        let first = all.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned());
        first.then(|| Self { all: all.clone(), uid: uid.to_owned() })
    }
}

impl Drop for Measuring {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.uid);
    }
}

impl Volumes {
    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn of(&self, shared: &Arc<Shared>, pod: &Pod) -> Vec<Usage> {
        let uid = pod::uid(pod);
        let fresh = shared.config.volume_stats_agg_period.0;
        if let Some((at, usage)) = self.lock().get(uid)
            && at.elapsed() < fresh
        {
            return usage.clone();
        }
        let Some(measuring) = Measuring::begin(&self.1, uid) else {
            return self.lock().get(uid).map(|(_, usage)| usage.clone()).unwrap_or_default();
        };
        let (work, this, name, owner) = (shared.clone(), self.clone(), uid.to_owned(), pod.clone());
        let walk = tokio::spawn(async move {
            let (walker, of) = (work.clone(), name.clone());
            let walked = tokio::task::spawn_blocking(move || walker.volumes.usage(&of)).await;
            let mut usage = walked.unwrap_or_default();
            usage.extend(work.volumes.backed_usage(&name).await.into_iter().map(|(usage, _)| usage));
            for (volume, health) in usage.iter().filter_map(|u| Some((&u.volume, u.health.as_ref()?))) {
                if health.abnormal {
                    let text = format!("Volume {volume}: {}", health.message);
                    work.events.pod(&owner, None, true, "VolumeConditionAbnormal", text);
                }
            }
            this.lock().insert(name, (Instant::now(), usage));
            drop(measuring);
        });
        let _ = tokio::time::timeout(WALK, walk).await;
        self.lock().get(uid).map(|(_, usage)| usage.clone()).unwrap_or_default()
    }

    /// The claims whose drivers say how they are: namespace, name, and whether something is wrong.
    pub(crate) async fn health(&self, shared: &Arc<Shared>, pods: &[Pod]) -> BTreeMap<(String, String), bool> {
        let mut out = BTreeMap::new();
        for pod in pods.iter().filter(|p| !pod::is_over(p) && volumes(p).iter().any(|v| claim_of(p, v).is_some())) {
            for usage in self.of(shared, pod).await {
                let volume = volumes(pod).iter().find(|v| v.name == usage.volume);
                if let Some((claim, health)) = volume.and_then(|v| claim_of(pod, v)).zip(usage.health) {
                    *out.entry((pod::namespace(pod).to_owned(), claim)).or_default() |= health.abnormal;
                }
            }
        }
        out
    }

    fn keep_only(&self, pods: &[Pod]) {
        self.lock().retain(|uid, _| pods.iter().any(|p| pod::uid(p) == uid));
    }
}

fn volumes(pod: &Pod) -> &[Volume] {
    pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default()
}

/// The claim that a volume is.
pub(crate) fn claim_of(pod: &Pod, volume: &Volume) -> Option<String> {
    let own = volume.ephemeral.as_ref().map(|_| format!("{}-{}", pod::name(pod), volume.name));
    volume.persistent_volume_claim.as_ref().map(|c| c.claim_name.clone()).or(own)
}

/// A volume's entry.
fn of_volume(usage: &Usage, claim: Option<&Value>, now: &str) -> Value {
    let health = usage.health.as_ref().map(|h| json!({"abnormal": h.abnormal}));
    known(json!({"time": now, "name": usage.volume, "pvcRef": claim, "volumeHealthStats": health,
        "availableBytes": usage.available_bytes, "capacityBytes": usage.capacity_bytes, "usedBytes": usage.used_bytes,
        "inodes": usage.inodes, "inodesFree": usage.inodes_free, "inodesUsed": usage.inodes_used}))
}

fn number(value: &Option<cri::UInt64Value>) -> Option<u64> {
    value.as_ref().map(|v| v.value)
}

/// An object without the fields that nobody knows.
fn known(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, v| !v.is_null());
    }
    value
}

fn pressure(psi: Option<&cri::PsiStats>) -> Value {
    let data = |d: Option<&cri::PsiData>| {
        let d = d.cloned().unwrap_or_default();
        json!({"total": d.total, "avg10": d.avg10, "avg60": d.avg60, "avg300": d.avg300})
    };
    psi.map_or(Value::Null, |p| json!({"full": data(p.full.as_ref()), "some": data(p.some.as_ref())}))
}

fn cpu(cpu: Option<&cri::CpuUsage>, now: &str) -> Value {
    known(json!({"time": now, "usageNanoCores": cpu.and_then(|c| number(&c.usage_nano_cores)),
        "usageCoreNanoSeconds": cpu.and_then(|c| number(&c.usage_core_nano_seconds)),
        "psi": pressure(cpu.and_then(|c| c.psi.as_ref()))}))
}

fn memory(memory: Option<&cri::MemoryUsage>, now: &str) -> Value {
    let of = |get: fn(&cri::MemoryUsage) -> &Option<cri::UInt64Value>| memory.and_then(|m| number(get(m)));
    known(json!({"time": now, "availableBytes": of(|m| &m.available_bytes), "usageBytes": of(|m| &m.usage_bytes),
        "workingSetBytes": of(|m| &m.working_set_bytes), "rssBytes": of(|m| &m.rss_bytes),
        "pageFaults": of(|m| &m.page_faults), "majorPageFaults": of(|m| &m.major_page_faults),
        "psi": pressure(memory.and_then(|m| m.psi.as_ref()))}))
}

fn swap(swap: Option<&cri::SwapUsage>, now: &str) -> Value {
    swap.map_or(Value::Null, |s| {
        known(json!({"time": now, "swapAvailableBytes": number(&s.swap_available_bytes), "swapUsageBytes": number(&s.swap_usage_bytes)}))
    })
}

/// The file system that a path is on, without what is used of it.
fn file_system(path: &Path, now: &str) -> Value {
    let Ok(disk) = nix::sys::statvfs::statvfs(path) else { return json!({"time": now}) };
    let unit = disk.fragment_size();
    json!({"time": now, "availableBytes": disk.blocks_available() * unit, "capacityBytes": disk.blocks() * unit,
        "inodesFree": disk.files_free(), "inodes": disk.files()})
}

fn with_use(mut fs: Value, bytes: Option<u64>, inodes: Option<u64>) -> Value {
    fs["usedBytes"] = bytes.into();
    fs["inodesUsed"] = inodes.into();
    known(fs)
}

/// Everything that is used of the file system at a path.
fn whole(path: &Path, now: &str) -> Value {
    let fs = file_system(path, now);
    let of = |a: &str, b: &str| Some(fs[a].as_u64()?.saturating_sub(fs[b].as_u64()?));
    let (bytes, inodes) = (of("capacityBytes", "availableBytes"), of("inodes", "inodesFree"));
    // What root alone may use counts as neither used nor available upstream.
    let used =
        nix::sys::statvfs::statvfs(path).map(|d| (d.blocks() - d.blocks_free()) * d.fragment_size()).ok().or(bytes);
    with_use(fs, used, inodes)
}

fn size_of_files(folder: &Path) -> (u64, u64) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|e| e.metadata().ok()).filter(std::fs::Metadata::is_file).map(|m| m.len());
    sizes.fold((0, 0), |(bytes, n), size| (bytes + size, n + 1))
}

struct Parts {
    containers: Vec<cri::ContainerStats>,
    sandboxes: Vec<cri::PodSandboxStats>,
    images: cri::ImageFsInfoResponse,
}

/// The whole document.
///
/// # Errors
/// The runtime does not tell what containers use.
pub(crate) async fn summary(
    shared: &Arc<Shared>,
    volumes: &Volumes,
    pods: Vec<Pod>,
    only_cpu_and_memory: bool,
) -> Result<Value, CriError> {
    let (containers, sandboxes, images) =
        tokio::join!(shared.cri.container_stats(), shared.cri.sandbox_stats(), shared.cri.image_fs_info());
    let parts =
        Parts { containers: containers?, sandboxes: sandboxes.unwrap_or_default(), images: images.unwrap_or_default() };
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut out = Vec::new();
    for pod in &pods {
        let walked = if only_cpu_and_memory { Vec::new() } else { volumes.of(shared, pod).await };
        out.push(of_pod(shared, pod, &parts, walked, &now, only_cpu_and_memory));
    }
    volumes.keep_only(&pods);
    Ok(json!({"node": of_node(shared, &parts.images, &now, only_cpu_and_memory), "pods": out}))
}

fn network(list: &[metrics::Interface], now: &str) -> Value {
    let one = |i: &metrics::Interface| json!({"name": i.name, "rxBytes": i.rx_bytes, "rxErrors": i.rx_errors, "txBytes": i.tx_bytes, "txErrors": i.tx_errors});
    let default = metrics::default_interface().or_else(|| list.first().map(|i| i.name.clone()));
    let mut out = list.iter().find(|i| Some(&i.name) == default.as_ref()).map_or_else(|| json!({"name": ""}), one);
    out["time"] = now.into();
    out["interfaces"] = list.iter().map(one).collect();
    out
}

fn image_fs(list: &[cri::FilesystemUsage], otherwise: &Path, now: &str) -> Value {
    let first = list.first();
    let path = first.and_then(|f| f.fs_id.as_ref()).map(|f| Path::new(&f.mountpoint));
    let fs = file_system(path.filter(|p| p.exists()).unwrap_or(otherwise), now);
    with_use(fs, first.and_then(|f| number(&f.used_bytes)), first.and_then(|f| number(&f.inodes_used)))
}

fn of_node(shared: &Shared, images: &cri::ImageFsInfoResponse, now: &str, only: bool) -> Value {
    let (seconds, working_set) = metrics::node_usage();
    let boot = jiff::Timestamp::from_second(metrics::boot_time()).unwrap_or_default();
    let (total, free) = (metrics::meminfo("MemTotal"), metrics::meminfo("MemFree"));
    let mut node = json!({
        "nodeName": shared.node_name,
        "startTime": boot.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "cpu": {"time": now, "usageCoreNanoSeconds": (seconds * 1e9) as u64, "usageNanoCores": shared.cpu_rate.now(seconds)},
        "memory": {"time": now, "availableBytes": total.saturating_sub(working_set), "usageBytes": total.saturating_sub(free),
            "workingSetBytes": working_set, "rssBytes": metrics::meminfo("AnonPages")},
    });
    if only {
        return node;
    }
    let (total, free) = (metrics::meminfo("SwapTotal"), metrics::meminfo("SwapFree"));
    let (processes, most) = metrics::processes();
    node["swap"] = json!({"time": now, "swapAvailableBytes": free, "swapUsageBytes": total.saturating_sub(free)});
    node["rlimit"] = json!({"time": now, "maxpid": most, "curproc": processes});
    node["network"] = network(&metrics::interfaces(), now);
    node["fs"] = whole(&shared.root, now);
    let containers =
        if images.container_filesystems.is_empty() { &images.image_filesystems } else { &images.container_filesystems };
    node["runtime"] = json!({"imageFs": image_fs(&images.image_filesystems, &shared.root, now),
        "containerFs": image_fs(containers, &shared.root, now)});
    node
}

fn of_pod(shared: &Shared, pod: &Pod, parts: &Parts, walked: Vec<Usage>, now: &str, only: bool) -> Value {
    let uid = pod::uid(pod);
    let is_own = |s: &&cri::ContainerStats| {
        s.attributes.as_ref().and_then(|a| a.labels.get(UID_LABEL)).is_some_and(|u| u == uid)
    };
    let mut ephemeral = (0, 0);
    let mut containers = Vec::new();
    for stats in parts.containers.iter().filter(is_own) {
        let (value, used) = of_container(shared, pod, stats, now, only);
        ephemeral = (ephemeral.0 + used.0, ephemeral.1 + used.1);
        containers.push(value);
    }
    let mut entry = json!({
        "podRef": {"name": pod::name(pod), "namespace": pod::namespace(pod), "uid": uid},
        "startTime": pod.status.as_ref().and_then(|s| s.start_time.clone()),
        "containers": containers,
    });
    let named = |s: &&cri::PodSandboxStats| {
        s.attributes.as_ref().and_then(|a| a.metadata.as_ref()).is_some_and(|m| m.uid == uid)
    };
    let linux = parts.sandboxes.iter().find(named).and_then(|s| s.linux.as_ref());
    if let Some(linux) = linux {
        entry["cpu"] = cpu(linux.cpu.as_ref(), now);
        entry["memory"] = memory(linux.memory.as_ref(), now);
    }
    if only {
        return entry;
    }
    if let Some(linux) = linux {
        if let Some(net) = linux.network.as_ref() {
            let one = |i: &cri::NetworkInterfaceUsage| {
                known(json!({"name": i.name, "rxBytes": number(&i.rx_bytes), "rxErrors": number(&i.rx_errors),
                    "txBytes": number(&i.tx_bytes), "txErrors": number(&i.tx_errors)}))
            };
            if let Some(default) = &net.default_interface {
                let mut out = one(default);
                out["time"] = now.into();
                out["interfaces"] = std::iter::once(default).chain(&net.interfaces).map(one).collect();
                entry["network"] = out;
            }
        }
        entry["process_stats"] =
            known(json!({"process_count": linux.process.as_ref().and_then(|p| number(&p.process_count))}));
    }
    let mut list = Vec::new();
    for usage in walked {
        let volume = volumes(pod).iter().find(|v| v.name == usage.volume);
        let claim = volume.and_then(|v| claim_of(pod, v));
        let claim = claim.map(|name| json!({"name": name, "namespace": pod::namespace(pod)}));
        // What a driver brings is not on the node's disk.
        if claim.is_none() && volume.is_none_or(|v| v.csi.is_none()) {
            ephemeral = (ephemeral.0 + usage.used_bytes, ephemeral.1 + usage.inodes_used);
        }
        list.push(of_volume(&usage, claim.as_ref(), now));
    }
    entry["volume"] = list.into();
    entry["ephemeral-storage"] = with_use(file_system(&shared.root, now), Some(ephemeral.0), Some(ephemeral.1));
    entry
}

/// The container's entry, and the bytes and inodes that it uses of the node's disk.
fn of_container(shared: &Shared, pod: &Pod, stats: &cri::ContainerStats, now: &str, only: bool) -> (Value, (u64, u64)) {
    let name = stats.attributes.as_ref().and_then(|a| a.labels.get(CONTAINER_LABEL)).cloned().unwrap_or_default();
    let statuses = pod.status.iter().flat_map(|s| {
        s.container_statuses.iter().chain(s.init_container_statuses.iter()).chain(s.ephemeral_container_statuses.iter())
    });
    let started = statuses
        .flatten()
        .filter(|s| s.name == name)
        .find_map(|s| s.state.as_ref()?.running.as_ref()?.started_at.clone());
    let mut out = json!({"name": name, "startTime": started, "cpu": cpu(stats.cpu.as_ref(), now),
        "memory": memory(stats.memory.as_ref(), now)});
    if only {
        return (out, (0, 0));
    }
    if let Some(swap) = stats.swap.as_ref() {
        out["swap"] = self::swap(Some(swap), now);
    }
    let layer = stats.writable_layer.as_ref();
    let (bytes, inodes) = (layer.and_then(|l| number(&l.used_bytes)), layer.and_then(|l| number(&l.inodes_used)));
    out["rootfs"] = with_use(file_system(&shared.root, now), bytes, inodes);
    let logs = pod::log_dir(&shared.facts.log_root, pod).join(&name);
    let (log_bytes, log_files) = size_of_files(&logs);
    out["logs"] = with_use(file_system(&shared.facts.log_root, now), Some(log_bytes), Some(log_files));
    (out, (bytes.unwrap_or(0) + log_bytes, inodes.unwrap_or(0) + log_files))
}

/// CPU use of the node between two looks, in billionths of a CPU.
#[derive(Default)]
pub(crate) struct Rate(Mutex<Option<(Instant, f64, u64)>>);

impl Rate {
    fn now(&self, seconds: f64) -> u64 {
        self.at(Instant::now(), seconds)
    }

    fn at(&self, now: Instant, seconds: f64) -> u64 {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((at, before, rate)) = *last else {
            *last = Some((now, seconds, 0));
            return 0;
        };
        let passed = now.saturating_duration_since(at).as_secs_f64();
        // Too short a time says nothing; the last answer stands.
        if passed < 1.0 {
            return rate;
        }
        let rate = ((seconds - before).max(0.0) / passed * 1e9) as u64;
        *last = Some((now, seconds, rate));
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let (rate, start) = (Rate::default(), Instant::now());
        assert_eq!(rate.at(start, 10.0), 0);
        assert_eq!(rate.at(start + Duration::from_secs(4), 12.0), 500_000_000);
        assert_eq!(rate.at(start + Duration::from_millis(4100), 99.0), 500_000_000);
    }

    #[test]
    fn the_volumes_of_a_pod_are_measured_by_one_at_a_time() {
        let all = Arc::default();
        let first = Measuring::begin(&all, "u");
        assert!(first.is_some() && Measuring::begin(&all, "u").is_none() && Measuring::begin(&all, "v").is_some());
        drop(first);
        assert!(Measuring::begin(&all, "u").is_some());
    }

    #[test]
    fn health_is_told_where_the_driver_tells_it() {
        let mut usage = Usage { volume: "v".into(), used_bytes: 3, ..Usage::default() };
        let entry = of_volume(&usage, Some(&json!({"name": "data"})), "now");
        assert!(
            entry.get("volumeHealthStats").is_none() && entry["pvcRef"]["name"] == "data" && entry["usedBytes"] == 3
        );
        usage.health = Some(kubelet_volumes::Health { abnormal: true, message: "gone".into() });
        assert_eq!(of_volume(&usage, None, "now")["volumeHealthStats"], json!({"abnormal": true}));
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [], "volumes": [
            {"name": "a", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "b", "ephemeral": {}}, {"name": "c"}]}}))
        .unwrap();
        let claims: Vec<_> = volumes(&pod).iter().map(|v| claim_of(&pod, v)).collect();
        assert_eq!(claims, [Some("data".into()), Some("p-b".into()), None]);
    }

    #[test]
    fn unknown_numbers_are_left_out() {
        let value = memory(
            Some(&cri::MemoryUsage { working_set_bytes: Some(cri::UInt64Value { value: 7 }), ..Default::default() }),
            "now",
        );
        assert_eq!(value, json!({"time": "now", "workingSetBytes": 7}));
        let fs = with_use(file_system(Path::new("/"), "now"), Some(3), None);
        assert!(fs["capacityBytes"].as_u64() > Some(0) && fs["usedBytes"] == 3 && fs.get("inodesUsed").is_none());
        assert!(whole(Path::new("/"), "now")["usedBytes"].as_u64() > Some(0));
    }
}
