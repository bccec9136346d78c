//! Defaults: the fields that upstream fills in when a client leaves them out, so that what is read back is complete.

mod pod;
mod workload;

use serde_json::{Map, Value, json};

use crate::resource::Gvk;

pub use pod::pod_spec;

/// Fill in the defaults of a kind. Doing it twice changes nothing more; unknown kinds stay as they are.
pub fn apply(gvk: Gvk<'_>, object: &mut Value) {
    match (gvk.group, gvk.kind) {
        ("", "Pod") => pod::pod(object),
        ("", "PodTemplate") => template_of(object, "template"),
        ("", "ReplicationController") => workload::replication_controller(object),
        ("", "Service") => service(object),
        ("", "Namespace") => namespace(object),
        ("", "Secret") => secret(object),
        ("", "Node") => node(object),
        ("", "Endpoints") => endpoints(object),
        ("", "PersistentVolume") => persistent_volume(object),
        ("", "PersistentVolumeClaim") => claim(object),
        ("", "LimitRange") => limit_range(object),
        ("apps", "Deployment") => workload::deployment(object),
        ("apps", "ReplicaSet") => workload::replica_set(object),
        ("apps", "DaemonSet") => workload::daemon_set(object),
        ("apps", "StatefulSet") => workload::stateful_set(object),
        ("batch", "Job") => workload::job(object),
        ("batch", "CronJob") => workload::cron_job(object),
        ("discovery.k8s.io", "EndpointSlice") => endpoint_slice(object),
        ("networking.k8s.io", "NetworkPolicy") => network_policy(object),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => binding(object),
        ("scheduling.k8s.io", "PriorityClass") => set(object, "preemptionPolicy", json!("PreemptLowerPriority")),
        ("storage.k8s.io", "StorageClass") => {
            set(object, "reclaimPolicy", json!("Delete"));
            set(object, "volumeBindingMode", json!("Immediate"));
        }
        ("storage.k8s.io", "CSIDriver") => csi_driver(object),
        _ => {}
    }
}

/// Set a key that is missing or null.
fn set(object: &mut Value, key: &str, value: Value) {
    if let Value::Object(object) = object {
        match object.get_mut(key) {
            Some(present) if !present.is_null() => {}
            Some(null) => *null = value,
            None => drop(object.insert(key.to_owned(), value)),
        }
    }
}

/// Set a text that is missing, null or empty.
fn set_text(object: &mut Value, key: &str, value: &str) {
    if object.get(key).and_then(Value::as_str).is_none_or(str::is_empty)
        && let Value::Object(object) = object
    {
        object.insert(key.to_owned(), json!(value));
    }
}

/// The object at a key, made where it is missing; `None` when something else is there.
fn make<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let inner = object.as_object_mut()?.entry(key.to_owned()).or_insert(Value::Null);
    if inner.is_null() {
        *inner = Value::Object(Map::new());
    }
    inner.is_object().then_some(inner)
}

/// The object at a key, if there is one.
fn inner<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    object.get_mut(key).filter(|value| value.is_object())
}

fn items<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

fn template_of(object: &mut Value, key: &str) {
    if let Some(template) = inner(object, key)
        && let Some(spec) = make(template, "spec")
    {
        pod_spec(spec);
    }
}

fn service(object: &mut Value) {
    let Some(spec) = make(object, "spec") else {
        return;
    };
    set_text(spec, "sessionAffinity", "None");
    set_text(spec, "type", "ClusterIP");
    if spec["sessionAffinity"] == "ClientIP"
        && let Some(client) = make(spec, "sessionAffinityConfig").and_then(|config| make(config, "clientIP"))
    {
        set(client, "timeoutSeconds", json!(10800));
    }
    for port in items(spec, "ports") {
        set_text(port, "protocol", "TCP");
        if matches!(&port["targetPort"], Value::Null) || port["targetPort"] == 0 || port["targetPort"] == "" {
            let number = port["port"].clone();
            if let Value::Object(port) = port {
                port.insert("targetPort".into(), number);
            }
        }
    }
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    if kind != "ExternalName" {
        set(spec, "internalTrafficPolicy", json!("Cluster"));
    }
    if kind == "NodePort" || kind == "LoadBalancer" {
        set(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
    if kind != "ExternalName" && spec["ipFamilyPolicy"].is_null() {
        set(spec, "ipFamilies", json!(["IPv4"]));
        set(spec, "ipFamilyPolicy", json!("SingleStack"));
    }
}

fn namespace(object: &mut Value) {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if !name.is_empty()
        && let Some(labels) = make(object, "metadata").and_then(|metadata| make(metadata, "labels"))
    {
        labels["kubernetes.io/metadata.name"] = json!(name);
    }
    if let Some(spec) = make(object, "spec") {
        set(spec, "finalizers", json!(["kubernetes"]));
    }
    if let Some(status) = make(object, "status") {
        set_text(status, "phase", "Active");
    }
}

fn secret(object: &mut Value) {
    use base64::Engine;
    let Value::Object(fields) = object else {
        return;
    };
    if let Some(Value::Object(texts)) = fields.shift_remove("stringData") {
        let data = fields.entry("data").or_insert(Value::Null);
        if data.is_null() {
            *data = json!({});
        }
        for (key, text) in texts {
            data[key] = json!(base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or_default()));
        }
    }
    set_text(object, "type", "Opaque");
}

fn node(object: &mut Value) {
    make(object, "spec");
    if let Some(status) = make(object, "status") {
        let capacity = status["capacity"].clone();
        if capacity.is_object() {
            set(status, "allocatable", capacity);
        }
    }
}

fn endpoints(object: &mut Value) {
    for subset in items(object, "subsets") {
        for port in items(subset, "ports") {
            set_text(port, "protocol", "TCP");
        }
    }
}

fn endpoint_slice(object: &mut Value) {
    for port in items(object, "ports") {
        set(port, "name", json!(""));
        set_text(port, "protocol", "TCP");
    }
}

fn persistent_volume(object: &mut Value) {
    if let Some(spec) = make(object, "spec") {
        set_text(spec, "persistentVolumeReclaimPolicy", "Retain");
        set(spec, "volumeMode", json!("Filesystem"));
        if let Some(path) = inner(spec, "hostPath") {
            set(path, "type", json!(""));
        }
    }
    if let Some(status) = make(object, "status") {
        set_text(status, "phase", "Pending");
    }
}

fn claim(object: &mut Value) {
    if let Some(spec) = make(object, "spec") {
        set(spec, "volumeMode", json!("Filesystem"));
    }
    if let Some(status) = make(object, "status") {
        set_text(status, "phase", "Pending");
    }
}

fn limit_range(object: &mut Value) {
    let Some(spec) = inner(object, "spec") else {
        return;
    };
    for limit in items(spec, "limits") {
        if limit["type"] != "Container" {
            continue;
        }
        for (target, source) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            let Value::Object(values) = limit[source].clone() else {
                continue;
            };
            if let Some(defaults) = make(limit, target) {
                values.into_iter().for_each(|(name, value)| set(defaults, &name, value));
            }
        }
    }
}

fn network_policy(object: &mut Value) {
    let Some(spec) = make(object, "spec") else {
        return;
    };
    for direction in ["ingress", "egress"] {
        for rule in items(spec, direction) {
            for port in items(rule, "ports") {
                set(port, "protocol", json!("TCP"));
            }
        }
    }
    let egress = spec["egress"].as_array().is_some_and(|list| !list.is_empty());
    set(spec, "policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
}

fn binding(object: &mut Value) {
    if let Some(role) = inner(object, "roleRef") {
        set_text(role, "apiGroup", "rbac.authorization.k8s.io");
    }
    for subject in items(object, "subjects") {
        if let Some("User" | "Group") = subject["kind"].as_str() {
            set_text(subject, "apiGroup", "rbac.authorization.k8s.io")
        }
    }
}

fn csi_driver(object: &mut Value) {
    let Some(spec) = make(object, "spec") else {
        return;
    };
    set(spec, "attachRequired", json!(true));
    set(spec, "podInfoOnMount", json!(false));
    set(spec, "storageCapacity", json!(false));
    set(spec, "fsGroupPolicy", json!("ReadWriteOnceWithFSType"));
    set(spec, "volumeLifecycleModes", json!(["Persistent"]));
    set(spec, "requiresRepublish", json!(false));
    set(spec, "seLinuxMount", json!(false));
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
