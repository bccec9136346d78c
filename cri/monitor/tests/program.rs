//! The program from outside.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use gantry_monitor::client::Client;
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

/// A monitor that goes with the test.
struct Monitor(Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_only_work_needs_is_given_back_when_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("m.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gantry-monitor"));
    command.arg("--socket").arg(&socket).arg("--runtime").arg("/bin/false").arg("--root").arg(dir.path());
    let monitor = Monitor(command.stdin(Stdio::from(OwnedFd::from(listener))).spawn().unwrap());
    drop(command);
    let mapped = || -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", monitor.0.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("RssFile:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let client = Client::new(&socket);
    let (begun, mut asked, mut most) = (Instant::now(), None::<Instant>, 0);
    loop {
        // Again and again: on a busy machine it may be quiet between the answer and the look at it.
        if asked.is_none_or(|at| at.elapsed() > Duration::from_secs(3)) {
            assert!(client.answers(Duration::from_secs(60)));
            asked = Some(Instant::now());
        }
        let now = mapped();
        most = most.max(now);
        if now + 100 < most {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{now} kB of {most} stay mapped");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(client.answers(Duration::from_secs(60)), "and it works on");
}
