//! Rules of single fields of a pod's spec that stand for themselves: each names its field, whatever else is wrong.

use std::collections::HashSet;

use gantry_kube::quantity::Quantity;
use serde_json::Value;

use super::names::{dns_subdomain, qualified_name};
use super::{Errors, FieldError, list, one_of, text};

const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
/// Lists of containers.
const LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
/// What an ephemeral container cannot have: it comes when all amounts and addresses are given out.
const NOT_EPHEMERAL: [&str; 2] = ["ports", "resources"];

/// Looks at the whole spec at `path`.
pub(super) fn check(spec: &Value, path: &str, out: &mut Errors) {
    whole(spec, path, out);
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        of_volume(volume, &format!("{path}.volumes[{index}]"), out);
    }
    let devices: HashSet<&str> = list(spec, "volumes")
        .iter()
        .filter(|v| v["persistentVolumeClaim"].is_object() || v["ephemeral"].is_object())
        .map(|v| text(v, "name"))
        .collect();
    for key in LISTS {
        for (index, container) in list(spec, key).iter().enumerate() {
            let path = format!("{path}.{key}[{index}]");
            of_container(container, key, &path, out);
            of_devices(container, &devices, &path, out);
            if key == "ephemeralContainers" {
                of_target(container, spec, &path, out);
            }
        }
    }
}

fn whole(spec: &Value, path: &str, out: &mut Errors) {
    one_of(spec, "preemptionPolicy", path, &["Never", "PreemptLowerPriority"], false, out);
    if spec["os"].is_object() {
        one_of(&spec["os"], "name", &format!("{path}.os"), &["linux", "windows"], true, out);
    }
    for (index, gate) in list(spec, "readinessGates").iter().enumerate() {
        let kind = text(gate, "conditionType");
        let at = format!("{path}.readinessGates[{index}].conditionType");
        out.extend(qualified_name(kind).into_iter().map(|p| FieldError::invalid(at.clone(), kind, p)));
    }
    let searches = list(&spec["dnsConfig"], "searches");
    let at = format!("{path}.dnsConfig.searches");
    if searches.len() > 32 {
        out.push(FieldError::invalid(&at, searches.len(), "must not have more than 32 search paths"));
    }
    for (index, search) in searches.iter().enumerate() {
        // As upstream: a dot at the end is allowed, and an underscore within.
        let given = search.as_str().unwrap_or_default();
        let name = given.strip_suffix('.').unwrap_or(given).replace('_', "x");
        if given != "." {
            let wrong = dns_subdomain(&name).into_iter();
            out.extend(wrong.map(|p| FieldError::invalid(format!("{at}[{index}]"), given, p)));
        }
    }
    for (index, option) in list(&spec["dnsConfig"], "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            out.push(FieldError::required(format!("{path}.dnsConfig.options[{index}]"), "must not be empty"));
        }
    }
    if spec["hostUsers"] == false {
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            if spec[field] == true {
                let why = format!("when `hostUsers` is false, `{field}` cannot be true");
                out.push(FieldError::forbidden(format!("{path}.{field}"), why));
            }
        }
    }
    for (name, amount) in spec["overhead"].as_object().into_iter().flatten() {
        not_an_amount(amount, &format!("{path}.overhead[{name}]"), out);
    }
    let resources = &spec["resources"];
    for kind in ["limits", "requests"] {
        for name in resources[kind].as_object().into_iter().flatten().map(|(name, _)| name) {
            if !matches!(name.as_str(), "cpu" | "memory") && !name.starts_with("hugepages-") {
                let at = format!("{path}.resources.{kind}[{name}]");
                out.push(FieldError::not_supported(at, name.as_str(), &["cpu", "hugepages-", "memory"]));
            }
        }
    }
    if resources.is_object() {
        super::container::resources(resources, &format!("{path}.resources"), out);
    }
    spread(spec, path, out);
    sysctls(&spec["securityContext"], path, out);
}

fn spread(spec: &Value, path: &str, out: &mut Errors) {
    for (index, rule) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let path = format!("{path}.topologySpreadConstraints[{index}]");
        if rule["maxSkew"].as_i64().unwrap_or(0) <= 0 {
            out.push(FieldError::invalid(
                format!("{path}.maxSkew"),
                rule["maxSkew"].clone(),
                "must be greater than zero",
            ));
        }
        if text(rule, "topologyKey").is_empty() {
            out.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
        }
        one_of(rule, "whenUnsatisfiable", &path, &["DoNotSchedule", "ScheduleAnyway"], true, out);
    }
}

fn sysctls(context: &Value, path: &str, out: &mut Errors) {
    for (index, sysctl) in list(context, "sysctls").iter().enumerate() {
        let name = text(sysctl, "name");
        let part = |part: &str| {
            let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            edge(part.chars().next())
                && edge(part.chars().last())
                && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c))
        };
        // Interfaces have names of their own kind behind a slash; only the path out of the folder is wrong in them.
        let fine = name.len() <= 253 && name.split(['.', '/']).all(|p| part(&p.to_lowercase()));
        if !name.is_empty() && !fine {
            let why = "must have at most 253 characters and consist of names between dots or slashes";
            out.push(FieldError::invalid(format!("{path}.securityContext.sysctls[{index}].name"), name, why));
        }
    }
}

fn not_an_amount(amount: &Value, path: &str, out: &mut Errors) {
    let text = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
    match Quantity::parse(&text) {
        Ok(amount) if !amount.is_negative() => {}
        Ok(_) => out.push(FieldError::invalid(path, text, "must be greater than or equal to 0")),
        Err(why) => out.push(FieldError::invalid(path, text, why.to_string())),
    }
}

fn of_volume(volume: &Value, path: &str, out: &mut Errors) {
    if !volume["emptyDir"]["sizeLimit"].is_null() {
        not_an_amount(&volume["emptyDir"]["sizeLimit"], &format!("{path}.emptyDir.sizeLimit"), out);
    }
    if volume["image"].is_object() {
        one_of(
            &volume["image"],
            "pullPolicy",
            &format!("{path}.image"),
            &["Always", "IfNotPresent", "Never"],
            false,
            out,
        );
    }
    if volume["ephemeral"].is_object() {
        let path = format!("{path}.ephemeral.volumeClaimTemplate");
        let template = &volume["ephemeral"]["volumeClaimTemplate"];
        if !template.is_object() {
            out.push(FieldError::required(path, ""));
            return;
        }
        if list(&template["spec"], "accessModes").is_empty() {
            let why = "at least 1 access mode is required";
            out.push(FieldError::required(format!("{path}.spec.accessModes"), why));
        }
        if template["spec"]["resources"]["requests"]["storage"].is_null() {
            out.push(FieldError::required(format!("{path}.spec.resources[storage]"), ""));
        }
    }
}

fn of_container(container: &Value, key: &str, path: &str, out: &mut Errors) {
    for (index, entry) in list(container, "ports").iter().enumerate() {
        let ip = text(entry, "hostIP");
        if !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
            out.push(FieldError::invalid(format!("{path}.ports[{index}].hostIP"), ip, IP));
        }
    }
    let mut resized = HashSet::new();
    for (index, policy) in list(container, "resizePolicy").iter().enumerate() {
        let path = format!("{path}.resizePolicy[{index}]");
        one_of(policy, "resourceName", &path, &["cpu", "memory"], true, out);
        one_of(policy, "restartPolicy", &path, &["NotRequired", "RestartContainer"], true, out);
        if !resized.insert(text(policy, "resourceName")) {
            out.push(FieldError::duplicate(path, text(policy, "resourceName")));
        }
    }
    let policy = text(container, "restartPolicy");
    if !["", "Always", "OnFailure", "Never"].contains(&policy) {
        let all = &["Always", "Never", "OnFailure"];
        out.push(FieldError::not_supported(format!("{path}.restartPolicy"), policy, all));
    }
    rules(container, path, out);
    if key == "ephemeralContainers" {
        for field in NOT_EPHEMERAL.into_iter().filter(|f| is_set(&container[*f])) {
            out.push(FieldError::forbidden(format!("{path}.{field}"), "cannot be set for an Ephemeral Container"));
        }
        return;
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let (probe, path) = (&container[kind], format!("{path}.{kind}"));
        let grace = &probe["terminationGracePeriodSeconds"];
        if kind == "readinessProbe" && !grace.is_null() {
            let why = "must not be set for readinessProbes";
            out.push(FieldError::invalid(format!("{path}.terminationGracePeriodSeconds"), grace.clone(), why));
        } else if grace.as_i64().is_some_and(|s| s <= 0) {
            let why = "must be greater than 0";
            out.push(FieldError::invalid(format!("{path}.terminationGracePeriodSeconds"), grace.clone(), why));
        }
        headers(&probe["httpGet"], &format!("{path}.httpGet"), out);
    }
    for hook in ["postStart", "preStop"] {
        let (handler, path) = (&container["lifecycle"][hook], format!("{path}.lifecycle.{hook}"));
        headers(&handler["httpGet"], &format!("{path}.httpGet"), out);
        if let Some(seconds) = handler["sleep"]["seconds"].as_i64().filter(|s| *s < 0) {
            let why = "must be greater than or equal to 0";
            out.push(FieldError::invalid(format!("{path}.sleep"), seconds, why));
        }
    }
}

fn is_set(value: &Value) -> bool {
    value.as_array().is_some_and(|l| !l.is_empty()) || value.as_object().is_some_and(|o| !o.is_empty())
}

fn headers(get: &Value, path: &str, out: &mut Errors) {
    for (index, header) in list(get, "httpHeaders").iter().enumerate() {
        let name = text(header, "name");
        let fine = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !fine {
            let why = "a valid HTTP header must consist of alphanumeric characters or '-'";
            out.push(FieldError::invalid(format!("{path}.httpHeaders[{index}].name"), name, why));
        }
    }
}

fn rules(container: &Value, path: &str, out: &mut Errors) {
    let all = list(container, "restartPolicyRules");
    if !all.is_empty() && text(container, "restartPolicy").is_empty() {
        let why = "must specify restartPolicy when restart rules are used";
        out.push(FieldError::required(format!("{path}.restartPolicy"), why));
    }
    if all.len() > 20 {
        out.push(FieldError::invalid(format!("{path}.restartPolicyRules"), all.len(), "must have at most 20 items"));
    }
    for (index, rule) in all.iter().enumerate() {
        let path = format!("{path}.restartPolicyRules[{index}]");
        one_of(rule, "action", &path, &["Restart", "RestartAllContainers"], true, out);
        let codes = &rule["exitCodes"];
        if !codes.is_object() {
            out.push(FieldError::required(format!("{path}.exitCodes"), "must be specified"));
            continue;
        }
        one_of(codes, "operator", &format!("{path}.exitCodes"), &["In", "NotIn"], true, out);
        if list(codes, "values").len() > 255 {
            let why = "must have at most 255 items";
            out.push(FieldError::invalid(format!("{path}.exitCodes.values"), list(codes, "values").len(), why));
        }
    }
}

/// Raw devices are claims, each at a place of its own that nothing else is mounted at.
fn of_devices(container: &Value, devices: &HashSet<&str>, path: &str, out: &mut Errors) {
    let mut seen: HashSet<&str> = list(container, "volumeMounts").iter().map(|m| text(m, "mountPath")).collect();
    for (index, device) in list(container, "volumeDevices").iter().enumerate() {
        let path = format!("{path}.volumeDevices[{index}]");
        let (name, place) = (text(device, "name"), text(device, "devicePath"));
        if name.is_empty() {
            out.push(FieldError::required(format!("{path}.name"), ""));
        } else if !devices.contains(name) {
            let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
            out.push(FieldError::invalid(format!("{path}.name"), name, why));
        }
        if place.is_empty() {
            out.push(FieldError::required(format!("{path}.devicePath"), ""));
        } else if place.split('/').any(|step| step == "..") {
            out.push(FieldError::invalid(format!("{path}.devicePath"), place, "can not contain backsteps ('..')"));
        } else if !seen.insert(place) {
            out.push(FieldError::invalid(format!("{path}.devicePath"), place, "must be unique"));
        }
    }
}

fn of_target(container: &Value, spec: &Value, path: &str, out: &mut Errors) {
    let target = text(container, "targetContainerName");
    let known = |key: &&str| list(spec, key).iter().any(|c| text(c, "name") == target);
    if !target.is_empty() && !["containers", "initContainers"].iter().any(known) {
        out.push(FieldError::not_found(format!("{path}.targetContainerName"), target));
    }
}

#[cfg(test)]
#[path = "pod_fields_tests.rs"]
mod tests;
