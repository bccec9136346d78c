//! Wrong configurations: each gives an error that names the field, and leaves nothing on the host.

mod common;

use common::{Case, ours, usable};
use serde_json::{Value, json};

/// Sets a field; objects on the way are made, `-` adds to a list.
fn put(config: &mut Value, pointer: &str, value: Value) {
    let mut at = config;
    for part in pointer.split('/') {
        if let Value::Array(list) = at {
            let index = part.parse().unwrap_or(list.len());
            list.resize(list.len().max(index + 1), Value::Null);
            at = &mut list[index];
        } else {
            if !at.is_object() {
                *at = json!({});
            }
            at = &mut at[part];
        }
    }
    *at = value;
}

/// Creates a container with one field changed, which must fail with a text that names `field`.
fn refused(pointer: &str, value: Value, field: &str) {
    let mut case = Case::new("true");
    put(&mut case.config, pointer, value.clone());
    let ran = case.create();
    let what = format!("{pointer} = {value}");
    assert_ne!(ran.code, 0, "{what}");
    assert!(ran.err.contains(field), "{what}: wants {field}: {}", ran.err);
    assert_eq!(ran.err.lines().count(), 1, "{what}: {}", ran.err);
    assert_eq!(case.remains(), Vec::<String>::new(), "{what}");
    assert_ne!(case.run(&["state", &case.id]).code, 0, "{what}");
}

fn all(rows: &[(&str, Value, &str)]) {
    // The texts are ours; runc ignores or only warns of many of these.
    if !usable() || !ours() {
        return;
    }
    for (pointer, value, field) in rows {
        refused(pointer, value.clone(), field);
    }
}

#[test]
fn the_top_and_the_process() {
    all(&[
        ("ociVersion", json!(1), "ociVersion: invalid type"),
        ("ociVersion", json!("2.0.0"), "ociVersion"),
        ("ociVersion", json!("one"), "ociVersion"),
        ("root", Value::Null, "root: missing"),
        ("root", json!({}), "root: missing field `path`"),
        ("root/path", json!(""), "root.path"),
        ("root/path", json!("no-such-folder"), "root.path"),
        ("root/path", json!("config.json"), "root.path"),
        ("root/readonly", json!("yes"), "root.readonly"),
        ("process", Value::Null, "process: missing"),
        ("process", json!([]), "process"),
        ("process/args", json!([]), "process.args: empty"),
        ("process/args", json!("sh"), "process.args: invalid type"),
        ("process/args", json!(["sh", 7]), "process.args[1]"),
        ("process/args", json!(["a\0b"]), "process.args[0]"),
        ("process/args", json!(["no-such-program"]), "exec: \"no-such-program\": executable file not found in $PATH"),
        ("process/args", json!(["/proc"]), "exec: \"/proc\": is a directory"),
        ("process/cwd", json!("relative"), "process.cwd"),
        ("process/cwd", Value::Null, "process.cwd"),
        ("process/env", json!(["NAME"]), "process.env[0]"),
        ("process/env", json!(["A=1", "B=\0"]), "process.env[1]"),
        ("process/terminal", json!(1), "process.terminal"),
        ("process/terminal", json!(true), "process.terminal"),
        ("process/consoleSize", json!({"height": 70_000, "width": 1}), "process.consoleSize.height"),
        ("process/user/uid", json!(-1), "process.user.uid"),
        ("process/user/uid", json!(u32::MAX), "process.user.uid"),
        ("process/user/gid", json!("root"), "process.user.gid"),
        ("process/user/umask", json!(0o1000), "process.user.umask"),
        ("process/user/additionalGids", json!([1, u32::MAX]), "process.user.additionalGids[1]"),
        ("process/capabilities/bounding", json!("CAP_KILL"), "process.capabilities.bounding"),
        ("process/rlimits/0/type", json!("RLIMIT_NO"), "process.rlimits[0].type"),
        ("process/rlimits/0/soft", json!(-1), "process.rlimits[0].soft"),
        ("process/rlimits/0/soft", json!(9999), "process.rlimits[0]: soft 9999 is above hard 512"),
        ("process/rlimits/-", json!({"type": "RLIMIT_NOFILE", "hard": 1, "soft": 1}), "process.rlimits[1].type"),
        ("process/rlimits/-", json!({"type": "RLIMIT_CORE"}), "process.rlimits[1]: missing field `hard`"),
        ("process/oomScoreAdj", json!(1001), "process.oomScoreAdj"),
        ("process/scheduler", json!({"policy": "SCHED_X"}), "process.scheduler.policy"),
        ("process/scheduler", json!({"policy": "SCHED_OTHER", "nice": 20}), "process.scheduler.nice"),
        ("process/scheduler", json!({"policy": "SCHED_OTHER", "priority": 5}), "process.scheduler.priority"),
        ("process/scheduler", json!({"policy": "SCHED_RR", "priority": 100}), "process.scheduler.priority"),
        ("process/scheduler", json!({"policy": "SCHED_OTHER", "runtime": 5}), "process.scheduler: runtime"),
        ("process/scheduler", json!({"policy": "SCHED_OTHER", "flags": ["X"]}), "process.scheduler.flags"),
        ("process/ioPriority", json!({"class": "IOPRIO_CLASS_NO"}), "process.ioPriority.class"),
        ("process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 8}), "process.ioPriority.priority"),
        ("process/execCPUAffinity", json!({"initial": "0-"}), "process.execCPUAffinity.initial"),
        ("process/execCPUAffinity", json!({"final": 1}), "process.execCPUAffinity.final"),
        ("hostname", json!("x".repeat(65)), "hostname"),
        ("domainname", json!(["x"]), "domainname"),
        ("annotations", json!({"": "x"}), "annotations"),
        ("annotations", json!({"a": 1}), "annotations.a"),
    ]);
}

#[test]
fn mounts_and_hooks() {
    let mount = |value: Value| ("mounts/-", value);
    let bind = |extra: Value| {
        let mut m = json!({"destination": "/data", "type": "bind", "source": "/tmp"});
        m.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        mount(m)
    };
    let rows = [
        (mount(json!({})), "mounts[5]: missing field `destination`"),
        (mount(json!({"destination": ""})), "mounts[5].destination"),
        (mount(json!({"destination": "/a\0b", "source": "/tmp"})), "mounts[5].destination"),
        (mount(json!({"destination": "/data"})), "mounts[5].source"),
        (mount(json!({"destination": "/data", "type": "bind"})), "mounts[5].source"),
        (bind(json!({"options": "ro"})), "mounts[5].options: invalid type"),
        (bind(json!({"options": ["bind", "tmpcopyup"]})), "mounts[5].options: tmpcopyup"),
        (bind(json!({"source": "/no/such/source"})), "/data: source /no/such/source"),
        (bind(json!({"destination": "/etc/passwd/x"})), "/etc/passwd/x"),
        (bind(json!({"uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]})), "mounts[5]: uidMappings"),
        (mount(json!({"destination": "/data", "type": "no-such-fs", "source": "x"})), "mount no-such-fs at /data"),
        (mount(json!({"destination": "/d", "type": "tmpfs", "options": ["size=never"]})), "mount tmpfs at /d"),
        (mount(json!({"destination": "/d", "type": "tmpfs", "options": ["no-such-word"]})), "mount tmpfs at /d"),
        (mount(json!({"destination": "/d", "type": "tmpfs", "options": ["idmap"]})), "mounts[5]: only bind"),
        (("hooks/prestart", json!([{"path": "relative"}])), "hooks.prestart[0].path"),
        (("hooks/poststop", json!([{"path": "/bin/true"}, {"args": []}])), "hooks.poststop[1]: missing field `path`"),
        (("hooks/createRuntime", json!([{"path": "/bin/true", "timeout": 0}])), "hooks.createRuntime[0].timeout"),
        (("hooks/createRuntime", json!([{"path": "/bin/true", "timeout": -1}])), "hooks.createRuntime[0].timeout"),
        (("hooks/createRuntime", json!([{"path": "/bin/true", "env": ["X"]}])), "hooks.createRuntime[0].env[0]"),
        (("hooks/createRuntime", json!([{"path": "/no/such/hook"}])), "createRuntime hook #0"),
        (("hooks/createContainer", json!([{"path": "/bin/false"}])), "createContainer hook #0"),
    ];
    let rows: Vec<_> = rows.into_iter().map(|((pointer, value), field)| (pointer, value, field)).collect();
    all(&rows);
}

#[test]
fn linux() {
    let map = |size: u32| json!([{"containerID": 0, "hostID": 0, "size": size}]);
    let device = |kind: &str, minor: i64| json!([{"path": "/dev/mine", "type": kind, "major": 1, "minor": minor}]);
    all(&[
        ("linux", json!("x"), "linux: invalid type"),
        ("linux/namespaces/-", json!({"type": "pids"}), "linux.namespaces[5].type"),
        ("linux/namespaces/-", json!({"type": "pid"}), "linux.namespaces[5].type: pid is there twice"),
        ("linux/namespaces/-", json!({}), "linux.namespaces[5]: missing field `type`"),
        ("linux/namespaces/0/path", json!("relative"), "linux.namespaces[0].path"),
        ("linux/namespaces/1/path", json!("/no/such/ns"), "open the net namespace /no/such/ns"),
        ("linux/namespaces/1/path", json!("/etc/passwd"), "join the net namespace"),
        ("linux/namespaces/1/path", json!("/proc/self/ns/uts"), "join the net namespace"),
        ("linux/namespaces", json!([{"type": "mount"}]), "hostname: needs a uts namespace"),
        ("linux/namespaces", json!([{"type": "uts"}]), "linux.maskedPaths: needs a mount namespace"),
        ("linux/namespaces/-", json!({"type": "user"}), "linux.uidMappings"),
        ("linux/uidMappings", map(1), "linux.uidMappings: given without a user namespace"),
        ("linux/uidMappings", map(0), "linux.uidMappings"),
        ("linux/uidMappings", json!([{"containerID": -1, "hostID": 0, "size": 1}]), "linux.uidMappings[0].containerID"),
        ("linux/timeOffsets", json!({"monotonic": {"secs": 1}}), "linux.timeOffsets"),
        ("linux/cgroupsPath", json!("/a/../../b"), "linux.cgroupsPath"),
        ("linux/rootfsPropagation", json!("public"), "linux.rootfsPropagation"),
        ("linux/maskedPaths", json!(["relative"]), "linux.maskedPaths[0]"),
        ("linux/maskedPaths", json!("/proc"), "linux.maskedPaths: invalid type"),
        ("linux/readonlyPaths", json!(["/a", "b"]), "linux.readonlyPaths[1]"),
        ("linux/memoryPolicy", json!({"mode": "MPOL_X"}), "linux.memoryPolicy.mode"),
        ("linux/memoryPolicy", json!({"mode": "MPOL_BIND"}), "linux.memoryPolicy.nodes"),
        ("linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "1-0"}), "linux.memoryPolicy.nodes"),
        ("linux/memoryPolicy", json!({"mode": "MPOL_LOCAL", "nodes": "0"}), "linux.memoryPolicy.nodes"),
        ("linux/memoryPolicy", json!({"mode": "MPOL_LOCAL", "flags": ["X"]}), "linux.memoryPolicy.flags"),
        ("linux/netDevices", json!({"eth/0": {}}), "linux.netDevices: \"eth/0\""),
        ("linux/netDevices", json!({"a": {"name": "x"}, "b": {"name": "x"}}), "linux.netDevices.b.name"),
        ("linux/netDevices", json!({"a": {"name": "lo"}}), "linux.netDevices.a.name"),
        ("linux/netDevices", json!({"a": {"name": 1}}), "linux.netDevices.a.name"),
        ("linux/intelRdt", json!({"closID": "a/b"}), "linux.intelRdt.closID"),
        ("linux/intelRdt", json!({"closID": "info"}), "linux.intelRdt.closID"),
        ("linux/intelRdt", json!({"closID": 1}), "linux.intelRdt.closID"),
        ("linux/intelRdt", json!({"l3CacheSchema": "L3:0=xyz"}), "linux.intelRdt.l3CacheSchema"),
        ("linux/intelRdt", json!({"memBwSchema": "L3:0=f"}), "linux.intelRdt.memBwSchema"),
        ("linux/intelRdt", json!({"schemata": ["L3:0=f", "L3"]}), "linux.intelRdt.schemata[1]"),
        ("linux/intelRdt", json!({"schemata": "L3:0=f"}), "linux.intelRdt.schemata"),
        ("linux/intelRdt", json!({"enableMonitoring": 1}), "linux.intelRdt.enableMonitoring"),
        ("linux/personality", json!({"domain": "BSD"}), "linux.personality.domain"),
        ("linux/personality", json!({}), "linux.personality: missing field `domain`"),
        ("linux/devices", device("x", 3), "linux.devices[0].type"),
        ("linux/devices", device("c", -1), "linux.devices[0].minor"),
        ("linux/devices", json!([{"path": "dev", "type": "c"}]), "linux.devices[0].path"),
        ("linux/devices", json!([{"path": "/dev/x", "type": "c", "fileMode": -1}]), "linux.devices[0].fileMode"),
        ("linux/sysctl", json!({"kernel.no_such": "1"}), "linux.sysctl: kernel.no_such"),
        ("linux/sysctl", json!({"vm.swappiness": "1"}), "linux.sysctl: vm.swappiness"),
        ("linux/sysctl", json!({"../x": "1"}), "linux.sysctl"),
        ("linux/sysctl", json!({"net.no_such": "1"}), "linux.sysctl: set net.no_such"),
        ("linux/sysctl", json!({"kernel.shmmax": "many"}), "linux.sysctl: set kernel.shmmax"),
        ("linux/sysctl", json!({"kernel.hostname": "x"}), "linux.sysctl: kernel.hostname contradicts hostname"),
        ("linux/sysctl", json!({"net.ipv4.ip_forward": 1}), "linux.sysctl.net.ipv4.ip_forward: invalid type"),
    ]);
}

#[test]
fn a_network_that_is_joined_must_not_be_the_hosts_to_set_its_parameters() {
    if !usable() {
        return;
    }
    let mut case = Case::new("true");
    put(&mut case.config, "linux/namespaces/1/path", json!("/proc/self/ns/net"));
    put(&mut case.config, "linux/sysctl", json!({"net.ipv4.ip_local_port_range": "40000 50000"}));
    let before = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let ran = case.create();
    let after = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    assert_eq!(before, after, "the host's parameter was changed");
    assert_ne!(ran.code, 0, "{ran:?}");
    assert_eq!(case.remains(), Vec::<String>::new());
}

#[test]
fn limits() {
    let r = "linux/resources";
    let named = |field: &str| format!("linux.resources.{field}");
    let rows = [
        ("memory", json!({"limit": "1g"}), "memory.limit"),
        ("memory", json!({"limit": -2}), "memory.limit"),
        ("memory", json!({"limit": 100_000_000, "swap": 50_000_000}), "memory.swap"),
        ("memory", json!({"limit": -1, "swap": 50_000_000}), "memory.swap"),
        ("memory", json!({"swappiness": 101}), "memory.swappiness"),
        ("cpu", json!({"shares": -5}), "cpu.shares"),
        ("cpu", json!({"shares": 300_000}), "cpu.shares"),
        ("cpu", json!({"quota": 5}), "cpu.quota"),
        ("cpu", json!({"period": 2_000_000}), "cpu.period"),
        ("cpu", json!({"quota": 10_000, "burst": 20_000}), "cpu.burst"),
        ("cpu", json!({"cpus": "a-b"}), "cpu.cpus"),
        ("cpu", json!({"mems": "3-1"}), "cpu.mems"),
        ("cpu", json!({"idle": 2}), "cpu.idle"),
        ("pids", json!({"limit": "many"}), "pids.limit"),
        ("blockIO", json!({"weight": 5}), "blockIO.weight"),
        ("blockIO", json!({"weight": 70_000}), "blockIO.weight"),
        ("blockIO", json!({"weightDevice": [{"major": 1}]}), "blockIO.weightDevice[0]: missing field `minor`"),
        (
            "blockIO",
            json!({"throttleReadBpsDevice": [{"major": 8, "minor": -1, "rate": 1}]}),
            "blockIO.throttleReadBps",
        ),
        ("hugepageLimits", json!([{"pageSize": "2mb", "limit": 1}]), "hugepageLimits[0].pageSize"),
        ("hugepageLimits", json!([{"pageSize": "2MB", "limit": -1}]), "hugepageLimits[0].limit"),
        ("network", json!({"classID": -1}), "network.classID"),
        ("network", json!({"priorities": [{"name": "", "priority": 1}]}), "network.priorities[0].name"),
        ("rdma", json!({"mlx": {}}), "rdma.mlx"),
        ("unified", json!({"../x.y": "1"}), "unified"),
        ("unified", json!({"memory.max": 5}), "unified.memory.max: invalid type"),
        ("devices", json!([{"allow": "no"}]), "devices[0].allow"),
        ("devices", json!([{"allow": true}, {"allow": true, "type": "z"}]), "devices[1]"),
        ("devices", json!([{"allow": true, "type": "c", "major": -7}]), "devices[0]"),
        ("devices", json!([{"allow": true, "access": "rx"}]), "devices[0]"),
    ];
    if !usable() || !ours() {
        return;
    }
    for (below, value, field) in rows {
        refused(&format!("{r}/{below}"), value, &named(field));
    }
    // What only the kernel knows: processor 9999.
    refused("linux/resources/cpu", json!({"cpus": "9999"}), "cpuset.cpus");
}

#[test]
fn seccomp() {
    let rule = |value: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [value]});
    let condition = |value: Value| rule(json!({"names": ["read"], "action": "SCMP_ACT_LOG", "args": [value]}));
    let rows = [
        (json!({}), ": missing field `defaultAction`"),
        (json!({"defaultAction": "SCMP_ACT_NO"}), ".defaultAction"),
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), ".defaultAction"),
        (json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}), ".defaultErrnoRet"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}), ".defaultErrnoRet"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["X86"]}), ".architectures[0]"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}), ".flags[0]"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}), ".listenerMetadata"),
        (rule(json!({"names": [], "action": "SCMP_ACT_LOG"})), ".syscalls[0].names"),
        (rule(json!({"action": "SCMP_ACT_LOG"})), ".syscalls[0]: missing field `names`"),
        (rule(json!({"names": ["read"], "action": "LOG"})), ".syscalls[0].action"),
        (rule(json!({"names": ["read"], "action": "SCMP_ACT_LOG", "errnoRet": 1})), ".syscalls[0].errnoRet"),
        (rule(json!({"names": ["read"], "action": "SCMP_ACT_NOTIFY"})), ".listenerPath"),
        (condition(json!({"index": 6, "value": 1, "op": "SCMP_CMP_EQ"})), ".syscalls[0].args[0].index"),
        (condition(json!({"index": 0, "value": -1, "op": "SCMP_CMP_EQ"})), ".syscalls[0].args[0].value"),
        (condition(json!({"index": 0, "value": 1, "op": "EQ"})), ".syscalls[0].args[0].op"),
    ];
    if !usable() || !ours() {
        return;
    }
    for (value, field) in rows {
        refused("linux/seccomp", value, &format!("linux.seccomp{field}"));
    }
}

#[test]
fn files_that_are_no_configuration() {
    if !usable() {
        return;
    }
    for text in ["", "{", "[]", "null", "\"x\"", "{\"ociVersion\": \"1.0.2\",}", "\u{feff}{}", "{} {}"] {
        let case = Case::new("true");
        std::fs::write(case.path("config.json"), text).unwrap();
        let ran = case.run(&["create", "--bundle", case.dir.path().to_str().unwrap(), &case.id]);
        assert_ne!(ran.code, 0, "{text:?}");
        assert!(!ours() || ran.err.contains("config.json"), "{text:?}: {ran:?}");
        assert_eq!(case.remains(), Vec::<String>::new(), "{text:?}");
    }
    let case = Case::new("true");
    assert_ne!(case.run(&["create", "--bundle", case.dir.path().to_str().unwrap(), &case.id]).code, 0, "no file");
    std::fs::create_dir(case.path("config.json")).unwrap();
    assert_ne!(case.run(&["create", "--bundle", case.dir.path().to_str().unwrap(), &case.id]).code, 0, "a folder");
}

#[test]
fn processes_and_limits_from_files_are_checked_alike() {
    if !usable() || !ours() {
        return;
    }
    let case = Case::new("sleep 100");
    assert_eq!(case.create().code, 0);
    assert_eq!(case.run(&["start", &case.id]).code, 0);
    for (process, field) in [
        (json!({"args": ["true"], "cwd": "x"}), "process.cwd"),
        (json!({"args": [], "cwd": "/"}), "process.args"),
        (json!({"args": ["true"], "cwd": "/", "user": {"uid": "x"}}), "user.uid"),
    ] {
        std::fs::write(case.path("process.json"), process.to_string()).unwrap();
        let ran = case.run(&["exec", "--process", case.path("process.json").to_str().unwrap(), &case.id]);
        assert!(ran.code != 0 && ran.err.contains(field), "{process}: {ran:?}");
    }
    for (limits, field) in
        [(json!({"memory": {"limit": -2}}), "memory.limit"), (json!({"cpu": {"cpus": 1}}), "cpu.cpus")]
    {
        std::fs::write(case.path("limits.json"), limits.to_string()).unwrap();
        let ran = case.run(&["update", "--resources", case.path("limits.json").to_str().unwrap(), &case.id]);
        assert!(ran.code != 0 && ran.err.contains(field), "{limits}: {ran:?}");
    }
}
