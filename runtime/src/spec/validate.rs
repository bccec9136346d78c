//! What a configuration must hold before anything is made: each wrong field gives an error that names it.

use std::collections::BTreeSet;

use super::Spec;
use crate::error::Result;
use crate::fail;
use crate::plan::namespaces::kind_of;

/// Checks a configuration.
///
/// # Errors
/// The first wrong field, by name.
pub fn validate(spec: &Spec) -> Result<()> {
    let major = spec.oci_version.split('.').next().unwrap_or_default();
    if major != "1" {
        fail!("ociVersion: {:?} is not supported, want 1.x", spec.oci_version);
    }
    let Some(root) = &spec.root else { fail!("root: missing") };
    if root.path.as_os_str().is_empty() {
        fail!("root.path: empty");
    }
    if let Some(process) = &spec.process {
        if process.args.is_empty() {
            fail!("process.args: empty");
        }
        if !process.cwd.is_absolute() {
            fail!("process.cwd: {:?} is not an absolute path", process.cwd);
        }
        for (i, variable) in process.env.iter().enumerate() {
            if !variable.contains('=') || variable.contains('\0') {
                fail!("process.env[{i}]: {variable:?} is not NAME=value");
            }
        }
        let mut seen = BTreeSet::new();
        for (i, limit) in process.rlimits.iter().enumerate() {
            crate::plan::process::rlimit_of(&limit.kind)
                .map_err(|e| crate::Error::new(format!("process.rlimits[{i}].type: {e}")))?;
            if limit.soft > limit.hard {
                fail!("process.rlimits[{i}]: soft {} is above hard {}", limit.soft, limit.hard);
            }
            if !seen.insert(&limit.kind) {
                fail!("process.rlimits[{i}].type: {} is there twice", limit.kind);
            }
        }
        if process.oom_score_adj.is_some_and(|o| !(-1000..=1000).contains(&o)) {
            fail!("process.oomScoreAdj: out of range -1000 to 1000");
        }
    }
    for (i, mount) in spec.mounts.iter().enumerate() {
        if mount.destination.as_os_str().is_empty() {
            fail!("mounts[{i}].destination: empty");
        }
        if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
            fail!("mounts[{i}]: uidMappings and gidMappings must be given together");
        }
    }
    linux(spec)
}

fn linux(spec: &Spec) -> Result<()> {
    let linux = spec.linux();
    let mut seen = BTreeSet::new();
    for (i, namespace) in linux.namespaces.iter().enumerate() {
        let Some(kind) = kind_of(&namespace.kind) else {
            fail!("linux.namespaces[{i}].type: unknown namespace {:?}", namespace.kind)
        };
        if !seen.insert(kind) {
            fail!("linux.namespaces[{i}].type: {} is there twice", namespace.kind);
        }
        if namespace.path.as_ref().is_some_and(|p| !p.is_absolute()) {
            fail!("linux.namespaces[{i}].path: not an absolute path");
        }
    }
    let has = |name: &str| linux.namespaces.iter().find(|n| n.kind == name);
    if spec.hostname.as_ref().is_some_and(|h| !h.is_empty()) && has("uts").is_none() {
        fail!("hostname: needs a uts namespace");
    }
    if spec.domainname.as_ref().is_some_and(|h| !h.is_empty()) && has("uts").is_none() {
        fail!("domainname: needs a uts namespace");
    }
    let new_user = has("user").is_some_and(|n| n.path.is_none());
    if new_user && (linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty()) {
        fail!("linux.uidMappings: a new user namespace needs uidMappings and gidMappings");
    }
    if has("user").is_none() && !(linux.uid_mappings.is_empty() && linux.gid_mappings.is_empty()) {
        fail!("linux.uidMappings: given without a user namespace");
    }
    if !linux.masked_paths.is_empty() && has("mount").is_none() {
        fail!("linux.maskedPaths: needs a mount namespace");
    }
    for (i, device) in linux.devices.iter().enumerate() {
        if !matches!(device.kind.as_str(), "c" | "b" | "u" | "p") {
            fail!("linux.devices[{i}].type: {:?} is none of c, b, u, p", device.kind);
        }
        if !device.path.is_absolute() {
            fail!("linux.devices[{i}].path: not an absolute path");
        }
    }
    for name in linux.time_offsets.keys() {
        if !matches!(name.as_str(), "monotonic" | "boottime") || has("time").is_none_or(|n| n.path.is_some()) {
            fail!("linux.timeOffsets: {name:?} needs a new time namespace and a known clock");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn push(list: &mut Value, value: Value) {
        list.as_array_mut().unwrap().push(value);
    }

    fn error_of(change: impl FnOnce(&mut Value)) -> String {
        let mut config = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"args": ["x"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "uts"}]}
        });
        change(&mut config);
        match serde_json::from_value::<Spec>(config) {
            Ok(spec) => validate(&spec).err().map(|e| e.to_string()).unwrap_or_default(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn each_wrong_field_is_named() {
        assert_eq!(error_of(|_| {}), "");
        for (name, change) in [
            ("ociVersion", (|c| c["ociVersion"] = json!("2.0")) as fn(&mut Value)),
            ("root", |c| c["root"] = Value::Null),
            ("process.args", |c| c["process"]["args"] = json!([])),
            ("process.cwd", |c| c["process"]["cwd"] = json!("x")),
            ("process.env[0]", |c| c["process"]["env"] = json!(["X"])),
            ("process.rlimits[0].type", |c| c["process"]["rlimits"] = json!([{"type": "X", "hard": 1, "soft": 1}])),
            ("process.rlimits[0]", |c| c["process"]["rlimits"] = json!([{"type": "RLIMIT_CPU", "hard": 1, "soft": 2}])),
            ("linux.namespaces[2].type", |c| push(&mut c["linux"]["namespaces"], json!({"type": "x"}))),
            ("linux.namespaces[2].type", |c| push(&mut c["linux"]["namespaces"], json!({"type": "uts"}))),
            ("hostname", |c| {
                c["hostname"] = json!("x");
                c["linux"]["namespaces"] = json!([]);
            }),
            ("linux.uidMappings", |c| push(&mut c["linux"]["namespaces"], json!({"type": "user"}))),
            ("linux.devices[0].type", |c| c["linux"]["devices"] = json!([{"path": "/dev/x", "type": "x"}])),
        ] {
            let error = error_of(change);
            assert!(error.contains(name), "{name}: {error}");
        }
    }
}
