//! crictl, every subcommand of it, against our socket: what its users see.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use common::registry::Registry;
use common::{Daemon, IMAGE, until};
use serde_json::{Value, json};

/// A node, and crictl beside it.
struct Node {
    daemon: Daemon,
    crictl: PathBuf,
}

/// `CRICTL`, or from PATH.
fn crictl() -> Option<PathBuf> {
    let named = std::env::var_os("CRICTL").map(PathBuf::from).filter(|p| p.exists());
    let path = std::env::var_os("PATH").unwrap_or_default();
    named.or_else(|| std::env::split_paths(&path).map(|d| d.join("crictl")).find(|p| p.exists()))
}

impl Node {
    fn start() -> Option<Self> {
        let Some(crictl) = crictl() else {
            eprintln!("skipped: there is no crictl");
            return None;
        };
        let mut daemon = Daemon::start()?;
        daemon.stop();
        // Stands in for a runtime with criu, which few machines have.
        let (runtime, own) = (daemon.path("with-criu"), daemon.programs().join("gantry-run"));
        let script = format!("for a; do [ \"$a\" = checkpoint ] && exit 0; done\nexec {} \"$@\"", own.display());
        fs::write(&runtime, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&runtime, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let toml = fs::read_to_string(daemon.path("cri.toml")).unwrap();
        fs::write(daemon.path("cri.toml"), format!("{toml}runtime = \"{}\"\n", runtime.display())).unwrap();
        daemon.launch();
        let socket = daemon.path("cri.sock").display().to_string();
        let config = format!("runtime-endpoint: unix://{socket}\nimage-endpoint: unix://{socket}\ntimeout: 60\n");
        fs::write(daemon.path("crictl.yaml"), config).unwrap();
        fs::create_dir(daemon.path("logs")).unwrap();
        Some(Self { daemon, crictl })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.daemon.inside(Path::new("timeout"));
        command.args(["-s", "KILL", "120"]).arg(&self.crictl).arg("-c").arg(self.daemon.path("crictl.yaml"));
        command.args(words).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// What it prints, and it must succeed.
    fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "crictl {words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.ok(words)).unwrap()
    }

    /// What it says on its standard error; it must fail.
    fn fails(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(1), "crictl {words:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// One that goes on until it is killed.
    fn spawn(&self, words: &[&str]) -> Session {
        let mut command = self.command(words);
        Session(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn file(&self, name: &str, content: &Value) -> String {
        let path = self.daemon.path(name);
        fs::write(&path, content.to_string()).unwrap();
        path.display().to_string()
    }

    fn pod(&self, name: &str) -> String {
        let group = format!("/gantry-test-{}/{name}", std::process::id());
        let labels = json!({"app": "shop", "io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "space"});
        self.file(
            &format!("{name}.json"),
            &json!({"metadata": {"name": name, "uid": name, "namespace": "space"}, "hostname": name, "labels": labels,
                "log_directory": self.daemon.path("logs"), "linux": {"cgroup_parent": group}}),
        )
    }

    fn container(&self, name: &str, attempt: u32, script: &str) -> String {
        let labels = json!({"io.kubernetes.pod.name": "shop", "io.kubernetes.pod.namespace": "space"});
        self.file(
            &format!("{name}-{attempt}.json"),
            &json!({"metadata": {"name": name, "attempt": attempt}, "image": {"image": IMAGE}, "labels": labels,
                "command": ["/bin/sh", "-c", script], "log_path": format!("{name}/{attempt}.log"), "stdin": true, "linux": {}}),
        )
    }
}

struct Session(Child);

impl Drop for Session {
    fn drop(&mut self) {
        // nsenter's child is timeout, whose child is crictl.
        let mut all = vec![self.0.id()];
        for at in 0..3 {
            all.extend(all.get(at).map(|pid| common::children(*pid)).unwrap_or_default());
        }
        all.iter().rev().for_each(|pid| common::kill(*pid, nix::sys::signal::Signal::SIGKILL));
        let _ = self.0.wait();
    }
}

/// A table has a line with all of these.
fn shows(table: &str, words: &[&str]) -> bool {
    table.lines().any(|line| words.iter().all(|w| line.split_whitespace().any(|cell| cell == *w)))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_crictl_tells_of_the_runtime_and_its_images() {
    let Some(node) = Node::start() else { return };
    let version = node.ok(&["version"]);
    assert!(
        shows(&version, &["RuntimeName:", "gantry-cri"]) && shows(&version, &["RuntimeApiVersion:", "v1"]),
        "{version}"
    );
    let info = node.json(&["info"]);
    for kind in ["RuntimeReady", "NetworkReady"] {
        let all = info["status"]["conditions"].as_array().unwrap();
        assert!(all.iter().any(|c| c["type"] == kind && c["status"] == true), "{info}");
    }
    assert_eq!(info["config"]["root"], json!(node.daemon.path("root")));
    assert_eq!(node.ok(&["runtime-config"]).split_whitespace().last(), Some("CGROUPFS"));
    node.ok(&["update-runtime-config", "--pod-cidr", "10.0.0.0/24"]);
    let names = |descriptors: Value| -> Vec<String> {
        let all = descriptors["descriptors"].as_array().unwrap();
        all.iter().map(|d| d["name"].as_str().unwrap().to_owned()).collect()
    };
    assert!(names(node.json(&["metricdescs"])).iter().any(|n| n == "container_threads"));
    // What needs no daemon.
    assert!(node.ok(&["completion", "bash"]).contains("_crictl"));
    assert_eq!(node.ok(&["config", "--get", "timeout"]).trim(), "60");
    node.ok(&["config", "--set", "timeout=61"]);
    assert!(shows(&node.ok(&["config", "--list"]), &["timeout", "61"]));
    assert!(node.ok(&["--version"]).contains("crictl"));

    // Images: the one that is there, and one that only some may have.
    assert!(shows(&node.ok(&["images"]), &["gantry.local/test", "1"]));
    let id = node.ok(&["images", "-q"]).trim().to_owned();
    let shown = node.json(&["inspecti", IMAGE]);
    assert_eq!((&shown["status"]["id"], &shown["status"]["repoTags"]), (&json!(id), &json!([IMAGE])));
    let used = node.json(&["imagefsinfo"]);
    let bytes: u64 = used["status"]["imageFilesystems"][0]["usedBytes"]["value"].as_str().unwrap().parse().unwrap();
    assert!(bytes > 100_000, "{used}");
    let gate = node.daemon.path("gate");
    let registry = Registry::start_private(node.daemon.init(), 2, 100_000, gate, "me:secret");
    let image = registry.image.as_str();
    assert!(node.fails(&["pull", image]).contains("401"));
    assert!(node.fails(&["pull", "--creds", "me:wrong", image]).contains("401"));
    let pulled = node.ok(&["pull", "--creds", "me:secret", image]);
    assert!(pulled.contains("Image is up to date") && pulled.contains("sha256:"), "{pulled}");
    assert!(shows(&node.ok(&["images"]), &[image.strip_suffix(":1").unwrap(), "1"]));
    assert!(node.ok(&["rmi", image]).contains("Deleted"));
    let auth = "bWU6c2VjcmV0";
    let again = node.ok(&["pull", "--auth", auth, "--pod-config", &node.pod("asks"), image]);
    assert!(again.contains("Image is up to date"), "{again}");
    assert!(node.fails(&["pull", "127.0.0.1:1/nothing:1"]).contains("Connection refused"));
    for words in [["rmi", "nothing"], ["inspecti", "nothing"]] {
        assert!(node.fails(&words).contains("no such image"), "{words:?}");
    }
    // An image that is in use stays.
    let container = node.container("main", 0, "exec /bin/busybox sleep 1000");
    node.ok(&["run", "--no-pull", &container, &node.pod("shop")]);
    let pruned = node.ok(&["rmi", "--prune"]);
    assert!(pruned.contains(image) && !pruned.contains(IMAGE), "{pruned}");
    assert_eq!(node.ok(&["images", "-q"]).trim(), id);
    node.ok(&["rmp", "-a", "-f"]);
    node.ok(&["rmi", "-a"]);
    assert_eq!(node.ok(&["images", "-q"]), "");
    node.daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_crictl_does_with_pods_and_containers() {
    let Some(node) = Node::start() else { return };
    let mut events = node.spawn(&["events"]);
    let config = node.pod("shop");
    let pod = node.ok(&["runp", &config]).trim().to_owned();
    assert!(shows(&node.ok(&["pods"]), &[&pod[..13], "Ready", "shop", "space"]));
    assert_eq!(node.ok(&["pods", "-q", "--label", "app=shop", "--state", "ready"]).trim(), pod);
    assert_eq!(node.ok(&["pods", "-q", "--name", "other"]), "");
    let shown = node.json(&["inspectp", &pod]);
    assert_eq!((&shown["status"]["state"], &shown["status"]["id"]), (&json!("SANDBOX_READY"), &json!(pod)));
    assert!(shown["status"]["network"]["ip"].as_str().unwrap().starts_with("10.98."), "{shown}");
    // An earlier instance, for its logs.
    let first = node.container("main", 0, "echo first; exit 3");
    let first = node.ok(&["create", "--no-pull", &pod, &first, &config]).trim().to_owned();
    assert!(shows(&node.ok(&["ps", "-a"]), &[&first[..13], "Created", "main", "shop", "space"]));
    assert_eq!(node.ok(&["start", &first]).trim(), first);
    until("its end", Duration::from_secs(60), || {
        (node.json(&["inspect", &first])["status"]["exitCode"] == 3).then_some(())
    });
    let script = "echo one; echo two >&2; read go; echo three; while read line; do echo got $line; done; exec /bin/busybox sleep 1000";
    let id = node.ok(&["create", &pod, &node.container("main", 1, script), &config]).trim().to_owned();
    node.ok(&["start", &id]);
    assert!(shows(&node.ok(&["ps"]), &[&id[..13], "Running", "main", "1"]));
    assert_eq!(node.ok(&["ps", "-q", "--name", "main", "--pod", &pod]).trim(), id);
    assert_eq!(node.json(&["inspect", &id])["status"]["state"], "CONTAINER_RUNNING");

    logs(&node, &id);
    exec(&node, &id);
    let mut attached = node.spawn(&["attach", "-i", &id]);
    attached.0.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
    let mut line = String::new();
    BufReader::new(attached.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "got hello\n");
    drop(attached);
    forward(&node, &pod, &id);
    measured(&node, &pod, &id);

    node.ok(&["update", "--memory", "67108864", "--cpu-share", "512", &id]);
    let limits = &node.json(&["inspect", &id])["status"]["resources"]["linux"];
    assert_eq!((&limits["memoryLimitInBytes"], &limits["cpuShares"]), (&json!("67108864"), &json!("512")));
    let archive = node.daemon.path("checkpoint.tar");
    node.ok(&["checkpoint", "--export", &archive.display().to_string(), &id]);
    assert!(node.daemon.run("/bin/busybox", &["tar", "-tf", &archive.display().to_string()]).contains("config.dump"));

    assert!(node.fails(&["rm", &id]).contains("running"), "what runs is removed by force only");
    assert_eq!(node.ok(&["stop", "--timeout", "0", &id]).trim(), id);
    assert!(shows(&node.ok(&["ps", "-a"]), &[&id[..13], "Exited", "main"]));
    node.ok(&["rm", &id]);
    node.ok(&["rm", "-f", &first]);
    assert_eq!(node.ok(&["ps", "-a", "-q"]), "");
    for words in [["inspect", "nothing"], ["inspectp", "nothing"], ["start", "nothing"], ["logs", "nothing"]] {
        assert!(node.fails(&words).contains("not found"), "{words:?}");
    }
    let both = node.container("both", 0, "exec /bin/busybox sleep 1000");
    let other = node.ok(&["run", "--no-pull", &both, &node.pod("other")]).trim().to_owned();
    assert!(shows(&node.ok(&["ps"]), &[&other[..13], "Running", "both"]));
    assert!(node.ok(&["stopp", &pod]).contains("Stopped sandbox"));
    assert!(shows(&node.ok(&["pods"]), &[&pod[..13], "NotReady"]));
    assert!(node.ok(&["rmp", &pod]).contains("Removed sandbox"));
    node.ok(&["rmp", "-a", "-f"]);
    assert_eq!(node.ok(&["pods", "-q"]), "");

    // All of it was told meanwhile.
    let output = events.0.stdout.take().unwrap();
    let kinds = serde_json::Deserializer::from_reader(output).into_iter::<Value>().map_while(Result::ok);
    let mut kinds = kinds.filter(|e| e["containerId"] == json!(id)).map(|e| e["containerEventType"].clone());
    for kind in ["CREATED", "STARTED", "STOPPED", "DELETED"] {
        assert_eq!(kinds.next(), Some(json!(format!("CONTAINER_{kind}_EVENT"))));
    }
    drop(events);
    node.daemon.assert_clean();
}

fn logs(node: &Node, id: &str) {
    // Two streams have an order only where one has come before the other is written.
    until("its log", Duration::from_secs(60), || {
        let both = node.run(&["logs", id]);
        (both.stdout == b"one\n" && both.stderr == b"two\n").then_some(())
    });
    let mut attached = node.spawn(&["attach", "-i", id]);
    attached.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    until("its log", Duration::from_secs(60), || (node.ok(&["logs", id]) == "one\nthree\n").then_some(()));
    drop(attached);
    assert_eq!(node.ok(&["logs", "--tail", "1", id]), "three\n");
    assert_eq!(node.ok(&["logs", "--since", "1h", id]), "one\nthree\n");
    assert_eq!(node.ok(&["logs", "--since", "2100-01-01T00:00:00Z", id]), "");
    assert_eq!(node.ok(&["logs", "--stream", "stdout", "--limit-bytes", "4", id]), "one\n");
    let stamped = node.ok(&["logs", "--timestamps", id]);
    assert!(stamped.lines().all(|l| l.starts_with("20")) && stamped.ends_with("Z three\n"), "{stamped}");
    assert_eq!(node.ok(&["logs", "-p", id]), "first\n");
    assert!(node.fails(&["logs", "--reopen", "nothing"]).contains("not found"));
    let log = node.daemon.path("logs/main/1.log");
    fs::rename(&log, node.daemon.path("logs/rotated")).unwrap();
    node.ok(&["logs", "--reopen", "--tail", "0", id]);
    assert!(log.exists());
    fs::rename(node.daemon.path("logs/rotated"), &log).unwrap();
    node.ok(&["logs", "--reopen", "--tail", "0", id]);
    // What comes while it is followed.
    let mut followed = node.spawn(&["logs", "-f", "--tail", "1", id]);
    let mut lines = BufReader::new(followed.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "three");
    let mut attached = node.spawn(&["attach", "-i", id]);
    attached.0.stdin.as_mut().unwrap().write_all(b"more\n").unwrap();
    assert_eq!(lines.next().unwrap(), "got more");
}

fn exec(node: &Node, id: &str) {
    for way in ["spdy", "websocket"] {
        assert_eq!(node.ok(&["exec", "-r", way, id, "/bin/busybox", "echo", way]), format!("{way}\n"));
        assert!(node.fails(&["exec", "-r", way, id, "/bin/sh", "-c", "exit 3"]).contains("exit code 3"));
        let mut cat = node.spawn(&["exec", "-i", "-r", way, id, "/bin/busybox", "cat"]);
        cat.0.stdin.take().unwrap().write_all(b"through\n").unwrap();
        let mut through = String::new();
        cat.0.stdout.as_mut().unwrap().read_to_string(&mut through).unwrap();
        assert_eq!((through.as_str(), cat.0.wait().unwrap().code()), ("through\n", Some(0)));
    }
    assert_eq!(node.ok(&["exec", "--sync", id, "/bin/busybox", "echo", "done"]).trim(), "done");
    assert!(node.fails(&["exec", "--sync", id, "/bin/busybox", "false"]).contains("exited with 1"));
    let late = node.fails(&["exec", "--sync", "--timeout", "1", id, "/bin/busybox", "sleep", "1000"]);
    assert!(late.contains("timed out") || late.contains("DeadlineExceeded"), "{late}");
    assert!(node.fails(&["exec", id, "/no/such/program"]).contains("/no/such/program"));
    // A terminal has to be one: script has it.
    let crictl = node.crictl.display();
    let config = node.daemon.path("crictl.yaml");
    let line = format!("{crictl} -c {} exec -i -t {id} /bin/busybox tty", config.display());
    let mut script = node.daemon.inside(Path::new("timeout"));
    script.args(["-s", "KILL", "60", "script", "-qec", &line, "/dev/null"]).stdin(Stdio::null());
    let said = script.output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains("/dev/pts/"), "{said:?}");
}

/// A port of the pod, by both transports.
fn forward(node: &Node, pod: &str, id: &str) {
    let serve = "echo from the pod >/page; exec /bin/busybox httpd -f -p 7070 -h /";
    let _server = node.spawn(&["exec", id, "/bin/sh", "-c", serve]);
    let get = ["exec", id, "/bin/busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:7070/page"];
    until("the pod's server", Duration::from_secs(60), || node.run(&get).status.success().then_some(()));
    for (way, port) in [("spdy", "7071"), ("websocket", "7072")] {
        let mut forwarding = node.spawn(&["port-forward", "-r", way, pod, &format!("{port}:7070")]);
        let mut line = String::new();
        BufReader::new(forwarding.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains(&format!("127.0.0.1:{port}")), "{line}");
        for _ in 0..2 {
            let url = format!("http://127.0.0.1:{port}/page");
            let said = node.daemon.run("/bin/busybox", &["timeout", "60", "busybox", "wget", "-q", "-O", "-", &url]);
            assert_eq!(said, "from the pod\n", "{way}");
        }
    }
}

fn measured(node: &Node, pod: &str, id: &str) {
    let stats = node.json(&["stats", "-o", "json", "--id", id]);
    let one = &stats["stats"][0];
    assert_eq!((&one["attributes"]["id"], stats["stats"].as_array().unwrap().len()), (&json!(id), 1));
    assert_ne!(one["memory"]["usageBytes"]["value"], "0");
    assert!(shows(&node.ok(&["stats"]), &[&id[..13], "main"]));
    let stats = node.json(&["statsp", "-o", "json", "--id", pod]);
    assert_eq!(stats["stats"][0]["attributes"]["id"], json!(pod));
    assert_eq!(stats["stats"][0]["linux"]["network"]["defaultInterface"]["name"], "eth0");
    let metrics = node.json(&["metricsp"]);
    let of_pod = metrics["podMetrics"].as_array().unwrap().iter().find(|p| p["podSandboxId"] == json!(pod)).unwrap();
    assert!(of_pod.to_string().contains("container_memory_working_set_bytes"));
}
