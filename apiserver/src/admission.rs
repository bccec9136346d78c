//! What changes or refuses writes beyond the objects' own rules.

use std::sync::Arc;

use api_machinery::resource::Resource;
use api_machinery::status::{self, Status};
use serde_json::{Value, json};

use crate::router::{Api, Call};

/// On create: namespace life cycle, node restriction, and for pods service account and default tolerations.
pub fn create(api: &Arc<Api>, call: &Call, object: &mut Value) -> Result<(), Status> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if call.resource.namespaced {
        let Some(namespace) = api.store.get(&format!("/core/namespaces/{}", call.namespace)) else {
            let namespaces = api_machinery::resource::find("", "v1", "namespaces");
            return Err(namespaces.map_or_else(status::no_such_path, |r| status::not_found(r, &call.namespace)));
        };
        if namespace.value["metadata"]["deletionTimestamp"].is_string() {
            let why =
                format!("unable to create new content in namespace {} because it is being terminated", call.namespace);
            return Err(status::forbidden(call.resource, &name, &why));
        }
    }
    let mirror = object["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string();
    if let Some(node) = call.user.node() {
        let refuse = |why: String| Err(status::forbidden(call.resource, &name, &why));
        match call.resource.plural {
            "nodes" if name != node => return refuse(format!("node {node:?} is not allowed to modify node {name:?}")),
            "pods" if !mirror => {
                return refuse(format!(
                    "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
                ));
            }
            "pods" if object["spec"]["nodeName"] != node => {
                return refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
            }
            "podcertificaterequests" => {
                let spec = &object["spec"];
                let of_pod = spec["podName"].as_str().unwrap_or_default();
                let pod = api.store.get(&format!("/core/pods/{}/{of_pod}", call.namespace));
                let same = pod.is_some_and(|entry| {
                    let pod = &entry.value;
                    pod["metadata"]["uid"] == spec["podUID"]
                        && pod["spec"]["nodeName"] == node
                        && pod["spec"]["serviceAccountName"] == spec["serviceAccountName"]
                });
                if !same || spec["nodeName"] != node {
                    return refuse(format!("node {node:?} can only request certificates of pods that are bound to it"));
                }
            }
            _ => {}
        }
    }
    if call.resource.group.is_empty() && call.resource.plural == "namespaces" {
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(name);
    }
    if call.resource.group.is_empty() && call.resource.plural == "nodes" {
        taint(object);
    }
    if call.resource.plural == "certificatesigningrequests" {
        crate::certificates::admit(call, object)?;
    }
    if call.resource.plural == "pods" {
        if !mirror {
            service_account(api, call, &name, object)?;
        }
        tolerations(object);
    }
    Ok(())
}

/// On update: what create adds to a pod and a client's own manifest does not have is added again.
pub(crate) fn complete(resource: &Resource, object: &mut Value) {
    if resource.group.is_empty() && resource.plural == "pods" {
        tolerations(object);
    }
}

/// On update: kubelets write only their own node and their own pods.
pub fn update(call: &Call, old: &Value, _new: &Value) -> Result<(), Status> {
    let Some(node) = call.user.node() else { return Ok(()) };
    let own = match call.resource.plural {
        "nodes" => call.name == node,
        "pods" => old["spec"]["nodeName"] == node,
        "leases" => call.name == node,
        _ => true,
    };
    let why = format!("node {node:?} can only update objects of its own");
    if own { Ok(()) } else { Err(status::forbidden(call.resource, &call.name, &why)) }
}

/// On delete: kubelets delete only their own pods, and default namespaces stay.
pub fn delete(call: &Call, object: &Value) -> Result<(), Status> {
    if call.resource.group.is_empty()
        && call.resource.plural == "namespaces"
        && matches!(call.name.as_str(), "default" | "kube-system" | "kube-public")
    {
        return Err(status::forbidden(call.resource, &call.name, "this namespace may not be deleted"));
    }
    update(call, object, object)
}

fn service_account(api: &Api, call: &Call, name: &str, pod: &mut Value) -> Result<(), Status> {
    let account =
        pod["spec"]["serviceAccountName"].as_str().filter(|name| !name.is_empty()).unwrap_or("default").to_owned();
    let Some(found) = api.store.get(&format!("/core/serviceaccounts/{}/{account}", call.namespace)) else {
        let why = format!(
            "error looking up service account {}/{account}: serviceaccount {account:?} not found",
            call.namespace
        );
        return Err(status::forbidden(call.resource, name, &why));
    };
    pod["spec"]["serviceAccountName"] = json!(account);
    pod["spec"]["serviceAccount"] = json!(account);
    if pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
        && found.value["imagePullSecrets"].is_array()
    {
        pod["spec"]["imagePullSecrets"] = found.value["imagePullSecrets"].clone();
    }
    let wanted = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| found.value["automountServiceAccountToken"].as_bool());
    if wanted == Some(false) {
        return Ok(());
    }
    const PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    let existing = pod["spec"]["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v["name"].as_str())
        .find(|n| n.starts_with("kube-api-access-"));
    let fresh = existing.is_none();
    let volume = existing
        .map_or_else(|| format!("kube-api-access-{}", &uuid::Uuid::new_v4().simple().to_string()[..5]), str::to_owned);
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if container["volumeMounts"].as_array().is_some_and(|m| m.iter().any(|mount| mount["mountPath"] == PATH)) {
                continue;
            }
            if !container["volumeMounts"].is_array() {
                container["volumeMounts"] = json!([]);
            }
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": PATH}));
            }
            used = true;
        }
    }
    if used && fresh {
        if !pod["spec"]["volumes"].is_array() {
            pod["spec"]["volumes"] = json!([]);
        }
        let projected = json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}});
        if let Some(volumes) = pod["spec"]["volumes"].as_array_mut() {
            volumes.push(projected);
        }
    }
    Ok(())
}

/// A new node gets no pods before its kubelet says that it is ready.
fn taint(node: &mut Value) {
    const KEY: &str = "node.kubernetes.io/not-ready";
    if !node["spec"]["taints"].is_array() {
        node["spec"]["taints"] = json!([]);
    }
    let Some(list) = node["spec"]["taints"].as_array_mut() else { return };
    if !list.iter().any(|t| t["key"] == KEY && t["effect"] == "NoSchedule") {
        list.push(json!({"key": KEY, "effect": "NoSchedule"}));
    }
}

fn tolerations(pod: &mut Value) {
    if !pod["spec"]["tolerations"].is_array() {
        pod["spec"]["tolerations"] = json!([]);
    }
    let Some(list) = pod["spec"]["tolerations"].as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covered = list.iter().any(|t| {
            (t["key"] == key || t["key"].as_str().unwrap_or("").is_empty())
                && matches!(t["effect"].as_str(), None | Some("" | "NoExecute"))
        });
        if !covered {
            list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
}
