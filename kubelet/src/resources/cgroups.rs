//! The tree of pods' control groups: `kubepods`, one group per class below it, one per pod below that.

use std::path::{Path, PathBuf};

use gantry_cgroup::{Host, Resources};
use k8s_openapi::api::core::v1::Pod;

use super::qos::{self, Qos};
use crate::pod;

/// Makes and removes pods' groups.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    root: PathBuf,
    per_qos: bool,
    period_us: Option<i64>,
    pids: i64,
}

impl Cgroups {
    /// Groups below `root` (`/`). `period` is that of CPU quotas, `None` for no quotas; `pids` limits tasks per pod, -1
    /// for no limit.
    pub(crate) fn new(root: &str, per_qos: bool, period_us: Option<i64>, pids: i64) -> Self {
        Self { root: Path::new("/").join(root), per_qos, period_us, pids }
    }

    /// The group of a pod.
    pub(crate) fn path(&self, pod: &Pod) -> PathBuf {
        if !self.per_qos {
            return self.root.clone();
        }
        self.class(qos::class(pod)).join(format!("pod{}", pod::uid(pod)))
    }

    fn class(&self, class: Qos) -> PathBuf {
        let base = self.root.join("kubepods");
        match class {
            Qos::Guaranteed => base,
            Qos::Burstable => base.join("burstable"),
            Qos::BestEffort => base.join("besteffort"),
        }
    }

    /// Makes the groups of the classes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn prepare(&self) -> gantry_cgroup::Result<()> {
        if !self.per_qos {
            return Ok(());
        }
        let host = Host::detect()?;
        for class in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            host.cgroup(self.class(class))?.create()?;
        }
        host.cgroup(self.class(Qos::BestEffort))?.apply(&Resources { cpu_shares: Some(2), ..Default::default() })
    }

    /// Makes a pod's group with its limits.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn create(&self, pod: &Pod) -> gantry_cgroup::Result<()> {
        if !self.per_qos {
            return Ok(());
        }
        let group = Host::detect()?.cgroup(self.path(pod))?;
        group.create()?;
        group.apply(&self.limits(pod))
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
            let group = host.cgroup(self.class(class).join(format!("pod{uid}")))?;
            if group.exists() {
                let killed = group.kill();
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
            let Ok(group) = host.cgroup(self.class(class)) else { continue };
            let folders =
                ["cpu", "memory", "pids"].into_iter().filter_map(|c| group.folder(c)).chain(group.unified_folder());
            for entry in folders.flat_map(std::fs::read_dir).flatten().flatten() {
                let uid = entry.file_name().to_string_lossy().strip_prefix("pod").map(str::to_owned);
                out.extend(uid.filter(|_| entry.path().is_dir()));
            }
        }
        out.sort();
        out.dedup();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pods_group_is_that_of_its_class_and_uid() {
        let groups = Cgroups::new("/", true, Some(100_000), -1);
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
}
