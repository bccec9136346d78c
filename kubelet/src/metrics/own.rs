//! What the kubelet counts and times of its own work, under upstream's names.

use std::collections::{BTreeMap, HashMap};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use super::text::{Histogram, Kind, Page, labels};
use crate::pod;

const SHORT: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const STARTS: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
const STORAGES: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];
const LIVES: &[f64] =
    &[60.0, 3600.0, 14400.0, 86400.0, 604_800.0, 2_592_000.0, 7_776_000.0, 15_552_000.0, 31_104_000.0, 124_416_000.0];
const PULLS: &[f64] = &[1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 180.0, 300.0, 600.0, 900.0];

/// A number that the kubelet keeps.
#[derive(Debug)]
pub(crate) struct Own {
    name: &'static str,
    help: &'static str,
    /// Bounds of a distribution; a counter has none.
    bounds: &'static [f64],
}

macro_rules! own {
    ($($(#[$doc:meta])* $id:ident = $name:literal, $help:literal, $bounds:expr;)*) => {
        $($(#[$doc])* pub(crate) static $id: Own = Own { name: $name, help: $help, bounds: $bounds };)*
        static ALL: &[&Own] = &[$(&$id),*];
    };
}

own! {
    /// Calls to the runtime.
    RUNTIME_OPERATIONS = "kubelet_runtime_operations_total", "Cumulative number of runtime operations by operation type.", &[];
    /// Failed calls to the runtime.
    RUNTIME_ERRORS = "kubelet_runtime_operations_errors_total", "Cumulative number of runtime operation errors by operation type.", &[];
    /// How long they took.
    RUNTIME_SECONDS = "kubelet_runtime_operations_duration_seconds", "Duration in seconds of runtime operations. Broken down by operation type.", SHORT;
    /// How long lists of all containers took.
    RELIST_SECONDS = "kubelet_pleg_relist_duration_seconds", "Duration in seconds for relisting pods in PLEG.", SHORT;
    /// Between them.
    RELIST_INTERVAL = "kubelet_pleg_relist_interval_seconds", "Interval in seconds between relisting in PLEG.", STARTS;
    /// From the first look to running.
    POD_START = "kubelet_pod_start_duration_seconds", "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run", STARTS;
    /// As the service level counts it.
    POD_START_SLI = "kubelet_pod_start_sli_duration_seconds", "Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch", STARTS;
    /// With all that the former leaves out.
    POD_START_TOTAL = "kubelet_pod_start_total_duration_seconds", "Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch", STARTS;
    /// Pods that began to run.
    STARTED_PODS = "kubelet_started_pods_total", "Cumulative number of pods started", &[];
    /// Containers that began to run.
    STARTED_CONTAINERS = "kubelet_started_containers_total", "Cumulative number of containers started", &[];
    /// How long images take to come.
    IMAGE_PULL = "kubelet_image_pull_duration_seconds", "Duration in seconds to pull an image.", PULLS;
    /// Requests to :10250.
    HTTP_REQUESTS = "kubelet_http_requests_total", "Number of the http requests received since the server started", &[];
    /// How long they took.
    HTTP_SECONDS = "kubelet_http_requests_duration_seconds", "Duration in seconds to serve http requests", SHORT;
    /// How long probes took.
    PROBE_SECONDS = "prober_probe_duration_seconds", "Duration in seconds for a probe response.", SHORT;
    /// Probes by what they found.
    PROBES = "prober_probe_total", "Cumulative number of a liveness, readiness or startup probe for a container by result.", &[];
    /// How long a look at a pod and what follows from it took.
    POD_WORKER = "kubelet_pod_worker_duration_seconds", "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync", SHORT;
    /// Work on control groups.
    CGROUPS = "kubelet_cgroup_manager_duration_seconds", "Duration in seconds for cgroup manager operations. Broken down by method.", SHORT;
    /// Work on volumes.
    STORAGE = "storage_operation_duration_seconds", "Storage operation duration", STORAGES;
    /// Pods that were evicted.
    EVICTIONS = "kubelet_evictions", "Cumulative number of pod evictions by eviction signal", &[];
    /// Images that were removed to make room.
    IMAGE_GC = "kubelet_image_garbage_collected_total", "Total number of images garbage collected by the kubelet, whether through disk usage or image age.", &[];
    /// Answers of the apiserver.
    REST = "rest_client_requests_total", "Number of HTTP requests, partitioned by status code, method, and host.", &[];
    /// How long they took.
    REST_SECONDS = "rest_client_request_duration_seconds", "Request latency in seconds. Broken down by verb, and host.", SHORT;
    /// Renewals of the serving certificate that failed.
    SERVER_RENEW_ERRORS = "kubelet_server_expiration_renew_errors", "Counter of certificate renewal errors.", &[];
    /// How long serving certificates are used.
    SERVER_ROTATION = "kubelet_certificate_manager_server_rotation_seconds", "Histogram of the number of seconds the previous certificate lived before being rotated.", LIVES;
    /// Renewals of the client certificate that failed.
    RENEW_ERRORS = "kubelet_certificate_manager_client_expiration_renew_errors", "Counter of certificate renewal errors.", &[];
}

enum Values {
    Count(f64),
    Spread(Histogram),
}

type Kept = BTreeMap<(&'static str, String), Values>;

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);
/// When each pod that is not yet running was first seen, and how long its images took.
static STARTING: LazyLock<Mutex<HashMap<String, (Instant, Duration)>>> = LazyLock::new(Mutex::default);

fn kept() -> std::sync::MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn starting() -> std::sync::MutexGuard<'static, HashMap<String, (Instant, Duration)>> {
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Own {
    /// Counts one.
    pub(crate) fn count(&'static self, of: &[(&str, &str)]) {
        let mut kept = kept();
        if let Values::Count(n) = kept.entry((self.name, labels(of))).or_insert(Values::Count(0.0)) {
            *n += 1.0;
        }
    }

    /// Takes a time down.
    pub(crate) fn observe(&'static self, of: &[(&str, &str)], took: Duration) {
        let mut kept = kept();
        let new = || Values::Spread(Histogram::new(self.bounds));
        if let Values::Spread(values) = kept.entry((self.name, labels(of))).or_insert_with(new) {
            values.add(took.as_secs_f64());
        }
    }
}

/// Puts on a page what one of the two pages has: the probes' or all else.
pub(crate) fn put(page: &mut Page, probes: bool) {
    for ((name, of), values) in kept().iter() {
        let Some(own) = ALL.iter().find(|o| o.name == *name) else { continue };
        if name.starts_with("prober_") != probes {
            continue;
        }
        match values {
            Values::Count(n) => page.put(name, own.help, Kind::Counter, of, *n),
            Values::Spread(values) => page.histogram(name, own.help, of, values),
        }
    }
}

/// `RunPodSandbox` as upstream calls the operation: `run_podsandbox`.
pub(crate) fn operation(rpc: &str) -> String {
    let mut out = String::new();
    for (i, c) in rpc.replace("PodSandbox", "Podsandbox").char_indices() {
        if c.is_ascii_uppercase() && i > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    if out == "update_container_resources" { "update_container".into() } else { out }
}

/// Work on a pod's volumes has ended; the drivers of its volumes are one plugin here.
pub(crate) fn stored(operation: &str, took: Duration, fine: bool) {
    let status = if fine { "success" } else { "fail-unknown" };
    let of = [("migrated", "false"), ("operation_name", operation), ("status", status), ("volume_plugin", "pod")];
    STORAGE.observe(&of, took);
}

/// A call to the runtime has ended.
pub(crate) fn runtime_called(rpc: &str, took: Duration, fine: bool) {
    let operation = operation(rpc);
    let of = [("operation_type", operation.as_str())];
    RUNTIME_OPERATIONS.count(&of);
    RUNTIME_SECONDS.observe(&of, took);
    if !fine {
        RUNTIME_ERRORS.count(&of);
    }
}

/// A pull for a pod has ended well.
pub(crate) fn pulled(uid: &str, took: Duration) {
    IMAGE_PULL.observe(&[("image_size_in_bytes", "N/A")], took);
    if let Some((_, pulling)) = starting().get_mut(uid) {
        *pulling += took;
    }
}

/// A pod's status has changed: counts what began to run.
pub(crate) fn pod_changed(of: &Pod, old: Option<&PodStatus>, new: &PodStatus) {
    let none = PodStatus::default();
    let old = old.unwrap_or(&none);
    for (kind, before, after) in [
        ("container", &old.container_statuses, &new.container_statuses),
        ("init_container", &old.init_container_statuses, &new.init_container_statuses),
        ("ephemeral_container", &old.ephemeral_container_statuses, &new.ephemeral_container_statuses),
    ] {
        let known = |s: &ContainerStatus| before.iter().flatten().any(|b| b.container_id == s.container_id);
        for _ in after.iter().flatten().filter(|s| s.container_id.is_some() && !known(s)) {
            STARTED_CONTAINERS.count(&[("container_type", kind)]);
        }
    }
    let uid = pod::uid(of);
    let phase = |s: &PodStatus| s.phase.clone().unwrap_or_default();
    if matches!(phase(new).as_str(), "" | "Pending") {
        starting().entry(uid.to_owned()).or_insert_with(|| (Instant::now(), Duration::ZERO));
        return;
    }
    let Some((seen, pulling)) = starting().remove(uid) else { return };
    if phase(new) == "Failed" {
        return;
    }
    STARTED_PODS.count(&[]);
    POD_START.observe(&[], seen.elapsed());
    if let Some(created) = &of.metadata.creation_timestamp {
        let total = Duration::try_from(Timestamp::now().duration_since(created.0)).unwrap_or_default();
        POD_START_TOTAL.observe(&[], total);
        // Init containers are part of starting a pod that has them; the service level leaves such pods' inits out.
        POD_START_SLI.observe(&[], total.saturating_sub(pulling));
    }
}

/// A pod is gone: what was kept under its name goes too.
pub(crate) fn forget(of: &Pod) {
    starting().remove(pod::uid(of));
    let marks = [format!("pod=\"{}\"", pod::name(of)), format!("namespace=\"{}\"", pod::namespace(of))];
    kept().retain(|(_, labels), _| !marks.iter().all(|m| labels.contains(m)));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations_have_upstreams_names() {
        for (rpc, want) in [
            ("RunPodSandbox", "run_podsandbox"),
            ("ListPodSandbox", "list_podsandbox"),
            ("PodSandboxStatus", "podsandbox_status"),
            ("CreateContainer", "create_container"),
            ("ListContainerStats", "list_container_stats"),
            ("UpdateContainerResources", "update_container"),
            ("Version", "version"),
        ] {
            assert_eq!(operation(rpc), want);
        }
    }

    #[test]
    fn a_pod_that_begins_to_run_is_counted_once_and_forgotten_when_it_is_gone() {
        let of: Pod = serde_json::from_value(json!({"metadata": {"uid": "own-test", "name": "own-test", "namespace": "ns", "creationTimestamp": "2026-01-01T00:00:00Z"}})).unwrap();
        let status = |phase: &str, ids: &[&str]| -> PodStatus {
            let list: Vec<_> = ids
                .iter()
                .map(|id| json!({"name": id, "containerID": id, "image": "", "imageID": "", "ready": true, "restartCount": 0}))
                .collect();
            serde_json::from_value(json!({"phase": phase, "containerStatuses": list})).unwrap()
        };
        let pods = || match kept().get(&("kubelet_started_pods_total", String::new())) {
            Some(Values::Count(n)) => *n,
            _ => 0.0,
        };
        let before = pods();
        let (pending, running) = (status("Pending", &[]), status("Running", &["a", "b"]));
        pod_changed(&of, None, &pending);
        pulled("own-test", Duration::from_secs(1));
        pod_changed(&of, Some(&pending), &running);
        pod_changed(&of, Some(&running), &running);
        assert!(pods() >= before + 1.0);
        assert!(!starting().contains_key("own-test"));
        PROBES.count(&[("pod", "own-test"), ("namespace", "ns")]);
        forget(&of);
        assert!(!kept().keys().any(|(_, of)| of.contains("own-test")));
    }
}
