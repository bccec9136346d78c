//! Validation with upstream's texts: what a create or an update refuses, as one error for each field.
//!
//! Call it after defaults; it assumes that values have the types of their schema (`schema::type_errors`).

mod certificates;
mod container;
mod core;
mod error;
mod meta;
mod names;
mod pod;
mod pod_fields;
mod security;
mod volume;
mod workload;

use serde_json::Value;

pub use error::{FieldError, Reason};
pub use names::{dns_label, dns_subdomain, label_value, qualified_name};

use crate::resource::Resource;

type Errors = Vec<FieldError>;

/// What is wrong with a new object.
pub fn create(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut out = Errors::new();
    meta::create(resource, &object["metadata"], &mut out);
    body(resource, object, &mut out);
    out
}

/// What is wrong with an update of an object's main resource.
pub fn update(resource: &Resource, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut out = Errors::new();
    meta::update(&old["metadata"], &new["metadata"], &mut out);
    match (resource.group, resource.plural) {
        ("", "pods") => pod::update(old, new, &mut out),
        ("", "configmaps" | "secrets") => core::immutable_data(resource, old, new, &mut out),
        ("", "services") => core::service_update(old, new, &mut out),
        ("apps", "deployments" | "replicasets" | "daemonsets" | "statefulsets") => workload::update(old, new, &mut out),
        ("batch", "jobs") => workload::job_update(old, new, &mut out),
        ("certificates.k8s.io", "podcertificaterequests") if old["spec"] != new["spec"] => {
            out.push(FieldError::invalid("spec", "<spec>", "field is immutable"));
        }
        ("certificates.k8s.io", "clustertrustbundles") if old["spec"]["signerName"] != new["spec"]["signerName"] => {
            out.push(FieldError::invalid("spec.signerName", new["spec"]["signerName"].clone(), "field is immutable"));
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") if old["roleRef"] != new["roleRef"] => {
            out.push(FieldError::invalid("roleRef", new["roleRef"].clone(), "cannot change roleRef"));
        }
        _ => {}
    }
    if resource.plural != "pods" || old["spec"] != new["spec"] {
        body(resource, new, &mut out);
    }
    out
}

/// What is wrong with an update of `…/status`.
pub fn update_status(resource: &Resource, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut out = Errors::new();
    meta::update(&old["metadata"], &new["metadata"], &mut out);
    if resource.plural == "podcertificaterequests" {
        certificates::pod_request_status(old, new, &mut out);
    }
    if resource.plural == "certificatesigningrequests" {
        crate::csr::validate_part(old, new, &mut out);
    }
    out
}

fn body(resource: &Resource, object: &Value, out: &mut Errors) {
    match (resource.group, resource.plural) {
        ("", "pods") => pod::spec(&object["spec"], "spec", out),
        ("", "podtemplates") => pod::spec(&object["template"]["spec"], "template.spec", out),
        ("", "configmaps") => core::config_map(object, out),
        ("", "secrets") => core::secret(object, out),
        ("", "services") => core::service(object, out),
        ("", "nodes") => core::node(object, out),
        ("", "events") => core::event(object, out),
        ("coordination.k8s.io", "leases") => core::lease(object, out),
        ("scheduling.k8s.io", "priorityclasses") => core::priority_class(object, out),
        ("node.k8s.io", "runtimeclasses") => core::runtime_class(object, out),
        ("rbac.authorization.k8s.io", _) => core::rbac(object, out),
        ("apps", "deployments" | "replicasets" | "daemonsets" | "statefulsets") => workload::replicated(object, out),
        ("certificates.k8s.io", "certificatesigningrequests") => crate::csr::validate(object, out),
        ("certificates.k8s.io", "clustertrustbundles") => certificates::trust_bundle(object, out),
        ("certificates.k8s.io", "podcertificaterequests") => certificates::pod_request(object, out),
        ("batch", "jobs") => workload::job(&object["spec"], "spec", out),
        ("batch", "cronjobs") => workload::cron_job(object, out),
        _ => {}
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// A text that must be one of an enumeration.
fn one_of(value: &Value, key: &str, path: &str, allowed: &[&str], required: bool, out: &mut Errors) {
    match text(value, key) {
        "" if required => out.push(FieldError::required(format!("{path}.{key}"), "")),
        "" => {}
        given if allowed.contains(&given) => {}
        given => out.push(FieldError::not_supported(format!("{path}.{key}"), given, allowed)),
    }
}

/// A number that must not be negative.
fn not_negative(value: &Value, key: &str, path: &str, out: &mut Errors) {
    if let Some(number) = value[key].as_i64().filter(|number| *number < 0) {
        out.push(FieldError::invalid(format!("{path}.{key}"), number, "must be greater than or equal to 0"));
    }
}

/// A port number.
fn port(value: i64, path: &str, out: &mut Errors) {
    if !(1..=65535).contains(&value) {
        out.push(FieldError::invalid(path, value, "must be between 1 and 65535, inclusive"));
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
