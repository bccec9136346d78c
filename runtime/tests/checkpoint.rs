//! Checkpoint and restore with a real criu, where there is one that works on this kernel.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use common::{Case, Ran, finish, ours, usable, wait_until};
use serde_json::json;

/// Whether criu works here; says why not.
fn criu() -> bool {
    if !usable() {
        return false;
    }
    match Command::new("criu").arg("check").output() {
        Err(_) => println!("skipped: criu is not installed"),
        Ok(check) if !check.status.success() => println!("skipped: `criu check` fails on this kernel"),
        Ok(_) => return true,
    }
    false
}

/// Says a number, one more each time.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done";

/// A container that counts, its output in a pipe that this test reads.
struct Counter {
    case: Case,
    heard: Heard,
}

/// The numbers that came so far.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u64>>>);

impl Heard {
    /// Listens to a new pipe; the other end is for the container.
    fn new() -> (Self, PipeWriter) {
        let (pipe, theirs) = std::io::pipe().unwrap();
        let heard = Self::default();
        let numbers = heard.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                numbers.0.lock().unwrap().extend(line.parse::<u64>());
            }
        });
        (heard, theirs)
    }

    fn first(&self) -> u64 {
        self.0.lock().unwrap().first().copied().unwrap_or(0)
    }

    fn last(&self) -> u64 {
        self.0.lock().unwrap().last().copied().unwrap_or(0)
    }

    /// Waits for a number that is greater.
    fn goes_beyond(&self, number: u64) {
        wait_until(&format!("the count to go beyond {number}"), || self.last() > number);
    }
}

impl Counter {
    fn run(case: Case) -> Self {
        let (heard, theirs) = Heard::new();
        case.write();
        let mut command = case.command();
        command.args(["run", "--detach", "--bundle"]).arg(case.dir.path()).arg(&case.id);
        let status = command.stdout(theirs.try_clone().unwrap()).stderr(theirs).status().unwrap();
        drop(command);
        assert!(status.success());
        heard.goes_beyond(30);
        Self { case, heard }
    }

    fn checkpoint(&self, options: &[&str]) -> Ran {
        let mut command = self.case.command();
        command.args(["checkpoint", "--image-path"]).arg(self.case.path("images"));
        finish(command.args(options).arg(&self.case.id))
    }

    /// Restores with a new pipe for its output.
    fn restore(&mut self, options: &[&str]) -> Ran {
        let (heard, theirs) = Heard::new();
        self.heard = heard;
        let errors = self.case.path("restore.err");
        let mut command = self.case.command();
        command.args(["restore", "--detach", "--image-path"]).arg(self.case.path("images"));
        command.args(["--work-path"]).arg(self.case.path("work")).arg("--bundle").arg(self.case.dir.path());
        command.args(options).arg(&self.case.id).stdout(theirs).stderr(File::create(&errors).unwrap());
        let code = command.status().unwrap().code().unwrap_or(-1);
        Ran { code, out: String::new(), err: fs::read_to_string(errors).unwrap() }
    }

    /// It says numbers after `then`, and did not start anew.
    fn goes_on_from(&self, then: u64) {
        self.heard.goes_beyond(then);
        let first = self.heard.first();
        assert!(first > 20, "it goes on at {first} after {then}");
    }
}

#[test]
fn a_container_goes_on_where_it_was_written() {
    if !criu() {
        return;
    }
    let mut counter = Counter::run(Case::new(COUNT));
    let ran = counter.checkpoint(&["--work-path", counter.case.path("work").to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(counter.case.remains(), Vec::<String>::new(), "it is gone with the checkpoint");
    let then = counter.heard.last();
    assert!(counter.case.path("work/dump.log").exists());
    let pid_file = counter.case.path("pid");
    let ran = counter.restore(&["--pid-file", pid_file.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    counter.goes_on_from(then);
    let state = counter.case.state();
    assert_eq!(state["status"], "running");
    assert_eq!(state["pid"].to_string(), fs::read_to_string(&pid_file).unwrap());
    // What other commands do with a container they do with this one.
    let ran =
        counter.case.run(&["exec", &counter.case.id, "sh", "-c", "hostname; id -u; cat /proc/1/cmdline | head -c 5"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "case\n0\nsh\0-c"), "{ran:?}");
    let link = counter.case.run(&["exec", &counter.case.id, "ip", "-o", "link", "show", "lo"]);
    assert!(link.code == 0 && (!is_ours() || link.out.contains("UP")), "{link:?}");
    let ran =
        counter.case.run(&["exec", &counter.case.id, "sh", "-c", "cat /proc/kcore; echo 1 > /proc/sys/vm/swappiness"]);
    assert!(ran.code != 0 && ran.out.is_empty(), "masks and read-only paths are there again: {ran:?}");
    assert_eq!(counter.case.run(&["kill", &counter.case.id, "KILL"]).code, 0);
    counter.case.wait_status("stopped");
    assert_eq!(counter.case.run(&["delete", &counter.case.id]).code, 0);
    assert_eq!(counter.case.remains(), Vec::<String>::new());
}

fn is_ours() -> bool {
    std::env::var_os("OCI_RUNTIME").is_none()
}

#[test]
fn a_container_runs_on_beside_its_checkpoint() {
    if !criu() {
        return;
    }
    let mut counter = Counter::run(Case::new(COUNT));
    let pid = counter.case.state()["pid"].clone();
    let has_tracking = Command::new("criu").args(["check", "--feature", "mem_dirty_track"]).output();
    let mut options = vec!["--leave-running"];
    if has_tracking.is_ok_and(|o| o.status.success()) {
        let before = counter.case.path("before");
        let ran = counter.checkpoint(&["--pre-dump", "--image-path", before.to_str().unwrap()]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(before.read_dir().unwrap().count() > 0, "memory is written");
        options.extend(["--parent-path", "../before"]);
    }
    let ran = counter.checkpoint(&options);
    assert_eq!(ran.code, 0, "{ran:?}");
    let then = counter.heard.last();
    counter.heard.goes_beyond(then + 50);
    assert_eq!((counter.case.status().as_str(), &counter.case.state()["pid"]), ("running", &pid));
    // The other one ends, and this one's count starts again from the checkpoint's.
    assert_eq!(counter.case.run(&["delete", "--force", &counter.case.id]).code, 0);
    let ran = counter.restore(&[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    counter.goes_on_from(then);
}

/// An engine's container: binds, a network namespace that others made, standard input from nowhere, a cgroup mount.
#[test]
fn what_comes_from_outside_is_put_in_again() {
    if !criu() {
        return;
    }
    let mut case = Case::new(COUNT);
    // As another engine's bundles do: made by its root already.
    symlink("/run", case.path("rootfs/var-run")).unwrap();
    fs::create_dir_all(case.path("rootfs/run/secrets")).unwrap();
    for (name, text) in [("hosts", "1.2.3.4 here\n"), ("data/word", "first\n"), ("secrets/key", "k\n")] {
        let path = case.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let mounts = case.config["mounts"].as_array_mut().unwrap();
    let dir = case.dir.path().to_owned();
    for (from, to, options) in [
        ("hosts", "/etc/hosts", json!(["rbind", "ro", "rprivate"])),
        ("data", "/data", json!(["rbind", "rw", "rprivate"])),
        ("secrets", "/var-run/secrets", json!(["bind", "ro"])),
        ("hosts", "/dev/termination-log", json!(["bind", "rw"])),
    ] {
        mounts.push(json!({"destination": to, "type": "bind", "source": dir.join(from), "options": options}));
    }
    mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}));
    case.config["linux"]["resources"]["pids"] = json!({"limit": 77});
    let network = Network::new("first");
    network.join(&mut case.config);
    let mut counter = Counter::run(case);
    let ran = counter.checkpoint(&[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    // Restored for another pod: other files, another network, another place among the cgroups.
    let then = counter.heard.last();
    let other = Network::new("second");
    fs::write(dir.join("data/word"), "second\n").unwrap();
    other.join(&mut counter.case.config);
    counter.case.config["linux"]["resources"]["pids"] = json!({"limit": 88});
    counter.case.write();
    let ran = counter.restore(&[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    counter.goes_on_from(then);
    let script = "cat /etc/hosts /data/word /run/secrets/key /dev/termination-log; readlink /proc/1/ns/net; ls /sys/fs/cgroup | head -n 1";
    let ran = counter.case.run(&["exec", &counter.case.id, "sh", "-c", script]);
    let wanted = format!("1.2.3.4 here\nsecond\nk\n1.2.3.4 here\n{}\n", other.name());
    assert!(ran.out.starts_with(&wanted) && ran.out.lines().count() == 6, "{ran:?} instead of {wanted}");
    let ran = counter.case.run(&["exec", &counter.case.id, "sh", "-c", "echo x > /etc/hosts"]);
    assert!(ran.code != 0, "read-only stays so: {ran:?}");
    if is_ours() {
        let ran = counter.case.run(&["exec", &counter.case.id, "hostname"]);
        assert_eq!(ran.out, "second\n", "the other pod keeps its name");
    }
    let limits = counter.case.run(&["events", "--stats", &counter.case.id]).out;
    let stats: serde_json::Value = serde_json::from_str(&limits).unwrap();
    assert_eq!(stats["data"]["pids"]["limit"], 88, "the limits are the new configuration's: {limits}");
}

/// A network namespace that some process holds.
struct Network(std::process::Child);

impl Network {
    fn new(name: &str) -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "--uts", "sh", "-c", "hostname \"$0\" && echo && exec cat", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Self(child)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// Has a configuration join it.
    fn join(&self, config: &mut serde_json::Value) {
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if let Some(file) = [("network", "net"), ("uts", "uts")].iter().find(|(kind, _)| namespace["type"] == *kind)
            {
                namespace["path"] = json!(format!("/proc/{}/ns/{}", self.0.id(), file.1));
            }
        }
        config.as_object_mut().unwrap().remove("hostname");
    }

    fn name(&self) -> String {
        fs::read_link(self.path()).unwrap().display().to_string()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_terminal_comes_over_the_console_socket_of_the_restore() {
    if !criu() {
        return;
    }
    let mut case = Case::new("while read line; do echo got $line; done");
    case.config["process"]["terminal"] = json!(true);
    let socket = case.path("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let accept = || -> OwnedFd {
        let (connection, _) = listener.accept().unwrap();
        gantry_sys::fd::receive_with_fds(connection.as_fd(), &mut [0; 64]).unwrap().1.pop().unwrap()
    };
    let talk = |terminal: OwnedFd, word: &str| {
        let mut terminal = File::from(terminal);
        terminal.write_all(format!("{word}\n").as_bytes()).unwrap();
        let (mut heard, mut buffer) = (String::new(), [0; 256]);
        while !heard.contains(&format!("got {word}")) {
            let length = terminal.read(&mut buffer).unwrap();
            heard.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        terminal
    };
    case.write();
    let dir = case.dir.path().to_str().unwrap().to_owned();
    let console = ["--console-socket", socket.to_str().unwrap(), "--bundle", &dir];
    assert_eq!(case.run(&[&["run", "--detach"], &console[..], &[&case.id]].concat()).code, 0);
    let terminal = talk(accept(), "before");
    let images = case.path("images");
    let images = ["--image-path", images.to_str().unwrap()];
    let ran = case.run(&[&["checkpoint"], &images[..], &[&case.id]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    drop(terminal);
    let ran = case.run(&[&["restore", "--detach"], &images[..], &console[..], &[&case.id]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    drop(talk(accept(), "after"));
    let without = case.run(&[&["restore", "--detach"], &images[..], &["--bundle", &dir, "other"]].concat());
    assert!(without.code != 0 && (!is_ours() || without.err.contains("--console-socket")), "{without:?}");
}

#[test]
fn a_restore_in_the_foreground_ends_with_the_programs_code() {
    if !criu() {
        return;
    }
    let counter =
        Counter::run(Case::new("i=0; until [ -e /tmp/end ]; do i=$((i+1)); echo $i; sleep 0.02; done; exit 42"));
    assert_eq!(counter.checkpoint(&[]).code, 0);
    fs::write(counter.case.path("rootfs/tmp/end"), "").unwrap();
    let mut command = counter.case.command();
    command.arg("restore").arg("--image-path").arg(counter.case.path("images")).arg("--bundle");
    let ran = finish(command.arg(counter.case.dir.path()).arg(&counter.case.id));
    assert_eq!(ran.code, 42, "{ran:?}");
    assert_eq!(counter.case.remains(), Vec::<String>::new());
}

#[test]
fn what_goes_wrong_leaves_the_container_running_or_nothing() {
    if !criu() {
        return;
    }
    // A file of the host as output: nothing inside of the container names it.
    let mut case = Case::new(COUNT);
    assert_eq!(case.create().code, 0);
    let early = case.run(&["checkpoint", "--image-path", case.path("early").to_str().unwrap(), &case.id]);
    assert!(early.code != 0 && early.err.contains("created"), "nothing runs yet: {early:?}");
    assert_eq!(case.run(&["start", &case.id]).code, 0);
    wait_until("the count", || !case.output().is_empty());
    let images = case.path("images");
    let images = images.to_str().unwrap();
    let ran = case.run(&["checkpoint", "--image-path", images, &case.id]);
    assert!(ran.code != 0 && ran.err.contains("dump.log"), "{ran:?}");
    if ours() {
        assert!(ran.err.contains("Can't lookup mount"), "the first cause is told: {ran:?}");
    }
    assert_eq!(case.status(), "running");
    let then = case.output();
    wait_until("the count to go on", || case.output() != then);
    // Images that criu cannot use, none at all, and an id that is taken.
    let dir = case.dir.path().to_str().unwrap().to_owned();
    let dir = dir.as_str();
    if ours() {
        let busy = case.run(&["restore", "--detach", "--image-path", images, "--bundle", dir, "other"]);
        assert!(busy.code != 0 && busy.err.contains("it has processes"), "the group of another container: {busy:?}");
    }
    case.config["linux"]["cgroupsPath"] = json!(format!("/{}-other", case.id));
    case.write();
    let broken = case.run(&["restore", "--detach", "--image-path", images, "--bundle", dir, "other"]);
    assert!(broken.code != 0 && broken.err.contains("restore.log"), "{broken:?}");
    fs::create_dir(case.path("none")).unwrap();
    let none = case.run(&["restore", "--image-path", case.path("none").to_str().unwrap(), "--bundle", dir, "other"]);
    assert!(none.code != 0, "{none:?}");
    let taken = case.run(&["restore", "--image-path", images, "--bundle", dir, &case.id]);
    assert!(taken.code != 0 && taken.err.contains("exist"), "{taken:?}");
    assert_eq!(case.run(&["list", "-q"]).out.trim(), case.id, "only the first is there");
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(dir), "no mount is left");
    let left = Command::new("find").args(["/sys/fs/cgroup", "-name", &format!("{}-other", case.id)]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "", "no cgroup is left");
    assert_eq!(case.status(), "running");
}

/// Where criu is missing, or fails before it says anything, that is told.
#[test]
fn a_criu_that_is_missing_or_broken_is_told_of() {
    if !usable() || !ours() {
        return;
    }
    let case = Case::new("sleep 100");
    assert_eq!(case.create().code, 0);
    assert_eq!(case.run(&["start", &case.id]).code, 0);
    let images = case.path("images");
    let images = images.to_str().unwrap();
    let missing = case.run(&["--criu", "/no/criu", "checkpoint", "--image-path", images, &case.id]);
    assert!(
        missing.code == 1 && missing.err.contains("/no/criu: not found") && missing.err.contains("package"),
        "{missing:?}"
    );
    let broken = case.path("broken");
    fs::write(&broken, "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    let broken = case.run(&["--criu", broken.to_str().unwrap(), "checkpoint", "--image-path", images, &case.id]);
    assert!(broken.code == 1 && broken.err.contains("criu failed: ") && broken.err.contains("dump.log"), "{broken:?}");
    assert_eq!(case.status(), "running");
    for (options, word) in [
        (&["checkpoint", "--manage-cgroups-mode", "some"][..], "--manage-cgroups-mode"),
        (&["checkpoint", "--page-server", "host"], "--page-server"),
        (&["checkpoint", "--parent-path", "/abs"], "--parent-path"),
        (&["checkpoint", "--empty-ns", "pid"], "--empty-ns"),
        (&["checkpoint", "--status-fd", "77"], "--status-fd"),
        (&["restore", "--image-path", "/no/images", "--bundle", case.dir.path().to_str().unwrap()], "/no/images"),
    ] {
        let ran = case.run(&[options, &["any"]].concat());
        assert!(ran.code == 1 && ran.err.contains(word), "{options:?}: {ran:?}");
    }
    assert_eq!(case.run(&["list", "-q"]).out.trim(), case.id);
}
