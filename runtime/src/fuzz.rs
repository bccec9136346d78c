//! What comes from outside may be anything: it never makes the runtime panic, and what it refuses it says in one line.
//!
//! Each test changes well-formed input here and there (values of other types, at the ends of ranges, missing, moved) and byte by
//! byte. `PROPTEST_CASES` sets how many inputs each tries; the usual number takes a second.

use std::path::Path;

use proptest::prelude::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde_json::{Value, json};

use crate::fuzzing::check_error;
use crate::init::{Channel, Message};
use crate::plan::{capabilities, mounts, namespaces, resources};
use crate::seccomp::interpret::check;
use crate::seccomp::{AARCH64, Machine, RISCV64, X86_64, compile_for};
use crate::spec::{Process, Resources, Seccomp, Spec, parse, validate, validate_process, validate_resources};
use crate::state::Store;

/// A configuration with something in every field.
fn whole() -> Value {
    json!({
        "ociVersion": "1.2.1",
        "process": {
            "terminal": false, "consoleSize": {"height": 24, "width": 80},
            "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3, 4]},
            "args": ["sh", "-c", "true"], "env": ["A=1", "PATH=/bin"], "cwd": "/",
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": [], "inheritable": [], "ambient": []},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}],
            "noNewPrivileges": true, "apparmorProfile": "p", "selinuxLabel": "l", "oomScoreAdj": 5,
            "scheduler": {"policy": "SCHED_OTHER", "nice": 1, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
        },
        "root": {"path": "rootfs", "readonly": true}, "hostname": "h", "domainname": "d",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "ro"]},
            {"destination": "/data", "type": "bind", "source": "/tmp", "options": ["rbind", "rro", "rslave", "idmap"],
             "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
             "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}]},
            {"destination": "/t", "type": "tmpfs", "source": "t", "options": ["tmpcopyup", "size=1k", "mode=755"]},
        ],
        "hooks": {"prestart": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 3}], "poststop": []},
        "annotations": {"a": "b"},
        "linux": {
            "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 65_536}],
            "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 65_536}],
            "sysctl": {"net.ipv4.ip_forward": "1"}, "cgroupsPath": "/a/b",
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network", "path": "/proc/self/ns/net"}, {"type": "user"},
                           {"type": "uts"}, {"type": "ipc"}, {"type": "cgroup"}, {"type": "time"}],
            "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}],
            "rootfsPropagation": "rslave", "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"], "mountLabel": "l",
            "timeOffsets": {"monotonic": {"secs": 5, "nanosecs": 1}}, "personality": {"domain": "LINUX"},
            "resources": limits(), "seccomp": profile(),
        },
    })
}

fn limits() -> Value {
    json!({
        "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}],
        "memory": {"limit": 1000, "reservation": 500, "swap": 2000, "swappiness": 5, "disableOOMKiller": true},
        "cpu": {"shares": 512, "quota": 5000, "burst": 10, "period": 10_000, "realtimeRuntime": 1, "realtimePeriod": 2,
                "cpus": "0-1", "mems": "0", "idle": 0},
        "pids": {"limit": 10},
        "blockIO": {"weight": 100, "weightDevice": [{"major": 8, "minor": 0, "weight": 10}],
                    "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4}],
        "network": {"classID": 1, "priorities": [{"name": "eth0", "priority": 1}]},
        "rdma": {"mlx": {"hcaHandles": 1}}, "unified": {"memory.high": "5"},
    })
}

fn profile() -> Value {
    let arg = |op: &str| json!({"index": 1, "value": 5, "valueTwo": 7, "op": op});
    json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "listenerPath": "/l", "listenerMetadata": "m",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            {"names": ["read", "write", "socket"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone", "semget"], "action": "SCMP_ACT_TRACE", "errnoRet": 3,
             "args": [arg("SCMP_CMP_EQ"), arg("SCMP_CMP_MASKED_EQ"), {"index": 5, "value": u64::MAX, "op": "SCMP_CMP_GE"}]},
        ],
    })
}

/// Values that do not belong where they are put.
fn junk() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![
            0_i64,
            1,
            -1,
            255,
            4096,
            i64::from(i32::MAX),
            i64::from(u32::MAX),
            i64::MIN,
            i64::MAX
        ])
        .prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        Just(json!(u64::MAX)),
        Just(json!(1e300)),
        prop::sample::select(vec![
            "",
            "/",
            "..",
            "../..",
            "/a\0b",
            "x:y:z",
            "-1",
            "SCMP_ACT_NOTIFY",
            "SCMP_CMP_NE",
            "rshared",
            "bind",
            "a",
            "\u{1f980}",
            "user",
            "RLIMIT_CPU",
            "openat2",
            "ipc",
            "5-",
            "1KB",
        ])
        .prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!("x".repeat(70_000))),
        Just(json!([])),
        Just(json!({})),
        Just(json!([[[[{}]]]])),
        Just(json!({"type": "user", "path": ""})),
    ]
}

/// One change at the n-th place of a document.
#[derive(Clone, Debug)]
enum Change {
    Put(Value),
    Remove,
    /// A list's or object's content twice as long.
    Repeat,
}

fn change() -> impl Strategy<Value = (usize, Change)> {
    let change = prop_oneof![6 => junk().prop_map(Change::Put), 2 => Just(Change::Remove), 1 => Just(Change::Repeat)];
    (any::<prop::sample::Index>().prop_map(|i| i.index(1 << 16)), change)
}

/// Visits every value, and lets the n-th be changed.
fn apply(value: &mut Value, left: &mut usize, change: &Change) -> bool {
    if *left == 0 {
        match change {
            Change::Put(new) => *value = new.clone(),
            Change::Remove => *value = Value::Null,
            Change::Repeat => {
                if let Value::Array(list) = value {
                    let again = list.clone();
                    list.extend(again);
                }
            }
        }
        return true;
    }
    *left -= 1;
    match value {
        Value::Array(list) => list.iter_mut().any(|v| apply(v, left, change)),
        Value::Object(map) => map.iter_mut().any(|(_, v)| apply(v, left, change)),
        _ => false,
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// A document with some changes, as text in which perhaps a few bytes are changed too.
fn document(base: Value) -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    let bytes = prop_oneof![3 => Just(Vec::new()), 1 => bytes];
    (prop::collection::vec(change(), 0..4), bytes).prop_map(move |(changes, bytes)| {
        let mut value = base.clone();
        for (place, change) in &changes {
            let mut left = place % count(&value);
            apply(&mut value, &mut left, change);
        }
        let mut text = serde_json::to_vec(&value).unwrap();
        for (place, byte) in bytes {
            let at = place.index(text.len());
            text[at] = byte;
        }
        text
    })
}

fn compiles(profile: &Seccomp) {
    for machine in [&X86_64, &AARCH64, &RISCV64] as [&Machine; 3] {
        match compile_for(machine, profile) {
            Ok(code) => check(&code),
            Err(error) => check_error(&error),
        }
    }
}

#[test]
fn the_unchanged_configuration_is_right() {
    let spec: Spec = parse(&serde_json::to_vec(&whole()).unwrap()).unwrap();
    validate(&spec).unwrap();
    compiles(spec.linux().seccomp.as_ref().unwrap());
}

proptest! {
    #[test]
    fn configurations(text in document(whole())) {
        match parse::<Spec>(&text).and_then(|spec| validate(&spec).map(|()| spec)) {
            Err(error) => check_error(&error),
            // What is right can be decided on.
            Ok(spec) => {
                let linux = spec.linux();
                let _ = namespaces::plan(&linux);
                let _ = resources::plan(linux.resources.as_ref());
                let _ = capabilities::plan(spec.process.as_ref().and_then(|p| p.capabilities.as_ref()), u64::MAX);
                for m in &spec.mounts {
                    let _ = mounts::plan(m);
                }
                if let Some(profile) = &linux.seccomp {
                    compiles(profile);
                }
            }
        }
    }

    #[test]
    fn programs_of_exec(text in document(whole()["process"].clone())) {
        if let Err(error) = parse::<Process>(&text).and_then(|p| validate_process("process", &p)) {
            check_error(&error);
        }
    }

    #[test]
    fn limits_of_update(text in document(limits())) {
        match parse::<Resources>(&text).and_then(|r| validate_resources("resources", &r).map(|()| r)) {
            Err(error) => check_error(&error),
            Ok(r) => drop(resources::plan(Some(&r))),
        }
    }

    #[test]
    fn profiles(text in document(profile())) {
        // Whatever parses, checked or not.
        match parse::<Seccomp>(&text) {
            Ok(profile) => compiles(&profile),
            Err(error) => check_error(&error),
        }
    }

    #[test]
    fn state_files(text in document(json!({
        "version": 2, "id": "c", "pid": 1, "start_time": 5, "bundle": "/b", "rootfs": "/b/rootfs", "cgroup": "/no/such/group",
        "created": "2026-01-01T00:00:00Z", "annotations": {"a": "b"}, "resources": limits(), "own_pids": true,
        "hooks": {"poststop": [{"path": "/bin/true"}]},
    }))) {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("c");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("state.json"), &text).unwrap();
        let store = Store::new(root.path().to_owned());
        match store.open("c") {
            Err(error) => check_error(&error),
            Ok(container) => {
                let public: Value = serde_json::from_str(&container.public(container.status())).unwrap();
                assert!(public["status"].is_string());
                assert!(container.spec().is_err(), "there is no configuration");
            }
        }
        // A container that nobody can read can still be got rid of.
        assert!(store.remove_remains("c").unwrap());
        assert!(store.ids().is_empty() && !Path::new(&folder).exists());
    }

    #[test]
    fn messages(packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..9000), 0_usize..4), 1..4)) {
        let kind = SocketType::SEQPACKET;
        let (a, b) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let channel = Channel::from(a);
        use std::os::fd::AsFd;
        for (bytes, fds) in packets {
            if gantry_sys::fd::send_with_fds(b.as_fd(), &bytes, &vec![b.as_fd(); fds]).is_err() {
                continue;
            }
            match channel.receive() {
                Ok(Message::Listener(_)) => prop_assert!(fds > 0 && bytes[0] == b'L'),
                Ok(Message::Go) => prop_assert_eq!(bytes[0], b'G'),
                Ok(Message::Warning(text) | Message::Failed(text)) => prop_assert!(text.len() <= 3 * bytes.len()),
                Err(error) => check_error(&error),
            }
        }
        drop(b);
        prop_assert!(channel.receive().is_err(), "nobody is there any more");
    }
}
