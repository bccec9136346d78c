//! A bundle from busybox and a runtime under test: `gantry-run` (the one that GANTRY_RUN names, where tests run elsewhere than
//! they were built), or what OCI_RUNTIME names (runc, crun). CGROUP_DRIVER=systemd makes the cgroups by systemd.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Whether the machine can run these tests; says why not.
pub fn usable() -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return false;
    }
    if !Path::new("/bin/busybox").exists() {
        println!("skipped: needs /bin/busybox (busybox-static)");
        return false;
    }
    true
}

/// Whether the runtime under test is ours: other runtimes are worse in some points.
pub fn ours() -> bool {
    let ours = std::env::var_os("OCI_RUNTIME").is_none();
    if !ours {
        println!("skipped: only for gantry-run");
    }
    ours
}

/// A container in a bundle of its own; dropping it deletes the container.
pub struct Case {
    pub dir: tempfile::TempDir,
    pub id: String,
    pub config: Value,
    /// The runtime under test.
    pub program: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Case {
    /// A busybox container whose program is `sh -c SCRIPT`.
    pub fn new(script: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("runtime-case-").tempdir().unwrap();
        let bin = dir.path().join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        for folder in ["etc", "proc", "sys", "dev", "tmp"] {
            fs::create_dir_all(dir.path().join("rootfs").join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for name in [
            "sh", "cat", "id", "ls", "mount", "grep", "sleep", "echo", "true", "false", "hostname", "stat", "tty",
            "kill", "test", "touch", "mkdir", "env", "pwd", "umask", "chmod", "readlink", "dd", "head", "wc", "mknod",
            "stty", "ip",
        ] {
            symlink("busybox", bin.join(name)).unwrap();
        }
        fs::write(
            dir.path().join("rootfs/etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
        )
        .unwrap();
        // Engines make the root readable to the container's user.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let id = format!("rt-case-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let caps = ["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"];
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": ["sh", "-c", script],
                "env": ["PATH=/bin", "NAME=value"],
                "cwd": "/",
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 512, "soft": 256}],
                "noNewPrivileges": true
            },
            "root": {"path": "rootfs", "readonly": false},
            "hostname": "case",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                 "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
            ],
            "linux": {
                "cgroupsPath": format!("/{id}"),
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "namespaces": [
                    {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}
                ],
                "maskedPaths": ["/proc/kcore", "/proc/scsi", "/proc/keys", "/no/such"],
                "readonlyPaths": ["/proc/sys", "/proc/irq"]
            }
        });
        let program = std::env::var_os("OCI_RUNTIME").map_or_else(ours_at, on_path);
        let mut case = Self { dir, id, config, program };
        if by_systemd() {
            case.config["linux"]["cgroupsPath"] = json!(format!("machine.slice:case:{}", case.id));
        }
        case
    }

    /// The container's cgroup, below every mount of a cgroup file system.
    pub fn group(&self) -> String {
        if by_systemd() { format!("machine.slice/case-{}.scope", self.id) } else { self.id.clone() }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// Writes the configuration.
    pub fn write(&self) {
        fs::write(self.path("config.json"), serde_json::to_vec_pretty(&self.config).unwrap()).unwrap();
    }

    /// A command of the runtime under test, global options given.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.path("state")).stdin(Stdio::null());
        if by_systemd() {
            command.arg("--systemd-cgroup");
        }
        command
    }

    /// As [`Case::command`], but started by a shell that does something first (`umask 0`, `exec 5</`).
    pub fn command_after(&self, first: &str) -> Command {
        let plain = self.command();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{first}; exec \"$@\""), "sh"]).arg(plain.get_program()).args(plain.get_args());
        command.stdin(Stdio::null());
        command
    }

    /// Runs a verb and collects what it says.
    pub fn run(&self, words: &[&str]) -> Ran {
        let mut command = self.command();
        finish(command.args(words))
    }

    /// `run`: the container from start to end.
    pub fn once(&self) -> Ran {
        self.write();
        let bundle = self.dir.path().to_str().unwrap();
        self.run(&["run", "--bundle", bundle, &self.id])
    }

    /// `create` with the container's output in a file; answers how that went.
    pub fn create(&self) -> Ran {
        self.create_with(&[])
    }

    /// As [`Case::create`] with more options.
    pub fn create_with(&self, options: &[&str]) -> Ran {
        self.write();
        let output = fs::File::create(self.path("output")).unwrap();
        let mut command = self.command();
        command.args(["create", "--bundle"]).arg(self.dir.path()).args(options).arg(&self.id);
        let status = command.stdout(output.try_clone().unwrap()).stderr(output).status().unwrap();
        Ran { code: status.code().unwrap_or(-1), out: String::new(), err: self.output() }
    }

    /// What a created container has written.
    pub fn output(&self) -> String {
        fs::read_to_string(self.path("output")).unwrap_or_default()
    }

    /// The state's JSON.
    pub fn state(&self) -> Value {
        let ran = self.run(&["state", &self.id]);
        serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("no state: {ran:?}"))
    }

    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// Waits for a status.
    pub fn wait_status(&self, want: &str) {
        wait_until(&format!("status {want}"), || self.status() == want);
    }

    /// Whether anything of the container is left on the host.
    pub fn remains(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|l| l.contains(&self.id)).map(str::to_owned));
        for tree in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let group = tree.path().join(self.group());
            if group.exists() {
                left.push(group.display().to_string());
            }
        }
        let group = Path::new("/sys/fs/cgroup").join(self.group());
        if group.exists() {
            left.push(group.display().to_string());
        }
        let state = self.path("state").join(&self.id);
        if state.exists() {
            left.push(state.display().to_string());
        }
        // A copy of the runtime that never became the container's program still has the command line.
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if words.split(|b| *b == 0).any(|word| word == self.id.as_bytes()) {
                left.push(format!("process {}", entry.file_name().display()));
            }
        }
        left
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let _ = self.command().args(["delete", "--force", &self.id]).output();
    }
}

/// Whether systemd makes the cgroups.
pub fn by_systemd() -> bool {
    std::env::var("CGROUP_DRIVER").is_ok_and(|driver| driver == "systemd")
}

fn ours_at() -> PathBuf {
    std::env::var_os("GANTRY_RUN").unwrap_or_else(|| env!("CARGO_BIN_EXE_gantry-run").into()).into()
}

/// The file of a program that is given by name or path.
fn on_path(program: std::ffi::OsString) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(&program)).find(|p| p.is_file()).unwrap_or_else(|| program.into())
}

/// Runs a command with a time-out of 60 s.
pub fn finish(command: &mut Command) -> Ran {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = err.read_to_string(&mut text);
        text
    });
    let output = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = out.read_to_string(&mut text);
        text
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ran { code: status.code().unwrap_or(-1), out: output.join().unwrap(), err: errors.join().unwrap() }
}

/// Waits up to 30 s.
pub fn wait_until(what: &str, holds: impl FnMut() -> bool) {
    assert!(eventually(holds), "waited in vain for {what}");
}

/// Whether something holds within 30 s.
pub fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if holds() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
