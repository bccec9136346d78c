//! Validation of metadata.

use serde_json::Value;

use super::names::{dns_1035, dns_label, dns_subdomain, label_value, path_segment, qualified_name};
use super::{Errors, FieldError, list, text};
use crate::resource::Resource;

const ANNOTATIONS_MAX: usize = 256 * 1024;

fn name_errors(resource: &Resource, name: &str) -> Vec<String> {
    match (resource.group, resource.plural) {
        ("", "namespaces") => dns_label(name),
        ("", "services") => dns_1035(name),
        ("rbac.authorization.k8s.io", _) => path_segment(name),
        // Their own rules look at the name with the signer's.
        ("certificates.k8s.io", "clustertrustbundles") => path_segment(name),
        _ => dns_subdomain(name),
    }
}

pub(super) fn create(resource: &Resource, metadata: &Value, out: &mut Errors) {
    let (name, generate) = (text(metadata, "name"), text(metadata, "generateName"));
    if name.is_empty() {
        if generate.is_empty() {
            out.push(FieldError::required("metadata.name", "name or generateName is required"));
        } else {
            // A prefix may end in what only the whole name may not.
            let whole = format!("{}a", generate.trim_end_matches('-'));
            for problem in name_errors(resource, &whole) {
                out.push(FieldError::invalid("metadata.generateName", generate, problem));
            }
        }
    } else {
        for problem in name_errors(resource, name) {
            out.push(FieldError::invalid("metadata.name", name, problem));
        }
    }
    if resource.namespaced {
        let namespace = text(metadata, "namespace");
        if namespace.is_empty() {
            out.push(FieldError::required("metadata.namespace", ""));
        } else {
            for problem in dns_label(namespace) {
                out.push(FieldError::invalid("metadata.namespace", namespace, problem));
            }
        }
    }
    shared(metadata, out);
}

/// Labels and annotations of an object or template at `path` (`metadata`, `spec.template.metadata`).
pub(super) fn labels(metadata: &Value, path: &str, out: &mut Errors) {
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        let path = format!("{path}.labels");
        for problem in qualified_name(key) {
            out.push(FieldError::invalid(path.clone(), key.as_str(), problem));
        }
        let value = value.as_str().unwrap_or_default();
        for problem in label_value(value) {
            out.push(FieldError::invalid(path.clone(), value, problem));
        }
    }
    let mut size = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        for problem in qualified_name(&key.to_lowercase()) {
            out.push(FieldError::invalid(format!("{path}.annotations"), key.as_str(), problem));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX {
        out.push(FieldError::too_long(format!("{path}.annotations"), ANNOTATIONS_MAX));
    }
}

fn shared(metadata: &Value, out: &mut Errors) {
    labels(metadata, "metadata", out);
    for (index, owner) in list(metadata, "ownerReferences").iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, field).is_empty() {
                let path = format!("metadata.ownerReferences[{index}].{field}");
                out.push(FieldError::invalid(path, "", format!("{field} must not be empty")));
            }
        }
    }
    if list(metadata, "ownerReferences").iter().filter(|owner| owner["controller"] == true).count() > 1 {
        let text = "Only one reference can have Controller set to true.";
        out.push(FieldError::invalid("metadata.ownerReferences", metadata["ownerReferences"].clone(), text));
    }
    for (index, finalizer) in list(metadata, "finalizers").iter().enumerate() {
        let finalizer = finalizer.as_str().unwrap_or_default();
        for problem in qualified_name(finalizer) {
            out.push(FieldError::invalid(format!("metadata.finalizers[{index}]"), finalizer, problem));
        }
    }
}

pub(super) fn update(old: &Value, new: &Value, out: &mut Errors) {
    for field in ["name", "namespace", "uid"] {
        let (before, after) = (text(old, field), text(new, field));
        if before != after && !(field == "uid" && after.is_empty()) {
            out.push(FieldError::invalid(format!("metadata.{field}"), after, "field is immutable"));
        }
    }
    if old["deletionTimestamp"].is_string() {
        for finalizer in list(new, "finalizers") {
            if !list(old, "finalizers").contains(finalizer) {
                let text = format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{finalizer}}}"
                );
                out.push(FieldError::forbidden("metadata.finalizers", text));
            }
        }
    }
    shared(new, out);
}
