//! What configMap, secret, downwardAPI and projected volumes contain; plain data in, files out.

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};

use crate::atomic::{File, Payload, valid_path};
use crate::{PodContext, downward};

/// File mode of volumes that state none.
pub(crate) const DEFAULT_MODE: i32 = 0o644;

/// The files of a ConfigMap (`None`: it does not exist).
pub(crate) fn of_config_map(
    name: &str,
    map: Option<&ConfigMap>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<Payload, String> {
    let Some(map) = map else {
        return if optional { Ok(Payload::new()) } else { Err(format!("configmap {name:?} not found")) };
    };
    let entries = map
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), v.as_bytes()))
        .chain(map.binary_data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.as_slice())));
    select("config", entries.collect(), items, mode, optional)
}

/// The files of a Secret (`None`: it does not exist).
pub(crate) fn of_secret(
    name: &str,
    secret: Option<&Secret>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<Payload, String> {
    let Some(secret) = secret else {
        return if optional { Ok(Payload::new()) } else { Err(format!("secret {name:?} not found")) };
    };
    let entries = secret.data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.as_slice()));
    select("secret", entries.collect(), items, mode, optional)
}

fn select(
    what: &str,
    entries: Vec<(&str, &[u8])>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<Payload, String> {
    let mut out = Payload::new();
    match items {
        None | Some([]) => {
            for (key, data) in entries {
                put(&mut out, key, data, mode)?;
            }
        }
        Some(items) => {
            for item in items {
                match entries.iter().find(|(key, _)| *key == item.key) {
                    Some((_, data)) => put(&mut out, &item.path, data, item.mode.unwrap_or(mode))?,
                    None if optional => {}
                    None => return Err(format!("references non-existent {what} key: {}", item.key)),
                }
            }
        }
    }
    Ok(out)
}

/// The files of a downward API volume.
pub(crate) fn of_downward(
    pod: &Pod,
    ctx: &PodContext,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: i32,
) -> Result<Payload, String> {
    let mut out = Payload::new();
    for item in items.unwrap_or_default() {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => downward::field(pod, ctx, &field.field_path)?,
            (None, Some(resource)) => downward::resource(pod, None, ctx, resource)?,
            (None, None) => return Err(format!("item {:?} has neither fieldRef nor resourceFieldRef", item.path)),
        };
        put(&mut out, &item.path, value.as_bytes(), item.mode.unwrap_or(mode))?;
    }
    Ok(out)
}

/// Adds one file, refusing paths that leave the volume.
pub(crate) fn put(out: &mut Payload, path: &str, data: &[u8], mode: i32) -> Result<(), String> {
    if !valid_path(path) {
        return Err(format!("invalid path {path:?} in the volume"));
    }
    let mode = u32::try_from(mode).ok().filter(|m| *m <= 0o777).ok_or_else(|| format!("invalid file mode {mode}"))?;
    out.insert(path.to_owned(), File { data: data.to_vec(), mode, uid: None });
    Ok(())
}

/// Merges sources of a projected volume; a file may not also be a directory.
pub(crate) fn check_nesting(payload: &Payload) -> Result<(), String> {
    for path in payload.keys() {
        let mut at = path.as_str();
        while let Some((parent, _)) = at.rsplit_once('/') {
            if payload.contains_key(parent) {
                return Err(format!("conflicting paths {parent:?} and {path:?} in the volume"));
            }
            at = parent;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map() -> ConfigMap {
        serde_json::from_value(json!({"data": {"a": "1", "b": "2"}, "binaryData": {"bin": "AAE="}})).unwrap()
    }

    fn items(value: serde_json::Value) -> Vec<KeyToPath> {
        serde_json::from_value(value).unwrap()
    }

    fn shape(payload: &Payload) -> Vec<String> {
        payload.iter().map(|(p, f)| format!("{p} {:o} {}", f.mode, String::from_utf8_lossy(&f.data))).collect()
    }

    #[test]
    fn without_items_every_key_is_a_file() {
        let got = of_config_map("c", Some(&map()), None, 0o644, false).unwrap();
        assert_eq!(shape(&got), ["a 644 1", "b 644 2", "bin 644 \0\u{1}"]);
    }

    #[test]
    fn items_choose_paths_and_modes() {
        let items = items(json!([{"key": "b", "path": "dir/file", "mode": 256}, {"key": "a", "path": "x"}]));
        let got = of_config_map("c", Some(&map()), Some(&items), 0o600, false).unwrap();
        assert_eq!(shape(&got), ["dir/file 400 2", "x 600 1"]);
    }

    #[test]
    fn missing_things_fail_unless_optional() {
        let none = items(json!([{"key": "zz", "path": "x"}]));
        assert_eq!(of_config_map("c", None, None, 0, false).unwrap_err(), "configmap \"c\" not found");
        assert_eq!(of_secret("s", None, None, 0, false).unwrap_err(), "secret \"s\" not found");
        assert!(of_secret("s", None, None, 0, true).unwrap().is_empty());
        assert_eq!(
            of_config_map("c", Some(&map()), Some(&none), 0, false).unwrap_err(),
            "references non-existent config key: zz"
        );
        assert!(of_config_map("c", Some(&map()), Some(&none), 0, true).unwrap().is_empty());
    }

    #[test]
    fn paths_cannot_leave_the_volume() {
        for path in ["../x", "/etc/passwd", "a/../../b", ""] {
            let items = items(json!([{"key": "a", "path": path}]));
            assert!(of_config_map("c", Some(&map()), Some(&items), 0, false).is_err(), "{path}");
        }
    }

    #[test]
    fn a_file_cannot_be_a_directory() {
        let mut out = Payload::new();
        put(&mut out, "a", b"", 0).unwrap();
        assert!(check_nesting(&out).is_ok());
        put(&mut out, "a/b/c", b"", 0).unwrap();
        assert!(check_nesting(&out).unwrap_err().contains("conflicting"));
    }
}
