//! The program from outside.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use gantry_monitor::namespaces::Wanted;

/// Pins that go whatever happens.
struct Pins(tempfile::TempDir);

impl Pins {
    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for name in ["user", "net", "uts", "ipc"] {
            let _ = gantry_sys::namespaces::unpin(&self.at(name));
        }
    }
}

fn make(wanted: &Wanted) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_gantry-monitor"))
        .arg("namespaces")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&serde_json::to_vec(wanted).unwrap()).unwrap();
    child.wait_with_output().unwrap()
}

fn wanted(pins: &Pins) -> Wanted {
    Wanted {
        user: pins.at("user"),
        uids: "0 400000 65536\n".to_owned(),
        gids: "0 500000 65536\n".to_owned(),
        others: ["net", "uts", "ipc"].iter().map(|n| ((*n).to_owned(), pins.at(n))).collect(),
        hostname: Some("mapped".to_owned()),
        sysctls: vec![("net.ipv4.ip_forward".to_owned(), "1".to_owned())],
    }
}

fn mounted(path: &Path) -> bool {
    fs::read_to_string("/proc/self/mounts").unwrap().contains(&path.display().to_string())
}

#[test]
fn namespaces_belong_to_the_user_namespace_and_have_what_was_asked_for() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let pins = Pins(tempfile::tempdir().unwrap());
    let output = make(&wanted(&pins));
    assert!(output.status.success(), "{output:?}");
    let script = "cat /proc/self/uid_map /proc/self/gid_map; hostname; cat /proc/sys/net/ipv4/ip_forward; ip link set lo up && echo up";
    let inside = Command::new("nsenter")
        .args([
            format!("--user={}", pins.at("user").display()),
            format!("--net={}", pins.at("net").display()),
            format!("--uts={}", pins.at("uts").display()),
            format!("--ipc={}", pins.at("ipc").display()),
        ])
        .args(["sh", "-c", script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&inside.stdout).into_owned();
    let words: Vec<&str> = text.split_whitespace().collect();
    let expected = ["0", "400000", "65536", "0", "500000", "65536", "mapped", "1", "up"];
    assert_eq!(words, expected, "{}", String::from_utf8_lossy(&inside.stderr));
}

#[test]
fn what_cannot_be_made_leaves_nothing_and_says_why() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let pins = Pins(tempfile::tempdir().unwrap());
    let sysctls = vec![("net.no.such".to_owned(), "1".to_owned())];
    let maps = "0 400000 65536\n0 1 1\n".to_owned();
    let cases = [
        (Wanted { sysctls, ..wanted(&pins) }, "net.no.such"),
        (Wanted { uids: maps, ..wanted(&pins) }, "uid map"),
        (Wanted { others: vec![("mnt".to_owned(), pins.at("net"))], ..wanted(&pins) }, "mnt"),
    ];
    for (wanted, why) in cases {
        let output = make(&wanted);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{said}");
        assert!(!mounted(pins.0.path()), "something is pinned after: {said}");
    }
}
