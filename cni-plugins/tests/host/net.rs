//! Network namespaces with the real plugins in them.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Namespaces `host`, `outside` and containers; all are gone with the value.
pub(crate) struct Net {
    prefix: String,
    names: Vec<String>,
    pub(crate) folder: tempfile::TempDir,
    /// However much the machine has to do: a plugin that works for more than a second is killed.
    pub(crate) limited: bool,
    /// How long the last plugin was at it, without the time that it was ready to run and others were running.
    pub(crate) took: Mutex<Duration>,
}

pub(crate) fn sh(text: &str) -> String {
    let out = Command::new("sh").args(["-c", text]).output().unwrap();
    assert!(out.status.success(), "{text}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

impl Net {
    /// None when not root.
    pub(crate) fn new(containers: &[&str]) -> Option<Self> {
        if !rustix_is_root() {
            println!("skipped: needs root");
            return None;
        }
        let prefix = format!("cni{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().unwrap();
        let mut net = Self { prefix, names: Vec::new(), folder, limited: false, took: Mutex::default() };
        for name in ["host", "out"].iter().chain(containers) {
            net.namespace(name);
        }
        let (host, out) = (net.name("host"), net.name("out"));
        sh(&format!(
            "ip -n {host} link add up0 type veth peer name up0 netns {out} && \
             ip -n {host} addr add 192.0.2.1/24 dev up0 && ip -n {host} -6 addr add 2001:db8::1/64 dev up0 nodad && \
             ip -n {out} addr add 192.0.2.2/24 dev up0 && ip -n {out} -6 addr add 2001:db8::2/64 dev up0 nodad && \
             ip -n {host} link set up0 up && ip -n {out} link set up0 up"
        ));
        let installed = Command::new(env!("CARGO_BIN_EXE_gantry-cni")).arg("install").arg(net.bin()).output().unwrap();
        assert!(installed.status.success());
        Some(net)
    }

    pub(crate) fn name(&self, short: &str) -> String {
        format!("{}-{short}", self.prefix)
    }

    pub(crate) fn namespace(&mut self, short: &str) {
        let name = self.name(short);
        sh(&format!("ip netns add {name} && ip -n {name} link set lo up"));
        self.names.push(name);
    }

    pub(crate) fn delete_namespace(&mut self, short: &str) {
        let name = self.name(short);
        sh(&format!("ip netns delete {name}"));
        self.names.retain(|n| *n != name);
    }

    pub(crate) fn bin(&self) -> PathBuf {
        self.folder.path().join("bin")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The addresses that are taken.
    pub(crate) fn taken(&self) -> Vec<String> {
        let all = fs::read_dir(self.data().join("net")).into_iter().flatten().flatten();
        let mut names: Vec<_> = all.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|n| n.parse::<std::net::IpAddr>().is_ok());
        names.sort();
        names
    }

    pub(crate) fn bridge(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0",
            "isGateway": true, "ipMasq": true, "hairpinMode": true,
            "ipam": {"type": "host-local", "dataDir": self.data(), "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                     "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]}
        })
    }

    /// Calls a plugin for container `short`, on the host. The answer, or the error object.
    pub(crate) fn call(&self, plugin: &str, command: &str, short: &str, config: &Value) -> Result<Value, Value> {
        self.call_in(plugin, command, short, &format!("/run/netns/{}", self.name(short)), &config.to_string())
    }

    pub(crate) fn call_in(
        &self,
        plugin: &str,
        command: &str,
        id: &str,
        netns: &str,
        input: &str,
    ) -> Result<Value, Value> {
        self.call_with(plugin, command, id, netns, input, &[])
    }

    /// The same with other variables.
    pub(crate) fn call_with(
        &self,
        plugin: &str,
        command: &str,
        id: &str,
        netns: &str,
        input: &str,
        variables: &[(&str, &str)],
    ) -> Result<Value, Value> {
        let mut command_line = Command::new(if self.limited { "prlimit" } else { "nsenter" });
        if self.limited {
            command_line.args(["--cpu=1", "nsenter"]);
        }
        let start = Instant::now();
        let mut child = command_line
            .arg(format!("--net=/run/netns/{}", self.name("host")))
            .arg(self.bin().join(plugin))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.bin())
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let mut stdout = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        // Ended and still there: what it waited for is told.
        let flags = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
        let _ = nix::sys::wait::waitid(nix::sys::wait::Id::Pid(pid), flags);
        *self.took.lock().unwrap() = start.elapsed().saturating_sub(ready(pid));
        let status = child.wait().unwrap();
        let value = serde_json::from_slice(&stdout).unwrap_or(Value::Null);
        if status.success() { Ok(value) } else { Err(value) }
    }

    /// Runs `work` on a thread inside a namespace.
    pub(crate) fn inside<T: Send + 'static>(
        &self,
        short: &str,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        gantry_sys::namespaces::within_network(&Path::new("/run/netns").join(self.name(short)), work)
    }

    pub(crate) fn nft(&self) -> String {
        sh(&format!("ip netns exec {} nft list ruleset", self.name("host")))
    }

    pub(crate) fn links(&self) -> String {
        sh(&format!("ip -n {} -br link", self.name("host")))
    }

    /// Waits until no device of the host has a name with this in it: the kernel takes its time, for which DEL does not wait.
    pub(crate) fn without(&self, part: &str) {
        let start = std::time::Instant::now();
        while self.links().contains(part) {
            assert!(start.elapsed() < Duration::from_secs(10), "{part} stays: {}", self.links());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Serves connections in a container: each is told the address it came from.
    pub(crate) fn serve(&self, short: &str, port: u16) {
        let listener = self.inside(short, move || TcpListener::bind(("::", port))).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut stream = stream;
                let _ = stream.write_all(stream.peer_addr().unwrap().ip().to_canonical().to_string().as_bytes());
            }
        });
    }

    /// Connects from a namespace; answers what was said.
    pub(crate) fn get(&self, from: &str, to: &str) -> std::io::Result<String> {
        self.get_within(from, to, Duration::from_secs(3))
    }

    /// The same, with less patience: for what must not be answered.
    pub(crate) fn get_within(&self, from: &str, to: &str, patience: Duration) -> std::io::Result<String> {
        let to: std::net::SocketAddr = to.parse().unwrap();
        self.inside(from, move || {
            let mut stream = TcpStream::connect_timeout(&to, patience)?;
            stream.set_read_timeout(Some(patience))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // What the plugins remember of this host, whose containers just end.
        if let Ok(cookie) = self.inside("host", gantry_sys::namespaces::network_cookie) {
            let _ = fs::remove_dir_all(Path::new("/run/gantry/cni").join(cookie.to_string()));
        }
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

/// How long a process waited for a processor (the second number of its `schedstat`, in nanoseconds).
fn ready(pid: nix::unistd::Pid) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0))
}

fn rustix_is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

pub(crate) fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}
