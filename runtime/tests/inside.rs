//! What a container sees and may do.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use common::{Case, usable};
use serde_json::json;

/// Runs a script in a changed container and compares what it prints.
fn prints(script: &str, change: impl FnOnce(&mut Case), want: &str) {
    let mut case = Case::new(script);
    change(&mut case);
    let ran = case.once();
    assert_eq!(ran.out.trim(), want.trim(), "{script}: {ran:?}");
}

#[test]
fn namespaces_are_its_own() {
    if !usable() {
        return;
    }
    let links = "for n in pid net ipc uts mnt; do readlink /proc/self/ns/$n; done; hostname; echo $$";
    let mut case = Case::new(links);
    case.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    let ran = case.once();
    let lines: Vec<&str> = ran.out.lines().collect();
    for (i, name) in ["pid", "net", "ipc", "uts", "mnt"].iter().enumerate() {
        let ours = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(lines[i], ours.to_str().unwrap(), "{name}");
    }
    assert_eq!(lines[5..], ["case", "1"]);
}

#[test]
fn namespaces_are_joined_by_path() {
    if !usable() {
        return;
    }
    let first = Case::new("sleep 100");
    assert_eq!(first.create().code, 0);
    let pid = first.state()["pid"].to_string();
    for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")] {
        let path = format!("/proc/{pid}/ns/{file}");
        let want = fs::read_link(&path).unwrap();
        let script = format!("readlink /proc/self/ns/{file}");
        let change = |case: &mut Case| {
            let list = case.config["linux"]["namespaces"].as_array_mut().unwrap();
            list.retain(|n| n["type"] != kind);
            list.push(json!({"type": kind, "path": path}));
            if kind == "uts" {
                case.config["hostname"] = json!("joined");
            }
        };
        prints(&script, change, want.to_str().unwrap());
    }
}

#[test]
fn a_user_namespace_maps_ids() {
    if !usable() {
        return;
    }
    prints(
        "id -u; cat /proc/self/uid_map | tr -s ' '; echo x > /dev/null && echo written",
        |c| {
            map_ids(c);
            std::os::unix::fs::symlink("busybox", c.path("rootfs/bin/tr")).unwrap();
        },
        "0\n 0 100000 65536\nwritten",
    );
}

/// Gives a container a user namespace whose root is the host's 100000.
fn map_ids(case: &mut Case) {
    case.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    case.config["linux"]["uidMappings"] = map.clone();
    case.config["linux"]["gidMappings"] = map;
    // The root must be reachable for the mapped ids.
    let rootfs = case.path("rootfs");
    for entry in [rootfs.clone(), rootfs.join("etc"), rootfs.join("dev")] {
        chown(entry, Some(100_000), Some(100_000)).unwrap();
    }
}

#[test]
fn a_user_namespace_sees_files_of_the_host_as_its_own_or_as_nobody_s() {
    if !usable() {
        return;
    }
    // Both lie where the mapped root cannot get by itself, as volumes of other users do. Debian's runc and crun know the first
    // kind, not yet the second.
    let kinds: &[(&[&str], &str)] = &[(&["rbind"], "65534\nread\nrefused"), (&["rbind", "idmap"], "0\nread\nwritten")];
    for (options, want) in &kinds[..if common::ours() { 2 } else { 1 }] {
        let mut case = Case::new(
            "stat -c %u /data/file; cat /data/file; touch /data/new 2>/dev/null && echo written || echo refused",
        );
        map_ids(&mut case);
        let closed = case.path("closed");
        fs::create_dir_all(closed.join("data")).unwrap();
        fs::write(closed.join("data/file"), "read\n").unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        let mut mount =
            json!({"destination": "/data", "type": "none", "source": closed.join("data"), "options": options});
        if options.contains(&"idmap") {
            mount["uidMappings"] = case.config["linux"]["uidMappings"].clone();
            mount["gidMappings"] = case.config["linux"]["gidMappings"].clone();
        }
        case.config["mounts"].as_array_mut().unwrap().push(mount);
        let ran = case.once();
        assert_eq!(ran.out.trim(), *want, "{options:?}: {ran:?}");
        if options.contains(&"idmap") {
            assert_eq!(fs::metadata(closed.join("data/new")).unwrap().uid(), 0, "the host sees its own id");
        }
    }
}

#[test]
fn mounts_have_their_options() {
    if !usable() {
        return;
    }
    let mut case = Case::new(
        "cat /data/file; touch /data/x 2>/dev/null || echo read-only; cat /one; touch /rw/made && echo made; \
         grep -E ' /(data|rw|tmp) ' /proc/self/mounts | cut -d' ' -f2,4; grep ' /rw ' /proc/self/mountinfo | grep -c shared; \
         cat /sub/deep/file",
    );
    std::os::unix::fs::symlink("busybox", case.path("rootfs/bin/cut")).unwrap();
    let data = case.path("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "content\n").unwrap();
    let mounts = case.config["mounts"].as_array_mut().unwrap();
    let bind = |to: &str, from: &Path, options: &[&str]| json!({"destination": to, "type": "bind", "source": from, "options": options});
    mounts.push(bind("/data", &data, &["rbind", "ro", "nosuid", "nodev", "noexec", "rprivate"]));
    mounts.push(bind("/one", &data.join("file"), &["bind", "ro"]));
    mounts.push(bind("/rw", &data, &["rbind", "rw", "rprivate"]));
    mounts.push(bind("/sub/deep", &data, &["bind"]));
    mounts.push(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "mode=1777", "nosuid"]}));
    let ran = case.once();
    assert!(ran.out.starts_with("content\nread-only\ncontent\nmade\n"), "{ran:?}");
    assert!(ran.out.ends_with("0\ncontent\n"), "{ran:?}");
    let line = |at: &str| ran.out.lines().find(|l| l.starts_with(&format!("{at} "))).unwrap_or_default().to_owned();
    assert!(["ro", "nosuid", "nodev", "noexec"].iter().all(|o| line("/data").contains(o)), "{ran:?}");
    assert!(
        line("/rw").contains("rw") && line("/tmp").contains("nosuid") && line("/tmp").contains("size=1024k"),
        "{ran:?}"
    );
    assert!(data.join("made").exists());
}

#[test]
fn mount_targets_never_leave_the_root() {
    if !usable() {
        return;
    }
    let mut case = Case::new("cat /evil/made/file");
    let (outside, data) = (case.path("outside"), case.path("data"));
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "content\n").unwrap();
    std::os::unix::fs::symlink("../../../../../../../../..", case.path("rootfs/evil")).unwrap();
    let bind = json!({"destination": "/evil/made", "type": "bind", "source": data, "options": ["bind"]});
    case.config["mounts"].as_array_mut().unwrap().push(bind);
    let ran = case.once();
    assert_eq!(ran.out, "content\n", "{ran:?}");
    assert!(case.path("rootfs/made").is_dir());
    assert!(!Path::new("/made").exists());
}

#[test]
fn masked_and_read_only_paths_hold() {
    if !usable() {
        return;
    }
    prints(
        "wc -c < /proc/keys; echo 1 > /proc/sys/kernel/domainname 2>/dev/null || echo refused; touch /x && echo writable",
        |_| {},
        "0\nrefused\nwritable",
    );
    let change = |case: &mut Case| case.config["root"]["readonly"] = json!(true);
    prints("touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo shm", change, "refused\nshm");
}

#[test]
fn devices_are_the_default_ones_and_those_asked_for() {
    if !usable() {
        return;
    }
    let change = |case: &mut Case| {
        case.config["linux"]["devices"] =
            json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7, "gid": 8}]);
    };
    prints(
        "stat -c '%a %u %g %t,%T' /dev/mine /dev/null; readlink /dev/fd; readlink /dev/ptmx; head -c 4 /dev/zero | wc -c",
        change,
        "640 7 8 1,3\n666 0 0 1,3\n/proc/self/fd\npts/ptmx\n4",
    );
    // Not among the allowed devices: 1:11 is the kernel's log.
    let change = |case: &mut Case| {
        case.config["linux"]["devices"] = json!([{"path": "/dev/kmsg2", "type": "c", "major": 1, "minor": 11}]);
    };
    prints("cat /dev/kmsg2 2>/dev/null || echo denied", change, "denied");
}

#[test]
fn capabilities_are_exactly_those_asked_for() {
    if !usable() {
        return;
    }
    let mask = format!("{:016x}", (1_u64 << 5) | (1 << 10) | 1 | (1 << 7) | (1 << 6));
    let script = "grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status | head -c 81 | tr -d '\\t'";
    let links = |case: &mut Case| std::os::unix::fs::symlink("busybox", case.path("rootfs/bin/tr")).unwrap();
    prints(script, links, &format!("CapPrm:{mask}\nCapEff:{mask}\nCapBnd:{mask}"));
    let none = |case: &mut Case| {
        links(case);
        case.config["process"].as_object_mut().unwrap().remove("capabilities");
    };
    let zero = "0".repeat(16);
    prints(script, none, &format!("CapPrm:{zero}\nCapEff:{zero}\nCapBnd:{zero}"));
    let ambient = |case: &mut Case| {
        case.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        let caps = json!(["CAP_NET_BIND_SERVICE"]);
        case.config["process"]["capabilities"] =
            json!({"bounding": caps, "effective": caps, "permitted": caps, "inheritable": caps, "ambient": caps});
    };
    prints("grep CapEff /proc/self/status", ambient, "CapEff:\t0000000000000400");
}

#[test]
fn identity_limits_and_environment_are_as_asked() {
    if !usable() {
        return;
    }
    let change = |case: &mut Case| {
        case.config["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o27});
        case.config["process"]["cwd"] = json!("/work/here");
        case.config["process"]["oomScoreAdj"] = json!(500);
    };
    prints(
        "id -u; id -g; id -G; umask; pwd; echo $NAME $HOME; ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj; \
         grep NoNewPrivs /proc/self/status",
        change,
        "1000\n1001\n1001 5 6\n0027\n/work/here\nvalue /home/user\n256\n512\n500\nNoNewPrivs:\t1",
    );
}

#[test]
fn the_program_inherits_no_descriptors_and_no_ignored_signals() {
    if !usable() || !common::ours() {
        return;
    }
    // One more than 0, 1 and 2: the folder that ls itself reads.
    prints("ls /proc/self/fd | wc -l", |_| {}, "4");
    // Without a shell, which ignores some itself.
    let change = |case: &mut Case| case.config["process"]["args"] = json!(["grep", "SigIgn", "/proc/self/status"]);
    prints("", change, "SigIgn:\t0000000000000000");
}

#[test]
fn sysctls_are_set() {
    if !usable() {
        return;
    }
    let change = |case: &mut Case| {
        case.config["linux"]["sysctl"] =
            json!({"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shm_rmid_forced": "1"});
    };
    prints("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced", change, "7\n1");
}

#[test]
fn a_new_network_has_its_loopback_up() {
    if !usable() {
        return;
    }
    prints("ip -o link show lo | grep -c 'LOOPBACK,UP'", |_| {}, "1");
}

#[test]
fn system_calls_are_filtered() {
    if !usable() {
        return;
    }
    for nnp in [true, false] {
        let change = |case: &mut Case| {
            case.config["process"]["noNewPrivileges"] = json!(nnp);
            case.config["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [
                    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
                    {"names": ["kill"], "action": "SCMP_ACT_ERRNO",
                     "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]}
                ]
            });
        };
        prints(
            "mkdir /x 2>&1 | grep -c 'No space'; kill -USR1 1 2>/dev/null || echo refused; kill -0 1 && echo allowed; \
             grep Seccomp: /proc/self/status",
            change,
            "1\nrefused\nallowed\nSeccomp:\t2",
        );
    }
}

#[test]
fn a_shared_root_lets_mounts_out_and_the_host_stays_whole() {
    if !usable() {
        return;
    }
    let mut case = Case::new("mount -t tmpfs inside /shared/made && echo mounted; mount | grep -c /host-only");
    let shared = case.path("shared");
    fs::create_dir_all(shared.join("made")).unwrap();
    // Shared by themselves: where the root of the host is shared, their mounts would appear there too.
    for path in [case.dir.path(), &shared] {
        rustix::mount::mount_bind(path, path).unwrap();
        for flags in [rustix::mount::MountPropagationFlags::PRIVATE, rustix::mount::MountPropagationFlags::SHARED] {
            rustix::mount::mount_change(path, flags).unwrap();
        }
    }
    // How the host's own are shared; those of other tests come and go, and some hosts mount on demand.
    let host = |mounts: &str| {
        let own = |l: &&str| l.split(' ').nth(4).is_some_and(|at| ["/", "/proc", "/sys", "/dev", "/tmp"].contains(&at));
        mounts.lines().filter(own).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = host(&fs::read_to_string("/proc/self/mountinfo").unwrap());
    case.config["linux"]["rootfsPropagation"] = json!("rshared");
    let caps = json!(["CAP_SYS_ADMIN"]);
    case.config["process"]["capabilities"] = json!({"bounding": caps, "effective": caps, "permitted": caps});
    let bind = json!({"destination": "/shared", "type": "bind", "source": shared, "options": ["rbind", "rshared"]});
    case.config["mounts"].as_array_mut().unwrap().push(bind);
    let ran = case.once();
    let after = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let count = |path: &Path| after.lines().filter(|l| l.contains(&path.display().to_string())).count();
    let counts = (count(&shared.join("made")), count(case.dir.path()));
    let _ = rustix::mount::unmount(shared.join("made"), rustix::mount::UnmountFlags::DETACH);
    let _ = rustix::mount::unmount(&shared, rustix::mount::UnmountFlags::DETACH);
    let _ = rustix::mount::unmount(case.dir.path(), rustix::mount::UnmountFlags::DETACH);
    assert!(ran.out.starts_with("mounted\n"), "{ran:?}");
    assert_eq!(counts, (1, 3), "{after}");
    assert_eq!(host(&after), before);
}

#[test]
fn a_time_namespace_shifts_clocks() {
    if !usable() || !common::ours() {
        return;
    }
    let change = |case: &mut Case| {
        case.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
        case.config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000_000}});
    };
    prints("cat /proc/uptime | head -c 1", change, "1");
}

#[test]
fn preserved_descriptors_reach_the_program() {
    if !usable() {
        return;
    }
    let case = Case::new("cat <&3");
    case.write();
    let mut shell = std::process::Command::new("sh");
    let command = case.command();
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|w| w.to_str().unwrap().to_owned())
        .collect();
    let bundle = case.dir.path().to_str().unwrap();
    shell.args(["-c", "echo word | { exec 3<&0; \"$@\" </dev/null; }", "sh"]).args(words);
    shell.args(["run", "--preserve-fds", "1", "--bundle", bundle, &case.id]);
    let ran = common::finish(&mut shell);
    assert_eq!(ran.out, "word\n", "{ran:?}");
}

#[test]
fn a_list_of_allowed_calls_is_enough_to_run() {
    if !usable() {
        return;
    }
    let change = |case: &mut Case| {
        case.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        case.config["process"]["noNewPrivileges"] = json!(true);
        case.config["process"]["args"] = json!(["echo", "filtered"]);
        case.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": [
                "execve", "brk", "arch_prctl", "set_tid_address", "set_robust_list", "rseq", "prlimit64", "readlink",
                "readlinkat", "getrandom", "mprotect", "mmap", "munmap", "read", "write", "close", "fstat", "newfstatat",
                "openat", "exit_group", "exit", "rt_sigaction", "rt_sigprocmask", "getuid", "getgid", "futex", "prctl",
                "fcntl", "poll", "ppoll", "sigaltstack", "nanosleep", "clock_nanosleep", "epoll_pwait", "epoll_ctl",
                "epoll_create1", "eventfd2", "madvise", "getppid", "getpid", "gettid", "tgkill", "capget", "capset",
                "setuid", "setgid", "setgroups", "chdir", "fchdir", "fstatfs", "stat", "lstat", "statx", "rt_sigreturn",
                "faccessat", "faccessat2", "access", "dup3", "dup2", "ioctl", "getdents64", "lseek", "sched_yield",
                "sched_getaffinity", "mincore", "pipe2", "clone", "umask", "pread64", "writev", "sendto", "fchown", "uname"
            ]}]
        });
    };
    prints("", change, "filtered");
}

#[test]
fn namespaces_pinned_for_a_pod_are_joined_also_with_mapped_ids() {
    if !usable() {
        return;
    }
    use gantry_sys::namespaces::{Kind, create_pinned, unpin};
    for mapped in [false, true] {
        if mapped && !common::ours() {
            continue;
        }
        let pins = tempfile::tempdir().unwrap();
        let all: Vec<_> =
            [Kind::Network, Kind::Ipc, Kind::Uts].map(|k| (k, pins.path().join(k.proc_name()))).into_iter().collect();
        create_pinned(&all, Some("pod"), &[]).unwrap();
        let mut case = Case::new("hostname; readlink /proc/self/ns/net");
        case.config["hostname"] = json!("pod");
        let network =
            |kind: &str| json!({"type": kind, "path": pins.path().join(if kind == "network" { "net" } else { kind })});
        let mut list = vec![json!({"type": "pid"}), json!({"type": "mount"})];
        list.extend(["network", "ipc", "uts"].map(network));
        if mapped {
            list.push(json!({"type": "user"}));
            let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
            case.config["linux"]["uidMappings"] = map.clone();
            case.config["linux"]["gidMappings"] = map;
            // sysfs belongs to the network namespace, which the mapped root does not own.
            case.config["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/sys");
        }
        case.config["linux"]["namespaces"] = json!(list);
        let ran = case.once();
        let inode = fs::metadata(&all[0].1).unwrap().ino();
        let wanted = format!("pod\nnet:[{inode}]\n");
        for (_, path) in &all {
            unpin(path).unwrap();
        }
        assert_eq!(ran.out, wanted, "{ran:?}");
    }
}
