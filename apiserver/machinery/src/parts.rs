//! Writes to subresources other than status: binding, scale, ephemeral containers, resize and finalize. Each takes the
//! stored object and gives the object to store.

use serde_json::{Value, json};

use crate::resource::{Resource, api_version};
use crate::status::{self, Status, bad_request, conflict};
use crate::validate::FieldError;

/// Bind a pod to a node: what `pods/binding` stores. `now` is RFC 3339 with seconds.
pub fn bind(resource: &Resource, pod: &Value, binding: &Value, now: &str) -> Result<Value, Status> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    let kind = binding["target"]["kind"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(status::invalid(resource, name, &[FieldError::required("target.name", "")]));
    }
    if !matches!(kind, "" | "Node") {
        return Err(status::invalid(
            resource,
            name,
            &[FieldError::not_supported("target.kind", kind, &["Node", "<empty>"])],
        ));
    }
    let uid = binding["metadata"]["uid"].as_str().unwrap_or_default();
    let own = pod["metadata"]["uid"].as_str().unwrap_or_default();
    if !uid.is_empty() && uid != own {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {own}");
        return Err(conflict(resource, name, &why));
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        return Err(conflict(resource, name, &format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    let bound = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !bound.is_empty() {
        return Err(conflict(resource, name, &format!("pod {name} is already assigned to node {bound:?}")));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return Err(conflict(resource, name, &format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    let mut out = pod.clone();
    out["spec"]["nodeName"] = json!(node);
    for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
        out["metadata"]["annotations"][key] = value.clone();
    }
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    if !out["status"]["conditions"].is_array() {
        out["status"]["conditions"] = json!([]);
    }
    if let Value::Array(conditions) = &mut out["status"]["conditions"] {
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(condition);
    }
    Ok(out)
}

/// What `…/scale` shows of an object.
pub fn scale_of(resource: &Resource, object: &Value) -> Value {
    let metadata = &object["metadata"];
    let mut out = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {},
        "spec": {},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)},
    });
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata.get(field) {
            out["metadata"][field] = value.clone();
        }
    }
    match object["spec"]["replicas"].as_i64() {
        Some(0) | None => {}
        Some(replicas) => out["spec"]["replicas"] = json!(replicas),
    }
    let labels = if resource.kind == "ReplicationController" {
        &object["spec"]["selector"]
    } else {
        &object["spec"]["selector"]["matchLabels"]
    };
    let mut terms: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    terms.sort();
    if !terms.is_empty() {
        out["status"]["selector"] = json!(terms.join(","));
    }
    out
}

/// The object that a write of its scale makes; the generation counts up when the number of replicas changes.
pub fn with_scale(resource: &Resource, object: &Value, scale: &Value) -> Result<Value, Status> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(status::invalid(resource, name, &[error]));
    }
    let version = scale["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if !version.is_empty() && object["metadata"]["resourceVersion"] != version {
        return Err(status::stale(resource, name));
    }
    let mut out = object.clone();
    if out["spec"]["replicas"] != json!(replicas) {
        out["spec"]["replicas"] = json!(replicas);
        if resource.has_generation {
            out["metadata"]["generation"] = json!(object["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
        }
    }
    Ok(out)
}

/// What `pods/ephemeralcontainers` stores: containers may come, and none may change or go.
pub fn with_ephemeral_containers(resource: &Resource, old: &Value, new: &Value) -> Result<Value, Status> {
    let name = old["metadata"]["name"].as_str().unwrap_or_default();
    let list = |pod: &Value| pod["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default();
    let (before, after) = (list(old), list(new));
    for (index, container) in before.iter().enumerate() {
        if after.get(index) != Some(container) {
            let text = format!("existing ephemeral containers {} may not be removed or changed", container["name"]);
            let error = FieldError::forbidden(format!("spec.ephemeralContainers[{index}]"), text);
            return Err(status::invalid(resource, name, &[error]));
        }
    }
    let mut out = old.clone();
    if before != after {
        out["spec"]["ephemeralContainers"] = Value::Array(after);
        count_up(&mut out);
    }
    Ok(out)
}

/// What `pods/resize` stores: cpu and memory of containers, and of the pod as a whole where it has some, may change, and nothing
/// else.
pub fn with_resources(resource: &Resource, old: &Value, new: &Value) -> Result<Value, Status> {
    let name = old["metadata"]["name"].as_str().unwrap_or_default();
    let mut out = old.clone();
    for list in ["containers", "initContainers"] {
        let Some(containers) = out["spec"].get_mut(list).and_then(Value::as_array_mut) else {
            continue;
        };
        for container in containers {
            let wanted = new["spec"][list].as_array().into_iter().flatten().find(|c| c["name"] == container["name"]);
            match wanted {
                Some(wanted) if wanted.get("resources").is_some() => {
                    container["resources"] = wanted["resources"].clone()
                }
                Some(_) => {}
                None => {
                    let error = FieldError::forbidden(
                        format!("spec.{list}"),
                        "containers may not be added or removed on resize",
                    );
                    return Err(status::invalid(resource, name, &[error]));
                }
            }
        }
    }
    if let Some(wanted) = new["spec"].get("resources").filter(|r| !r.is_null() && **r != old["spec"]["resources"]) {
        if old["spec"]["resources"].as_object().is_none_or(|own| own.is_empty()) {
            let error =
                FieldError::forbidden("spec.resources", "pod-level resources may not be added to a pod that has none");
            return Err(status::invalid(resource, name, &[error]));
        }
        out["spec"]["resources"] = wanted.clone();
    }
    if crate::strategy::qos_class(&old["spec"]) != crate::strategy::qos_class(&out["spec"]) {
        let class = crate::strategy::qos_class(&out["spec"]);
        let error = FieldError::invalid("spec", class, "Pod QOS Class may not change as a result of resizing");
        return Err(status::invalid(resource, name, &[error]));
    }
    if out != *old {
        count_up(&mut out);
    }
    Ok(out)
}

fn count_up(object: &mut Value) {
    let generation = object["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
    object["metadata"]["generation"] = json!(generation);
}

/// What `namespaces/finalize` stores: the finalizers of the spec.
pub fn with_finalizers(old: &Value, new: &Value) -> Value {
    let mut out = old.clone();
    out["spec"]["finalizers"] = new["spec"]["finalizers"].clone();
    if out["spec"]["finalizers"].is_null() {
        out["spec"]["finalizers"] = json!([]);
    }
    out
}

/// The PartialObjectMetadata of an object.
pub fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// A body must be of the kind that its path serves; `apiVersion` and `kind` may be missing.
pub fn check_kind(group: &str, version: &str, kind: &str, body: &Value) -> Result<(), Status> {
    if !body.is_object() {
        return Err(bad_request(format!("the body must be a JSON object of kind {kind}")));
    }
    let wanted = api_version(group, version);
    let sent_version = body["apiVersion"].as_str().unwrap_or_default();
    let sent_kind = body["kind"].as_str().unwrap_or_default();
    if (!sent_version.is_empty() && sent_version != wanted) || (!sent_kind.is_empty() && sent_kind != kind) {
        return Err(bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): {sent_kind} in version {sent_version:?} does not \
             match {wanted}, Kind={kind}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::find;

    fn pods() -> &'static Resource {
        find("", "v1", "pods").unwrap()
    }

    #[test]
    fn a_pod_is_bound_once() {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {}});
        let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
        let bound = bind(pods(), &pod, &binding, "2026-01-01T00:00:00Z").unwrap();
        assert_eq!(bound["spec"]["nodeName"], "n");
        assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
        let again = bind(pods(), &bound, &binding, "2026-01-01T00:00:00Z").unwrap_err();
        assert_eq!((again.code, again.message.contains("already assigned to node \"n\"")), (409, true));
        assert_eq!(bind(pods(), &pod, &json!({}), "").unwrap_err().code, 422);
    }

    #[test]
    fn scales_read_and_write_replicas() {
        let deployments = find("apps", "v1", "deployments").unwrap();
        let object = json!({"metadata": {"name": "d", "resourceVersion": "5", "generation": 1},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 1}});
        let mut scale = scale_of(deployments, &object);
        assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(2), &json!("a=b")));
        scale["spec"]["replicas"] = json!(4);
        let scaled = with_scale(deployments, &object, &scale).unwrap();
        assert_eq!((&scaled["spec"]["replicas"], &scaled["metadata"]["generation"]), (&json!(4), &json!(2)));
        scale["metadata"]["resourceVersion"] = json!("4");
        assert_eq!(with_scale(deployments, &object, &scale).unwrap_err().code, 409);
    }

    #[test]
    fn ephemeral_containers_only_come_and_resizes_keep_the_class() {
        let old = json!({"metadata": {"name": "p"}, "spec": {"ephemeralContainers": [{"name": "a"}],
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
        let mut new = old.clone();
        new["spec"]["ephemeralContainers"] = json!([{"name": "a"}, {"name": "b"}]);
        assert!(with_ephemeral_containers(pods(), &old, &new).is_ok());
        assert_eq!(with_ephemeral_containers(pods(), &new, &old).unwrap_err().code, 422);
        let mut resized = old.clone();
        resized["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("2");
        let out = with_resources(pods(), &old, &resized).unwrap();
        assert_eq!(out["spec"]["containers"][0]["resources"]["requests"]["cpu"], "2");
        resized["spec"]["resources"] = json!({"limits": {"cpu": "3"}});
        assert_eq!(with_resources(pods(), &old, &resized).unwrap_err().code, 422, "it had none as a whole");
        let mut whole = old.clone();
        whole["spec"]["resources"] = json!({"limits": {"cpu": "2"}});
        let out = with_resources(pods(), &whole, &resized).unwrap();
        assert_eq!(out["spec"]["resources"]["limits"]["cpu"], "3");
        resized["spec"].as_object_mut().unwrap().remove("resources");
        assert_eq!(with_resources(pods(), &whole, &resized).unwrap()["spec"]["resources"]["limits"]["cpu"], "2");
        resized["spec"]["containers"][0]["resources"] = json!({});
        assert_eq!(with_resources(pods(), &old, &resized).unwrap_err().code, 422);
    }

    #[test]
    fn bodies_must_be_of_the_kind_that_is_served() {
        assert!(check_kind("", "v1", "Pod", &json!({})).is_ok());
        assert!(check_kind("", "v1", "Pod", &json!({"apiVersion": "v1", "kind": "Pod"})).is_ok());
        assert_eq!(check_kind("", "v1", "Pod", &json!({"kind": "Service"})).unwrap_err().code, 400);
    }
}
