//! Validation of security contexts and of the mounts that depend on them.

use serde_json::Value;

use super::{Errors, FieldError, list, not_negative, one_of, text};

/// A container's own security context, and what of its mounts depends on it.
pub(super) fn container(container: &Value, path: &str, out: &mut Errors) {
    let context = &container["securityContext"];
    if context.is_object() {
        let path = format!("{path}.securityContext");
        common(context, &path, out);
        one_of(context, "procMount", &path, &["Default", "Unmasked"], false, out);
        if context["privileged"] == true && context["allowPrivilegeEscalation"] == false {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            out.push(FieldError::invalid(path, context.clone(), detail));
        }
    }
    for (index, mount) in list(container, "volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if text(mount, "mountPropagation") == "Bidirectional" && context["privileged"] != true {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            out.push(FieldError::forbidden(format!("{path}.mountPropagation"), detail));
        }
        recursive(mount, &path, out);
    }
}

/// Read-only through and through: only for what is read-only and of which nothing travels.
fn recursive(mount: &Value, path: &str, out: &mut Errors) {
    one_of(mount, "recursiveReadOnly", path, &["Disabled", "Enabled", "IfPossible"], false, out);
    let asked = text(mount, "recursiveReadOnly");
    if !["Enabled", "IfPossible"].contains(&asked) {
        return;
    }
    let path = format!("{path}.recursiveReadOnly");
    if mount["readOnly"] != true {
        out.push(FieldError::forbidden(path.clone(), "may only be specified when readOnly is true"));
    }
    if !["", "None"].contains(&text(mount, "mountPropagation")) {
        let detail = "may only be specified when mountPropagation is None or not specified";
        out.push(FieldError::forbidden(path, detail));
    }
}

/// A pod's security context.
pub(super) fn pod(context: &Value, path: &str, out: &mut Errors) {
    if !context.is_object() {
        return;
    }
    common(context, path, out);
    not_negative(context, "fsGroup", path, out);
    for (index, group) in list(context, "supplementalGroups").iter().enumerate() {
        if let Some(group) = group.as_i64().filter(|g| *g < 0) {
            let path = format!("{path}.supplementalGroups[{index}]");
            out.push(FieldError::invalid(path, group, "must be greater than or equal to 0"));
        }
    }
    one_of(context, "fsGroupChangePolicy", path, &["Always", "OnRootMismatch"], false, out);
    one_of(context, "supplementalGroupsPolicy", path, &["Merge", "Strict"], false, out);
    one_of(context, "seLinuxChangePolicy", path, &["MountOption", "Recursive"], false, out);
    let mut names = std::collections::HashSet::new();
    for (index, sysctl) in list(context, "sysctls").iter().enumerate() {
        let (name, path) = (text(sysctl, "name"), format!("{path}.sysctls[{index}].name"));
        if name.is_empty() {
            out.push(FieldError::required(path, ""));
        } else if !names.insert(name) {
            out.push(FieldError::duplicate(path, name));
        }
    }
}

fn common(context: &Value, path: &str, out: &mut Errors) {
    for key in ["runAsUser", "runAsGroup"] {
        not_negative(context, key, path, out);
    }
    for key in ["seccompProfile", "appArmorProfile"] {
        let profile = &context[key];
        if !profile.is_object() {
            continue;
        }
        let path = format!("{path}.{key}");
        one_of(profile, "type", &path, &["Localhost", "RuntimeDefault", "Unconfined"], true, out);
        let local = text(profile, "localhostProfile");
        let path = format!("{path}.localhostProfile");
        match (text(profile, "type"), local) {
            ("Localhost", "") => out.push(FieldError::required(path, "must be set when type is Localhost")),
            ("Localhost", local) if key == "seccompProfile" && (local.starts_with('/') || local.contains("..")) => {
                out.push(FieldError::invalid(path, local, "must be a relative path without '..'"));
            }
            ("Localhost", _) | (_, "") => {}
            (_, local) => {
                out.push(FieldError::invalid(path, local, "can only be set when type is Localhost"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_wrong_field_is_named() {
        for (value, want) in [
            (json!({"securityContext": {"procMount": "Open"}}), "c.securityContext.procMount"),
            (json!({"securityContext": {"runAsUser": -1}}), "c.securityContext.runAsUser"),
            (json!({"securityContext": {"seccompProfile": {"type": "Mine"}}}), "c.securityContext.seccompProfile.type"),
            (
                json!({"securityContext": {"seccompProfile": {"type": "Localhost"}}}),
                "c.securityContext.seccompProfile.localhostProfile",
            ),
            (
                json!({"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "../x"}}}),
                "c.securityContext.seccompProfile.localhostProfile",
            ),
            (
                json!({"securityContext": {"appArmorProfile": {"type": "Unconfined", "localhostProfile": "x"}}}),
                "c.securityContext.appArmorProfile.localhostProfile",
            ),
            (json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": false}}), "c.securityContext"),
            (
                json!({"volumeMounts": [{"name": "v", "mountPropagation": "Bidirectional"}]}),
                "c.volumeMounts[0].mountPropagation",
            ),
            (
                json!({"volumeMounts": [{"name": "v", "recursiveReadOnly": "Enabled"}]}),
                "c.volumeMounts[0].recursiveReadOnly",
            ),
            (
                json!({"volumeMounts": [{"name": "v", "readOnly": true, "recursiveReadOnly": "Yes"}]}),
                "c.volumeMounts[0].recursiveReadOnly",
            ),
        ] {
            let mut out = Errors::new();
            container(&value, "c", &mut out);
            let fields: Vec<&str> = out.iter().map(|e| e.field.as_str()).collect();
            assert_eq!(fields, [want], "{value}");
        }
        let good = json!({"securityContext": {"privileged": true, "procMount": "Unmasked",
            "seccompProfile": {"type": "Localhost", "localhostProfile": "a/b.json"}},
            "volumeMounts": [{"mountPropagation": "Bidirectional"}, {"readOnly": true, "recursiveReadOnly": "Enabled"}]});
        let mut out = Errors::new();
        container(&good, "c", &mut out);
        assert_eq!(out, []);
    }

    #[test]
    fn a_pods_context_is_checked() {
        for (value, want) in [
            (json!({"fsGroup": -1}), "s.fsGroup"),
            (json!({"fsGroupChangePolicy": "Never"}), "s.fsGroupChangePolicy"),
            (json!({"supplementalGroups": [1, -1]}), "s.supplementalGroups[1]"),
            (json!({"supplementalGroupsPolicy": "Lax"}), "s.supplementalGroupsPolicy"),
            (json!({"sysctls": [{"name": "a", "value": "1"}, {"name": "a", "value": "2"}]}), "s.sysctls[1].name"),
        ] {
            let mut out = Errors::new();
            pod(&value, "s", &mut out);
            assert_eq!(out.len(), 1, "{value}");
            assert_eq!(out[0].field, want);
        }
    }
}
