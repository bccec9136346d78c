//! Ways out of a container that runtimes once had, each by the number of its report. All of them hold for runc and crun too
//! where it is not said why theirs differs.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Case, finish, ours, usable, wait_until};
use serde_json::json;

/// The libraries that a program needs, copied to where it looks for them inside a root.
fn bring_libraries(program: &Path, rootfs: &Path) {
    let output = Command::new("ldd").arg(program).output().map(|o| o.stdout).unwrap_or_default();
    for word in String::from_utf8_lossy(&output).split_whitespace().filter(|w| w.starts_with('/')) {
        let target = rootfs.join(word.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let _ = fs::copy(word, target);
    }
}

fn fifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
}

/// CVE-2019-5736: a container that makes the runtime execute itself holds its program, and writes to it once it has ended.
#[test]
fn the_runtimes_program_cannot_be_overwritten_from_inside() {
    if !usable() {
        return;
    }
    let mut case = Case::new("sleep 100");
    let own = case.path("the-runtime");
    fs::copy(&case.program, &own).unwrap();
    let (before, rootfs) = (fs::read(&own).unwrap(), case.path("rootfs"));
    bring_libraries(&own, &rootfs);
    case.program = own.clone();
    // The runtime inside waits at its log until somebody reads that.
    fifo(&rootfs.join("fifo"));
    assert_eq!(case.create().code, 0, "{}", case.output());
    assert_eq!(case.run(&["start", &case.id]).code, 0);
    let mut inside = case.command();
    inside.args(["exec", &case.id, "/proc/self/exe", "--log", "/fifo", "state", "nobody"]);
    let mut inside = inside.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let attack = "found=; for p in /proc/[0-9]*; do case \"$(readlink $p/exe)\" in *busybox*|'') ;; \
                  *) exec 3<$p/exe && found=$p;; esac; done; [ -n \"$found\" ] || { echo none; exit; }; \
                  cat /fifo >/dev/null; i=0; while [ $i -lt 40 ]; do \
                  echo evil >/proc/self/fd/3 && { echo written; exit; }; sleep 0.02; i=$((i+1)); done 2>/dev/null; echo refused";
    let mut said = String::new();
    let mut tries = 0;
    wait_until("the runtime to run inside", || {
        tries += 1;
        said = case.run(&["exec", &case.id, "sh", "-c", attack]).out;
        // Others may not run inside at all, or read their options otherwise.
        said != "none\n" || (tries > 20 && std::env::var_os("OCI_RUNTIME").is_some())
    });
    assert!(said == "refused\n" || !ours() && said == "none\n", "{said}");
    assert!(fs::read(&own).unwrap() == before, "the runtime's program was changed");
    assert_eq!(case.run(&["delete", "--force", &case.id]).code, 0);
    let _ = inside.kill();
    let _ = inside.wait();
}

/// crun before 1.14 lets a descriptor that its caller left open be the working folder.
fn escape_of_old_crun(out: &str) -> bool {
    let old = out.contains("ESCAPED") && std::env::var("OCI_RUNTIME").is_ok_and(|r| r.contains("crun"));
    if old {
        println!("skipped: this crun is older than 1.14");
    }
    old
}

/// CVE-2024-21626: descriptors of the host that an engine or the runtime left open, as working folder or on the way to the
/// program.
#[test]
fn no_descriptor_of_the_host_leads_out() {
    if !usable() {
        return;
    }
    let leak = "exec 5</; exec 7</etc; exec 9</proc";
    let case = Case::new("ls /proc/self/fd");
    case.write();
    let bundle = case.dir.path().to_str().unwrap().to_owned();
    let run = |case: &Case| finish(case.command_after(leak).args(["run", "--bundle", &bundle, &case.id]));
    let ran = run(&case);
    // The fourth is the folder that `ls` itself reads.
    assert_eq!(ran.out, "0\n1\n2\n3\n", "{ran:?}");
    let secret = case.path("only-on-the-host");
    fs::write(&secret, "#!/bin/sh\necho ESCAPED\n").unwrap();
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o755)).unwrap();
    let mut case = case;
    for n in 3..=14 {
        for start in ["", "/1/root", "/self/root", "/.."] {
            case.config["process"]["cwd"] = json!("/");
            case.config["process"]["args"] = json!([format!("/proc/self/fd/{n}{start}{}", secret.display())]);
            case.write();
            let ran = run(&case);
            assert!(!ran.out.contains("ESCAPED") && ran.code != 0, "program through {n}{start}: {ran:?}");
        }
        case.config["process"]["cwd"] = json!(format!("/proc/self/fd/{n}"));
        case.config["process"]["args"] = json!(["sh", "-c", format!("cat .{}", secret.display())]);
        case.write();
        let ran = run(&case);
        if escape_of_old_crun(&ran.out) {
            return;
        }
        assert!(!ran.out.contains("ESCAPED"), "working folder {n}: {ran:?}");
    }
    assert_eq!(case.remains(), Vec::<String>::new());
}

/// As above, for one more process of a running container.
#[test]
fn no_descriptor_of_the_host_leads_out_of_exec() {
    if !usable() {
        return;
    }
    let case = Case::new("sleep 100");
    assert_eq!(case.create().code, 0);
    assert_eq!(case.run(&["start", &case.id]).code, 0);
    let secret = case.path("only-on-the-host");
    fs::write(&secret, "#!/bin/sh\necho ESCAPED\n").unwrap();
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o755)).unwrap();
    let exec = |words: &[&str]| finish(case.command_after("exec 5</; exec 9</proc").arg("exec").args(words));
    let ran = exec(&[&case.id, "ls", "/proc/self/fd"]);
    assert_eq!(ran.out, "0\n1\n2\n3\n", "{ran:?}");
    for n in 3..=12 {
        for start in ["", "/1/root", "/.."] {
            let ran = exec(&[&case.id, &format!("/proc/self/fd/{n}{start}{}", secret.display())]);
            assert!(!ran.out.contains("ESCAPED") && ran.code != 0, "program through {n}{start}: {ran:?}");
        }
        let cat = format!("cat .{}", secret.display());
        let ran = exec(&["--cwd", &format!("/proc/self/fd/{n}"), &case.id, "sh", "-c", &cat]);
        if escape_of_old_crun(&ran.out) {
            return;
        }
        assert!(!ran.out.contains("ESCAPED"), "working folder {n}: {ran:?}");
    }
}

/// Exchanges two names as fast as it can until told to stop.
struct Exchange(Arc<AtomicBool>, Option<std::thread::JoinHandle<()>>);

impl Exchange {
    fn start(a: PathBuf, b: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            while !told.load(Ordering::Relaxed) {
                renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
            }
        });
        Self(stop, Some(thread))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        if let Some(thread) = self.1.take() {
            let _ = thread.join();
        }
    }
}

/// CVE-2021-30465, CVE-2024-45310: another container that shares a volume exchanges a folder in it for a link while mounts
/// are made there. Nothing may be made or mounted outside.
#[test]
fn links_exchanged_during_mounts_do_not_lead_out() {
    if !usable() {
        return;
    }
    let mut case = Case::new("grep -c size=124k /proc/self/mountinfo");
    let (outside, volume, data) = (case.path("outside"), case.path("volume"), case.path("data"));
    for folder in [&outside, &data, &volume.join("a/sub")] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(data.join("file"), "x").unwrap();
    let mounts = case.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind"]}));
    mounts.push(json!({"destination": "/volume/a/sub", "type": "tmpfs", "source": "tmpfs", "options": ["size=124k"]}));
    mounts.push(json!({"destination": "/volume/a/deep/er", "type": "bind", "source": data, "options": ["bind"]}));
    mounts.push(
        json!({"destination": "/volume/a/file", "type": "bind", "source": data.join("file"), "options": ["bind"]}),
    );
    for target in [outside.display().to_string(), format!("../../../../../../..{}", outside.display())] {
        let link = volume.join("b");
        let _ = fs::remove_file(&link);
        symlink(&target, &link).unwrap();
        let exchange = Exchange::start(volume.join("a"), link.clone());
        for _ in 0..20 {
            let ran = case.once();
            assert!(ran.code != 0 || ran.out == "1\n", "{target}: the mount is not inside: {ran:?}");
        }
        drop(exchange);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{target}: something was made outside");
        if fs::symlink_metadata(volume.join("a")).unwrap().is_symlink() {
            fs::rename(volume.join("b"), volume.join("c")).unwrap();
            fs::remove_file(volume.join("a")).unwrap();
            fs::rename(volume.join("c"), volume.join("a")).unwrap();
        }
    }
    assert_eq!(case.remains(), Vec::<String>::new());
}

/// CVE-2019-19921, CVE-2023-27561: /proc as a link of the image, which whoever shares its target could exchange, so that masks
/// and labels go elsewhere.
#[test]
fn proc_is_no_link_of_the_image() {
    if !usable() || std::env::var("OCI_RUNTIME").is_ok_and(|r| r.contains("crun")) {
        // crun finds what it masks below a descriptor of its own mount, and lets /proc be a link.
        return;
    }
    for name in ["proc", "sys"] {
        let case = Case::new("echo ran");
        fs::remove_dir(case.path("rootfs").join(name)).unwrap();
        fs::create_dir(case.path("rootfs/tmp/elsewhere")).unwrap();
        symlink("tmp/elsewhere", case.path("rootfs").join(name)).unwrap();
        let ran = case.once();
        assert!(ran.code != 0 && ran.out.is_empty(), "{name}: {ran:?}");
        assert_eq!(case.remains(), Vec::<String>::new());
    }
}

/// CVE-2025-31133: masks are the null device, not what the image has under that name.
#[test]
fn masks_are_the_true_null_device() {
    if !usable() {
        return;
    }
    for fake in ["link", "file"] {
        let mut case = Case::new("wc -c < /proc/keys; stat -c %t:%T /proc/keys");
        // The image's own /dev.
        case.config["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] == "/proc");
        let null = case.path("rootfs/dev/null");
        match fake {
            "link" => symlink("/proc/version", &null).unwrap(),
            _ => fs::write(&null, "fake\n").unwrap(),
        }
        let ran = case.once();
        if !ours() && ran.code == 0 && ran.out != "0\n1:3\n" {
            println!("skipped: this runc or crun is older than its fix of CVE-2025-31133");
            continue;
        }
        assert!(ran.code != 0 || ran.out == "0\n1:3\n", "{fake}: {ran:?}");
        assert_eq!(case.remains(), Vec::<String>::new());
    }
}

/// CVE-2025-52565: the terminal is mounted at /dev/console, not where a link of that name leads.
#[test]
fn the_console_does_not_follow_links() {
    if !usable() {
        return;
    }
    let mut case = Case::new("test -c /etc/target && echo MOVED; echo end");
    case.config["process"]["terminal"] = json!(true);
    case.config["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/dev");
    fs::write(case.path("rootfs/etc/target"), "").unwrap();
    symlink("/etc/target", case.path("rootfs/dev/console")).unwrap();
    let path = case.path("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let receiver = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        use std::os::fd::AsFd;
        gantry_sys::fd::receive_with_fds(stream.as_fd(), &mut [0; 64]).map(|(_, mut fds)| fds.pop())
    });
    let created = case.create_with(&["--console-socket", path.to_str().unwrap()]);
    let master = receiver.join().unwrap().ok().flatten();
    if created.code != 0 {
        assert_eq!(case.remains(), Vec::<String>::new());
        return;
    }
    assert!(!ours(), "a link must be refused");
    assert_eq!(case.run(&["start", &case.id]).code, 0);
    let mut text = Vec::new();
    let _ = fs::File::from(master.unwrap()).read_to_end(&mut text);
    if String::from_utf8_lossy(&text).contains("MOVED") {
        println!("skipped: this runc or crun is older than its fix of CVE-2025-52565");
    }
}

/// CVE-2019-16884, CVE-2025-52881: what is meant for the kernel goes to procfs, not to a volume that stands in its place.
#[test]
fn writes_to_proc_do_not_land_in_a_volume() {
    if !usable() {
        return;
    }
    let files = ["attr/exec", "attr/apparmor/exec", "oom_score_adj", "uid_map", "setgroups"];
    for (field, value) in
        [("apparmorProfile", json!("profile")), ("selinuxLabel", json!("label")), ("oomScoreAdj", json!(5))]
    {
        let mut case = Case::new("true");
        let fake = case.path("fake");
        let mut all: Vec<PathBuf> = vec![fake.join("sys/net/ipv4/ip_forward")];
        for who in ["self", "thread-self", "1"] {
            all.extend(files.iter().map(|f| fake.join(who).join(f)));
        }
        for file in &all {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "untouched").unwrap();
        }
        let mounts = case.config["mounts"].as_array_mut().unwrap();
        mounts[0] = json!({"destination": "/proc", "type": "bind", "source": fake, "options": ["rbind"]});
        case.config["linux"]["maskedPaths"] = json!([]);
        case.config["linux"]["readonlyPaths"] = json!([]);
        case.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        case.config["process"][field] = value;
        let _ = case.once();
        for file in &all {
            assert_eq!(fs::read_to_string(file).unwrap(), "untouched", "{field}: {}", file.display());
        }
        assert_eq!(case.remains(), Vec::<String>::new());
    }
}

/// CVE-2022-29162: capabilities that the engine's process could pass on are not passed on.
#[test]
fn no_capability_is_inherited_or_ambient_unasked() {
    if !usable() {
        return;
    }
    if Command::new("setpriv").arg("--version").output().is_err() {
        println!("skipped: needs setpriv");
        return;
    }
    for uid in [0, 1000] {
        let mut case = Case::new("grep -E 'CapInh|CapAmb' /proc/self/status; sleep 100");
        case.config["process"]["user"] = json!({"uid": uid, "gid": uid});
        let leak = "exec setpriv --inh-caps=+chown,+kill --ambient-caps=+chown,+kill";
        case.write();
        let output = fs::File::create(case.path("output")).unwrap();
        let mut create = case.command_after("true");
        let words: Vec<_> = create.get_args().skip(3).map(std::ffi::OsStr::to_owned).collect();
        create = Command::new("sh");
        create
            .args(["-c", &format!("{leak} \"$@\""), "sh"])
            .args(words)
            .args(["create", "--bundle"])
            .arg(case.dir.path());
        let status =
            create.arg(&case.id).stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output).status();
        assert!(status.unwrap().success(), "{}", case.output());
        assert_eq!(case.run(&["start", &case.id]).code, 0);
        let want = "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n";
        wait_until("the program's words", || case.output() == want);
        let ran =
            case.run(&["exec", "--cap", "CAP_CHOWN", &case.id, "grep", "-E", "CapInh|CapAmb", "/proc/self/status"]);
        assert_eq!(ran.out, want, "exec as {uid}: {ran:?}");
    }
}

/// A process that the runtime has brought into a namespace is closed to those who were there before.
#[test]
fn a_created_container_is_hidden_from_those_whose_namespace_it_joins() {
    if !usable() {
        return;
    }
    let first = Case::new("sleep 100");
    assert_eq!(first.create().code, 0);
    assert_eq!(first.run(&["start", &first.id]).code, 0);
    let mut second = Case::new("sleep 100");
    let list = second.config["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|n| n["type"] != "pid");
    list.push(json!({"type": "pid", "path": format!("/proc/{}/ns/pid", first.state()["pid"])}));
    assert_eq!(second.create().code, 0, "{}", second.output());
    let status = fs::read_to_string(format!("/proc/{}/status", second.state()["pid"])).unwrap();
    let inside = status.lines().find(|l| l.starts_with("NSpid:")).unwrap().split_whitespace().last().unwrap();
    let look = format!(
        "cd /proc/{inside} || exit; for f in exe cwd root fd/* ns/mnt; do readlink $f && echo SEEN; done; \
         cat environ && echo SEEN; cat mem && echo SEEN; echo looked"
    );
    let ran = first.run(&["exec", &first.id, "sh", "-c", &look]);
    if std::env::var("OCI_RUNTIME").is_ok_and(|r| r.contains("crun")) && ran.out.contains("SEEN") {
        println!(
            "skipped: crun's waiting process can be looked into (its program is a copy, its descriptors are harmless)"
        );
        return;
    }
    assert_eq!(ran.out, "looked\n", "{ran:?}");
}

/// What the runtime makes is not open to others, whatever the engine's umask.
#[test]
fn what_the_runtime_makes_is_not_open_to_all() {
    if !usable() {
        return;
    }
    let mut case = Case::new("true");
    let data = case.path("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "").unwrap();
    let mounts = case.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/made/folder", "type": "bind", "source": data, "options": ["bind"]}));
    mounts.push(json!({"destination": "/made/file", "type": "bind", "source": data.join("file"), "options": ["bind"]}));
    case.write();
    let mut create = case.command_after("umask 0");
    create.args(["create", "--bundle"]).arg(case.dir.path()).arg(&case.id);
    let status = create.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success());
    let mode = |path: PathBuf| fs::metadata(&path).unwrap().mode() & 0o777;
    for made in ["made", "made/folder", "made/file"] {
        assert_eq!(mode(case.path("rootfs").join(made)) & 0o022, 0, "{made} can be written by all");
    }
    let folder = case.path("state").join(&case.id);
    assert_eq!(mode(folder) & 0o066, 0, "the state can be read by all");
}

/// An image's files that never answer or never end do not hold the runtime up.
#[test]
fn files_of_the_image_do_not_hold_the_runtime_up() {
    // runc and crun open the image's list of users whatever it is.
    if !usable() || !ours() {
        return;
    }
    for kind in ["fifo", "endless"] {
        let case = Case::new("echo $HOME");
        let passwd = case.path("rootfs/etc/passwd");
        fs::remove_file(&passwd).unwrap();
        match kind {
            "fifo" => fifo(&passwd),
            _ => symlink("/dev/zero", &passwd).unwrap(),
        }
        let ran = case.once();
        assert_eq!((ran.code, ran.out.as_str()), (0, "/\n"), "{kind}: {ran:?}");
    }
}

/// What is copied into a tmpfs is the image's, links as links.
#[test]
fn copied_links_do_not_bring_files_of_the_host_in() {
    // runc and crun know tmpcopyup, crun from 1.9 on.
    if !usable() || !ours() {
        return;
    }
    let mut case = Case::new("cat /data/link; cat /data/sub/own; readlink /data/link; stat -c %a /data/sub");
    let secret = case.path("secret");
    fs::write(&secret, "SECRET\n").unwrap();
    fs::create_dir_all(case.path("rootfs/data/sub")).unwrap();
    fs::set_permissions(case.path("rootfs/data/sub"), PermissionsExt::from_mode(0o711)).unwrap();
    fs::write(case.path("rootfs/data/sub/own"), "own\n").unwrap();
    symlink(&secret, case.path("rootfs/data/link")).unwrap();
    let mount = json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]});
    case.config["mounts"].as_array_mut().unwrap().push(mount);
    let ran = case.once();
    assert_eq!(ran.out, format!("own\n{}\n711\n", secret.display()), "{ran:?}");
}
