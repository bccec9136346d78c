//! How lists merge: facts of the Kubernetes API that JSON Schema from k8s-openapi does not carry.
//!
//! Lists that are not named here are atomic, maps are granular.

/// How strategic merge and server-side apply treat one list or map field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// `x-kubernetes-list-map-keys`; empty unless the list is a map.
    pub map_keys: &'static [&'static str],
    /// `x-kubernetes-patch-merge-key`; empty unless strategic merge merges items of objects.
    pub patch_key: &'static str,
    /// Whether strategic merge merges the list at all (primitive lists too).
    pub patch_merge: bool,
    /// Whether strategic merge drops keys that `$retainKeys` does not name.
    pub retain_keys: bool,
    /// Whether the list is a set of scalars.
    pub set: bool,
    /// Whether a map or object is replaced as a whole.
    pub atomic_map: bool,
}

const NONE: Merge =
    Merge { map_keys: &[], patch_key: "", patch_merge: false, retain_keys: false, set: false, atomic_map: false };

const fn keyed(map_keys: &'static [&'static str], patch_key: &'static str) -> Merge {
    Merge { map_keys, patch_key, patch_merge: true, ..NONE }
}
const fn map_only(map_keys: &'static [&'static str]) -> Merge {
    Merge { map_keys, ..NONE }
}
const fn patch_only(patch_key: &'static str) -> Merge {
    Merge { patch_key, patch_merge: true, ..NONE }
}
const fn retained(map_keys: &'static [&'static str], patch_key: &'static str) -> Merge {
    Merge { map_keys, patch_key, patch_merge: true, retain_keys: true, ..NONE }
}
const SET: Merge = Merge { set: true, ..NONE };
const PATCH_SET: Merge = Merge { set: true, patch_merge: true, ..NONE };
const ATOMIC_MAP: Merge = Merge { atomic_map: true, ..NONE };
const RETAIN: Merge = Merge { retain_keys: true, ..NONE };
const CONDITIONS: Merge = keyed(&["type"], "type");
const CONDITIONS_MAP_ONLY: Merge = map_only(&["type"]);

/// The facts about `field` of the type `type_name` (a schema name without `io.k8s.`), if there are any.
pub(crate) fn find(type_name: &str, field: &str) -> Option<Merge> {
    Some(match (type_name, field) {
        ("apimachinery.pkg.apis.meta.v1.ObjectMeta", "finalizers") => PATCH_SET,
        ("apimachinery.pkg.apis.meta.v1.ObjectMeta", "ownerReferences") => keyed(&["uid"], "uid"),
        ("apimachinery.pkg.apis.meta.v1.LabelSelector", "") => ATOMIC_MAP,
        (
            "api.apps.v1.DaemonSetStatus"
            | "api.apps.v1.DeploymentStatus"
            | "api.apps.v1.ReplicaSetStatus"
            | "api.apps.v1.StatefulSetStatus"
            | "api.batch.v1.JobStatus"
            | "api.core.v1.ComponentStatus"
            | "api.core.v1.NamespaceStatus"
            | "api.core.v1.NodeStatus"
            | "api.core.v1.PersistentVolumeClaimStatus"
            | "api.core.v1.PodStatus"
            | "api.core.v1.ReplicationControllerStatus"
            | "api.core.v1.ServiceStatus"
            | "api.policy.v1.PodDisruptionBudgetStatus",
            "conditions",
        ) => CONDITIONS,
        (_, "conditions") if type_name.ends_with("Status") => CONDITIONS_MAP_ONLY,
        ("api.apps.v1.DeploymentSpec", "strategy") => RETAIN,
        ("api.batch.v1.PodFailurePolicyOnExitCodesRequirement", "values") => SET,
        ("api.batch.v1.UncountedTerminatedPods", "failed" | "succeeded") => SET,
        ("api.core.v1.Container" | "api.core.v1.EphemeralContainer", "env") => keyed(&["name"], "name"),
        ("api.core.v1.Container" | "api.core.v1.EphemeralContainer", "ports") => {
            keyed(&["containerPort", "protocol"], "containerPort")
        }
        ("api.core.v1.Container" | "api.core.v1.EphemeralContainer", "volumeDevices") => {
            keyed(&["devicePath"], "devicePath")
        }
        (
            "api.core.v1.Container" | "api.core.v1.EphemeralContainer" | "api.core.v1.ContainerStatus",
            "volumeMounts",
        ) => keyed(&["mountPath"], "mountPath"),
        ("api.core.v1.ContainerStatus", "allocatedResourcesStatus") => keyed(&["name"], "name"),
        ("api.core.v1.ContainerRestartRuleOnExitCodes", "values") => SET,
        ("api.core.v1.NodeSpec", "podCIDRs") => PATCH_SET,
        ("api.core.v1.NodeStatus", "addresses") => keyed(&["type"], "type"),
        ("api.core.v1.PodSpec", "containers" | "initContainers" | "ephemeralContainers" | "imagePullSecrets") => {
            keyed(&["name"], "name")
        }
        ("api.core.v1.PodSpec", "schedulingGates") => keyed(&["name"], "name"),
        ("api.core.v1.PodSpec", "hostAliases") => keyed(&["ip"], "ip"),
        ("api.core.v1.PodSpec", "resourceClaims" | "volumes") => retained(&["name"], "name"),
        ("api.core.v1.PodSpec", "topologySpreadConstraints") => {
            keyed(&["topologyKey", "whenUnsatisfiable"], "topologyKey")
        }
        ("api.core.v1.PodSpec", "nodeSelector") => ATOMIC_MAP,
        ("api.core.v1.PodStatus", "podIPs") => keyed(&["ip"], "ip"),
        ("api.core.v1.PodStatus", "hostIPs") => patch_only("ip"),
        ("api.core.v1.PodStatus", "resourceClaimStatuses") => retained(&["name"], "name"),
        ("api.core.v1.ResourceRequirements" | "api.core.v1.VolumeResourceRequirements", "claims") => {
            map_only(&["name"])
        }
        ("api.core.v1.ResourceStatus", "resources") => map_only(&["resourceID"]),
        ("api.core.v1.ServiceAccount", "secrets") => keyed(&["name"], "name"),
        ("api.core.v1.ServiceSpec", "ports") => keyed(&["port", "protocol"], "port"),
        ("api.core.v1.ServiceSpec" | "api.core.v1.ReplicationControllerSpec", "selector") => ATOMIC_MAP,
        (
            "api.core.v1.ConfigMapKeySelector" | "api.core.v1.SecretKeySelector" | "api.core.v1.ObjectFieldSelector",
            "",
        )
        | ("api.core.v1.ResourceFieldSelector" | "api.core.v1.LocalObjectReference", "")
        | ("api.core.v1.ObjectReference" | "api.core.v1.SecretReference" | "api.core.v1.NodeSelector", "")
        | ("api.core.v1.NodeSelectorTerm" | "api.core.v1.TypedLocalObjectReference", "") => ATOMIC_MAP,
        ("api.discovery.v1.Endpoint", "addresses") => SET,
        ("api.storage.v1.CSIDriverSpec", "volumeLifecycleModes") => SET,
        ("api.storage.v1.CSINodeSpec", "drivers") => keyed(&["name"], "name"),
        ("api.node.v1.Scheduling", "nodeSelector") => ATOMIC_MAP,
        _ => return None,
    })
}
