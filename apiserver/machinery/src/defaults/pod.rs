//! Defaults of pods and pod templates.

use serde_json::{Value, json};

use super::{inner, items, make, set, set_text};

pub(super) fn pod(object: &mut Value) {
    let Some(spec) = make(object, "spec") else {
        return;
    };
    set(spec, "enableServiceLinks", json!(true));
    if spec["hostNetwork"] == true {
        for list in ["containers", "initContainers"] {
            for container in items(spec, list) {
                for port in items(container, "ports") {
                    let number = port["containerPort"].clone();
                    if number.is_number() && port["hostPort"].as_i64().unwrap_or(0) == 0 {
                        port["hostPort"] = number;
                    }
                }
            }
        }
    }
    pod_spec(spec);
    // Only pods, not templates: what is limited and not requested is requested.
    for list in ["containers", "initContainers"] {
        for container in items(spec, list) {
            requests_from_limits(container);
        }
    }
    requests_from_limits_if_any(spec);
}

fn requests_from_limits(owner: &mut Value) {
    let Some(resources) = inner(owner, "resources") else {
        return;
    };
    if let Some(limits) = resources["limits"].as_object().cloned().filter(|limits| !limits.is_empty())
        && let Some(requests) = make(resources, "requests")
    {
        limits.into_iter().for_each(|(name, value)| set(requests, &name, value));
    }
}

fn requests_from_limits_if_any(spec: &mut Value) {
    if spec["resources"]["limits"].is_object() {
        requests_from_limits(spec);
    }
}

/// The defaults of a pod's spec that templates share.
pub fn pod_spec(spec: &mut Value) {
    set_text(spec, "restartPolicy", "Always");
    set(spec, "terminationGracePeriodSeconds", json!(30));
    set_text(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "securityContext", json!({}));
    set_text(spec, "schedulerName", "default-scheduler");
    // Both names are kept alike for old clients.
    let (new, old) = (spec["serviceAccountName"].as_str(), spec["serviceAccount"].as_str());
    match (new.filter(|name| !name.is_empty()), old.filter(|name| !name.is_empty())) {
        (Some(name), _) => spec["serviceAccount"] = json!(name.to_owned()),
        (None, Some(name)) => spec["serviceAccountName"] = json!(name.to_owned()),
        (None, None) => {}
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container_value in items(spec, list) {
            container(container_value);
        }
    }
    for volume_value in items(spec, "volumes") {
        volume(volume_value);
    }
}

fn container(container: &mut Value) {
    set(container, "resources", json!({}));
    set_text(container, "terminationMessagePath", "/dev/termination-log");
    set_text(container, "terminationMessagePolicy", "File");
    let policy = pull_policy(container["image"].as_str().unwrap_or_default());
    set_text(container, "imagePullPolicy", policy);
    for port in items(container, "ports") {
        set_text(port, "protocol", "TCP");
    }
    for variable in items(container, "env") {
        if let Some(reference) = inner(variable, "valueFrom").and_then(|source| inner(source, "fieldRef")) {
            set_text(reference, "apiVersion", "v1");
        }
        if let Some(reference) = inner(variable, "valueFrom").and_then(|source| inner(source, "resourceFieldRef")) {
            set(reference, "divisor", json!("0"));
        }
        if let Some(reference) = inner(variable, "valueFrom").and_then(|source| inner(source, "fileKeyRef")) {
            set(reference, "optional", json!(false));
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(value) = inner(container, name) {
            probe(value);
        }
    }
    if let Some(lifecycle) = inner(container, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(handler) = inner(lifecycle, name) {
                action(handler);
            }
        }
    }
}

fn probe(probe: &mut Value) {
    action(probe);
    for (key, value) in [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if probe[key].as_i64().unwrap_or(0) == 0 {
            probe[key] = json!(value);
        }
    }
}

fn action(handler: &mut Value) {
    if let Some(http) = inner(handler, "httpGet") {
        set_text(http, "path", "/");
        set_text(http, "scheme", "HTTP");
    }
    if let Some(grpc) = inner(handler, "grpc") {
        set(grpc, "service", json!(""));
    }
}

/// `Always` for images without tag or with the tag `latest`, otherwise `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

const VOLUME_KINDS: &[&str] = &[
    "hostPath",
    "emptyDir",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "persistentVolumeClaim",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "downwardAPI",
    "fc",
    "azureFile",
    "configMap",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "projected",
    "portworxVolume",
    "scaleIO",
    "storageos",
    "csi",
    "ephemeral",
    "image",
];

fn volume(volume: &mut Value) {
    if !VOLUME_KINDS.iter().any(|kind| volume.get(kind).is_some_and(|value| !value.is_null())) {
        set(volume, "emptyDir", json!({}));
    }
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = inner(volume, kind) {
            set(source, "defaultMode", json!(420));
        }
    }
    if let Some(path) = inner(volume, "hostPath") {
        set(path, "type", json!(""));
    }
    if let Some(source) = inner(volume, "downwardAPI") {
        items(source, "items").for_each(downward_file);
    }
    if let Some(source) = inner(volume, "projected") {
        for part in items(source, "sources") {
            if let Some(downward) = inner(part, "downwardAPI") {
                items(downward, "items").for_each(downward_file);
            }
            if let Some(token) = inner(part, "serviceAccountToken") {
                set(token, "expirationSeconds", json!(3600));
            }
        }
    }
    if let Some(source) = inner(volume, "image") {
        let policy = pull_policy(source["reference"].as_str().unwrap_or_default());
        set_text(source, "pullPolicy", policy);
    }
    if let Some(spec) =
        inner(volume, "ephemeral").and_then(|e| inner(e, "volumeClaimTemplate")).and_then(|t| inner(t, "spec"))
    {
        set(spec, "volumeMode", json!("Filesystem"));
    }
    if let Some(source) = inner(volume, "iscsi") {
        set_text(source, "iscsiInterface", "default");
    }
    if let Some(source) = inner(volume, "rbd") {
        set_text(source, "pool", "rbd");
        set_text(source, "user", "admin");
        set_text(source, "keyring", "/etc/ceph/keyring");
    }
}

fn downward_file(file: &mut Value) {
    if let Some(reference) = inner(file, "fieldRef") {
        set_text(reference, "apiVersion", "v1");
    }
    if let Some(reference) = inner(file, "resourceFieldRef") {
        set(reference, "divisor", json!("0"));
    }
}
