//! From a manifest's text to a static pod (pure).

use k8s_openapi::api::core::v1::Pod;
use sha2::{Digest, Sha256};

use crate::pod::{HASH, SEEN, SOURCE};

/// Reads a manifest of a Pod and makes it this node's.
///
/// # Errors
/// It says which field is wrong.
pub(crate) fn parse(text: &str, path: &str, node: &str, now: jiff::Timestamp) -> Result<Pod, String> {
    let value: serde_json::Value = crate::config::yaml(text).map_err(|e| format!("not valid YAML: {e}"))?;
    let at = |field: &str| value.get(field).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    if (at("apiVersion").as_str(), at("kind").as_str()) != ("v1", "Pod") {
        return Err(format!("it is a {:?} of {:?}, not a Pod of v1", at("kind"), at("apiVersion")));
    }
    let mut pod: Pod =
        serde_path_to_error::deserialize(value).map_err(|e| format!("field {}: {}", e.path(), e.inner()))?;
    check(&pod)?;
    let hash: String =
        Sha256::digest([node, path, text].join("\0").as_bytes()).iter().take(16).map(|b| format!("{b:02x}")).collect();
    let meta = &mut pod.metadata;
    meta.name = meta.name.take().map(|name| format!("{name}-{node}"));
    meta.namespace.get_or_insert_with(|| "default".into());
    // Another uid for every change: the old pod is stopped before the new one starts.
    meta.uid = Some(hash.clone());
    let annotations = meta.annotations.get_or_insert_default();
    for (key, value) in [(SOURCE, "file".to_owned()), (HASH, hash), (SEEN, now.to_string())] {
        annotations.insert(key.to_owned(), value);
    }
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some(node.to_owned());
        spec.enable_service_links.get_or_insert(true);
        // As upstream: taints do not drive a static pod away.
        let tolerations = spec.tolerations.get_or_insert_default();
        tolerations.push(k8s_openapi::api::core::v1::Toleration {
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            ..Default::default()
        });
    }
    pod.status = None;
    Ok(pod)
}

fn label(text: &str, most: usize, dots: bool) -> bool {
    !text.is_empty()
        && text.len() <= most
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || (dots && c == '.'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

fn check(pod: &Pod) -> Result<(), String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if !label(name, 200, true) {
        return Err(format!("field metadata.name: {name:?} is not a DNS name"));
    }
    if let Some(namespace) = pod.metadata.namespace.as_deref().filter(|n| !label(n, 63, false)) {
        return Err(format!("field metadata.namespace: {namespace:?} is not a DNS label"));
    }
    let Some(spec) = &pod.spec else { return Err("field spec: it is missing".to_owned()) };
    if spec.containers.is_empty() {
        return Err("field spec.containers: there must be at least one".to_owned());
    }
    let mut seen = std::collections::HashSet::new();
    let lists =
        [("initContainers", spec.init_containers.as_deref().unwrap_or_default()), ("containers", &spec.containers)];
    for (list, containers) in lists {
        for (i, container) in containers.iter().enumerate() {
            if !label(&container.name, 63, false) {
                return Err(format!("field spec.{list}[{i}].name: {:?} is not a DNS label", container.name));
            }
            if !seen.insert(&container.name) {
                return Err(format!("field spec.{list}[{i}].name: {:?} is there twice", container.name));
            }
            if container.image.as_deref().is_none_or(str::is_empty) {
                return Err(format!("field spec.{list}[{i}].image: it is missing"));
            }
            for (j, mount) in container.volume_mounts.iter().flatten().enumerate() {
                if !spec.volumes.iter().flatten().any(|v| v.name == mount.name) {
                    return Err(format!(
                        "field spec.{list}[{i}].volumeMounts[{j}].name: there is no volume {:?}",
                        mount.name
                    ));
                }
            }
        }
    }
    if let Some(policy) = spec.restart_policy.as_deref().filter(|p| !["Always", "OnFailure", "Never"].contains(p)) {
        return Err(format!("field spec.restartPolicy: {policy:?} is not Always, OnFailure or Never"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: x}]}\n";

    #[test]
    fn a_manifest_becomes_a_pod_of_this_node() {
        let now = jiff::Timestamp::now();
        let pod = parse(GOOD, "/m/web.yaml", "n1", now).unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("web-n1"));
        assert_eq!(crate::pod::key(&pod), "default/web-n1");
        assert!(crate::pod::is_static(&pod));
        let other = parse(&GOOD.replace("image: x", "image: y"), "/m/web.yaml", "n1", now).unwrap();
        assert_ne!(pod.metadata.uid, other.metadata.uid);
    }

    #[test]
    fn wrong_fields_are_named() {
        for (from, to, want) in [
            ("image: x", "image: 5", "spec.containers[0].image"),
            ("name: web", "name: Web_1", "metadata.name"),
            ("kind: Pod", "kind: Service", "Service"),
            ("{name: c, image: x}", "", "spec.containers"),
            ("{name: c, image: x}", "{name: c}", "spec.containers[0].image"),
            ("[{name: c, image: x}]", "[{name: c, image: x}], restartPolicy: Sometimes", "restartPolicy"),
        ] {
            let error = parse(&GOOD.replace(from, to), "p", "n", jiff::Timestamp::now()).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
