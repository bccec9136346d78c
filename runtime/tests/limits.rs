//! Limits, as the kernel holds them; more processes in a container; terminals.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use common::{Case, usable, wait_until};
use serde_json::json;

/// The first of the files that a limit is in, of version 1 or 2.
fn limit(case: &Case, v1: &str, v2: &str) -> String {
    let root = Path::new("/sys/fs/cgroup");
    let (controller, file) = v1.split_once('/').unwrap();
    let one = root.join(controller).join(case.group()).join(file);
    let two: PathBuf = root.join(case.group()).join(v2);
    fs::read_to_string(&one).or_else(|_| fs::read_to_string(&two)).unwrap_or_default().trim().to_owned()
}

#[test]
fn limits_are_in_the_cgroup_and_can_be_changed() {
    if !usable() {
        return;
    }
    let mut case = Case::new("sleep 100");
    case.config["linux"]["resources"]["memory"] = json!({"limit": 67_108_864});
    case.config["linux"]["resources"]["cpu"] = json!({"shares": 512, "quota": 50_000, "period": 100_000});
    case.config["linux"]["resources"]["pids"] = json!({"limit": 77});
    if common::ours() && Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() {
        case.config["linux"]["resources"]["hugepageLimits"] = json!([{"pageSize": "2MB", "limit": 0}]);
    }
    let created = case.create();
    assert_eq!(created.code, 0, "{created:?}");
    assert_eq!(limit(&case, "memory/memory.limit_in_bytes", "memory.max"), "67108864");
    assert!(limit(&case, "cpu/cpu.cfs_quota_us", "cpu.max").starts_with("50000"));
    assert_eq!(limit(&case, "pids/pids.max", "pids.max"), "77");
    let pid = case.state()["pid"].to_string();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(groups.lines().all(|l| l.ends_with(&format!(":/{}", case.group())) || l.ends_with(":/")), "{groups}");
    let update = case.run(&["update", "--memory", "134217728", "--pids-limit", "88", &case.id]);
    assert_eq!(update.code, 0, "{update:?}");
    assert_eq!(limit(&case, "memory/memory.limit_in_bytes", "memory.max"), "134217728");
    assert_eq!(limit(&case, "pids/pids.max", "pids.max"), "88");
}

#[test]
fn a_limit_that_the_kernel_refuses_leaves_nothing() {
    if !usable() {
        return;
    }
    let mut case = Case::new("true");
    case.config["linux"]["resources"]["cpu"] = json!({"cpus": "9999"});
    let created = case.create();
    assert_ne!(created.code, 0);
    assert_eq!(case.remains(), Vec::<String>::new());
}

#[test]
fn a_memory_hog_is_killed() {
    if !usable() {
        return;
    }
    let mut case = Case::new("head -c 100000000 /dev/zero | tail -c 90000000 > /dev/null; echo $?");
    std::os::unix::fs::symlink("busybox", case.path("rootfs/bin/tail")).unwrap();
    case.config["linux"]["resources"]["memory"] = json!({"limit": 16_777_216, "swap": 16_777_216});
    let ran = case.once();
    assert!(ran.out.trim() == "137" || ran.code == 137, "{ran:?}");
}

#[test]
fn exec_runs_beside_the_first_process() {
    if !usable() {
        return;
    }
    let case = Case::new("sleep 100");
    assert_eq!(case.create().code, 0);
    assert_eq!(case.run(&["start", &case.id]).code, 0);
    // The first process is a shell until it has become `sleep`.
    let script = "hostname; until grep -q ^sleep /proc/1/cmdline; do :; done; cat /proc/1/cmdline | head -c 5; exit 9";
    let ran = case.run(&["exec", &case.id, "sh", "-c", script]);
    assert_eq!((ran.code, ran.out.as_str()), (9, "case\nsleep"), "{ran:?}");
    let options = ["exec", "--user", "1000:1000", "--cwd", "/tmp", "--env", "X=y", &case.id];
    let ran = case.run(&[&options[..], &["sh", "-c", "id -u; pwd; echo $X"]].concat());
    assert_eq!(ran.out, "1000\n/tmp\ny\n", "{ran:?}");
    let ran = case.run(&["exec", &case.id, "no-such"]);
    assert!(ran.code != 0 && ran.err.contains("executable file not found in $PATH"), "{ran:?}");
    let ran = case.run(&["exec", &case.id, "sh", "-c", "kill -9 $$"]);
    assert_eq!(ran.code, 137, "{ran:?}");
    let ran = case.run(&["exec", &case.id, "grep", "-E", "CapEff|NoNewPrivs", "/proc/self/status"]);
    assert_eq!(ran.out, "CapEff:\t00000000000004e1\nNoNewPrivs:\t1\n", "{ran:?}");
    // From a file, detached, with a pid file.
    let process = json!({"args": ["sh", "-c", "echo file > /made; sleep 100"], "cwd": "/", "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0}});
    fs::write(case.path("process.json"), process.to_string()).unwrap();
    let (file, pid) = (case.path("process.json"), case.path("exec-pid"));
    let mut command = case.command();
    let null = || std::process::Stdio::null();
    command.args(["exec", "--detach", "--pid-file"]).arg(&pid).arg("--process").arg(&file).arg(&case.id);
    assert!(command.stdout(null()).stderr(null()).status().unwrap().success());
    wait_until("the file", || case.path("rootfs/made").exists());
    let pid = fs::read_to_string(pid).unwrap();
    let root = fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert_eq!(root, fs::read_link(format!("/proc/{}/ns/pid", case.state()["pid"])).unwrap());
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(group.contains(&case.id), "{group}");
    assert_eq!(case.run(&["kill", &case.id, "KILL"]).code, 0);
    case.wait_status("stopped");
    assert_ne!(case.run(&["exec", &case.id, "true"]).code, 0);
}

#[test]
fn a_terminal_comes_over_the_console_socket() {
    if !usable() {
        return;
    }
    let mut case = Case::new("stty size; tty; read line; echo got $line; test -c /dev/console && echo console");
    case.config["process"]["terminal"] = json!(true);
    case.config["process"]["consoleSize"] = json!({"height": 20, "width": 70});
    let path = case.path("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let receiver = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        gantry_sys::fd::receive_with_fds(stream.as_fd(), &mut [0; 64]).unwrap().1.remove(0)
    });
    assert_eq!(case.create_with(&["--console-socket", path.to_str().unwrap()]).code, 0, "{}", case.output());
    let mut master = fs::File::from(receiver.join().unwrap());
    assert_eq!(case.run(&["start", &case.id]).code, 0);
    master.write_all(b"word\n").unwrap();
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    // The terminal ends with EIO.
    while let Ok(n @ 1..) = master.read(&mut buffer) {
        text.extend_from_slice(&buffer[..n]);
    }
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    for want in ["20 70\n", "/dev/pts/0\n", "got word\n", "console\n"] {
        assert!(text.contains(want), "{want:?} in {text:?}");
    }
}

#[test]
fn features_name_what_there_is() {
    if !usable() {
        return;
    }
    let case = Case::new("true");
    let features: serde_json::Value = serde_json::from_str(&case.run(&["features"]).out).unwrap();
    for pointer in ["/hooks", "/mountOptions", "/linux/namespaces", "/linux/capabilities", "/linux/seccomp/actions"] {
        assert!(features.pointer(pointer).is_some_and(|v| !v.as_array().unwrap().is_empty()), "{pointer}: {features}");
    }
}
