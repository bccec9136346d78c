//! What /metrics tells of pods' volumes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::metrics::{Kind, Page, labels};
use crate::pod;
use crate::shared::Shared;
use crate::stats::{self, Volumes};

/// How long file systems of claims may take to tell their size.
const CLAIMS_LIMIT: Duration = Duration::from_secs(2);

const CLAIM_METRICS: [(&str, &str); 6] = [
    ("kubelet_volume_stats_capacity_bytes", "Bytes that the volume holds."),
    ("kubelet_volume_stats_available_bytes", "Bytes that are free in the volume."),
    ("kubelet_volume_stats_used_bytes", "Bytes that are used in the volume."),
    ("kubelet_volume_stats_inodes", "Inodes that the volume has."),
    ("kubelet_volume_stats_inodes_free", "Inodes that are free in the volume."),
    ("kubelet_volume_stats_inodes_used", "Inodes that are used in the volume."),
];
const HEALTH: (&str, &str) = (
    "kubelet_volume_stats_health_status_abnormal",
    "1 where the driver finds that something is wrong with the volume, 0 where it does not.",
);

/// The room in claims and the health of those whose drivers tell it. A dead file server or driver does not hold up the page.
pub(super) async fn of_claims(shared: &Arc<Shared>, known: &Volumes, pods: Vec<Pod>, page: &mut Page) {
    let health = tokio::time::timeout(CLAIMS_LIMIT, known.health(shared, &pods)).await;
    for ((namespace, claim), abnormal) in health.unwrap_or_default() {
        let of = labels(&[("namespace", &namespace), ("persistentvolumeclaim", &claim)]);
        page.put(HEALTH.0, HEALTH.1, Kind::Gauge, &of, f64::from(u8::from(abnormal)));
    }
    let shared = shared.clone();
    let claims = tokio::task::spawn_blocking(move || claims(&shared, &pods));
    if let Ok(Ok(claims)) = tokio::time::timeout(CLAIMS_LIMIT, claims).await {
        for (of, values) in claims {
            for ((name, help), value) in CLAIM_METRICS.iter().zip(values) {
                page.put(name, help, Kind::Gauge, &of, value);
            }
        }
    }
}

/// Labels and numbers of each volume that is a claim, as its file system tells them.
fn claims(shared: &Shared, pods: &[Pod]) -> Vec<(String, [f64; 6])> {
    let mut out = Vec::new();
    for pod in pods {
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let Some(claim) = stats::claim_of(pod, volume) else { continue };
            let Some(path) = shared.volumes.host_path(pod, &volume.name) else { continue };
            let Ok(disk) = nix::sys::statvfs::statvfs(&path) else { continue };
            let of = labels(&[("namespace", pod::namespace(pod)), ("persistentvolumeclaim", &claim)]);
            let bytes = |blocks: u64| (blocks * disk.fragment_size()) as f64;
            let used = bytes(disk.blocks().saturating_sub(disk.blocks_free()));
            let (all, free) = (disk.files() as f64, disk.files_free() as f64);
            out.push((of, [bytes(disk.blocks()), bytes(disk.blocks_available()), used, all, free, all - free]));
        }
    }
    out
}

/// The plugin of a volume, as upstream names it.
fn plugin(volume: &k8s_openapi::api::core::v1::Volume) -> &'static str {
    let v = volume;
    for (present, name) in [
        (v.config_map.is_some(), "kubernetes.io/configmap"),
        (v.secret.is_some(), "kubernetes.io/secret"),
        (v.host_path.is_some(), "kubernetes.io/host-path"),
        (v.projected.is_some(), "kubernetes.io/projected"),
        (v.downward_api.is_some(), "kubernetes.io/downward-api"),
        (v.image.is_some(), "kubernetes.io/image"),
        (v.csi.is_some() || v.persistent_volume_claim.is_some() || v.ephemeral.is_some(), "kubernetes.io/csi"),
    ] {
        if present {
            return name;
        }
    }
    "kubernetes.io/empty-dir"
}

/// Volumes that pods name, and those of them that are there, by plugin.
pub(super) fn totals(shared: &Shared, pods: &[Pod], page: &mut Page) {
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for pod in pods.iter().filter(|p| !pod::is_over(p)) {
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let name = plugin(volume);
            *counts.entry((name, "desired_state_of_world")).or_default() += 1;
            let there = u32::from(shared.volumes.host_path(pod, &volume.name).is_some_and(|p| p.exists()));
            *counts.entry((name, "actual_state_of_world")).or_default() += there;
        }
    }
    let help = "Volumes by plugin and by whether they are wanted or in place.";
    for ((name, state), count) in counts {
        let of = labels(&[("plugin_name", name), ("state", state)]);
        page.put("volume_manager_total_volumes", help, Kind::Gauge, &of, f64::from(count));
    }
}

/// Certificates of pods by what has become of them.
pub(super) fn certificates(shared: &Shared, page: &mut Page) {
    let help = "Certificates in volumes of pods, by signer and state.";
    for ((signer, state), count) in shared.volumes.certificates() {
        let of = labels(&[("signer_name", &signer), ("state", state)]);
        page.put("kubelet_podcertificate_states", help, Kind::Gauge, &of, count as f64);
    }
}
