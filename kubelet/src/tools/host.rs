//! What the kernel and the disk hold for a pod.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use gantry_sys::mountinfo;
use serde_json::{Value, json};

/// A log file and its size.
pub(crate) fn log(path: &Path) -> Value {
    if path.as_os_str().is_empty() {
        return Value::Null;
    }
    json!({"path": path, "bytes": fs::metadata(path).map(|m| m.len()).ok()})
}

/// Mount points below a folder with their file systems.
fn mounts_below(folder: &Path) -> HashMap<PathBuf, String> {
    let table = mountinfo::read().unwrap_or_default();
    let below = mountinfo::parse(&table).filter(|m| m.path().starts_with(folder));
    below.map(|m| (m.path().to_owned(), m.kind.to_owned())).collect()
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> =
        fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    out.sort();
    out
}

fn last(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The control groups of a uid, of whatever class and driver.
fn cgroups(uid: &str) -> Vec<Value> {
    let (plain, slice) = (format!("pod{uid}"), format!("pod{}.slice", uid.replace('-', "_")));
    let own = |path: &Path| {
        let name = last(path);
        name == plain || name.ends_with(&slice)
    };
    let Ok(host) = gantry_cgroup::Host::detect() else { return Vec::new() };
    let tops: BTreeSet<PathBuf> =
        host.v1_mounts().map(|(_, path)| path.to_owned()).chain(host.unified_mount().map(Path::to_owned)).collect();
    // One group is many folders where each controller has its own tree.
    let mut out: BTreeMap<PathBuf, Value> = BTreeMap::new();
    for top in &tops {
        let mut level = vec![top.clone()];
        // Root, kubepods, class, pod, and a configured root of a few levels.
        for _ in 0..5 {
            level = level.iter().flat_map(|p| folders(p)).collect();
            for path in level.iter().filter(|p| own(p)) {
                let below = Path::new("/").join(path.strip_prefix(top).unwrap_or(path));
                let entry = out.entry(below.clone()).or_insert_with(|| json!({"path": below}));
                put_cgroup(path, entry);
            }
            level.retain(|p| !own(p) && last(p) != "system.slice");
        }
    }
    out.into_values().collect()
}

fn put_cgroup(path: &Path, value: &mut Value) {
    let read = |name: &str| fs::read_to_string(path.join(name)).ok().map(|t| t.trim().to_owned());
    let number = |names: [&str; 2]| names.iter().find_map(|n| read(n)?.parse::<u64>().ok());
    let limit = read("memory.max").or_else(|| read("memory.limit_in_bytes"));
    if let Some(bytes) = number(["memory.current", "memory.usage_in_bytes"]) {
        value["memoryBytes"] = json!(bytes);
        value["memoryLimit"] = json!(limit.filter(|l| l != "max" && l != "9223372036854771712"));
    }
    if let Some(tasks) = number(["pids.current", "pids.current"]) {
        value["processes"] = json!(tasks);
    }
}

fn volumes(folder: &Path) -> Vec<Value> {
    let mounts = mounts_below(folder);
    let mut out = Vec::new();
    for plugin in folders(&folder.join("volumes")) {
        for volume in folders(&plugin) {
            let kind = last(&plugin).replace("kubernetes.io~", "");
            out.push(json!({"name": last(&volume), "kind": kind, "path": volume, "mounted": mounts.get(&volume)}));
        }
    }
    let inside = |p: &PathBuf| !out.iter().any(|v| v["path"].as_str().is_some_and(|o| Path::new(o) == p));
    let others: Vec<Value> =
        mounts.iter().filter(|(p, _)| inside(p)).map(|(path, kind)| json!({"mounted": kind, "path": path})).collect();
    out.into_iter().chain(others).collect()
}

/// What is there for one uid.
pub(crate) fn holdings(root: &Path, logs: &Path, namespace: &str, name: &str, uid: &str) -> Value {
    let folder = root.join("pods").join(uid);
    let logs = logs.join(format!("{namespace}_{name}_{uid}"));
    let sizes: Vec<u64> = folders(&logs)
        .iter()
        .flat_map(|c| fs::read_dir(c).into_iter().flatten().flatten().filter_map(|e| Some(e.metadata().ok()?.len())))
        .collect();
    json!({
        "uid": uid,
        "folder": folder.exists().then(|| folder.clone()),
        "volumes": volumes(&folder),
        "logs": logs.exists().then(|| json!({"path": logs, "files": sizes.len(), "bytes": sizes.iter().sum::<u64>()})),
        "cgroups": cgroups(uid),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_there_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (root, logs) = (dir.path().join("kubelet"), dir.path().join("logs"));
        fs::create_dir_all(root.join("pods/u1/volumes/kubernetes.io~empty-dir/data")).unwrap();
        fs::create_dir_all(logs.join("ns_web_u1/app")).unwrap();
        fs::write(logs.join("ns_web_u1/app/0.log"), "12345").unwrap();
        let found = holdings(&root, &logs, "ns", "web", "u1");
        assert_eq!((&found["volumes"][0]["name"], &found["volumes"][0]["kind"]), (&json!("data"), &json!("empty-dir")));
        assert_eq!((&found["logs"]["files"], &found["logs"]["bytes"]), (&json!(1), &json!(5)));
        let none = holdings(&root, &logs, "ns", "web", "u2");
        assert!(none["folder"].is_null() && none["logs"].is_null() && none["cgroups"] == json!([]));
        assert_eq!(log(&logs.join("ns_web_u1/app/0.log"))["bytes"], 5);
    }
}
