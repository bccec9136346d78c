//! Validation of containers.

use std::collections::{HashMap, HashSet};

use gantry_kube::quantity::Quantity;
use serde_json::Value;

use super::names::{dns_label, env_name, port_name, qualified_name};
use super::{Errors, FieldError, list, not_negative, one_of, port, security, text};

/// Which of a pod's lists a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Main,
    Init,
    Ephemeral,
}

/// Volumes of the pod: name to whether it is a block device's claim (which mounts cannot tell) or not.
pub(super) type Volumes<'a> = HashMap<&'a str, &'a Value>;

pub(super) fn validate(container: &Value, path: &str, role: Role, volumes: &Volumes<'_>, out: &mut Errors) {
    let name = text(container, "name");
    if name.is_empty() {
        out.push(FieldError::required(format!("{path}.name"), ""));
    } else {
        out.extend(
            dns_label(name).into_iter().map(|problem| FieldError::invalid(format!("{path}.name"), name, problem)),
        );
    }
    let image = text(container, "image");
    if image.is_empty() {
        out.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        out.push(FieldError::invalid(format!("{path}.image"), image, "must not have leading or trailing whitespace"));
    }
    one_of(container, "imagePullPolicy", path, &["Always", "IfNotPresent", "Never"], true, out);
    one_of(container, "terminationMessagePolicy", path, &["FallbackToLogsOnError", "File"], true, out);
    ports(container, path, out);
    env(container, path, out);
    mounts(container, path, volumes, out);
    security::container(container, path, out);
    resources(&container["resources"], &format!("{path}.resources"), out);
    let restartable = text(container, "restartPolicy") == "Always";
    for key in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
        if container[key].is_null() {
            continue;
        }
        let path = format!("{path}.{key}");
        match role {
            Role::Init if !restartable => {
                out.push(FieldError::forbidden(
                    path,
                    "may not be set for init containers without restartPolicy=Always",
                ));
            }
            Role::Ephemeral => out.push(FieldError::forbidden(path, "cannot be set for an Ephemeral Container")),
            _ if key == "lifecycle" => {
                for hook in ["postStart", "preStop"] {
                    if container[key][hook].is_object() {
                        handler(
                            &container[key][hook],
                            &format!("{path}.{hook}"),
                            &["exec", "httpGet", "tcpSocket", "sleep"],
                            out,
                        );
                    }
                }
            }
            _ => probe(&container[key], &path, key, out),
        }
    }
}

fn ports(container: &Value, path: &str, out: &mut Errors) {
    let mut names = HashSet::new();
    for (index, entry) in list(container, "ports").iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        let name = text(entry, "name");
        if !name.is_empty() {
            out.extend(
                port_name(name).into_iter().map(|problem| FieldError::invalid(format!("{path}.name"), name, problem)),
            );
            if !names.insert(name) {
                out.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
        match entry["containerPort"].as_i64().unwrap_or(0) {
            0 => out.push(FieldError::required(format!("{path}.containerPort"), "")),
            number => port(number, &format!("{path}.containerPort"), out),
        }
        match entry["hostPort"].as_i64().unwrap_or(0) {
            0 => {}
            number => port(number, &format!("{path}.hostPort"), out),
        }
        one_of(entry, "protocol", &path, &["SCTP", "TCP", "UDP"], true, out);
    }
}

/// Host ports must be unique in a pod.
pub(super) fn host_ports(container: &Value, path: &str, seen: &mut HashSet<String>, out: &mut Errors) {
    for (index, entry) in list(container, "ports").iter().enumerate() {
        let number = entry["hostPort"].as_i64().unwrap_or(0);
        let key = format!("{}/{}/{number}", text(entry, "protocol"), text(entry, "hostIP"));
        if number != 0 && !seen.insert(key.clone()) {
            out.push(FieldError::duplicate(format!("{path}.ports[{index}].hostPort"), key));
        }
    }
}

const FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// A field that environment variables and downward files can show.
pub(super) fn field_path(value: &str, path: &str, out: &mut Errors) {
    let keyed = ["metadata.annotations['", "metadata.labels['"];
    if value.is_empty() {
        out.push(FieldError::required(format!("{path}.fieldPath"), ""));
    } else if let Some(prefix) = keyed.iter().find(|prefix| value.starts_with(**prefix)) {
        let key = value[prefix.len()..].trim_end_matches("']");
        let problems = qualified_name(&key.to_lowercase()).into_iter();
        out.extend(problems.map(|problem| FieldError::invalid(path, key, problem)));
    } else if !FIELDS.contains(&value) {
        out.push(FieldError::not_supported(format!("{path}.fieldPath"), value, FIELDS));
    }
}

fn env(container: &Value, path: &str, out: &mut Errors) {
    for (index, variable) in list(container, "env").iter().enumerate() {
        let path = format!("{path}.env[{index}]");
        let name = text(variable, "name");
        if name.is_empty() {
            out.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            out.extend(
                env_name(name).into_iter().map(|problem| FieldError::invalid(format!("{path}.name"), name, problem)),
            );
        }
        let source = &variable["valueFrom"];
        if !source.is_object() {
            continue;
        }
        let path = format!("{path}.valueFrom");
        let kinds = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
        let given: Vec<&str> = kinds.into_iter().filter(|kind| source[*kind].is_object()).collect();
        if !text(variable, "value").is_empty() && !given.is_empty() {
            out.push(FieldError::invalid(path.clone(), "", "may not be specified when `value` is not empty"));
        }
        match given.as_slice() {
            [] => {
                let text = format!("must specify one of: `{}`", kinds.join("`, `"));
                out.push(FieldError::invalid(path, "", text));
            }
            ["fieldRef"] => {
                let path = format!("{path}.fieldRef");
                field_path(text(&source["fieldRef"], "fieldPath"), &path, out);
            }
            ["resourceFieldRef"] => {
                if text(&source["resourceFieldRef"], "resource").is_empty() {
                    out.push(FieldError::required(format!("{path}.resourceFieldRef.resource"), ""));
                }
            }
            [kind @ ("configMapKeyRef" | "secretKeyRef")] => {
                for field in ["name", "key"] {
                    if text(&source[*kind], field).is_empty() {
                        out.push(FieldError::required(format!("{path}.{kind}.{field}"), ""));
                    }
                }
            }
            [_] => {}
            _ => out.push(FieldError::invalid(path, "", "may not have more than one field specified at a time")),
        }
    }
    for (index, source) in list(container, "envFrom").iter().enumerate() {
        let path = format!("{path}.envFrom[{index}]");
        match (&source["configMapRef"], &source["secretRef"]) {
            (Value::Object(_), Value::Object(_)) => {
                out.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"));
            }
            (Value::Null, Value::Null) => {
                out.push(FieldError::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"));
            }
            _ => {}
        }
    }
}

fn mounts(container: &Value, path: &str, volumes: &Volumes<'_>, out: &mut Errors) {
    let mut places = HashSet::new();
    for (index, mount) in list(container, "volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        let (name, place) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            out.push(FieldError::required(format!("{path}.name"), ""));
        } else if !volumes.contains_key(name) {
            out.push(FieldError::not_found(format!("{path}.name"), name));
        }
        if place.is_empty() {
            out.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if !places.insert(place) {
            out.push(FieldError::invalid(format!("{path}.mountPath"), place, "must be unique"));
        }
        for key in ["subPath", "subPathExpr"] {
            let sub = text(mount, key);
            if sub.starts_with('/') {
                out.push(FieldError::invalid(format!("{path}.{key}"), sub, "must be a relative path"));
            }
            if sub.split('/').any(|step| step == "..") {
                out.push(FieldError::invalid(format!("{path}.{key}"), sub, "must not contain '..'"));
            }
        }
        if !text(mount, "subPath").is_empty() && !text(mount, "subPathExpr").is_empty() {
            out.push(FieldError::invalid(
                format!("{path}.subPathExpr"),
                text(mount, "subPathExpr"),
                "subPathExpr and subPath are mutually exclusive",
            ));
        }
        one_of(mount, "mountPropagation", &path, &["Bidirectional", "HostToContainer", "None"], false, out);
    }
}

fn quantity(value: &Value) -> Option<Quantity> {
    Quantity::parse(&value.as_str().map_or_else(|| value.to_string(), str::to_owned)).ok()
}

/// Limits and requests: parsable, not negative, limits not below requests.
pub(super) fn resources(resources: &Value, path: &str, out: &mut Errors) {
    for kind in ["limits", "requests"] {
        for (name, value) in resources[kind].as_object().into_iter().flatten() {
            let path = format!("{path}.{kind}[{name}]");
            let standard =
                ["cpu", "memory", "ephemeral-storage"].contains(&name.as_str()) || name.starts_with("hugepages-");
            if !standard && !name.contains('/') {
                out.push(FieldError::invalid(
                    path.clone(),
                    name.as_str(),
                    "must be a standard resource type or fully qualified",
                ));
                out.push(FieldError::invalid(path, name.as_str(), "must be a standard resource for containers"));
                continue;
            }
            match quantity(value) {
                Some(amount) if amount.is_negative() => {
                    out.push(FieldError::invalid(path, value.clone(), "must be greater than or equal to 0"));
                }
                Some(_) => {}
                None => {
                    let text =
                        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
                    out.push(FieldError::invalid(path, value.clone(), text));
                }
            }
        }
    }
    for (name, request) in resources["requests"].as_object().into_iter().flatten() {
        let limit = &resources["limits"][name];
        if let (Some(wanted), Some(most)) = (quantity(request), quantity(limit).filter(|_| !limit.is_null())) {
            let text = format!("must be less than or equal to {name} limit of {}", limit.as_str().unwrap_or_default());
            let exact = name == "cpu" || name == "memory" || name == "ephemeral-storage";
            if exact && most.minus(wanted).is_negative() {
                out.push(FieldError::invalid(format!("{path}.requests"), request.clone(), text));
            } else if !exact && wanted.to_string() != most.to_string() {
                let text = format!("must be equal to {name} limit of {}", limit.as_str().unwrap_or_default());
                out.push(FieldError::invalid(format!("{path}.requests"), request.clone(), text));
            }
        }
    }
}

fn probe(probe: &Value, path: &str, kind: &str, out: &mut Errors) {
    handler(probe, path, &["exec", "httpGet", "tcpSocket", "grpc"], out);
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        not_negative(probe, key, path, out);
    }
    let successes = probe["successThreshold"].as_i64().unwrap_or(1);
    if kind != "readinessProbe" && successes != 1 {
        out.push(FieldError::invalid(format!("{path}.successThreshold"), successes, "must be 1"));
    }
}

fn handler(handler: &Value, path: &str, kinds: &[&str], out: &mut Errors) {
    let given: Vec<&&str> = kinds.iter().filter(|kind| handler[**kind].is_object()).collect();
    for extra in given.iter().skip(1) {
        out.push(FieldError::forbidden(format!("{path}.{extra}"), "may not specify more than 1 handler type"));
    }
    let Some(kind) = given.first() else {
        out.push(FieldError::required(path, "must specify a handler type"));
        return;
    };
    let (value, path) = (&handler[**kind], format!("{path}.{kind}"));
    match **kind {
        "exec" if list(value, "command").is_empty() => out.push(FieldError::required(format!("{path}.command"), "")),
        "httpGet" | "tcpSocket" | "grpc" => {
            if **kind == "httpGet" && text(value, "path").is_empty() {
                out.push(FieldError::required(format!("{path}.path"), ""));
            }
            match &value["port"] {
                Value::String(name) => {
                    out.extend(
                        port_name(name)
                            .into_iter()
                            .map(|p| FieldError::invalid(format!("{path}.port"), name.as_str(), p)),
                    );
                }
                number => port(number.as_i64().unwrap_or(0), &format!("{path}.port"), out),
            }
            if **kind == "httpGet" {
                one_of(value, "scheme", &path, &["HTTP", "HTTPS"], false, out);
            }
        }
        _ => {}
    }
}
