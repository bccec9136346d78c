//! What probes have found, kept on disk so that a restart of the kubelet changes no pod's readiness.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gantry_files::{Access, Outlives};
use serde::{Deserialize, Serialize};

use super::actions::Verdicts;
use crate::probe::{Kind, Report};

/// What is known of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// Its startup probe has succeeded, or it has none.
    pub(crate) started: bool,
    /// Its readiness probe succeeds, or it has none.
    pub(crate) ready: bool,
    /// The probe that condemned it.
    pub(crate) failed: Option<String>,
}

/// Verdicts by container id.
#[derive(Debug, Default)]
pub(crate) struct Results {
    entries: BTreeMap<String, Verdict>,
    saved: BTreeMap<String, Verdict>,
}

fn file(pod_dir: &Path) -> PathBuf {
    pod_dir.join("probes.json")
}

impl Results {
    /// What was found before; nothing if there is no readable file.
    pub(crate) fn load(pod_dir: &Path) -> Self {
        let text = std::fs::read(file(pod_dir)).unwrap_or_default();
        let entries: BTreeMap<String, Verdict> = serde_json::from_slice(&text).unwrap_or_default();
        Self { saved: entries.clone(), entries }
    }

    /// Writes what has changed, if the pod has its folder yet.
    pub(crate) fn save(&mut self, pod_dir: &Path) {
        if self.entries == self.saved || !pod_dir.is_dir() {
            return;
        }
        let written = serde_json::to_vec(&self.entries)
            .map_err(Into::into)
            .and_then(|bytes| gantry_files::replace(&file(pod_dir), &bytes, Access::Umask, Outlives::Crash));
        match written {
            Ok(()) => self.saved.clone_from(&self.entries),
            Err(e) => tracing::warn!(folder = %pod_dir.display(), error = %e, "probe results not saved"),
        }
    }

    /// Forgets containers that do not run.
    pub(crate) fn keep(&mut self, runs: impl Fn(&str) -> bool) {
        self.entries.retain(|id, _| runs(id));
    }

    /// The verdict on a container, at first the given one.
    pub(crate) fn entry(&mut self, id: &str, first: impl FnOnce() -> Verdict) -> Verdict {
        self.entries.entry(id.to_owned()).or_insert_with(first).clone()
    }

    /// Takes a report in.
    pub(crate) fn note(&mut self, report: &Report) {
        let Some(verdict) = self.entries.get_mut(&report.id) else { return };
        match (report.kind, report.success) {
            (Kind::Startup, true) => verdict.started = true,
            (Kind::Readiness, ready) => verdict.ready = ready,
            (Kind::Startup | Kind::Liveness, false) => verdict.failed = Some(report.kind.name().to_owned()),
            (Kind::Liveness, true) => verdict.failed = None,
        }
    }

    /// For the decision.
    pub(crate) fn verdicts(&self) -> Verdicts {
        let name = |text: &str| if text == "startup" { "startup" } else { "liveness" };
        Verdicts {
            failed: self.entries.iter().filter_map(|(id, v)| Some((id.clone(), name(v.failed.as_deref()?)))).collect(),
            started: self.entries.iter().filter(|(_, v)| v.started).map(|(id, _)| id.clone()).collect(),
        }
    }

    /// For the status.
    pub(crate) fn ready(&self) -> BTreeMap<String, bool> {
        self.entries.iter().map(|(id, v)| (id.clone(), v.ready && v.started)).collect()
    }

    /// For the status.
    pub(crate) fn started(&self) -> BTreeMap<String, bool> {
        self.entries.iter().map(|(id, v)| (id.clone(), v.started)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut results = Results::load(dir.path());
        results.entry("c", || Verdict { started: true, ..Default::default() });
        results.note(&Report { id: "c".into(), kind: Kind::Readiness, success: true });
        results.save(dir.path());
        let again = Results::load(dir.path());
        assert_eq!((again.ready()["c"], again.verdicts().failed.len()), (true, 0));
    }
}
