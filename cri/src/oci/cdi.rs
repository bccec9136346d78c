//! Devices of the Container Device Interface: what vendors' files say a container needs to use a device, added to its
//! configuration.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// One vendor's file.
#[derive(Debug, Deserialize)]
struct Spec {
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default, rename = "containerEdits")]
    edits: Edits,
}

#[derive(Debug, Deserialize)]
struct Device {
    name: String,
    #[serde(default, rename = "containerEdits")]
    edits: Edits,
}

/// Changes of a configuration.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Edits {
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    device_nodes: Vec<Node>,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(default)]
    hooks: Vec<Hook>,
    #[serde(default, rename = "additionalGids")]
    gids: Vec<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
    permissions: Option<String>,
    file_mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    host_path: String,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hook {
    hook_name: String,
    path: String,
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    timeout: Option<i64>,
}

/// `vendor.com/class=name` in its parts.
fn split(name: &str) -> Option<(&str, &str)> {
    let (kind, device) = name.split_once('=')?;
    let (vendor, class) = kind.split_once('/')?;
    (!vendor.is_empty() && !class.is_empty() && !device.is_empty()).then_some((kind, device))
}

/// Specs below the folders; the files of later folders count more, so they come first.
fn load(folders: &[PathBuf]) -> Result<Vec<Spec>, String> {
    let mut specs = Vec::new();
    for folder in folders.iter().rev() {
        let mut files: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        files.sort();
        for file in files {
            let yaml = match file.extension().and_then(|e| e.to_str()) {
                Some("json") => false,
                Some("yaml" | "yml") => true,
                _ => continue,
            };
            let failed = |e: &dyn std::fmt::Display| format!("CDI file {}: {e}", file.display());
            let text = fs::read_to_string(&file).map_err(|e| failed(&e))?;
            let spec = if yaml {
                serde_saphyr::from_str(&text).map_err(|e| failed(&e))?
            } else {
                serde_json::from_str(&text).map_err(|e| failed(&e))?
            };
            specs.push(spec);
        }
    }
    Ok(specs)
}

/// Adds what the devices of these names need to a configuration.
///
/// # Errors
/// A name is malformed or unknown, a file is not understood, a device node is not there (each named).
pub fn apply(names: &[&str], folders: &[PathBuf], config: &mut Value) -> Result<(), String> {
    if names.is_empty() {
        return Ok(());
    }
    let specs = load(folders)?;
    let mut done: Vec<&str> = Vec::new();
    for name in names {
        let (kind, device) = split(name).ok_or_else(|| format!("CDI device {name:?}: want vendor/class=name"))?;
        let found = specs
            .iter()
            .filter(|s| s.kind == kind)
            .find_map(|s| s.devices.iter().find(|d| d.name == device).map(|d| (s, d)));
        let (spec, found) = found.ok_or_else(|| format!("CDI device {name} is in no file of {folders:?}"))?;
        edit(&found.edits, config).map_err(|e| format!("CDI device {name}: {e}"))?;
        // What all devices of a kind need is added once.
        if !done.contains(&kind) {
            edit(&spec.edits, config).map_err(|e| format!("CDI kind {kind}: {e}"))?;
            done.push(kind);
        }
    }
    Ok(())
}

fn list<'a>(config: &'a mut Value, pointer: &[&str]) -> Result<&'a mut Vec<Value>, String> {
    let mut at = config;
    for key in pointer {
        let folder = at.as_object_mut().ok_or_else(|| format!("{key} is in no object"))?;
        at = folder.entry(*key).or_insert(Value::Null);
        if at.is_null() {
            *at = if pointer.last() == Some(key) { json!([]) } else { json!({}) };
        }
    }
    at.as_array_mut().ok_or_else(|| format!("{} is no list", pointer.join(".")))
}

fn edit(edits: &Edits, config: &mut Value) -> Result<(), String> {
    let env = list(config, &["process", "env"])?;
    for variable in &edits.env {
        let name = variable.split('=').next().unwrap_or_default();
        env.retain(|v| v.as_str().and_then(|v| v.split('=').next()) != Some(name));
        env.push(json!(variable));
    }
    for gid in &edits.gids {
        list(config, &["process", "user", "additionalGids"])?.push(json!(gid));
    }
    for node in &edits.device_nodes {
        let (device, rule) = device(node)?;
        list(config, &["linux", "devices"])?.push(device);
        list(config, &["linux", "resources", "devices"])?.push(rule);
    }
    for mount in &edits.mounts {
        let kind = mount.kind.as_deref().unwrap_or("bind");
        let mut options = mount.options.clone();
        if kind == "bind" && !options.iter().any(|o| o == "bind" || o == "rbind") {
            options.push("rbind".to_owned());
        }
        let entry =
            json!({"destination": mount.container_path, "type": kind, "source": mount.host_path, "options": options});
        list(config, &["mounts"])?.push(entry);
    }
    for hook in &edits.hooks {
        let known = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
        if !known.contains(&hook.hook_name.as_str()) {
            return Err(format!("hook {:?} is unknown", hook.hook_name));
        }
        let mut entry = Map::new();
        entry.insert("path".into(), json!(hook.path));
        for (key, value) in [("args", json!(hook.args)), ("env", json!(hook.env)), ("timeout", json!(hook.timeout))] {
            if !value.is_null() {
                entry.insert(key.into(), value);
            }
        }
        list(config, &["hooks", &hook.hook_name])?.push(Value::Object(entry));
    }
    Ok(())
}

/// A device node and the rule that allows it.
fn device(node: &Node) -> Result<(Value, Value), String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let host: &Path = node.host_path.as_deref().unwrap_or(&node.path);
    let meta = fs::metadata(host).map_err(|e| format!("device node {}: {e}", host.display()))?;
    let kind = match meta.file_type() {
        t if t.is_char_device() => "c",
        t if t.is_block_device() => "b",
        _ => return Err(format!("{} is no device node", host.display())),
    };
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let device = json!({"path": node.path, "type": kind, "major": major, "minor": minor,
        "fileMode": node.file_mode.unwrap_or(meta.mode() & 0o7777), "uid": node.uid.unwrap_or(0), "gid": node.gid.unwrap_or(0)});
    let access = node.permissions.as_deref().unwrap_or("rwm");
    Ok((device, json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": access})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_brings_what_its_file_says_and_its_kind_once() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"cdiVersion": "0.6.0", "kind": "acme.com/gpu", "containerEdits": {"env": ["KIND=1"]}, "devices": [
            {"name": "a", "containerEdits": {"env": ["A=1"], "deviceNodes": [{"path": "/dev/acme", "hostPath": "/dev/null"}],
             "mounts": [{"hostPath": "/usr/lib", "containerPath": "/acme", "options": ["ro"]}],
             "hooks": [{"hookName": "createContainer", "path": "/bin/true", "args": ["true"]}], "additionalGids": [44]}},
            {"name": "b", "containerEdits": {"env": ["A=2"]}}]}"#;
        fs::write(dir.path().join("acme.json"), text).unwrap();
        let folders = [dir.path().to_path_buf()];
        let mut config = json!({"process": {"env": ["A=0", "PATH=/"]}, "mounts": [], "linux": {"resources": {}}});
        apply(&["acme.com/gpu=a", "acme.com/gpu=b"], &folders, &mut config).unwrap();
        assert_eq!(config["process"]["env"], json!(["PATH=/", "KIND=1", "A=2"]));
        assert_eq!(config["process"]["user"]["additionalGids"], json!([44]));
        assert_eq!(config["linux"]["devices"][0]["path"], "/dev/acme");
        assert_eq!(
            (&config["linux"]["devices"][0]["major"], &config["linux"]["devices"][0]["minor"]),
            (&json!(1), &json!(3))
        );
        assert_eq!(config["linux"]["resources"]["devices"][0]["allow"], true);
        assert_eq!(config["mounts"][0]["options"], json!(["ro", "rbind"]));
        assert_eq!(config["hooks"]["createContainer"][0]["path"], "/bin/true");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().to_path_buf()];
        let fails = |name: &str| apply(&[name], &folders, &mut json!({})).unwrap_err();
        assert!(fails("acme.com/gpu=9").contains("acme.com/gpu=9"));
        assert!(fails("gpu").contains("vendor/class=name"));
        fs::write(dir.path().join("bad.yaml"), "kind: [\n").unwrap();
        assert!(fails("acme.com/gpu=9").contains("bad.yaml"));
        assert!(apply(&[], &folders, &mut json!({})).is_ok());
    }
}
