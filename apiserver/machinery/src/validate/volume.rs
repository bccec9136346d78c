//! Validation of a pod's volumes.

use serde_json::Value;

use super::container::{Volumes, field_path};
use super::names::dns_label;
use super::{Errors, FieldError, certificates, list, one_of, text};

const HOST_PATH_TYPES: &[&str] =
    &["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

const KEY_TYPES: &[&str] = &["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];

/// All volumes of a pod's spec, by name.
pub(super) fn all<'a>(spec: &'a Value, path: &str, out: &mut Errors) -> Volumes<'a> {
    let mut found = Volumes::new();
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{index}]");
        let name = text(volume, "name");
        if name.is_empty() {
            out.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            out.extend(dns_label(name).into_iter().map(|p| FieldError::invalid(format!("{path}.name"), name, p)));
            if found.insert(name, volume).is_some() {
                out.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
        source(volume, &path, out);
    }
    found
}

fn source(volume: &Value, path: &str, out: &mut Errors) {
    let kinds: Vec<(&String, &Value)> =
        volume.as_object().into_iter().flatten().filter(|(key, value)| *key != "name" && value.is_object()).collect();
    for (extra, _) in kinds.iter().skip(1) {
        out.push(FieldError::forbidden(format!("{path}.{extra}"), "may not specify more than 1 volume type"));
    }
    let Some((kind, value)) = kinds.first() else {
        out.push(FieldError::required(path, "must specify a volume type"));
        return;
    };
    let path = format!("{path}.{kind}");
    match kind.as_str() {
        "hostPath" => {
            let place = text(value, "path");
            if place.is_empty() {
                out.push(FieldError::required(format!("{path}.path"), ""));
            } else if place.split('/').any(|step| step == "..") {
                out.push(FieldError::invalid(format!("{path}.path"), place, "must not contain '..'"));
            }
            one_of(value, "type", &path, HOST_PATH_TYPES, false, out);
        }
        "configMap" => {
            required(value, "name", &path, out);
            mode(value, "defaultMode", &path, out);
            items(value, &path, out);
        }
        "secret" => {
            required(value, "secretName", &path, out);
            mode(value, "defaultMode", &path, out);
            items(value, &path, out);
        }
        "persistentVolumeClaim" => required(value, "claimName", &path, out),
        "downwardAPI" => {
            mode(value, "defaultMode", &path, out);
            downward(value, &path, out);
        }
        "projected" => {
            mode(value, "defaultMode", &path, out);
            for (index, part) in list(value, "sources").iter().enumerate() {
                projected(part, &format!("{path}.sources[{index}]"), out);
            }
        }
        "csi" => required(value, "driver", &path, out),
        "nfs" => {
            required(value, "server", &path, out);
            required(value, "path", &path, out);
        }
        _ => {}
    }
}

fn projected(part: &Value, path: &str, out: &mut Errors) {
    let kinds: Vec<&String> =
        part.as_object().into_iter().flatten().filter(|(_, value)| value.is_object()).map(|(key, _)| key).collect();
    for extra in kinds.iter().skip(1) {
        out.push(FieldError::forbidden(
            format!("{path}.{extra}"),
            "may not specify more than 1 volume type per source",
        ));
    }
    let Some(kind) = kinds.first() else {
        return;
    };
    let (value, path) = (&part[kind.as_str()], format!("{path}.{kind}"));
    match kind.as_str() {
        "configMap" | "secret" => {
            required(value, "name", &path, out);
            items(value, &path, out);
        }
        "downwardAPI" => downward(value, &path, out),
        "serviceAccountToken" => {
            required(value, "path", &path, out);
            if let Some(seconds) = value["expirationSeconds"].as_i64().filter(|seconds| *seconds < 600) {
                let text = "may not specify a duration less than 10 minutes";
                out.push(FieldError::invalid(format!("{path}.expirationSeconds"), seconds, text));
            }
        }
        "clusterTrustBundle" => {
            local_path(value, &path, out);
            match (!text(value, "name").is_empty(), !text(value, "signerName").is_empty()) {
                (true, true) => out.push(FieldError::invalid(
                    &path,
                    text(value, "name"),
                    "only one of name and signerName may be used",
                )),
                (false, false) => {
                    out.push(FieldError::required(&path, "either name or signerName must be specified"));
                }
                (true, false) if !value["labelSelector"].is_null() => out.push(FieldError::forbidden(
                    format!("{path}.labelSelector"),
                    "labelSelector may only be used with signerName",
                )),
                (false, true) => certificates::signer_name(value, &path, out),
                _ => {}
            }
        }
        "podCertificate" => {
            certificates::signer_name(value, &path, out);
            one_of(value, "keyType", &path, KEY_TYPES, true, out);
            certificates::life(value, &path, out);
            let paths = ["credentialBundlePath", "keyPath", "certificateChainPath"];
            if paths.iter().all(|key| text(value, key).is_empty()) {
                let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
                out.push(FieldError::required(&path, why));
            }
            for key in paths.into_iter().filter(|key| !text(value, key).is_empty()) {
                local_path_of(value, key, &path, out);
            }
        }
        _ => {}
    }
}

fn required(value: &Value, key: &str, path: &str, out: &mut Errors) {
    if text(value, key).is_empty() {
        out.push(FieldError::required(format!("{path}.{key}"), ""));
    }
}

fn mode(value: &Value, key: &str, path: &str, out: &mut Errors) {
    if let Some(mode) = value[key].as_i64().filter(|mode| !(0..=0o777).contains(mode)) {
        let text = "must be a number between 0 and 0777 (octal), both inclusive";
        out.push(FieldError::invalid(format!("{path}.{key}"), mode, text));
    }
}

/// A path inside a volume must stay there.
fn local_path(value: &Value, path: &str, out: &mut Errors) {
    local_path_of(value, "path", path, out);
}

fn local_path_of(value: &Value, key: &str, path: &str, out: &mut Errors) {
    let place = text(value, key);
    let path = format!("{path}.{key}");
    if place.is_empty() {
        out.push(FieldError::required(path, ""));
    } else if place.starts_with('/') {
        out.push(FieldError::invalid(path, place, "must be a relative path"));
    } else if place.split('/').any(|step| step == "..") {
        out.push(FieldError::invalid(path, place, "must not contain '..'"));
    } else if place.starts_with("..") {
        out.push(FieldError::invalid(path, place, "must not start with '..'"));
    }
}

fn items(value: &Value, path: &str, out: &mut Errors) {
    for (index, item) in list(value, "items").iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        required(item, "key", &path, out);
        local_path(item, &path, out);
        mode(item, "mode", &path, out);
    }
}

fn downward(value: &Value, path: &str, out: &mut Errors) {
    for (index, item) in list(value, "items").iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        local_path(item, &path, out);
        mode(item, "mode", &path, out);
        match (&item["fieldRef"], &item["resourceFieldRef"]) {
            (Value::Object(_), Value::Object(_)) => {
                out.push(FieldError::invalid(
                    path,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                ));
            }
            (Value::Null, Value::Null) => {
                out.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required"));
            }
            (field @ Value::Object(_), _) => {
                let whole = ["metadata.annotations", "metadata.labels"];
                if !whole.contains(&text(field, "fieldPath")) {
                    field_path(text(field, "fieldPath"), &format!("{path}.fieldRef"), out);
                }
            }
            _ => {}
        }
    }
}
