//! Validation of pods and pod templates.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::names::{dns_label, dns_subdomain, qualified_name};
use super::{Errors, FieldError, container, list, not_negative, one_of, pod_fields, security, text, volume};

/// A pod's spec at `path`.
pub(super) fn spec(spec: &Value, path: &str, out: &mut Errors) {
    let volumes = volume::all(spec, path, out);
    let containers = list(spec, "containers");
    if containers.is_empty() {
        out.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let mut names = HashSet::new();
    let mut host_ports = HashSet::new();
    for (key, role) in [
        ("containers", container::Role::Main),
        ("initContainers", container::Role::Init),
        ("ephemeralContainers", container::Role::Ephemeral),
    ] {
        for (index, value) in list(spec, key).iter().enumerate() {
            let path = format!("{path}.{key}[{index}]");
            container::validate(value, &path, role, &volumes, out);
            let name = text(value, "name");
            if !name.is_empty() && !names.insert(name) {
                out.push(FieldError::duplicate(format!("{path}.name"), name));
            }
            if role == container::Role::Main {
                container::host_ports(value, &path, &mut host_ports, out);
            }
        }
    }
    one_of(spec, "restartPolicy", path, &["Always", "OnFailure", "Never"], true, out);
    dns(spec, path, out);
    security::pod(&spec["securityContext"], &format!("{path}.securityContext"), out);
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0) {
        not_negative(spec, "terminationGracePeriodSeconds", path, out);
    }
    if let Some(seconds) = spec["activeDeadlineSeconds"].as_i64().filter(|n| !(1..=i64::from(i32::MAX)).contains(n)) {
        let text = "must be between 1 and 2147483647, inclusive";
        out.push(FieldError::invalid(format!("{path}.activeDeadlineSeconds"), seconds, text));
    }
    for (key, check) in [
        ("serviceAccountName", dns_subdomain as fn(&str) -> Vec<String>),
        ("nodeName", dns_subdomain),
        ("priorityClassName", dns_subdomain),
        ("runtimeClassName", dns_subdomain),
        ("hostname", dns_label),
        ("subdomain", dns_label),
        ("schedulerName", qualified_name),
    ] {
        let value = text(spec, key);
        if !value.is_empty() {
            out.extend(
                check(value).into_iter().map(|problem| FieldError::invalid(format!("{path}.{key}"), value, problem)),
            );
        }
    }
    if spec["hostNetwork"] == true {
        for (index, value) in containers.iter().enumerate() {
            for (number, port) in list(value, "ports").iter().enumerate() {
                if port["hostPort"] != port["containerPort"] {
                    let path = format!("{path}.containers[{index}].ports[{number}].hostPort");
                    out.push(FieldError::invalid(
                        path,
                        port["hostPort"].clone(),
                        "must match `containerPort` when `hostNetwork` is true",
                    ));
                }
            }
        }
    }
    if spec["hostPID"] == true && spec["shareProcessNamespace"] == true {
        let text = "ShareProcessNamespace and HostPID cannot both be enabled";
        out.push(FieldError::invalid(format!("{path}.shareProcessNamespace"), true, text));
    }
    for (key, value) in spec["nodeSelector"].as_object().into_iter().flatten() {
        let path = format!("{path}.nodeSelector");
        out.extend(qualified_name(key).into_iter().map(|p| FieldError::invalid(path.clone(), key.as_str(), p)));
        let value = value.as_str().unwrap_or_default();
        out.extend(super::label_value(value).into_iter().map(|p| FieldError::invalid(path.clone(), value, p)));
    }
    for (index, toleration) in list(spec, "tolerations").iter().enumerate() {
        tolerance(toleration, &format!("{path}.tolerations[{index}]"), out);
    }
    for (index, alias) in list(spec, "hostAliases").iter().enumerate() {
        let ip = text(alias, "ip");
        if ip.parse::<std::net::IpAddr>().is_err() {
            let text = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            out.push(FieldError::invalid(format!("{path}.hostAliases[{index}].ip"), ip, text));
        }
    }
    let mut gates = HashSet::new();
    for (index, gate) in list(spec, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        if !gates.insert(name) {
            out.push(FieldError::duplicate(format!("{path}.schedulingGates[{index}]"), name));
        }
    }
    pod_fields::check(spec, path, out);
}

fn dns(spec: &Value, path: &str, out: &mut Errors) {
    one_of(spec, "dnsPolicy", path, &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"], true, out);
    let servers = list(&spec["dnsConfig"], "nameservers");
    if text(spec, "dnsPolicy") == "None" && servers.is_empty() {
        let text = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        out.push(FieldError::required(format!("{path}.dnsConfig.nameservers"), text));
    }
    if servers.len() > 3 {
        let text = "must not have more than 3 nameservers";
        out.push(FieldError::invalid(format!("{path}.dnsConfig.nameservers"), json!(servers), text));
    }
    for (index, server) in servers.iter().enumerate() {
        let server = server.as_str().unwrap_or_default();
        if server.parse::<std::net::IpAddr>().is_err() {
            let text = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            out.push(FieldError::invalid(format!("{path}.dnsConfig.nameservers[{index}]"), server, text));
        }
    }
}

fn tolerance(toleration: &Value, path: &str, out: &mut Errors) {
    let key = text(toleration, "key");
    if !key.is_empty() {
        out.extend(qualified_name(key).into_iter().map(|p| FieldError::invalid(format!("{path}.key"), key, p)));
    }
    let operator = text(toleration, "operator");
    if key.is_empty() && operator != "Exists" {
        let text = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        out.push(FieldError::invalid(format!("{path}.operator"), operator, text));
    }
    if operator == "Exists" && !text(toleration, "value").is_empty() {
        let problem = "value must be empty when `operator` is 'Exists'";
        out.push(FieldError::invalid(format!("{path}.operator"), text(toleration, "value"), problem));
    }
    one_of(toleration, "operator", path, &["Equal", "Exists", "Gt", "Lt"], false, out);
    one_of(toleration, "effect", path, &["NoSchedule", "PreferNoSchedule", "NoExecute"], false, out);
    if toleration["tolerationSeconds"].is_number() && text(toleration, "effect") != "NoExecute" {
        let problem = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        out.push(FieldError::invalid(format!("{path}.effect"), text(toleration, "effect"), problem));
    }
}

const UPDATES: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// An update of a pod may change next to nothing of its spec.
pub(super) fn update(old: &Value, new: &Value, out: &mut Errors) {
    let (before, after) = (&old["spec"], &new["spec"]);
    for key in ["containers", "initContainers"] {
        if list(before, key).len() != list(after, key).len() {
            out.push(FieldError::forbidden(format!("spec.{key}"), "pod updates may not add or remove containers"));
            return;
        }
        for (index, value) in list(after, key).iter().enumerate() {
            if text(value, "image").is_empty() {
                out.push(FieldError::required(format!("spec.{key}[{index}].image"), ""));
            }
        }
    }
    match (before["activeDeadlineSeconds"].as_i64(), after["activeDeadlineSeconds"].as_i64()) {
        (Some(old), Some(new)) if new > old => {
            let text = format!("must be less than or equal to previous value {old}");
            out.push(FieldError::invalid("spec.activeDeadlineSeconds", new, text));
        }
        (Some(_), None) => {
            out.push(FieldError::invalid(
                "spec.activeDeadlineSeconds",
                Value::Null,
                "must not update from a positive integer to nil value",
            ));
        }
        _ => {}
    }
    let kept = |toleration: &Value| {
        list(after, "tolerations").iter().any(|new| {
            let (mut a, mut b) = (toleration.clone(), new.clone());
            for value in [&mut a, &mut b] {
                value.as_object_mut().map(|object| object.shift_remove("tolerationSeconds"));
            }
            a == b
        })
    };
    if !list(before, "tolerations").iter().all(kept) {
        let text = "existing toleration can not be modified except its tolerationSeconds";
        out.push(FieldError::forbidden("spec.tolerations", text));
        return;
    }
    let mut masked = after.clone();
    let Some(object) = masked.as_object_mut() else {
        return;
    };
    for key in ["activeDeadlineSeconds", "tolerations"] {
        match before.get(key) {
            Some(value) => drop(object.insert(key.to_owned(), value.clone())),
            None => drop(object.shift_remove(key)),
        }
    }
    if before["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0)
        && after["terminationGracePeriodSeconds"] == 1
    {
        object.insert("terminationGracePeriodSeconds".into(), before["terminationGracePeriodSeconds"].clone());
    }
    // Gates may go, and only go.
    let gates_kept = list(after, "schedulingGates").iter().all(|gate| list(before, "schedulingGates").contains(gate));
    if gates_kept {
        match before.get("schedulingGates") {
            Some(value) => drop(object.insert("schedulingGates".into(), value.clone())),
            None => drop(object.shift_remove("schedulingGates")),
        }
    }
    for key in ["containers", "initContainers"] {
        if let Some(Value::Array(all)) = object.get_mut(key) {
            for (value, old) in all.iter_mut().zip(list(before, key)) {
                if let (Some(value), Some(image)) = (value.as_object_mut(), old.get("image")) {
                    value.insert("image".into(), image.clone());
                }
            }
        }
    }
    if masked != *before {
        out.push(FieldError::forbidden("spec", format!("{UPDATES}\n{}", first_difference(before, &masked, "spec"))));
    }
}

/// The first path whose values differ, with both values.
fn first_difference(old: &Value, new: &Value, path: &str) -> String {
    match (old, new) {
        (Value::Object(before), Value::Object(after)) => {
            for key in before.keys().chain(after.keys().filter(|key| !before.contains_key(*key))) {
                let (a, b) = (before.get(key).unwrap_or(&Value::Null), after.get(key).unwrap_or(&Value::Null));
                if a != b {
                    return first_difference(a, b, &format!("{path}.{key}"));
                }
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (index, (a, b)) in before.iter().zip(after).enumerate() {
                if a != b {
                    return first_difference(a, b, &format!("{path}[{index}]"));
                }
            }
        }
        _ => {}
    }
    format!("- {path}: {old}\n+ {path}: {new}\n")
}
