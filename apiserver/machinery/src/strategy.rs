//! What the server does to an object before it stores it: which part a write may touch, when the generation counts up, and
//! what a new object starts with.

use serde_json::{Map, Value, json};

use crate::resource::Resource;
use crate::status::{Status, bad_request};

/// Metadata that clients cannot change.
const SERVER_METADATA: &[&str] =
    &["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"];

/// Prepare a new object: drop what clients may not set, and start status and generation. The server adds uid,
/// creationTimestamp and resourceVersion itself.
pub fn prepare_create(resource: &Resource, object: &mut Value) {
    let api_version = resource.api_version();
    if let Value::Object(fields) = object {
        // apiVersion and kind lead, as in everything that kubectl prints.
        fields.shift_insert(0, "apiVersion".into(), json!(api_version));
        fields.shift_insert(1, "kind".into(), json!(resource.kind));
        if !fields.get("metadata").is_some_and(Value::is_object) {
            fields.insert("metadata".into(), json!({}));
        }
    }
    let metadata = metadata(object);
    for field in SERVER_METADATA.iter().chain(&["resourceVersion", "generation"]) {
        metadata.shift_remove(*field);
    }
    if !resource.namespaced {
        metadata.shift_remove("namespace");
    }
    if resource.has_generation {
        metadata.insert("generation".into(), json!(1));
    }
    // Nodes come with their status when a kubelet registers.
    let keeps_status = (resource.group, resource.plural) == ("", "nodes");
    if resource.has_status
        && !keeps_status
        && let Value::Object(fields) = object
    {
        fields.shift_remove("status");
    }
    match (resource.group, resource.plural) {
        ("", "pods") => {
            let class = qos_class(&object["spec"]);
            object["status"] = json!({"phase": "Pending", "qosClass": class});
            if object["spec"]["priority"].is_null()
                && let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
            {
                let policy = spec.get("preemptionPolicy").cloned().filter(|policy| !policy.is_null());
                let priority = match spec.get("priorityClassName").and_then(Value::as_str) {
                    Some("system-node-critical") => 2_000_001_000,
                    Some("system-cluster-critical") => 2_000_000_000,
                    _ => 0,
                };
                spec.insert("priority".into(), json!(priority));
                spec.insert("preemptionPolicy".into(), policy.unwrap_or_else(|| json!("PreemptLowerPriority")));
            }
        }
        ("", "namespaces") => object["status"] = json!({"phase": "Active"}),
        ("", "persistentvolumes" | "persistentvolumeclaims") => object["status"] = json!({"phase": "Pending"}),
        ("", "services") => object["status"] = json!({"loadBalancer": {}}),
        ("certificates.k8s.io", "certificatesigningrequests" | "podcertificaterequests") => {
            object["status"] = json!({})
        }
        _ if resource.has_status && object.get("status").is_none() && starts_with_status(resource) => {
            object["status"] = json!({});
        }
        _ => {}
    }
}

fn starts_with_status(resource: &Resource) -> bool {
    matches!(resource.group, "apps" | "batch" | "policy")
}

fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    match &mut object["metadata"] {
        Value::Object(metadata) => metadata,
        _ => unreachable!("metadata was just made an object"),
    }
}

/// What every write keeps of the stored object. An update without resourceVersion is unconditional; the store compares
/// versions before it calls this.
fn keep_metadata(resource: &Resource, old: &Value, new: &mut Value) -> Result<(), Status> {
    let api_version = resource.api_version();
    if let Value::Object(fields) = new {
        fields.shift_insert(0, "apiVersion".into(), json!(api_version));
        fields.shift_insert(1, "kind".into(), json!(resource.kind));
    }
    let sent_uid = new["metadata"]["uid"].as_str().unwrap_or_default();
    let uid = old["metadata"]["uid"].as_str().unwrap_or_default();
    let name = old["metadata"]["name"].as_str().unwrap_or_default();
    if !sent_uid.is_empty() && sent_uid != uid {
        let why = format!("Precondition failed: UID in precondition: {sent_uid}, UID in object meta: {uid}");
        return Err(crate::status::conflict(resource, name, &why));
    }
    let sent_name = new["metadata"]["name"].as_str().unwrap_or_default();
    if !sent_name.is_empty() && sent_name != name {
        let text = format!("the name of the object ({sent_name}) does not match the name on the URL ({name})");
        return Err(bad_request(text));
    }
    let kept: Vec<(&str, Option<Value>)> = SERVER_METADATA
        .iter()
        .chain(&["name", "namespace", "generation", "resourceVersion"])
        .map(|field| (*field, old["metadata"].get(*field).cloned()))
        .collect();
    let metadata = metadata(new);
    for (field, value) in kept {
        match value {
            Some(value) => drop(metadata.insert(field.to_owned(), value)),
            None => drop(metadata.shift_remove(field)),
        }
    }
    Ok(())
}

/// Prepare an update of the main resource: the status stays as stored, and the generation counts up when anything but
/// metadata and status changes.
pub fn prepare_update(resource: &Resource, old: &Value, new: &mut Value) -> Result<(), Status> {
    keep_metadata(resource, old, new)?;
    if resource.has_status {
        copy(old, new, "status");
    }
    if resource.group.is_empty() && resource.plural == "namespaces" {
        // Only …/finalize changes them.
        copy(old, new, "spec");
    }
    if resource.plural == "certificatesigningrequests" {
        crate::csr::keep_spec(old, new);
    }
    if resource.group.is_empty() && resource.plural == "pods" {
        keep_pod_fields(old, new);
    }
    if resource.has_generation && content(old) != content(new) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        new["metadata"]["generation"] = json!(generation);
    }
    Ok(())
}

/// Fields of a pod that admission sets on create, so that an update from the client's own manifest does not drop them.
fn keep_pod_fields(old: &Value, new: &mut Value) {
    for field in ["priority", "preemptionPolicy"] {
        if new["spec"].get(field).is_none()
            && let (Some(value), Some(spec)) = (old["spec"].get(field), new["spec"].as_object_mut())
        {
            spec.insert(field.to_owned(), value.clone());
        }
    }
}

/// Prepare an update of `…/status`: everything but the status (and for nodes also labels and annotations, which kubelets
/// set there) stays as stored. Generation does not change.
pub fn prepare_status_update(resource: &Resource, old: &Value, new: &mut Value) -> Result<(), Status> {
    keep_metadata(resource, old, new)?;
    let metadata_kept: &[&str] = match (resource.group, resource.plural) {
        ("", "nodes") => &["finalizers", "ownerReferences"],
        _ => &["labels", "annotations", "finalizers", "ownerReferences"],
    };
    for field in metadata_kept {
        let kept = old["metadata"].get(*field).cloned();
        let metadata = metadata(new);
        match kept {
            Some(value) => drop(metadata.insert((*field).to_owned(), value)),
            None => drop(metadata.shift_remove(*field)),
        }
    }
    let mut out = old.clone();
    out["metadata"] = new["metadata"].clone();
    copy(new, &mut out, "status");
    if resource.group.is_empty() && resource.plural == "pods" && out["status"]["qosClass"].is_null() {
        out["status"]["qosClass"] = json!(qos_class(&old["spec"]));
    }
    *new = out;
    Ok(())
}

fn copy(from: &Value, to: &mut Value, field: &str) {
    let Value::Object(target) = to else {
        return;
    };
    match from.get(field) {
        Some(value) => drop(target.insert(field.to_owned(), value.clone())),
        None => drop(target.shift_remove(field)),
    }
}

fn content(object: &Value) -> Vec<(&String, &Value)> {
    let fields = object.as_object().into_iter().flatten();
    let mut out: Vec<_> =
        fields.filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind")).collect();
    out.sort_by_key(|(key, _)| *key);
    out
}

/// The QoS class of a pod's spec: `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(spec: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    let zero = |value: &Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        gantry_kube::quantity::Quantity::parse(&text).is_ok_and(|quantity| quantity.is_zero())
    };
    let mut look = |resources: &Value| {
        for name in ["cpu", "memory"] {
            let limit = resources["limits"].get(name).filter(|value| !zero(value));
            let request = resources["requests"].get(name).filter(|value| !zero(value)).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    };
    if spec["resources"].as_object().is_some_and(|resources| !resources.is_empty()) {
        look(&spec["resources"]);
    } else {
        for list in ["initContainers", "containers"] {
            for container in spec[list].as_array().into_iter().flatten() {
                look(&container["resources"]);
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::find;

    #[test]
    fn new_pods_are_pending_with_a_class() {
        let pods = find("", "v1", "pods").unwrap();
        let mut pod = json!({"metadata": {"name": "a", "uid": "x"}, "status": {"phase": "Running"},
            "spec": {"containers": [{"resources": {"requests": {"cpu": "1"}}}]}});
        prepare_create(pods, &mut pod);
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "Burstable"}));
        assert_eq!(pod["metadata"], json!({"name": "a", "generation": 1}));
        assert_eq!(pod.as_object().unwrap().keys().next().unwrap(), "apiVersion");
    }

    #[test]
    fn spec_and_status_are_written_apart() {
        let pods = find("", "v1", "pods").unwrap();
        let old = json!({"metadata": {"name": "a", "uid": "u", "generation": 1}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        let mut new =
            json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n", "x": 1}, "status": {"phase": "Failed"}});
        prepare_update(pods, &old, &mut new).unwrap();
        assert_eq!(new["status"]["phase"], "Running");
        assert_eq!(new["metadata"]["generation"], 2);
        let mut new =
            json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {}, "status": {"phase": "Failed"}});
        prepare_status_update(pods, &old, &mut new).unwrap();
        assert_eq!(new["status"]["phase"], "Failed");
        assert_eq!(new["spec"], old["spec"]);
        assert!(new["metadata"].get("labels").is_none());
        let mut other = json!({"metadata": {"name": "a", "uid": "v"}});
        assert_eq!(prepare_update(pods, &old, &mut other).unwrap_err().code, 409);
    }

    #[test]
    fn qos_classes_follow_requests_and_limits() {
        let spec = |resources: Value| json!({"containers": [{"resources": resources}]});
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(qos_class(&spec(json!({}))), "BestEffort");
        assert_eq!(qos_class(&spec(json!({"limits": both, "requests": both}))), "Guaranteed");
        assert_eq!(qos_class(&spec(json!({"limits": both}))), "Guaranteed");
        assert_eq!(qos_class(&spec(json!({"limits": {"cpu": "1"}}))), "Burstable");
    }
}
