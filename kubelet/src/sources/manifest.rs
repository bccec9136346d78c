//! From a manifest's text to static pods (pure): read strictly, completed and judged by the same rules as in the
//! apiserver, so that a wrong field is named here, too.

use std::sync::Arc;

use api_machinery::resource::{self, Gvk};
use api_machinery::{defaults, validate};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::references;
use crate::events::Recorder;
use crate::pod::{HASH, SEEN, SOURCE};

/// Where a manifest is from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// `file` or `http`, as the pods' annotation has it.
    pub(crate) source: &'static str,
    /// The path or the URL.
    pub(crate) place: String,
    /// The node's name.
    pub(crate) node: String,
    /// Whether pods may name objects of the apiserver (the gate PreventStaticPodAPIReferences is off).
    pub(crate) references: bool,
}

/// What a manifest says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Manifest {
    /// Its pods, of this node now.
    pub(crate) pods: Vec<Pod>,
    /// Fields that mean nothing and were left out.
    pub(crate) unknown: Vec<String>,
}

/// Reads a manifest of a Pod, or of a list of them, and makes them this node's.
///
/// # Errors
/// It says which fields are wrong.
pub(crate) fn parse(text: &str, origin: &Origin, now: jiff::Timestamp) -> Result<Manifest, String> {
    let value: Value = crate::config::yaml(text).map_err(|e| format!("not valid YAML: {e}"))?;
    let word = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let mut out = Manifest::default();
    match (word("apiVersion"), word("kind")) {
        ("v1", "Pod") => out.add(value.clone(), text, "", origin, now)?,
        ("v1", "PodList" | "List") => {
            let items = value.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
            for (i, item) in items.into_iter().enumerate() {
                let own = item.to_string();
                out.add(item, &own, &format!("items[{i}]."), origin, now)?;
            }
        }
        (version, kind) => return Err(format!("it is a {kind:?} of {version:?}, not a Pod of v1")),
    }
    Ok(out)
}

/// The manifest's pods; what was left out is told.
pub(super) fn announce(manifest: Manifest, origin: &Origin, events: &Recorder) -> Vec<Arc<Pod>> {
    if !manifest.unknown.is_empty() {
        let message = format!("manifest {} has unknown fields: {}", origin.place, manifest.unknown.join(", "));
        events.node(&origin.node, true, "UnknownManifestField", message);
    }
    manifest.pods.into_iter().map(Arc::new).collect()
}

impl Manifest {
    fn add(
        &mut self,
        mut value: Value,
        text: &str,
        prefix: &str,
        origin: &Origin,
        now: jiff::Timestamp,
    ) -> Result<(), String> {
        if let Some(kind) = value.get("kind").filter(|k| *k != "Pod") {
            return Err(format!("field {prefix}kind: it is {kind}, not a Pod"));
        }
        if value.get("spec").is_none_or(|s| !s.is_object()) {
            return Err(format!("field {prefix}spec: Required value"));
        }
        // Its types before anything else looks into it.
        let typed: Pod = serde_path_to_error::deserialize(value.clone())
            .map_err(|e| format!("field {prefix}{}: {}", e.path(), e.inner()))?;
        let kept = serde_json::to_value(&typed).map_err(|e| e.to_string())?;
        unknown(&value, &kept, prefix, &mut self.unknown);
        let hash = hash(origin, text);
        adopt(&mut value, origin, &hash, now);
        defaults::apply(Gvk::new("", "v1", "Pod"), &mut value);
        let pods = resource::find("", "v1", "pods").ok_or("there are no rules for pods")?;
        let wrong = validate::create(pods, &value);
        if !wrong.is_empty() {
            let all: Vec<String> = wrong.iter().map(|e| format!("field {prefix}{}: {}", e.field, e.body())).collect();
            return Err(all.join("; "));
        }
        let mut pod: Pod = serde_path_to_error::deserialize(value)
            .map_err(|e| format!("field {prefix}{}: {}", e.path(), e.inner()))?;
        if let Some(field) = references::first(&typed).filter(|_| !origin.references) {
            return Err(format!(
                "field {prefix}{field}: static pods may not name objects of the apiserver (featureGates \
                 PreventStaticPodAPIReferences)"
            ));
        }
        pod.status = None;
        self.pods.push(pod);
        Ok(())
    }
}

fn hash(origin: &Origin, text: &str) -> String {
    let all = [&origin.node, &origin.place, text].map(str::as_bytes).join(&0);
    Sha256::digest(all).iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// Makes the pod this node's.
fn adopt(value: &mut Value, origin: &Origin, hash: &str, now: jiff::Timestamp) {
    let meta = &mut value["metadata"];
    if let Some(name) = meta["name"].as_str().filter(|n| !n.is_empty()).map(|n| format!("{n}-{}", origin.node)) {
        meta["name"] = name.into();
    }
    if meta["namespace"].as_str().is_none_or(str::is_empty) {
        meta["namespace"] = "default".into();
    }
    // Another uid for every change: the old pod is stopped before the new one starts.
    meta["uid"] = hash.into();
    for (key, text) in [(SOURCE, origin.source), (HASH, hash), (SEEN, &now.to_string())] {
        meta["annotations"][key] = text.into();
    }
    let spec = &mut value["spec"];
    spec["nodeName"] = origin.node.as_str().into();
    // As upstream: taints do not drive a static pod away.
    let all = serde_json::json!({"operator": "Exists", "effect": "NoExecute"});
    match spec["tolerations"].as_array_mut() {
        Some(list) => list.push(all),
        None => spec["tolerations"] = Value::Array(vec![all]),
    }
}

/// Fields of `given` that the type does not have.
fn unknown(given: &Value, kept: &Value, path: &str, out: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, value) in given {
                match kept.get(key) {
                    Some(kept) => unknown(value, kept, &format!("{path}{key}."), out),
                    // What is empty is not kept, though it may be known.
                    None if value.is_null() || *value == Value::Object(Default::default()) => {}
                    None => out.push(format!("{path}{key}")),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            let path = path.trim_end_matches('.');
            for (i, (given, kept)) in given.iter().zip(kept).enumerate() {
                unknown(given, kept, &format!("{path}[{i}]."), out);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: x}]}\n";

    fn origin() -> Origin {
        Origin { source: "file", place: "/m/web.yaml".into(), node: "n1".into(), references: false }
    }

    fn read(text: &str) -> Result<Manifest, String> {
        parse(text, &origin(), jiff::Timestamp::now())
    }

    #[test]
    fn a_manifest_becomes_a_pod_of_this_node() {
        let pod = read(GOOD).unwrap().pods.remove(0);
        assert_eq!(pod.metadata.name.as_deref(), Some("web-n1"));
        assert_eq!(crate::pod::key(&pod), "default/web-n1");
        assert!(crate::pod::is_static(&pod));
        let spec = pod.spec.unwrap();
        assert_eq!((spec.node_name.as_deref(), spec.restart_policy.as_deref()), (Some("n1"), Some("Always")));
        let other = read(&GOOD.replace("image: x", "image: y")).unwrap().pods.remove(0);
        assert_ne!(pod.metadata.uid, other.metadata.uid);
    }

    #[test]
    fn a_list_has_several_pods_each_with_its_own_uid() {
        let one = |name: &str| format!("{{metadata: {{name: {name}}}, spec: {{containers: [{{name: c, image: x}}]}}}}");
        let list = |a: &str, b: &str| format!("apiVersion: v1\nkind: PodList\nitems: [{}, {}]\n", one(a), one(b));
        let pods = read(&list("a", "b")).unwrap().pods;
        assert_eq!(pods.len(), 2);
        assert_ne!(pods[0].metadata.uid, pods[1].metadata.uid);
        // A change of one is no change of the other.
        assert_eq!(read(&list("a", "c")).unwrap().pods[0].metadata.uid, pods[0].metadata.uid);
        assert!(read(&list("a", "B_")).unwrap_err().contains("items[1].metadata.name"));
    }

    #[test]
    fn wrong_fields_are_named() {
        let container = |more: &str| format!("{{name: c, image: x}}]{more}");
        let inside = |more: &str| format!("{{name: c, image: x, {more}}}");
        let volume = |more: &str| container(&format!(", volumes: [{{name: v, {more}}}]"));
        let c = "{name: c, image: x}";
        let mut missed = Vec::new();
        for (from, to, want) in [
            ("image: x", "image: 5".to_owned(), "spec.containers[0].image"),
            ("name: web", "name: Web_1".into(), "metadata.name"),
            ("{name: web}", "{}".into(), "metadata.name"),
            ("{name: web}", "{name: web, labels: {a: 'b c'}}".into(), "metadata.labels"),
            ("{name: web}", "{name: web, namespace: A}".into(), "metadata.namespace"),
            ("kind: Pod", "kind: Service".into(), "Service"),
            ("spec: {", "specs: {".into(), "field spec"),
            (c, String::new(), "spec.containers"),
            (c, "{name: c}".into(), "spec.containers[0].image"),
            (c, "{name: C, image: x}".into(), "spec.containers[0].name"),
            (c, format!("{c}, {c}"), "spec.containers[1].name"),
            (c, inside("ports: [{containerPort: 99999}]"), "spec.containers[0].ports[0].containerPort"),
            (c, inside("imagePullPolicy: Sometimes"), "spec.containers[0].imagePullPolicy"),
            (c, inside("env: [{name: ''}]"), "spec.containers[0].env[0].name"),
            (c, inside("volumeMounts: [{name: v, mountPath: /v}]"), "spec.containers[0].volumeMounts[0].name"),
            (c, inside("livenessProbe: {httpGet: {port: 0}}"), "spec.containers[0].livenessProbe.httpGet.port"),
            (c, inside("livenessProbe: {exec: {command: [x]}, periodSeconds: -1}"), "livenessProbe.periodSeconds"),
            (c, inside("resources: {limits: {cpu: much}}"), "spec.containers[0].resources.limits"),
            (c, inside("resources: {limits: {cpu: 1}, requests: {cpu: 2}}"), "spec.containers[0].resources.requests"),
            (c, inside("securityContext: {procMount: Open}"), "spec.containers[0].securityContext.procMount"),
            (c, inside("terminationMessagePolicy: Never"), "spec.containers[0].terminationMessagePolicy"),
            ("]}", "], restartPolicy: Sometimes}".into(), "spec.restartPolicy"),
            ("]}", "], dnsPolicy: Mine}".into(), "spec.dnsPolicy"),
            ("]}", "], terminationGracePeriodSeconds: -5}".into(), "spec.terminationGracePeriodSeconds"),
            ("]}", "], activeDeadlineSeconds: -5}".into(), "spec.activeDeadlineSeconds"),
            ("]}", "], hostname: A_b}".into(), "spec.hostname"),
            ("{name: c, image: x}]", volume("hostPath: {path: ''}"), "spec.volumes[0].hostPath.path"),
            ("{name: c, image: x}]", volume("hostPath: {path: /a, type: Wrong}"), "spec.volumes[0].hostPath.type"),
            ("{name: c, image: x}]", volume("emptyDir: {}, hostPath: {path: /}"), "spec.volumes[0]"),
            ("{name: c, image: x}]", volume("configMap: {name: m}"), "spec.volumes[0].configMap"),
        ] {
            let text = GOOD.replacen(from, &to, 1);
            assert_ne!(text, GOOD, "{from}");
            match read(&text) {
                Ok(_) => missed.push(format!("{text} is taken")),
                Err(error) if error.contains(want) => {}
                Err(error) => missed.push(format!("{want} is not in {error:?}")),
            }
        }
        assert!(missed.is_empty(), "{}", missed.join("\n"));
    }

    #[test]
    fn a_misspelled_field_is_told_and_left_out() {
        let got = read(&GOOD.replace("image: x", "image: x, imagePullPolicies: Never")).unwrap();
        assert_eq!(got.unknown, ["spec.containers[0].imagePullPolicies"]);
        assert_eq!(read(&GOOD.replace("image: x", "image: x, securityContext: {}, env: []")).unwrap().unknown.len(), 0);
    }
}
