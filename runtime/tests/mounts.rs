//! A container's mounts are the same whether its namespace is a copy of the host's or of one with hardly anything in it.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Case, finish, usable, wait_until};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use serde_json::{Value, json};

/// A shared mount of the host, gone with everything below it when dropped.
struct Shared(std::path::PathBuf);

impl Shared {
    fn new(path: std::path::PathBuf) -> Self {
        fs::create_dir_all(path.join("late")).unwrap();
        fs::create_dir_all(path.join("early")).unwrap();
        mount_bind(&path, &path).unwrap();
        mount_change(&path, MountPropagationFlags::SHARED).unwrap();
        let shared = Self(path);
        let early = shared.0.join("early");
        mount_bind(Path::new("/bin"), &early).unwrap();
        shared
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Makes the runtime copy the host's mount namespace: a hook may want to see the host's files there.
fn with_hook(case: &mut Case) {
    case.config["hooks"] = json!({"createContainer": [{"path": "/bin/true"}]});
}

fn bind(to: &str, from: &Path, options: &[&str]) -> Value {
    json!({"destination": to, "type": "bind", "source": from, "options": options})
}

/// A line of mountinfo without the numbers that no two containers have alike.
fn plain(line: &str) -> String {
    let (before, after) = line.split_once(" - ").unwrap();
    let fields: Vec<&str> = before.split(' ').collect();
    let tags: Vec<&str> = fields[6..].iter().map(|tag| tag.split(':').next().unwrap()).collect();
    let root = fields[3].rsplit('/').next().unwrap_or_default();
    let root = if root.starts_with("rt-case-") || fields[4] == "/" { "own" } else { root };
    let kind = after.split(' ').next().unwrap();
    format!("{} {root} {} {} {kind}", fields[4], fields[5], tags.join(","))
}

#[test]
fn both_ways_lead_to_the_same_mounts() {
    if !usable() || !common::ours() {
        return;
    }
    for propagation in ["", "rprivate", "rslave", "rshared"] {
        let tables = [false, true].map(|hook| {
            let mut case = Case::new("cat /proc/self/mountinfo");
            let shared = Shared::new(case.path("shared"));
            if !propagation.is_empty() {
                case.config["linux"]["rootfsPropagation"] = json!(propagation);
            }
            let mounts = case.config["mounts"].as_array_mut().unwrap();
            let cgroup = ["nosuid", "noexec", "nodev", "ro"];
            mounts.push(
                json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": cgroup}),
            );
            mounts.push(
                json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "nosuid"]}),
            );
            for (to, options) in [
                ("/one", &["bind"][..]),
                ("/all", &["rbind", "rro"]),
                ("/slave", &["rbind", "rslave", "ro"]),
                ("/shared", &["rbind", "rshared"]),
                ("/private", &["rbind", "rprivate", "nosuid"]),
            ] {
                mounts.push(bind(to, &shared.0, options));
            }
            if hook {
                with_hook(&mut case);
            }
            let ran = case.once();
            assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
            assert!(case.remains().iter().all(|left| left.contains("/shared")), "{:?}", case.remains());
            ran.out.lines().map(plain).collect::<Vec<_>>()
        });
        assert!(tables[0].iter().any(|l| l.starts_with("/all/early ")), "{propagation}: {:#?}", tables[0]);
        assert_eq!(tables[0], tables[1], "{propagation}");
    }
}

#[test]
fn mounts_of_the_host_come_in_where_they_are_followed() {
    if !usable() {
        return;
    }
    for hook in [false, true] {
        let mut case = Case::new(
            "echo ready; until [ -e /follows/late/file ]; do sleep 0.02; done; [ -e /private/late/file ] || echo apart; \
             mount -t tmpfs inside /follows/early/../late && echo mounted; until [ -e /private/end ]; do sleep 0.02; done",
        );
        let caps = json!(["CAP_SYS_ADMIN"]);
        case.config["process"]["capabilities"] = json!({"bounding": caps, "effective": caps, "permitted": caps});
        let shared = Shared::new(case.path("shared"));
        let other = case.path("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), "").unwrap();
        let mounts = case.config["mounts"].as_array_mut().unwrap();
        mounts.push(bind("/follows", &shared.0, &["rbind", "rslave"]));
        mounts.push(bind("/private", &shared.0, &["rbind", "rprivate"]));
        if hook {
            with_hook(&mut case);
        }
        let created = case.create();
        assert_eq!(created.code, 0, "{created:?}");
        assert_eq!(case.run(&["start", &case.id]).code, 0);
        wait_until("the container's first word", || case.output().contains("ready"));
        let count = || fs::read_to_string("/proc/self/mountinfo").unwrap().matches("/shared/late ").count();
        mount_bind(&other, shared.0.join("late")).unwrap();
        wait_until("the container's mount", || case.output().contains("mounted"));
        assert!(case.output().contains("apart"), "{}", case.output());
        assert_eq!(count(), 1, "what the container mounts stays with it");
        fs::write(shared.0.join("end"), "").unwrap();
        case.wait_status("stopped");
    }
}

#[test]
fn nodes_are_there_where_none_can_be_made() {
    if !usable() || !common::ours() {
        return;
    }
    if !Path::new("/usr/bin/setpriv").exists() {
        println!("skipped: needs setpriv (util-linux)");
        return;
    }
    for hook in [false, true] {
        let mut case = Case::new("echo lost > /dev/null && stat -c %t,%T,%F /dev/null /dev/urandom");
        if hook {
            with_hook(&mut case);
        }
        case.write();
        let plain = case.command();
        let mut command = Command::new("/usr/bin/setpriv");
        command
            .args(["--bounding-set=-mknod", "--inh-caps=-mknod", "--"])
            .arg(plain.get_program())
            .args(plain.get_args());
        command.args(["run", "--bundle"]).arg(case.dir.path()).arg(&case.id).stdin(Stdio::null());
        let ran = finish(&mut command);
        assert_eq!(ran.out, "1,3,character special file\n1,9,character special file\n", "{ran:?}");
    }
}

#[test]
fn the_thread_whose_namespace_is_copied_is_found_once() {
    if !usable() || !common::ours() {
        return;
    }
    let case = Case::new("true");
    assert_eq!(case.once().code, 0);
    let memo = fs::read_to_string(case.path("state/.kdevtmpfs~")).unwrap();
    let (kernel, pid) = memo.rsplit_once(' ').unwrap();
    assert_eq!(kernel, fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if pid == "0" {
        println!("skipped: this host's kdevtmpfs cannot be seen");
    } else {
        assert_eq!(name, "kdevtmpfs\n");
    }
    // A memo that is wrong costs a search, no more.
    for wrong in [format!("{kernel} 1"), format!("{kernel} 999999999"), "x".to_owned(), String::new()] {
        fs::write(case.path("state/.kdevtmpfs~"), &wrong).unwrap();
        let ran = case.once();
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{wrong}");
        assert_eq!(fs::read_to_string(case.path("state/.kdevtmpfs~")).unwrap(), memo, "{wrong}");
    }
    assert_eq!(case.run(&["list", "-q"]).out, "");
}
