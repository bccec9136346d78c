//! The tree of pods' control groups: `kubepods`, one group per class below it, one per pod below that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gantry_cgroup::{Host, HugepageLimit, Resources, Systemd, Unit};
use k8s_openapi::api::core::v1::Pod;

use super::memory::MemoryQos;
use super::pages::PageSizes;
use super::qos::{self, Qos};
use crate::pod;

/// Who makes the groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// Folders: `/kubepods/burstable/podUID`.
    Cgroupfs,
    /// Slices of systemd: `kubepods-burstable-podUID.slice`, dashes of the uid as underscores.
    Systemd,
}

/// Makes and removes pods' groups.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    driver: Driver,
    root: PathBuf,
    per_qos: bool,
    period_us: Option<i64>,
    pids: i64,
    pages: PageSizes,
    memory: Option<MemoryQos>,
}

impl Cgroups {
    /// Groups below `root` (`/`). `period` is that of CPU quotas, `None` for no quotas; `pids` limits tasks per pod, -1
    /// for no limit.
    pub(crate) fn new(driver: Driver, root: &str, per_qos: bool, period_us: Option<i64>, pids: i64) -> Self {
        let pages = PageSizes::here();
        Self { driver, root: Path::new("/").join(root), per_qos, period_us, pids, pages, memory: None }
    }

    /// These, with memory kept for pods.
    pub(crate) fn keeping(self, memory: Option<MemoryQos>) -> Self {
        Self { memory, ..self }
    }

    /// The group of a pod.
    pub(crate) fn path(&self, pod: &Pod) -> PathBuf {
        if !self.per_qos {
            return self.root.clone();
        }
        self.of(qos::class(pod), Some(pod::uid(pod)))
    }

    /// The group of all pods, where there is one.
    pub(crate) fn all_pods(&self) -> Option<PathBuf> {
        self.per_qos.then(|| self.of(Qos::Guaranteed, None))
    }

    /// The group of a class, or of a pod in it.
    fn of(&self, class: Qos, uid: Option<&str>) -> PathBuf {
        let class = match class {
            Qos::Guaranteed => None,
            Qos::Burstable => Some("burstable"),
            Qos::BestEffort => Some("besteffort"),
        };
        let parts = [Some("kubepods".to_owned()), class.map(str::to_owned), uid.map(|uid| format!("pod{uid}"))];
        let parts = parts.into_iter().flatten();
        match self.driver {
            Driver::Cgroupfs => parts.fold(self.root.clone(), |path, part| path.join(part)),
            Driver::Systemd => {
                let above =
                    self.root.iter().filter(|part| *part != "/").map(|part| part.to_string_lossy().into_owned());
                let escaped: Vec<String> = above.chain(parts).map(|part| part.replace('-', "_")).collect();
                // Each slice has the names of those above it: /kubepods.slice/kubepods-burstable.slice
                (1..=escaped.len())
                    .fold(PathBuf::from("/"), |path, n| path.join(format!("{}.slice", escaped[..n].join("-"))))
            }
        }
    }

    /// Makes the groups of the classes; `whole` limits all pods together.
    ///
    /// # Errors
    /// The kernel or systemd refuses.
    pub(crate) fn prepare(&self, whole: &Resources) -> gantry_cgroup::Result<()> {
        if !self.per_qos {
            return Ok(());
        }
        for class in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let limits = match class {
                Qos::Guaranteed => whole.clone(),
                Qos::Burstable => Resources::default(),
                Qos::BestEffort => Resources { cpu_shares: Some(2), ..Default::default() },
            };
            self.make(&self.of(class, None), "Kubernetes pods", &limits)?;
        }
        Ok(())
    }

    /// Sets the share of CPU time of all burstable pods together.
    ///
    /// # Errors
    /// The kernel or systemd refuses.
    pub(crate) fn share_burstable(&self, shares: u64) -> gantry_cgroup::Result<()> {
        let limits = Resources { cpu_shares: Some(shares), ..Default::default() };
        let group = Host::detect()?.cgroup(self.of(Qos::Burstable, None))?;
        if let Some(unit) = self.unit(&group.path())? {
            Systemd::connect(false)?.set(&unit, &limits, group.version())?;
        }
        group.apply(&limits)
    }

    /// Keeps memory for all pods of a class together, by what they request in bytes.
    ///
    /// # Errors
    /// The kernel or systemd refuses.
    pub(crate) fn keep_memory(&self, guaranteed: i64, burstable: i64) -> gantry_cgroup::Result<()> {
        for (class, files) in self.memory.iter().flat_map(|qos| qos.above(guaranteed, burstable)) {
            let limits = Resources { unified: texts(files), ..Default::default() };
            let group = Host::detect()?.cgroup(self.of(class, None))?;
            if let Some(unit) = self.unit(&group.path())? {
                Systemd::connect(false)?.set(&unit, &limits, group.version())?;
            }
            group.apply(&limits)?;
        }
        Ok(())
    }

    /// Makes a pod's group with its limits. One with CPUs of its own has no quota: it could only take from what is its own.
    ///
    /// # Errors
    /// The kernel or systemd refuses.
    pub(crate) fn create(&self, pod: &Pod, own_cpus: bool) -> gantry_cgroup::Result<()> {
        if !self.per_qos {
            return Ok(());
        }
        let mut limits = self.limits(pod);
        if own_cpus {
            limits.cpu_quota = None;
        }
        self.make(&self.path(pod), &format!("Kubernetes pod {}", pod::key(pod)), &limits)
    }

    fn make(&self, path: &Path, what: &str, limits: &Resources) -> gantry_cgroup::Result<()> {
        let group = Host::detect()?.cgroup(path)?;
        if let Some(unit) = self.unit(path)? {
            Systemd::connect(false)?.start_slice(&unit, what, limits, group.version())?;
        }
        group.create()?;
        group.apply(limits)
    }

    fn unit(&self, path: &Path) -> gantry_cgroup::Result<Option<Unit>> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        (self.driver == Driver::Systemd).then(|| Unit::slice(&name)).transpose()
    }

    fn limits(&self, pod: &Pod) -> Resources {
        let amounts = qos::of_pod(pod);
        let period = self.period_us.filter(|_| amounts.cpu_limit.is_some());
        Resources {
            cpu_shares: Some(qos::shares(amounts.cpu_request)),
            cpu_period: period.and_then(|p| u64::try_from(p).ok()),
            cpu_quota: period.zip(amounts.cpu_limit).map(|(period, limit)| qos::quota(limit, period)),
            memory_limit: amounts.memory_limit,
            pids_limit: (self.pids > 0).then_some(self.pids),
            unified: texts(self.memory.iter().flat_map(|qos| qos.of_pod(pod))),
            hugepages: self
                .pages
                .of_pod(pod)
                .into_iter()
                .map(|(page_size, limit)| HugepageLimit { page_size, limit })
                .collect(),
            ..Default::default()
        }
    }

    /// Kills what is left in a pod's group and removes it, whatever class the pod had.
    ///
    /// # Errors
    /// A group stays busy.
    pub(crate) fn destroy(&self, uid: &str) -> gantry_cgroup::Result<()> {
        if !self.per_qos || uid.is_empty() || uid.contains('/') {
            return Ok(());
        }
        let host = Host::detect()?;
        for class in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let path = self.of(class, Some(uid));
            let group = host.cgroup(&path)?;
            if group.exists() {
                let killed = group.kill();
                if let Some(unit) = self.unit(&path)? {
                    Systemd::connect(false)?.stop(&unit)?;
                }
                group.destroy()?;
                killed?;
            }
        }
        Ok(())
    }

    /// Uids of pods that have a group.
    pub(crate) fn pods(&self) -> Vec<String> {
        let mut out = Vec::new();
        let Ok(host) = Host::detect() else { return out };
        if !self.per_qos {
            return out;
        }
        for class in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let above = self.of(class, None);
            let Ok(group) = host.cgroup(&above) else { continue };
            let folders =
                ["cpu", "memory", "pids"].into_iter().filter_map(|c| group.folder(c)).chain(group.unified_folder());
            for entry in folders.flat_map(std::fs::read_dir).flatten().flatten() {
                let uid = self.uid(&above, &entry.file_name().to_string_lossy());
                out.extend(uid.filter(|_| entry.path().is_dir()));
            }
        }
        out.sort();
        out.dedup();
        out
    }

    /// Whose group the folder `name` below a class's group is.
    fn uid(&self, above: &Path, name: &str) -> Option<String> {
        match self.driver {
            Driver::Cgroupfs => name.strip_prefix("pod").map(str::to_owned),
            Driver::Systemd => {
                let above = above.file_name()?.to_str()?.strip_suffix(".slice")?;
                let uid = name.strip_prefix(above)?.strip_prefix("-pod")?.strip_suffix(".slice")?;
                Some(uid.replace('_', "-"))
            }
        }
    }
}

fn texts(files: impl IntoIterator<Item = (&'static str, i64)>) -> BTreeMap<String, String> {
    files.into_iter().map(|(file, bytes)| (file.to_owned(), bytes.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pods_group_is_that_of_its_class_and_uid() {
        let groups = Cgroups::new(Driver::Cgroupfs, "/", true, Some(100_000), -1);
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u1"}, "spec": {"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "250m", "memory": "64Mi"}, "requests": {"cpu": "100m"}}}]}}))
        .unwrap();
        assert_eq!(groups.path(&pod), Path::new("/kubepods/burstable/podu1"));
        let limits = groups.limits(&pod);
        assert_eq!(
            (limits.cpu_shares, limits.cpu_quota, limits.memory_limit),
            (Some(102), Some(25_000), Some(64 << 20))
        );
    }
    #[test]
    fn slices_have_the_names_of_those_above() {
        let groups = |root| Cgroups::new(Driver::Systemd, root, true, None, -1);
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"uid": "a-b-c"}, "spec": {"containers": [{"name": "a"}]}}))
                .unwrap();
        let path = groups("/").path(&pod);
        let above = Path::new("/kubepods.slice/kubepods-besteffort.slice");
        assert_eq!(path, above.join("kubepods-besteffort-poda_b_c.slice"));
        assert_eq!(groups("/").uid(above, "kubepods-besteffort-poda_b_c.slice").as_deref(), Some("a-b-c"));
        assert_eq!(groups("/").uid(Path::new("/kubepods.slice"), "kubepods-besteffort.slice"), None);
        let below = groups("/my-node").of(Qos::Guaranteed, None);
        assert_eq!(below, Path::new("/my_node.slice/my_node-kubepods.slice"));
    }
}
