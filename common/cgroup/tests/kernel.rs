//! Groups on the real kernel of this host, whatever its layout.

use gantry_cgroup::{Access, DeviceKind, DeviceRule, Host, Resources};

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

#[test]
fn limits_are_set_processes_are_killed_and_nothing_is_left() {
    if !root() {
        return;
    }
    let host = Host::detect().unwrap();
    let parent = host.cgroup(format!("/gantry-test-{}", std::process::id())).unwrap();
    let group = host.cgroup(parent.path().join("inner")).unwrap();
    group.create().unwrap();
    group.create().unwrap();
    let everything = DeviceRule { allow: true, kind: DeviceKind::All, major: None, minor: None, access: Access::ALL };
    let limits = Resources {
        memory_limit: host.has("memory").then_some(32 << 20),
        pids_limit: host.has("pids").then_some(20),
        cpu_shares: host.has("cpu").then_some(512),
        devices: Some(vec![everything]),
        ..Resources::default()
    };
    group.apply(&limits).unwrap();
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    group.add_process(child.id() as i32).unwrap();
    assert_eq!(group.procs().unwrap(), [child.id() as i32]);
    let stats = group.stats();
    if host.has("memory") {
        assert_eq!(stats.memory_limit, Some(32 << 20));
    }
    if host.has("pids") {
        assert_eq!((stats.pids, stats.pids_limit), (1, Some(20)));
    }
    group.freeze().unwrap();
    assert!(group.is_frozen());
    group.thaw().unwrap();
    let killer = {
        let group = group.clone();
        std::thread::spawn(move || group.kill())
    };
    child.wait().unwrap();
    killer.join().unwrap().unwrap();
    assert_eq!(group.oom_kills(), 0);
    parent.destroy().unwrap();
    parent.destroy().unwrap();
    assert!(!group.exists() && !parent.exists());
}

#[test]
fn paths_do_not_leave_the_mount() {
    assert!(Host::detect().unwrap().cgroup("/a/../../b").is_err());
}
