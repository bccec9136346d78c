//! What a configuration must hold before anything is made: each wrong field gives an error that names it.
//!
//! Types are checked when the file is parsed; here are ranges, names and what contradicts. What only the kernel knows (a file
//! system type, a controller of this host) comes from the kernel's answer, later.

mod linux;
mod process;
mod resources;
mod seccomp;
mod sysctl;

pub(crate) use process::process;
pub(crate) use resources::resources;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Hook, Mount, Spec};
use crate::error::Result;
use crate::fail;
use crate::plan::mounts::{What, plan};

/// Checks a configuration.
///
/// # Errors
/// The first wrong field, by name.
pub fn validate(spec: &Spec) -> Result<()> {
    version(&spec.oci_version)?;
    let Some(root) = &spec.root else { fail!("root: missing") };
    if root.path.as_os_str().is_empty() {
        fail!("root.path: empty");
    }
    plain_path("root.path", &root.path)?;
    if let Some(p) = &spec.process {
        process("process", p)?;
    }
    for (i, m) in spec.mounts.iter().enumerate() {
        mount(&format!("mounts[{i}]"), m)?;
    }
    if let Some(hooks) = &spec.hooks {
        let lists = [
            ("prestart", &hooks.prestart),
            ("createRuntime", &hooks.create_runtime),
            ("createContainer", &hooks.create_container),
            ("startContainer", &hooks.start_container),
            ("poststart", &hooks.poststart),
            ("poststop", &hooks.poststop),
        ];
        for (kind, list) in lists {
            for (i, h) in list.iter().enumerate() {
                hook(&format!("hooks.{kind}[{i}]"), h)?;
            }
        }
    }
    if spec.annotations.contains_key("") {
        fail!("annotations: a key is empty");
    }
    linux::linux(spec)
}

/// Three numbers with points between, `-` and `+` parts allowed; this runtime knows major version 1.
fn version(text: &str) -> Result<()> {
    let numbers = text.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<&str> = numbers.split('.').collect();
    if parts.len() != 3 || parts.iter().any(|p| p.parse::<u32>().is_err()) {
        fail!("ociVersion: {text:?} is no version like 1.3.0");
    }
    if parts[0] != "1" {
        fail!("ociVersion: {text:?} is not supported, want 1.x");
    }
    Ok(())
}

fn mount(field: &str, m: &Mount) -> Result<()> {
    if m.destination.as_os_str().is_empty() {
        fail!("{field}.destination: empty");
    }
    plain_path(&format!("{field}.destination"), &m.destination)?;
    if let Some(source) = &m.source {
        plain_path(&format!("{field}.source"), source)?;
    }
    if m.uid_mappings.is_empty() != m.gid_mappings.is_empty() {
        fail!("{field}: uidMappings and gidMappings must be given together");
    }
    linux::mappings(&format!("{field}.uidMappings"), &m.uid_mappings)?;
    linux::mappings(&format!("{field}.gidMappings"), &m.gid_mappings)?;
    for (i, option) in m.options.iter().enumerate() {
        plain_text(&format!("{field}.options[{i}]"), option)?;
    }
    let plan = plan(m);
    match plan.what {
        What::Bind { .. } if m.source.as_ref().is_none_or(|s| s.as_os_str().is_empty()) => {
            fail!("{field}.source: a bind mount needs one")
        }
        What::Bind { .. } if plan.copy_up => fail!("{field}.options: tmpcopyup is for tmpfs"),
        What::New(kind) if plan.copy_up && kind != "tmpfs" => fail!("{field}.options: tmpcopyup is for tmpfs"),
        What::New(_) | What::Cgroup if plan.idmap.is_some() => fail!("{field}: only bind mounts have mapped ids"),
        _ => Ok(()),
    }
}

fn hook(field: &str, h: &Hook) -> Result<()> {
    absolute(&format!("{field}.path"), &h.path)?;
    if h.timeout == Some(0) {
        fail!("{field}.timeout: must be above 0");
    }
    for (i, argument) in h.args.iter().enumerate() {
        plain_text(&format!("{field}.args[{i}]"), argument)?;
    }
    environment(&format!("{field}.env"), &h.env)
}

/// `NAME=value` each.
fn environment(field: &str, env: &[String]) -> Result<()> {
    for (i, variable) in env.iter().enumerate() {
        if !variable.contains('=') || variable.contains('\0') {
            fail!("{field}[{i}]: {variable:?} is not NAME=value");
        }
    }
    Ok(())
}

fn absolute(field: &str, path: &Path) -> Result<()> {
    if !path.is_absolute() {
        fail!("{field}: {path:?} is not an absolute path");
    }
    plain_path(field, path)
}

/// The kernel's texts end at a NUL byte: one inside would silently cut them.
fn plain_path(field: &str, path: &Path) -> Result<()> {
    if path.as_os_str().as_bytes().contains(&0) {
        fail!("{field}: a NUL byte");
    }
    Ok(())
}

fn plain_text(field: &str, text: &str) -> Result<()> {
    if text.contains('\0') {
        fail!("{field}: a NUL byte");
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
