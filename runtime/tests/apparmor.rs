//! Containers under AppArmor profiles, where the kernel has it.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Case, usable};
use serde_json::json;

/// Loads a profile that allows all but writing below `/kept`; answers its name.
fn load(case: &Case) -> Option<String> {
    if !fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y") {
        println!("skipped: this kernel has no AppArmor");
        return None;
    }
    if !["/sbin", "/usr/sbin"].iter().any(|dir| Path::new(dir).join("apparmor_parser").exists()) {
        println!("skipped: needs apparmor_parser");
        return None;
    }
    let name = format!("runtime-{}", case.id);
    let flags = "flags=(attach_disconnected,mediate_deleted)";
    let rules = "file, network, capability, signal, deny /kept/** w,";
    let profile = format!("profile {name} {flags} {{ {} }}\n", rules.replace(", ", ",\n"));
    fs::write(case.path("profile"), profile).unwrap();
    assert!(Command::new("apparmor_parser").arg("-r").arg(case.path("profile")).status().unwrap().success());
    Some(name)
}

fn unload(case: &Case) {
    assert!(Command::new("apparmor_parser").arg("-R").arg(case.path("profile")).status().unwrap().success());
}

#[test]
fn a_profile_confines_the_program_and_what_enters_later() {
    if !usable() {
        return;
    }
    let mut case = Case::new("cat /proc/self/attr/current; touch /kept/made || echo denied; sleep 100");
    let Some(name) = load(&case) else { return };
    fs::create_dir(case.path("rootfs/kept")).unwrap();
    case.config["process"]["apparmorProfile"] = json!(name);
    let created = case.create();
    let ran = case.run(&["start", &case.id]);
    let wrote = || common::eventually(|| case.output().ends_with("denied\n"));
    let (told, output) = (created.code == 0 && ran.code == 0 && wrote(), case.output());
    let inside = case.run(&["exec", &case.id, "sh", "-c", "cat /proc/self/attr/current; touch /kept/made"]);
    let _ = case.run(&["delete", "--force", &case.id]);
    unload(&case);
    assert!(told && output.starts_with(&format!("{name} (enforce)\n")), "{created:?} {ran:?} {output}");
    assert!(inside.out == format!("{name} (enforce)\n") && inside.code != 0, "{inside:?}");
    assert!(!case.path("rootfs/kept/made").exists());
}

#[test]
fn a_profile_that_is_not_loaded_is_named_and_leaves_nothing() {
    if !usable() || !common::ours() {
        return;
    }
    let mut case = Case::new("true");
    let Some(_) = load(&case) else { return };
    unload(&case);
    case.config["process"]["apparmorProfile"] = json!("no-such-profile");
    let ran = case.once();
    assert!(ran.code != 0 && ran.err.contains("no-such-profile"), "{ran:?}");
    assert_eq!(case.remains(), Vec::<String>::new());
}
