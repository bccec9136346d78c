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
const PULLS: &[f64] = &[1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 180.0, 300.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0];
/// From 5 ms on, each 2.5 times the one before, 14 in all.
const CALLS: &[f64] = &[
    0.005,
    0.0125,
    0.03125,
    0.078125,
    0.1953125,
    0.48828125,
    1.220703125,
    3.0517578125,
    7.62939453125,
    19.073486328125,
    47.6837158203125,
    119.20928955078125,
    298.0232238769531,
    745.0580596923828,
];
const SENDS: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];
const ANSWERS: &[f64] = &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
const POWERS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0];
const MILLIS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// A number that the kubelet keeps.
#[derive(Debug)]
pub(crate) struct Own {
    name: &'static str,
    help: &'static str,
    /// Bounds of a distribution; a counter has none.
    bounds: &'static [f64],
}

macro_rules! own {
    ($(#[doc = $help:literal] $id:ident = $name:literal, $bounds:expr;)*) => {
        $(#[doc = $help] pub(crate) static $id: Own = Own { name: $name, help: $help, bounds: $bounds };)*
        static ALL: &[&Own] = &[$(&$id),*];
    };
}

own! {
    /// Calls to the runtime, by operation.
    RUNTIME_OPERATIONS = "kubelet_runtime_operations_total", &[];
    /// Calls to the runtime that failed, by operation.
    RUNTIME_ERRORS = "kubelet_runtime_operations_errors_total", &[];
    /// Seconds that calls to the runtime took, by operation.
    RUNTIME_SECONDS = "kubelet_runtime_operations_duration_seconds", CALLS;
    /// Seconds that lists of all sandboxes and containers took.
    RELIST_SECONDS = "kubelet_pleg_relist_duration_seconds", SHORT;
    /// Seconds between such lists.
    RELIST_INTERVAL = "kubelet_pleg_relist_interval_seconds", SHORT;
    /// Seconds from the first look at a pod until it ran.
    POD_START = "kubelet_pod_start_duration_seconds", STARTS;
    /// Seconds from a pod's creation until it was seen to run, pulls and init containers left out, as the service level counts them.
    POD_START_SLI = "kubelet_pod_start_sli_duration_seconds", STARTS;
    /// Seconds from a pod's creation until it was seen to run, pulls and init containers included.
    POD_START_TOTAL = "kubelet_pod_start_total_duration_seconds", STARTS;
    /// Pods that began to run.
    STARTED_PODS = "kubelet_started_pods_total", &[];
    /// Containers that began to run.
    STARTED_CONTAINERS = "kubelet_started_containers_total", &[];
    /// Seconds that images took to come.
    IMAGE_PULL = "kubelet_image_pull_duration_seconds", PULLS;
    /// Requests to the HTTPS server.
    HTTP_REQUESTS = "kubelet_http_requests_total", &[];
    /// Seconds until the HTTPS server had answered.
    HTTP_SECONDS = "kubelet_http_requests_duration_seconds", SHORT;
    /// Seconds that probes took.
    PROBE_SECONDS = "prober_probe_duration_seconds", SHORT;
    /// Probes by container, kind and result.
    PROBES = "prober_probe_total", &[];
    /// Seconds that a look at a pod and what followed from it took, by kind of look.
    POD_WORKER = "kubelet_pod_worker_duration_seconds", SHORT;
    /// Seconds that work on control groups took, by kind.
    CGROUPS = "kubelet_cgroup_manager_duration_seconds", SHORT;
    /// Seconds that work on volumes took, by kind and driver.
    STORAGE = "storage_operation_duration_seconds", STORAGES;
    /// Pods that were evicted, by signal.
    EVICTIONS = "kubelet_evictions", &[];
    /// Seconds that the numbers were old by which a pod was evicted, by signal.
    EVICTION_AGE = "kubelet_eviction_stats_age_seconds", SHORT;
    /// Pods that had to go for a critical one, by the resource that was missing.
    PREEMPTIONS = "kubelet_preemptions", &[];
    /// Pods that were not let in, by reason.
    REJECTIONS = "kubelet_admission_rejections_total", &[];
    /// Containers of each pod that was let in.
    CONTAINERS_PER_POD = "kubelet_containers_per_pod_count", POWERS;
    /// Seconds from the first word of a pod to the first look at it.
    WORKER_START = "kubelet_pod_worker_start_duration_seconds", SHORT;
    /// Seconds from a change of a pod's status until the apiserver had it.
    STATUS_SYNC = "kubelet_pod_status_sync_duration_seconds", SENDS;
    /// Seconds that sandboxes took to come up, by the runtime's handler.
    SANDBOX_SECONDS = "kubelet_run_podsandbox_duration_seconds", SHORT;
    /// Sandboxes that did not come up, by the runtime's handler.
    SANDBOX_ERRORS = "kubelet_run_podsandbox_errors_total", &[];
    /// Pods whose sandbox could not be made.
    POD_ERRORS = "kubelet_started_pods_errors_total", &[];
    /// Containers that could not be started, by reason.
    CONTAINER_ERRORS = "kubelet_started_containers_errors_total", &[];
    /// Pods that came again under the uid that they had.
    RESTARTED = "kubelet_restarted_pods_total", &[];
    /// Pods that ran at the runtime and that nobody knew.
    ORPHANS = "kubelet_orphaned_runtime_pods_total", &[];
    /// When the machine's shutdown began to be held up, in seconds since 1970.
    SHUTDOWN_START = "kubelet_graceful_shutdown_start_time_seconds", &[];
    /// When the machine's shutdown was let go, in seconds since 1970.
    SHUTDOWN_END = "kubelet_graceful_shutdown_end_time_seconds", &[];
    /// Seconds from the machine's start to the kubelet's.
    STARTUP_BEFORE = "kubelet_node_startup_pre_kubelet_duration_seconds", &[];
    /// Seconds from the kubelet's start until the node was offered to the apiserver.
    STARTUP_OFFER = "kubelet_node_startup_pre_registration_duration_seconds", &[];
    /// Seconds from the offer of the node until the apiserver had it.
    STARTUP_REGISTER = "kubelet_node_startup_registration_duration_seconds", &[];
    /// Seconds from the registration of the node until it was ready.
    STARTUP_READY = "kubelet_node_startup_post_registration_duration_seconds", &[];
    /// Seconds from the machine's start until the node was ready.
    STARTUP = "kubelet_node_startup_duration_seconds", &[];
    /// Pods for which CPUs, memory and devices were looked for.
    TOPOLOGY_ASKED = "kubelet_topology_manager_admission_requests_total", &[];
    /// Pods whose CPUs, memory and devices could not be had near each other.
    TOPOLOGY_REFUSED = "kubelet_topology_manager_admission_errors_total", &[];
    /// Milliseconds that it took to find a pod's CPUs, memory and devices.
    TOPOLOGY_MILLIS = "kubelet_topology_manager_admission_duration_ms", MILLIS;
    /// Images that were removed to make room, by reason.
    IMAGE_GC = "kubelet_image_garbage_collected_total", &[];
    /// Answers of the apiserver, by code, method and host.
    REST = "rest_client_requests_total", &[];
    /// Seconds that the apiserver took to answer, by verb and host.
    REST_SECONDS = "rest_client_request_duration_seconds", ANSWERS;
    /// Renewals of the serving certificate that failed.
    SERVER_RENEW_ERRORS = "kubelet_server_expiration_renew_errors", &[];
    /// Seconds that serving certificates were in use.
    SERVER_ROTATION = "kubelet_certificate_manager_server_rotation_seconds", LIVES;
    /// Renewals of the client certificate that failed.
    RENEW_ERRORS = "kubelet_certificate_manager_client_expiration_renew_errors", &[];
}

enum Values {
    Count(f64),
    Level(f64),
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
        self.add(of, took.as_secs_f64());
    }

    /// Takes a value down.
    pub(crate) fn add(&'static self, of: &[(&str, &str)], value: f64) {
        let mut kept = kept();
        let new = || Values::Spread(Histogram::new(self.bounds));
        if let Values::Spread(values) = kept.entry((self.name, labels(of))).or_insert_with(new) {
            values.add(value);
        }
    }

    /// Sets what goes up and down, such as a moment.
    pub(crate) fn set(&'static self, value: f64) {
        kept().insert((self.name, String::new()), Values::Level(value));
    }
}

/// Counters without labels: they are there from the start, so that a rise from nothing is seen.
const PLAIN: &[&Own] =
    &[&STARTED_PODS, &POD_ERRORS, &ORPHANS, &RENEW_ERRORS, &SERVER_RENEW_ERRORS, &TOPOLOGY_ASKED, &TOPOLOGY_REFUSED];

/// Puts on a page what one of the two pages has: the probes' or all else.
pub(crate) fn put(page: &mut Page, probes: bool) {
    let kept = kept();
    for own in PLAIN.iter().filter(|own| !probes && !kept.contains_key(&(own.name, String::new()))) {
        page.put(own.name, own.help, Kind::Counter, "", 0.0);
    }
    for ((name, of), values) in kept.iter() {
        let Some(own) = ALL.iter().find(|o| o.name == *name) else { continue };
        if name.starts_with("prober_") != probes {
            continue;
        }
        match values {
            Values::Count(n) => page.put(name, own.help, Kind::Counter, of, *n),
            Values::Level(n) => page.put(name, own.help, Kind::Gauge, of, *n),
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

/// A container could not be started; `reason` is what its status says.
pub(crate) fn container_failed(of: &Pod, name: &str, reason: &str) {
    let spec = of.spec.as_ref();
    let init = spec.is_some_and(|s| s.init_containers.iter().flatten().any(|c| c.name == name));
    let main = spec.is_some_and(|s| s.containers.iter().any(|c| c.name == name));
    let kind = match (init, main) {
        (true, _) => "init_container",
        (_, true) => "container",
        _ => "ephemeral_container",
    };
    CONTAINER_ERRORS.count(&[("container_type", kind), ("code", reason)]);
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
    fn distributions_have_upstreams_bounds() {
        assert_eq!(RUNTIME_SECONDS.bounds.len(), 14);
        for (i, bound) in RUNTIME_SECONDS.bounds.iter().enumerate() {
            let want = 0.005 * 2.5_f64.powi(i32::try_from(i).unwrap());
            assert!((bound - want).abs() < want * 1e-12, "{bound} {want}");
        }
        for (own, first, last, count) in [
            (&RELIST_SECONDS, 0.005, 10.0, 11),
            (&RELIST_INTERVAL, 0.005, 10.0, 11),
            (&POD_WORKER, 0.005, 10.0, 11),
            (&POD_START_SLI, 0.5, 3600.0, 25),
            (&IMAGE_PULL, 1.0, 3600.0, 14),
            (&STORAGE, 0.1, 600.0, 13),
            (&STATUS_SYNC, 0.01, 60.0, 11),
            (&REST_SECONDS, 0.005, 60.0, 12),
            (&CONTAINERS_PER_POD, 1.0, 16.0, 5),
            (&TOPOLOGY_MILLIS, 1.0, 16384.0, 15),
        ] {
            let bounds = own.bounds;
            assert_eq!(
                (bounds.first(), bounds.last(), bounds.len()),
                (Some(&first), Some(&last), count),
                "{}",
                own.name
            );
            assert!(bounds.is_sorted());
        }
    }

    #[test]
    fn counters_without_labels_are_there_before_they_rise_and_levels_are_set() {
        SHUTDOWN_START.set(5.0);
        SHUTDOWN_START.set(7.5);
        let mut page = Page::default();
        put(&mut page, false);
        let text = page.render();
        for line in [
            "# TYPE kubelet_graceful_shutdown_start_time_seconds gauge",
            "kubelet_graceful_shutdown_start_time_seconds 7.5",
            "kubelet_orphaned_runtime_pods_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        let mut page = Page::default();
        put(&mut page, true);
        assert!(!page.render().contains("kubelet_"));
    }

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
