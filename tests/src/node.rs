//! A whole node under test: apiserver, CRI daemon and kubelet, in a network namespace and folders of its own.
//!
//! The daemons are started by the functions of scripts/node.sh, the same that up.sh uses. An outside host stands behind
//! a veth pair: it has no route back to the pods, so only masqueraded traffic returns.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::command::{Output, eventually, run};
use crate::host::Holdings;
use crate::images;
use crate::registry::LOGIN;

/// The node's address towards the outside host.
pub const NODE_ADDRESS: &str = "192.0.2.1";
/// The outside host's address.
pub const OUTSIDE_ADDRESS: &str = "192.0.2.2";

/// The daemons of a node, in the order in which they start.
pub const DAEMONS: [&str; 3] = ["gantry-apiserver", "gantry-cri", "kubelet"];

/// A running node; [`Node::end`] takes it down and says what is left.
pub struct Node {
    folder: tempfile::TempDir,
    /// Folder of the programs under test.
    pub programs: PathBuf,
    /// Name of the node's network namespace.
    pub netns: String,
    outside: String,
    before: Holdings,
    /// The busybox image (its OCI layout can be pushed to a registry).
    pub busybox: images::Image,
}

impl Node {
    /// Starts a node whose programs are in `GANTRY_BIN_DIR` (or target/gantry/bin) and waits until it is Ready.
    ///
    /// # Errors
    /// A program is missing or does not come up; the daemons' logs are part of the error.
    pub fn start() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("repository root")?.to_owned();
        let programs = std::env::var_os("GANTRY_BIN_DIR").map_or_else(|| root.join("target/gantry/bin"), PathBuf::from);
        if !programs.join("kubelet").exists() {
            bail!("{} has no programs: run scripts/build.sh", programs.display());
        }
        let folder = tempfile::Builder::new().prefix("gantry-node-").tempdir_in("/var/tmp")?;
        // The root of a pod with user ids of its own goes through it to the pod's files.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))?;
        let netns = format!("gantry-{}", std::process::id());
        let outside = format!("{netns}-out");
        for ns in [&netns, &outside] {
            shell(&format!("ip netns add {ns} && ip -n {ns} link set lo up"))?;
        }
        shell(&format!(
            // Without link-local IPv6 addresses, which would come up in the middle of a comparison.
            "ip -n {netns} link add uplink type veth peer name uplink netns {outside} && \
             ip -n {netns} link set uplink addrgenmode none && ip -n {outside} link set uplink addrgenmode none && \
             ip -n {netns} addr add {NODE_ADDRESS}/24 dev uplink && ip -n {netns} link set uplink up && \
             ip -n {outside} addr add {OUTSIDE_ADDRESS}/24 dev uplink && ip -n {outside} link set uplink up && \
             ip -n {netns} route add default via {OUTSIDE_ADDRESS}"
        ))?;
        let packed = folder.path().join("images");
        fs::create_dir_all(&packed)?;
        let demo = images::demo(&programs, &packed)?;
        let busybox = images::busybox(&programs, &packed)?;
        // Other runtimes hold a pod's namespaces by a process.
        let pause = if runtime() == GANTRY { None } else { Some(images::pause(&programs, &packed)?) };
        let before = Holdings::look(&netns, &[&folder.path().join("state")], &programs)?;
        let node = Self { folder, programs, netns, outside, before, busybox };
        let archives = [demo.archive, node.busybox.archive.clone()];
        match node.bring_up(&archives, pause.as_ref().map(|image| image.archive.as_path())) {
            Ok(()) => Ok(node),
            Err(error) => {
                // Its reason first: what cannot be taken down then is seldom worth more.
                if let Err(also) = node.end() {
                    eprintln!("the node that did not come up cannot be taken down: {also:#}");
                }
                Err(error)
            }
        }
    }

    fn bring_up(&self, archives: &[PathBuf], pause: Option<&Path>) -> Result<()> {
        self.script("write_node_config")?;
        credential_provider(self.folder.path())?;
        for daemon in DAEMONS {
            self.start_daemon(daemon)?;
            if let Some(image) = pause.filter(|_| daemon == "gantry-cri") {
                self.script(&format!("import_image {}", image.display()))?;
            }
        }
        self.wait_ready().with_context(|| self.logs())?;
        for image in archives {
            self.script(&format!("import_image {}", image.display()))?;
        }
        Ok(())
    }

    /// The node's name.
    pub fn name(&self) -> &'static str {
        "node-1"
    }

    /// Folder of what survives a restart (see scripts/node.sh).
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// What the tests' credential provider was asked so far.
    pub fn logins_asked(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("asked")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// A folder for the files of a case.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.path().join("scratch").join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Runs functions of scripts/node.sh with this node's settings.
    ///
    /// # Errors
    /// They fail.
    pub fn script(&self, functions: &str) -> Result<String> {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
        let text = format!(". {0}/lib.sh && . {0}/node.sh && {functions}", scripts.display());
        let mut command = self.inside("bash");
        command.args(["-c", &text]).envs(self.settings());
        run(&mut command, "", Duration::from_secs(60))?.ok().with_context(|| functions.to_owned())
    }

    /// The environment that scripts/node.sh reads.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("GANTRY_STATE", self.state().display().to_string()),
            ("GANTRY_RUN", self.folder.path().join("run").display().to_string()),
            ("GANTRY_BIN_DIR", self.programs.display().to_string()),
            ("GANTRY_NODE_NAME", self.name().to_owned()),
            ("GANTRY_RUNTIME", runtime()),
            ("CRICTL", crictl().unwrap_or_default().display().to_string()),
            (
                "GANTRY_KUBELET_ARGS",
                format!(
                    "--image-credential-provider-config={0}/providers.yaml --image-credential-provider-bin-dir={0}/providers \
                     --feature-gates=ClusterTrustBundleProjection=true,PodCertificateRequest=true",
                    self.folder.path().display()
                ),
            ),
        ]
    }

    /// Starts one of [`DAEMONS`] and waits until it answers.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_daemon(&self, daemon: &str) -> Result<()> {
        let (start, answers) = match daemon {
            "gantry-apiserver" => ("start_apiserver", "wait_for 30 apiserver api_ready"),
            "gantry-cri" => ("start_cri", "wait_for 30 gantry-cri cri_ready"),
            _ => ("start_kubelet", "running kubelet"),
        };
        self.script(&format!("{start} && {answers}")).map(drop).with_context(|| self.logs())
    }

    /// Waits until the node reports Ready with a fresh status.
    ///
    /// # Errors
    /// It does not within a minute.
    pub fn wait_ready(&self) -> Result<()> {
        self.script("wait_for 60 node node_ready").map(drop)
    }

    /// The process id of a daemon.
    ///
    /// # Errors
    /// It never ran.
    pub fn pid(&self, daemon: &str) -> Result<i32> {
        let text = fs::read_to_string(self.folder.path().join("run").join(format!("{daemon}.pid")))?;
        Ok(text.split(' ').next().context("pid")?.trim().parse()?)
    }

    /// Sends SIGKILL to a daemon and waits until it is gone.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_daemon(&self, daemon: &str) -> Result<()> {
        let pid = self.pid(daemon)?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("kill {daemon}"))?;
        eventually(daemon, Duration::from_secs(10), || self.script(&format!("! running {daemon}")).map(drop))
    }

    /// A program started inside the node's network namespace.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns)).arg(program);
        // Whoever starts a kubelet so leaves the machine's settings alone.
        command.env("GANTRY_KERNEL_SETTINGS", "keep");
        command
    }

    /// A program started on the outside host.
    pub fn outside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.outside)).arg(program);
        command
    }

    /// A kubectl command, not yet run.
    pub fn kubectl_command(&self, words: &[&str]) -> Command {
        let mut command = self.inside("kubectl");
        command.env("KUBECONFIG", self.state().join("apiserver/admin.kubeconfig"));
        command.env("HOME", self.folder.path());
        command.args(words);
        command
    }

    /// Runs kubectl.
    ///
    /// # Errors
    /// It cannot be started or hangs.
    pub fn kubectl(&self, words: &[&str]) -> Result<Output> {
        run(&mut self.kubectl_command(words), "", Duration::from_secs(120))
    }

    /// Applies YAML documents.
    ///
    /// # Errors
    /// kubectl refuses them.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        run(&mut self.kubectl_command(&["apply", "-f", "-"]), yaml, Duration::from_secs(30))?.ok()
    }

    /// One field of an object by JSONPath.
    ///
    /// # Errors
    /// There is no such object.
    pub fn field(&self, object: &[&str], path: &str) -> Result<String> {
        let output = format!("-ojsonpath={{{path}}}");
        let mut words = vec!["get"];
        words.extend(object);
        words.push(&output);
        self.kubectl(&words)?.ok()
    }

    /// A whole object.
    ///
    /// # Errors
    /// There is no such object.
    pub fn get(&self, object: &[&str]) -> Result<Value> {
        let mut words = vec!["get", "-ojson"];
        words.extend(object);
        Ok(serde_json::from_str(&self.kubectl(&words)?.ok()?)?)
    }

    /// Waits until a field of an object has this value.
    ///
    /// # Errors
    /// It has another one until the limit; the object's description is part of the error.
    pub fn wait_field(&self, object: &[&str], path: &str, want: &str, limit: u64) -> Result<()> {
        eventually(&format!("{object:?} {path} is {want:?}"), Duration::from_secs(limit), || {
            let got = self.field(object, path)?;
            if got == want { Ok(()) } else { bail!("it is {got:?}") }
        })
        .with_context(|| {
            let mut words = vec!["describe"];
            words.extend(object);
            self.kubectl(&words).map(|o| o.text()).unwrap_or_default()
        })
    }

    /// Waits until a pod of the default namespace is Ready.
    ///
    /// # Errors
    /// It is not within the limit.
    pub fn wait_pod(&self, pod: &str, limit: u64) -> Result<()> {
        self.wait_field(&["pod", pod], ".status.conditions[?(@.type==\"Ready\")].status", "True", limit)
    }

    /// Deletes objects and waits until they are gone.
    ///
    /// # Errors
    /// They are not gone in time.
    pub fn delete(&self, objects: &[&str]) -> Result<()> {
        let mut words = vec!["delete", "--ignore-not-found", "--timeout=60s"];
        words.extend(objects);
        self.kubectl(&words)?.ok().map(drop)
    }

    /// Runs a command in a container.
    ///
    /// # Errors
    /// kubectl cannot be started or hangs.
    pub fn exec(&self, pod: &str, container: &str, words: &[&str]) -> Result<Output> {
        let mut all = vec!["exec", pod, "-c", container, "--"];
        all.extend(words);
        self.kubectl(&all)
    }

    /// Runs `gantry-cri` as a client of this node's daemon.
    ///
    /// # Errors
    /// It cannot be started or hangs.
    pub fn cri(&self, words: &[&str]) -> Result<Output> {
        let mut command = self.inside(&self.programs.join("gantry-cri").to_string_lossy());
        command.arg("--config").arg(self.state().join("cri.toml")).args(words);
        run(&mut command, "", Duration::from_secs(120))
    }

    /// Runs crictl against this node, or nothing where there is no crictl.
    ///
    /// # Errors
    /// It cannot be started or hangs.
    pub fn crictl(&self, words: &[&str]) -> Result<Option<Output>> {
        let Some(crictl) = crictl() else { return Ok(None) };
        let socket = format!("unix://{}", self.folder.path().join("run/cri.sock").display());
        let mut command = self.inside(&crictl.to_string_lossy());
        command.args(["-r", &socket, "-i", &socket, "-t", "20s"]).args(words);
        run(&mut command, "", Duration::from_secs(60)).map(Some)
    }

    /// Starts a program in the node's network namespace that runs on; the caller ends it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn background(&self, command: &mut Command) -> Result<std::process::Child> {
        Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn()?)
    }

    /// The ends of the daemons' logs.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for daemon in DAEMONS {
            let log = fs::read_to_string(self.state().join("logs").join(format!("{daemon}.log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(30)..].join("\n");
            text.push_str(&format!("--- end of {daemon}.log\n{tail}\n"));
        }
        text
    }

    /// What the host holds now beyond what it held before the node started.
    ///
    /// # Errors
    /// The host cannot be looked at.
    pub fn beyond_before(&self) -> Result<Vec<String>> {
        Ok(Holdings::look(&self.netns, &[], &self.programs)?.beyond(&self.before))
    }

    /// Takes the node down by scripts/down.sh and says what is left on the host, which should be nothing.
    ///
    /// # Errors
    /// down.sh fails.
    pub fn end(self) -> Result<Vec<String>> {
        let down = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/down.sh");
        let mut command = self.inside(&down.to_string_lossy());
        command.envs(self.settings());
        let output = run(&mut command, "", Duration::from_secs(180))?.ok();
        let left = Holdings::look(&self.netns, &[&self.state()], &self.programs)?.beyond(&self.before);
        for ns in [&self.netns, &self.outside] {
            shell(&format!("ip netns delete {ns}"))?;
        }
        output.map(|_| left)
    }
}

/// Port of registries whose login is for pods of annotated service accounts alone (`gantry.test/role`).
pub const TOKEN_PORT: u16 = 5013;

/// Programs that know the login of registries on two ports, and that count how often they were asked.
fn credential_provider(folder: &Path) -> Result<()> {
    let programs = folder.join("providers");
    fs::create_dir_all(&programs)?;
    let (user, password) = LOGIN.split_once(':').context("a login")?;
    let token = "  tokenAttributes:\n    serviceAccountTokenAudience: gantry.test\n    cacheType: ServiceAccount\n    \
                 requireServiceAccount: true\n    requiredServiceAccountAnnotationKeys: [gantry.test/role]\n";
    let mut config = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n".to_owned();
    for (name, port, more) in [("test-login", 5011, ""), ("test-token", TOKEN_PORT, token)] {
        let script = format!(
            "#!/bin/sh\ncat >>{}/asked; echo >>{0}/asked\ncat <<EOF\n{{\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\",\
             \"kind\":\"CredentialProviderResponse\",\"cacheKeyType\":\"Registry\",\
             \"auth\":{{\"127.0.0.1:{port}\":{{\"username\":\"{user}\",\"password\":\"{password}\"}}}}}}\nEOF\n",
            folder.display()
        );
        let program = programs.join(name);
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        config.push_str(&format!(
            "- name: {name}\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  matchImages: ['127.0.0.1:{port}']\n  \
             defaultCacheDuration: 1h\n{more}"
        ));
    }
    Ok(fs::write(folder.join("providers.yaml"), config)?)
}

/// Our own runtime, by its name in `GANTRY_NODE_RUNTIME`.
pub const GANTRY: &str = "gantry-cri";

/// The container runtime of nodes under test: `GANTRY_NODE_RUNTIME` (gantry-cri or containerd).
pub fn runtime() -> String {
    std::env::var("GANTRY_NODE_RUNTIME").unwrap_or_else(|_| GANTRY.to_owned())
}

/// Where crictl is: `CRICTL`, PATH, or nowhere.
pub fn crictl() -> Option<PathBuf> {
    let named = std::env::var_os("CRICTL").map(PathBuf::from).filter(|p| p.exists());
    named.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|d| d.join("crictl")).find(|p| p.exists())
    })
}

fn shell(text: &str) -> Result<String> {
    run(Command::new("sh").args(["-c", text]), "", Duration::from_secs(30))?.ok().with_context(|| text.to_owned())
}
