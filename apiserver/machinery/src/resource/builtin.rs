//! The built-in resources, written as data.

use super::{CREATE, Resource, STORED, Subresource};

const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

const fn part(name: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> Subresource {
    Subresource { name, group: "", version: "", kind, verbs }
}

const fn part_of(
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource { name, group, version, kind, verbs }
}

const SCALE: Subresource = part_of("scale", "autoscaling", "v1", "Scale", STATUS_VERBS);

const CONNECT: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

const POD_PARTS: &[Subresource] = &[
    part("attach", "PodAttachOptions", CONNECT),
    part("binding", "Binding", CREATE),
    part("ephemeralcontainers", "Pod", STATUS_VERBS),
    part_of("eviction", "policy", "v1", "Eviction", CREATE),
    part("exec", "PodExecOptions", CONNECT),
    part("log", "Pod", &["get"]),
    part("portforward", "PodPortForwardOptions", CONNECT),
    part("proxy", "PodProxyOptions", PROXY),
    part("resize", "Pod", STATUS_VERBS),
    part("status", "Pod", STATUS_VERBS),
];

macro_rules! parts {
    () => {
        &[]
    };
    (status $kind:literal) => {
        &[part("status", $kind, STATUS_VERBS)]
    };
    (scale $kind:literal) => {
        &[SCALE, part("status", $kind, STATUS_VERBS)]
    };
}

/// `group version plural singular Kind [short names] scope [categories] parts generation`.
macro_rules! resources {
    ($($group:literal $version:literal $plural:literal $singular:literal $kind:literal [$($short:literal),*] $scope:ident
       [$($category:literal),*] $parts:expr, $status:literal, $generation:literal, $verbs:expr, $storage:literal;)*) => {
        &[$(Resource {
            group: $group, version: $version, plural: $plural, singular: $singular, kind: $kind,
            list_kind: concat!($kind, "List"), short_names: &[$($short),*], namespaced: resources!(@ $scope),
            verbs: $verbs, categories: &[$($category),*], subresources: $parts, has_status: $status,
            has_generation: $generation, storage_group: $storage,
        }),*]
    };
    (@ ns) => { true };
    (@ cluster) => { false };
}

pub(super) const TABLE: &[Resource] = resources! {
    "" "v1" "bindings" "binding" "Binding" [] ns [] parts!(), false, false, CREATE, "";
    "" "v1" "configmaps" "configmap" "ConfigMap" ["cm"] ns [] parts!(), false, false, STORED, "";
    "" "v1" "endpoints" "endpoints" "Endpoints" ["ep"] ns [] parts!(), false, false, STORED, "";
    "" "v1" "events" "event" "Event" ["ev"] ns [] parts!(), false, false, STORED, "";
    "" "v1" "limitranges" "limitrange" "LimitRange" ["limits"] ns [] parts!(), false, false, STORED, "";
    "" "v1" "namespaces" "namespace" "Namespace" ["ns"] cluster [] &[part("finalize", "Namespace", &["update"]), part("status", "Namespace", STATUS_VERBS)], true, false, &["create", "delete", "get", "list", "patch", "update", "watch"], "";
    "" "v1" "nodes" "node" "Node" ["no"] cluster [] &[part("proxy", "NodeProxyOptions", PROXY), part("status", "Node", STATUS_VERBS)], true, false, STORED, "";
    "" "v1" "persistentvolumeclaims" "persistentvolumeclaim" "PersistentVolumeClaim" ["pvc"] ns [] parts!(status "PersistentVolumeClaim"), true, false, STORED, "";
    "" "v1" "persistentvolumes" "persistentvolume" "PersistentVolume" ["pv"] cluster [] parts!(status "PersistentVolume"), true, false, STORED, "";
    "" "v1" "pods" "pod" "Pod" ["po"] ns ["all"] POD_PARTS, true, true, STORED, "";
    "" "v1" "podtemplates" "podtemplate" "PodTemplate" [] ns [] parts!(), false, true, STORED, "";
    "" "v1" "replicationcontrollers" "replicationcontroller" "ReplicationController" ["rc"] ns ["all"] parts!(scale "ReplicationController"), true, true, STORED, "";
    "" "v1" "resourcequotas" "resourcequota" "ResourceQuota" ["quota"] ns [] parts!(status "ResourceQuota"), true, false, STORED, "";
    "" "v1" "secrets" "secret" "Secret" [] ns [] parts!(), false, false, STORED, "";
    "" "v1" "serviceaccounts" "serviceaccount" "ServiceAccount" ["sa"] ns [] &[part_of("token", "authentication.k8s.io", "v1", "TokenRequest", CREATE)], false, false, STORED, "";
    "" "v1" "services" "service" "Service" ["svc"] ns ["all"] &[part("proxy", "ServiceProxyOptions", PROXY), part("status", "Service", STATUS_VERBS)], true, false, STORED, "";
    "apps" "v1" "controllerrevisions" "controllerrevision" "ControllerRevision" [] ns [] parts!(), false, false, STORED, "apps";
    "apps" "v1" "daemonsets" "daemonset" "DaemonSet" ["ds"] ns ["all"] parts!(status "DaemonSet"), true, true, STORED, "apps";
    "apps" "v1" "deployments" "deployment" "Deployment" ["deploy"] ns ["all"] parts!(scale "Deployment"), true, true, STORED, "apps";
    "apps" "v1" "replicasets" "replicaset" "ReplicaSet" ["rs"] ns ["all"] parts!(scale "ReplicaSet"), true, true, STORED, "apps";
    "apps" "v1" "statefulsets" "statefulset" "StatefulSet" ["sts"] ns ["all"] parts!(scale "StatefulSet"), true, true, STORED, "apps";
    "authentication.k8s.io" "v1" "selfsubjectreviews" "selfsubjectreview" "SelfSubjectReview" [] cluster [] parts!(), false, false, CREATE, "authentication.k8s.io";
    "authentication.k8s.io" "v1" "tokenreviews" "tokenreview" "TokenReview" [] cluster [] parts!(), false, false, CREATE, "authentication.k8s.io";
    "authorization.k8s.io" "v1" "localsubjectaccessreviews" "localsubjectaccessreview" "LocalSubjectAccessReview" [] ns [] parts!(), false, false, CREATE, "authorization.k8s.io";
    "authorization.k8s.io" "v1" "selfsubjectaccessreviews" "selfsubjectaccessreview" "SelfSubjectAccessReview" [] cluster [] parts!(), false, false, CREATE, "authorization.k8s.io";
    "authorization.k8s.io" "v1" "selfsubjectrulesreviews" "selfsubjectrulesreview" "SelfSubjectRulesReview" [] cluster [] parts!(), false, false, CREATE, "authorization.k8s.io";
    "authorization.k8s.io" "v1" "subjectaccessreviews" "subjectaccessreview" "SubjectAccessReview" [] cluster [] parts!(), false, false, CREATE, "authorization.k8s.io";
    "batch" "v1" "cronjobs" "cronjob" "CronJob" ["cj"] ns ["all"] parts!(status "CronJob"), true, true, STORED, "batch";
    "batch" "v1" "jobs" "job" "Job" [] ns ["all"] parts!(status "Job"), true, true, STORED, "batch";
    "certificates.k8s.io" "v1" "certificatesigningrequests" "certificatesigningrequest" "CertificateSigningRequest" ["csr"] cluster [] &[part("approval", "CertificateSigningRequest", STATUS_VERBS), part("status", "CertificateSigningRequest", STATUS_VERBS)], true, false, STORED, "certificates.k8s.io";
    "certificates.k8s.io" "v1beta1" "clustertrustbundles" "clustertrustbundle" "ClusterTrustBundle" [] cluster [] parts!(), false, false, STORED, "certificates.k8s.io";
    "certificates.k8s.io" "v1beta1" "podcertificaterequests" "podcertificaterequest" "PodCertificateRequest" [] ns [] parts!(status "PodCertificateRequest"), true, false, STORED, "certificates.k8s.io";
    "coordination.k8s.io" "v1" "leases" "lease" "Lease" [] ns [] parts!(), false, false, STORED, "coordination.k8s.io";
    "discovery.k8s.io" "v1" "endpointslices" "endpointslice" "EndpointSlice" [] ns [] parts!(), false, true, STORED, "discovery.k8s.io";
    "events.k8s.io" "v1" "events" "event" "Event" ["ev"] ns [] parts!(), false, false, STORED, "";
    "networking.k8s.io" "v1" "ingressclasses" "ingressclass" "IngressClass" [] cluster [] parts!(), false, true, STORED, "networking.k8s.io";
    "networking.k8s.io" "v1" "ingresses" "ingress" "Ingress" ["ing"] ns [] parts!(status "Ingress"), true, true, STORED, "networking.k8s.io";
    "networking.k8s.io" "v1" "networkpolicies" "networkpolicy" "NetworkPolicy" ["netpol"] ns [] parts!(), false, true, STORED, "networking.k8s.io";
    "node.k8s.io" "v1" "runtimeclasses" "runtimeclass" "RuntimeClass" [] cluster [] parts!(), false, false, STORED, "node.k8s.io";
    "policy" "v1" "poddisruptionbudgets" "poddisruptionbudget" "PodDisruptionBudget" ["pdb"] ns [] parts!(status "PodDisruptionBudget"), true, true, STORED, "policy";
    "rbac.authorization.k8s.io" "v1" "clusterrolebindings" "clusterrolebinding" "ClusterRoleBinding" [] cluster [] parts!(), false, false, STORED, "rbac.authorization.k8s.io";
    "rbac.authorization.k8s.io" "v1" "clusterroles" "clusterrole" "ClusterRole" [] cluster [] parts!(), false, false, STORED, "rbac.authorization.k8s.io";
    "rbac.authorization.k8s.io" "v1" "rolebindings" "rolebinding" "RoleBinding" [] ns [] parts!(), false, false, STORED, "rbac.authorization.k8s.io";
    "rbac.authorization.k8s.io" "v1" "roles" "role" "Role" [] ns [] parts!(), false, false, STORED, "rbac.authorization.k8s.io";
    "scheduling.k8s.io" "v1" "priorityclasses" "priorityclass" "PriorityClass" ["pc"] cluster [] parts!(), false, true, STORED, "scheduling.k8s.io";
    "storage.k8s.io" "v1" "csidrivers" "csidriver" "CSIDriver" [] cluster [] parts!(), false, false, STORED, "storage.k8s.io";
    "storage.k8s.io" "v1" "csinodes" "csinode" "CSINode" [] cluster [] parts!(), false, false, STORED, "storage.k8s.io";
    "storage.k8s.io" "v1" "storageclasses" "storageclass" "StorageClass" ["sc"] cluster [] parts!(), false, false, STORED, "storage.k8s.io";
    "storage.k8s.io" "v1" "volumeattachments" "volumeattachment" "VolumeAttachment" [] cluster [] parts!(status "VolumeAttachment"), true, false, STORED, "storage.k8s.io";
};
