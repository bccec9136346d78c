//! What newer versions of the specification brought: network devices, memory policies, processors of `exec`. The runc and crun of
//! Debian 12 know none of it.

mod common;

use std::fs;
use std::path::Path;

use common::{Case, finish, ours, usable};
use serde_json::json;

/// Runs the container in a network namespace of the test's own, in which a device stands.
fn with_device(case: &Case) -> common::Ran {
    case.write();
    let device = "ip link add dum0 type veth peer name dum1 && ip addr add 10.9.8.7/24 dev dum0 && \
                  { [ ! -e /proc/net/if_inet6 ] || ip addr add fd00:9::7/64 dev dum0 nodad; } && ip link set dum0 up";
    let plain = case.command_after(device);
    let mut command = std::process::Command::new("unshare");
    command.arg("--net").arg(plain.get_program()).args(plain.get_args());
    finish(command.args(["run", "--bundle"]).arg(case.dir.path()).arg(&case.id).stdin(std::process::Stdio::null()))
}

fn has_ip() -> bool {
    let there = ["/sbin/ip", "/usr/sbin/ip", "/bin/ip"].iter().any(|p| Path::new(p).exists());
    if !there {
        println!("skipped: needs ip (iproute2)");
    }
    there
}

#[test]
fn network_devices_move_in_with_their_addresses() {
    if !usable() || !ours() || !has_ip() {
        return;
    }
    let mut case = Case::new("ip addr show eth5");
    case.config["linux"]["netDevices"] = json!({"dum0": {"name": "eth5"}});
    let ran = with_device(&case);
    assert_eq!(ran.code, 0, "{ran:?}");
    for word in ["eth5", "10.9.8.7/24", "UP"] {
        assert!(ran.out.contains(word), "{word}: {ran:?}");
    }
    assert!(ran.out.contains("fd00:9::7/64") || !Path::new("/proc/net/if_inet6").exists(), "{ran:?}");
}

#[test]
fn a_device_that_cannot_move_leaves_nothing_behind() {
    if !usable() || !ours() || !has_ip() {
        return;
    }
    for (name, inside) in [("nope", "eth0"), ("dum0", "lo0123456789abcd")] {
        let mut case = Case::new("true");
        case.config["linux"]["netDevices"] = json!({name: {"name": inside}});
        let ran = with_device(&case);
        assert_ne!(ran.code, 0, "{ran:?}");
        assert!(ran.err.contains(&format!("linux.netDevices.{name}")), "{ran:?}");
        assert_eq!(case.remains(), Vec::<String>::new());
    }
}

#[test]
fn memory_comes_from_the_nodes_of_the_policy() {
    if !usable() || !ours() {
        return;
    }
    if !Path::new("/proc/self/numa_maps").exists() {
        println!("skipped: this kernel has no memory nodes");
        return;
    }
    let mut case = Case::new("grep -c bind=static:0 /proc/self/numa_maps");
    case.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    let ran = case.once();
    assert!(ran.code == 0 && ran.out.trim() != "0", "{ran:?}");
    let mut case = Case::new("true");
    case.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "1023"});
    let ran = case.once();
    assert!(ran.code != 0 && ran.err.contains("linux.memoryPolicy"), "a node that is not there: {ran:?}");
    assert_eq!(case.remains(), Vec::<String>::new());
}

#[test]
fn exec_runs_on_the_processors_of_the_configuration() {
    if !usable() || !ours() {
        return;
    }
    let mut case = Case::new("sleep 100");
    case.config["process"]["execCPUAffinity"] = json!({"initial": "0-1", "final": "0"});
    assert_eq!(case.create().code, 0, "{}", case.output());
    assert_eq!(case.run(&["start", &case.id]).code, 0);
    let allowed = |ran: &common::Ran| ran.out.trim().rsplit('\t').next().map(str::to_owned);
    let words = ["exec", &case.id, "grep", "Cpus_allowed_list", "/proc/self/status"];
    let ran = case.run(&words);
    assert_eq!(allowed(&ran).as_deref(), Some("0"), "{ran:?}");
    let process = case.path("process.json");
    let process_of = |list: &str| json!({"cwd": "/", "args": ["/bin/grep", "Cpus_allowed_list", "/proc/self/status"], "execCPUAffinity": {"final": list}});
    fs::write(&process, process_of("8000").to_string()).unwrap();
    let ran = case.run(&["exec", "--process", process.to_str().unwrap(), &case.id]);
    assert!(
        ran.code != 0 && ran.err.contains("process.execCPUAffinity.final"),
        "a processor that is not there: {ran:?}"
    );
}

#[test]
fn what_is_not_supported_is_said() {
    if !usable() || !ours() {
        return;
    }
    let mut case = Case::new("true");
    case.config["linux"]["intelRdt"] = json!({"closID": "x"});
    let ran = case.once();
    if Path::new("/sys/fs/resctrl/schemata").exists() {
        println!("skipped: this host has resctrl");
    } else {
        assert!(ran.code != 0 && ran.err.contains("linux.intelRdt: no resctrl file system"), "{ran:?}");
    }
    assert_eq!(case.remains(), Vec::<String>::new());
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        let mut case = Case::new("true");
        case.config["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0");
        let ran = case.once();
        assert!(ran.code != 0 && ran.err.contains("linux.mountLabel"), "{ran:?}");
        assert_eq!(case.remains(), Vec::<String>::new());
    }
    let features: serde_json::Value = serde_json::from_str(&case.run(&["features"]).out).unwrap();
    assert_eq!(features["linux"]["intelRdt"]["enabled"], true);
    assert_eq!(features["linux"]["netDevices"]["enabled"], true);
}
