//! Shares of caches and memory bandwidth, in a folder that stands in for resctrl: few machines have it.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Case, Ran, finish, ours, usable};
use serde_json::json;

/// Runs a verb with the folder in resctrl's place.
fn run(case: &Case, words: &[&str]) -> Ran {
    let mut command = case.command();
    finish(command.arg("--resctrl").arg(case.path("resctrl")).args(words))
}

fn create(case: &Case) -> Ran {
    case.write();
    let log = fs::File::create(case.path("output")).unwrap();
    let mut command = case.command();
    command.arg("--resctrl").arg(case.path("resctrl")).args(["create", "--bundle"]).arg(case.dir.path()).arg(&case.id);
    let status = command.stdout(log.try_clone().unwrap()).stderr(log).status().unwrap();
    Ran { code: status.code().unwrap_or(-1), out: String::new(), err: case.output() }
}

fn names(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect()
}

#[test]
fn a_container_has_its_group_until_it_is_deleted() {
    if !usable() || !ours() {
        return;
    }
    let mut case = Case::new("sleep 100");
    let top = case.path("resctrl");
    fs::create_dir(&top).unwrap();
    case.config["linux"]["intelRdt"] =
        json!({"l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=50", "schemata": ["L2:0=3"], "enableMonitoring": true});
    let created = create(&case);
    assert_eq!(created.code, 0, "{created:?}");
    let group = top.join(&case.id);
    let read = |name: &str| fs::read_to_string(group.join(name)).unwrap();
    let pid = case.state()["pid"].to_string();
    assert_eq!(read("tasks"), pid);
    assert_eq!(read(&format!("mon_groups/{}/tasks", case.id)), pid);
    // The stand-in keeps what was written last, which these lines must be.
    assert_eq!(read("schemata"), "L2:0=3\n");
    let updated = case.run(&["update", "--l3-cache-schema", "L3:0=3", "--mem-bw-schema", "MB:0=20", &case.id]);
    assert_eq!((updated.code, read("schemata").as_str()), (0, "L3:0=3\nMB:0=20\n"), "{updated:?}");
    let wrong = case.run(&["update", "--l3-cache-schema", "nonsense", &case.id]);
    assert!(wrong.code != 0 && wrong.err.contains("--l3-cache-schema"), "{wrong:?}");
    assert_eq!(case.run(&["start", &case.id]).code, 0);
    let ran = case.run(&["exec", &case.id, "true"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_ne!(read("tasks"), pid, "what exec starts joins too");
    assert_eq!(case.run(&["delete", "--force", &case.id]).code, 0);
    assert_eq!(names(&top), Vec::<PathBuf>::new());
}

#[test]
fn a_container_without_its_group_is_not_made() {
    if !usable() || !ours() {
        return;
    }
    let mut case = Case::new("true");
    let top = case.path("resctrl");
    fs::create_dir(&top).unwrap();
    case.config["linux"]["intelRdt"] = json!({"closID": "gold"});
    case.write();
    let bundle = case.dir.path().to_str().unwrap().to_owned();
    let ran = run(&case, &["run", "--bundle", &bundle, &case.id]);
    assert!(ran.code != 0 && ran.err.contains("linux.intelRdt.closID"), "{ran:?}");
    assert_eq!((case.remains(), names(&top)), (Vec::new(), Vec::new()));
    // One that the administrator made is used and stays.
    fs::create_dir(top.join("gold")).unwrap();
    let ran = run(&case, &["run", "--bundle", &bundle, &case.id]);
    assert_eq!((ran.code, names(&top)), (0, vec![top.join("gold")]), "{ran:?}");
    assert!(top.join("gold/tasks").exists());
}

#[test]
fn update_needs_a_group_from_the_start() {
    if !usable() || !ours() {
        return;
    }
    let case = Case::new("sleep 100");
    assert_eq!(case.create().code, 0);
    let ran = case.run(&["update", "--mem-bw-schema", "MB:0=20", &case.id]);
    assert!(ran.code != 0 && ran.err.contains("without linux.intelRdt"), "{ran:?}");
}
