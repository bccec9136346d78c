//! Validation of the smaller kinds.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::names::{config_key, dns_subdomain, port_name};
use super::{Errors, FieldError, list, not_negative, one_of, port, text};
use crate::resource::Resource;

const DATA_MAX: usize = 1024 * 1024;

pub(super) fn config_map(object: &Value, out: &mut Errors) {
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in object[field].as_object().into_iter().flatten() {
            for problem in config_key(key) {
                out.push(FieldError::invalid(format!("{field}[{key}]"), key.as_str(), problem));
            }
            size += value.as_str().map_or(0, str::len);
            if field == "binaryData" {
                if object["data"].get(key).is_some() {
                    out.push(FieldError::invalid(
                        format!("data[{key}]"),
                        key.as_str(),
                        "duplicate of key present in binaryData",
                    ));
                }
                base64_text(value, &format!("binaryData[{key}]"), out);
            }
        }
    }
    if size > DATA_MAX {
        out.push(FieldError::too_long("", DATA_MAX));
    }
}

fn base64_text(value: &Value, path: &str, out: &mut Errors) {
    if value.as_str().is_some_and(|text| STANDARD.decode(text).is_err()) {
        out.push(FieldError::invalid(path, "<binary>", "illegal base64 data"));
    }
}

pub(super) fn secret(object: &Value, out: &mut Errors) {
    let data = &object["data"];
    let mut size = 0;
    for (key, value) in data.as_object().into_iter().flatten() {
        for problem in config_key(key) {
            out.push(FieldError::invalid(format!("data[{key}]"), key.as_str(), problem));
        }
        size += value.as_str().map_or(0, |text| text.len() / 4 * 3);
        base64_text(value, &format!("data[{key}]"), out);
    }
    if size > DATA_MAX {
        out.push(FieldError::too_long("data", DATA_MAX));
    }
    let required: &[&str] = match text(object, "type") {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/basic-auth" if data.get("username").is_none() && data.get("password").is_none() => {
            &["username", "password"]
        }
        _ => &[],
    };
    for key in required {
        if data.get(key).is_none() {
            out.push(FieldError::required(format!("data[{key}]"), ""));
        }
    }
}

pub(super) fn immutable_data(resource: &Resource, old: &Value, new: &Value, out: &mut Errors) {
    if resource.plural == "secrets" && old["type"] != new["type"] {
        out.push(FieldError::invalid("type", new["type"].clone(), "field is immutable"));
    }
    if old["immutable"] != true {
        return;
    }
    if new["immutable"] != true {
        out.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in ["data", "binaryData"] {
        if old[field] != new[field] {
            out.push(FieldError::forbidden(field, "field is immutable when `immutable` is set"));
        }
    }
}

pub(super) fn service(object: &Value, out: &mut Errors) {
    let spec = &object["spec"];
    one_of(spec, "type", "spec", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], true, out);
    one_of(spec, "sessionAffinity", "spec", &["ClientIP", "None"], true, out);
    let ports = list(spec, "ports");
    let headless = spec["clusterIP"] == "None";
    if ports.is_empty() && !headless && text(spec, "type") != "ExternalName" {
        out.push(FieldError::required("spec.ports", ""));
    }
    if text(spec, "type") == "ExternalName" {
        match text(spec, "externalName").trim_end_matches('.') {
            "" => out.push(FieldError::required("spec.externalName", "")),
            name => {
                out.extend(dns_subdomain(name).into_iter().map(|p| FieldError::invalid("spec.externalName", name, p)))
            }
        }
    }
    for (index, entry) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        match text(entry, "name") {
            "" if ports.len() > 1 => out.push(FieldError::required(format!("{path}.name"), "")),
            "" => {}
            name => {
                for problem in super::dns_label(name) {
                    out.push(FieldError::invalid(format!("{path}.name"), name, problem));
                }
                if ports[..index].iter().any(|other| text(other, "name") == name) {
                    out.push(FieldError::duplicate(format!("{path}.name"), name));
                }
            }
        }
        port(entry["port"].as_i64().unwrap_or(0), &format!("{path}.port"), out);
        one_of(entry, "protocol", &path, &["SCTP", "TCP", "UDP"], true, out);
        match &entry["targetPort"] {
            Value::Number(number) => port(number.as_i64().unwrap_or(0), &format!("{path}.targetPort"), out),
            Value::String(name) => {
                for problem in port_name(name) {
                    out.push(FieldError::invalid(format!("{path}.targetPort"), name.as_str(), problem));
                }
            }
            _ => {}
        }
        let same = |other: &&Value| other["port"] == entry["port"] && other["protocol"] == entry["protocol"];
        if ports[..index].iter().any(|other| same(&other)) {
            out.push(FieldError::duplicate(path, entry.clone()));
        }
    }
}

pub(super) fn service_update(old: &Value, new: &Value, out: &mut Errors) {
    let (before, after) = (text(&old["spec"], "clusterIP"), text(&new["spec"], "clusterIP"));
    let external = text(&old["spec"], "type") == "ExternalName" || text(&new["spec"], "type") == "ExternalName";
    if !before.is_empty() && before != after && !external {
        out.push(FieldError::invalid("spec.clusterIP", after, "field is immutable"));
    }
}

pub(super) fn node(object: &Value, out: &mut Errors) {
    for (index, taint) in list(&object["spec"], "taints").iter().enumerate() {
        let path = format!("spec.taints[{index}]");
        for problem in super::qualified_name(text(taint, "key")) {
            out.push(FieldError::invalid(format!("{path}.key"), text(taint, "key"), problem));
        }
        one_of(taint, "effect", &path, &["NoSchedule", "PreferNoSchedule", "NoExecute"], true, out);
    }
}

pub(super) fn lease(object: &Value, out: &mut Errors) {
    let spec = &object["spec"];
    if let Some(seconds) = spec["leaseDurationSeconds"].as_i64().filter(|seconds| *seconds <= 0) {
        out.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
    }
    not_negative(spec, "leaseTransitions", "spec", out);
    if spec["holderIdentity"] == "" {
        out.push(FieldError::invalid("spec.holderIdentity", "", "must not be empty"));
    }
}

pub(super) fn event(object: &Value, out: &mut Errors) {
    let about = text(&object["involvedObject"], "namespace");
    let own = text(&object["metadata"], "namespace");
    // Events about cluster-wide objects live in the default namespace (or kube-system).
    if !about.is_empty() && !own.is_empty() && about != own {
        out.push(FieldError::invalid("involvedObject.namespace", about, "does not match event.namespace"));
    }
}

pub(super) fn priority_class(object: &Value, out: &mut Errors) {
    let name = text(&object["metadata"], "name");
    let value = object["value"].as_i64().unwrap_or(0);
    if value > 1_000_000_000 && !name.starts_with("system-") {
        let text = format!("maximum allowed value of a user defined priority is 1000000000, got {value}");
        out.push(FieldError::forbidden("value", text));
    }
    one_of(object, "preemptionPolicy", "", &["Never", "PreemptLowerPriority"], false, out);
}

pub(super) fn runtime_class(object: &Value, out: &mut Errors) {
    let handler = text(object, "handler");
    for problem in super::dns_label(handler) {
        out.push(FieldError::invalid("handler", handler, problem));
    }
}

pub(super) fn rbac(object: &Value, out: &mut Errors) {
    for (index, rule) in list(object, "rules").iter().enumerate() {
        let path = format!("rules[{index}]");
        if list(rule, "verbs").is_empty() {
            out.push(FieldError::required(format!("{path}.verbs"), "verbs must contain at least one value"));
        }
        if list(rule, "nonResourceURLs").is_empty() {
            if list(rule, "apiGroups").is_empty() {
                out.push(FieldError::required(
                    format!("{path}.apiGroups"),
                    "resource rules must supply at least one api group",
                ));
            }
            if list(rule, "resources").is_empty() {
                out.push(FieldError::required(
                    format!("{path}.resources"),
                    "resource rules must supply at least one resource",
                ));
            }
        }
    }
    if object.get("roleRef").is_some() {
        let role = &object["roleRef"];
        one_of(role, "kind", "roleRef", &["Role", "ClusterRole"], false, out);
        if text(role, "name").is_empty() {
            out.push(FieldError::required("roleRef.name", ""));
        }
    }
    for (index, subject) in list(object, "subjects").iter().enumerate() {
        let path = format!("subjects[{index}]");
        if text(subject, "name").is_empty() {
            out.push(FieldError::required(format!("{path}.name"), ""));
        }
        one_of(subject, "kind", &path, &["Group", "ServiceAccount", "User"], true, out);
    }
}
