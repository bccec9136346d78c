//! Objects of the apiserver that a pod names. A static pod may name none: it has to work without an apiserver, and it may
//! not read what its author could not.

use k8s_openapi::api::core::v1::{Container, Pod, Volume};

/// The first field of the pod that names such an object.
pub(crate) fn first(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if spec.service_account_name.as_ref().or(spec.service_account.as_ref()).is_some_and(|n| !n.is_empty()) {
        return Some("spec.serviceAccountName".to_owned());
    }
    if spec.image_pull_secrets.as_ref().is_some_and(|l| !l.is_empty()) {
        return Some("spec.imagePullSecrets".to_owned());
    }
    if spec.resource_claims.as_ref().is_some_and(|l| !l.is_empty()) {
        return Some("spec.resourceClaims".to_owned());
    }
    let volumes = spec.volumes.iter().flatten().enumerate();
    let volume = volumes.filter_map(|(i, v)| Some(format!("spec.volumes[{i}].{}", of_volume(v)?))).next();
    let lists = [("initContainers", spec.init_containers.as_deref()), ("containers", Some(&spec.containers[..]))];
    let mut containers = lists.into_iter().flat_map(|(list, all)| {
        let each = all.unwrap_or_default().iter().enumerate();
        each.filter_map(move |(i, c)| Some(format!("spec.{list}[{i}].{}", of_container(c)?)))
    });
    volume.or_else(|| containers.next())
}

fn of_volume(volume: &Volume) -> Option<String> {
    let named = [
        ("configMap", volume.config_map.is_some()),
        ("secret", volume.secret.is_some()),
        ("persistentVolumeClaim", volume.persistent_volume_claim.is_some()),
        ("ephemeral", volume.ephemeral.is_some()),
        ("csi.nodePublishSecretRef", volume.csi.as_ref().is_some_and(|c| c.node_publish_secret_ref.is_some())),
    ];
    if let Some((field, _)) = named.into_iter().find(|(_, named)| *named) {
        return Some(field.to_owned());
    }
    let mut sources = volume.projected.as_ref()?.sources.iter().flatten().enumerate();
    // Fields of the pod itself are all that it may have.
    let named = sources.find(|(_, s)| s.downward_api.is_none());
    named.map(|(i, _)| format!("projected.sources[{i}]"))
}

fn of_container(container: &Container) -> Option<String> {
    let from = container.env_from.iter().flatten().enumerate();
    let from = from.filter(|(_, e)| e.config_map_ref.is_some() || e.secret_ref.is_some());
    if let Some((i, _)) = from.into_iter().next() {
        return Some(format!("envFrom[{i}]"));
    }
    let mut env = container.env.iter().flatten().enumerate();
    let named = env.find(|(_, e)| {
        e.value_from.as_ref().is_some_and(|v| v.config_map_key_ref.is_some() || v.secret_key_ref.is_some())
    });
    named.map(|(i, _)| format!("env[{i}].valueFrom"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_names_an_object_is_found() {
        let volume = |v: Value| json!({"volumes": [{"name": "v", "emptyDir": {}}, v]});
        let container = |c: Value| json!({"initContainers": [{"name": "i"}, c]});
        for (spec, want) in [
            (json!({}), None),
            (json!({"serviceAccountName": "a"}), Some("spec.serviceAccountName")),
            (json!({"imagePullSecrets": [{"name": "a"}]}), Some("spec.imagePullSecrets")),
            (volume(json!({"name": "x", "hostPath": {"path": "/"}})), None),
            (volume(json!({"name": "x", "secret": {"secretName": "s"}})), Some("spec.volumes[1].secret")),
            (
                volume(
                    json!({"name": "x", "projected": {"sources": [{"downwardAPI": {}}, {"configMap": {"name": "c"}}]}}),
                ),
                Some("spec.volumes[1].projected.sources[1]"),
            ),
            (volume(json!({"name": "x", "projected": {"sources": [{"downwardAPI": {}}]}})), None),
            (container(json!({"name": "c", "env": [{"name": "A", "value": "b"}]})), None),
            (
                container(
                    json!({"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
                ),
                Some("spec.initContainers[1].env[0].valueFrom"),
            ),
            (
                container(json!({"name": "c", "envFrom": [{"configMapRef": {"name": "s"}}]})),
                Some("spec.initContainers[1].envFrom[0]"),
            ),
        ] {
            let mut spec = spec;
            spec["containers"] = json!([{"name": "m"}]);
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
            assert_eq!(first(&pod).as_deref(), want);
        }
    }
}
