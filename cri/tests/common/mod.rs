//! A gantry-cri of its own for one test: temporary folders, own network, mount and pid namespaces that take everything with
//! them when the test ends.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod fuse;
pub mod registry;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cri_images::build::{BuildConfig, archive_from_rootfs};
use proto::cri;
use proto::cri::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

pub type Client = RuntimeServiceClient<Channel>;

static LIVE: AtomicUsize = AtomicUsize::new(0);

pub const IMAGE: &str = "gantry.local/test:1";

pub struct Daemon {
    programs: PathBuf,
    dir: tempfile::TempDir,
    /// Pid 1 of the namespaces.
    holder: Child,
    /// nsenter, whose child is the daemon.
    running: Option<Child>,
}

/// A folder with gantry-cri, gantry-monitor, gantry-run and gantry-cni.
fn programs() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_BIN_EXE_gantry-cri")).parent().unwrap().to_path_buf();
    let folder = std::env::var_os("GANTRY_BIN_DIR").map_or(beside, PathBuf::from);
    let missing =
        ["gantry-cri", "gantry-monitor", "gantry-run", "gantry-cni"].into_iter().find(|p| !folder.join(p).exists());
    match missing {
        Some(program) => {
            eprintln!("skipped: {program} is not in {} (build the workspace or set GANTRY_BIN_DIR)", folder.display());
            None
        }
        None => Some(folder),
    }
}

/// Waits until `done` answers something.
pub fn until<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < end, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Pids of a process' children.
pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|p| p.parse().ok()).collect()
}

impl Daemon {
    /// Starts one, with an image in its store; none where it cannot be (the reason is printed).
    pub fn start() -> Option<Self> {
        Self::start_with("")
    }

    /// As [`Daemon::start`], with more lines in the configuration.
    pub fn start_with(more: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let programs = programs()?;
        if !Path::new("/bin/busybox").exists() {
            eprintln!("skipped: needs busybox-static");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("gantry-cri-test.").tempdir_in("/var/tmp").unwrap();
        let holder = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
            .args(["sh", "-c", "mount --make-rshared / && mount -t tmpfs run /run && ip link set lo up && while :; do sleep 1000 & wait; done"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        LIVE.fetch_add(1, Ordering::SeqCst);
        let mut daemon = Self { programs, dir, holder, running: None };
        let init = until("the namespaces", Duration::from_secs(20), || children(daemon.holder.id()).first().copied());
        let ready = || {
            let mounts = fs::read_to_string(format!("/proc/{init}/mounts")).ok()?;
            mounts.lines().any(|l| l.starts_with("run /run ")).then_some(())
        };
        until("the mounts of the namespaces", Duration::from_secs(20), ready);
        daemon.configure(more);
        daemon.launch();
        daemon.add_image();
        Some(daemon)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The folder of the programs.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    fn configure(&self, more: &str) {
        let dir = self.dir.path().display();
        fs::create_dir_all(self.path("net.d")).unwrap();
        let install =
            Command::new(self.programs.join("gantry-cni")).arg("install").arg(self.path("cni")).output().unwrap();
        assert!(install.status.success(), "{install:?}");
        let network = format!(
            r#"{{"cniVersion": "1.1.0", "name": "test", "plugins": [{{"type": "bridge", "bridge": "cni0", "isGateway": true,
                "ipam": {{"type": "host-local", "dataDir": "{dir}/addresses", "ranges": [[{{"subnet": "10.98.0.0/16"}}]]}}}}]}}"#
        );
        fs::write(self.path("net.d/10-test.conflist"), network).unwrap();
        let config = format!(
            "socket = \"{dir}/cri.sock\"\nroot = \"{dir}/root\"\nstate = \"/run/gt/cri\"\nruntime_root = \"/run/gt/run\"\n\
             cni_conf_dir = \"{dir}/net.d\"\ncni_bin_dirs = [\"{dir}/cni\"]\nnri_socket = \"{dir}/nri.sock\"\n\
             nri_plugin_dir = \"{dir}/nri\"\nnri_plugin_config_dir = \"{dir}/nri.conf\"\n{more}\n"
        );
        fs::write(self.path("cri.toml"), config).unwrap();
    }

    fn add_image(&self) {
        let rootfs = self.path("rootfs");
        fs::create_dir_all(rootfs.join("bin")).unwrap();
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        std::os::unix::fs::symlink("busybox", rootfs.join("bin/sh")).unwrap();
        let settings = BuildConfig { cmd: vec!["/bin/sh".into()], ..BuildConfig::default() };
        archive_from_rootfs(&rootfs, IMAGE, &settings, &self.path("image.tar")).unwrap();
        let archive = self.path("image.tar");
        let output = self.command(&["image", "import", &archive.display().to_string()]);
        assert!(output.status.success(), "{output:?}");
    }

    /// Pid 1 of the namespaces, as seen from here.
    pub fn init(&self) -> u32 {
        *children(self.holder.id()).first().unwrap()
    }

    /// A program in the namespaces.
    pub fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("-t").arg(self.init().to_string()).args(["-n", "-m", "-p", "--"]).arg(program);
        command
    }

    /// Starts the daemon and waits until it answers.
    pub fn launch(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = self.inside(&self.programs.join("gantry-cri"));
        command.arg("--config").arg(self.path("cri.toml")).stdin(Stdio::null()).env("RUST_BACKTRACE", "0");
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.running = Some(child);
        until("the daemon", Duration::from_secs(60), || self.command(&["image", "ls"]).status.success().then_some(()));
    }

    /// The daemon's pid.
    pub fn pid(&self) -> u32 {
        let nsenter = self.running.as_ref().unwrap().id();
        until("the daemon's process", Duration::from_secs(10), || children(nsenter).first().copied())
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill(&mut self) {
        kill(self.pid(), nix::sys::signal::Signal::SIGKILL);
        let _ = self.running.take().unwrap().wait();
    }

    /// SIGTERM; returns when it is gone.
    pub fn stop(&mut self) {
        kill(self.pid(), nix::sys::signal::Signal::SIGTERM);
        let _ = self.running.take().unwrap().wait();
    }

    /// Runs `gantry-cri` beside the daemon.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = self.inside(&self.programs.join("gantry-cri"));
        command.arg("--config").arg(self.path("cri.toml")).args(arguments).output().unwrap()
    }

    /// Output of a program inside.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        String::from_utf8_lossy(&self.inside(Path::new(program)).args(arguments).output().unwrap().stdout).into_owned()
    }

    pub async fn client(&self) -> Client {
        let address = format!("unix://{}", self.path("cri.sock").display());
        Client::new(Endpoint::new(address).unwrap().connect_lazy())
    }

    /// The daemon's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// What `fsck` prints; panics with it unless nothing is found.
    pub fn assert_clean(&self) {
        let output = self.command(&["fsck"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && text == "nothing found\n",
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

pub fn kill(pid: u32, signal: nix::sys::signal::Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal);
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            tail.iter().rev().for_each(|l| eprintln!("daemon: {l}"));
        }
        // Pid 1 takes all processes and with them all namespaces and mounts.
        if let Some(init) = children(self.holder.id()).first() {
            kill(*init, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        if let Some(mut running) = self.running.take() {
            let _ = running.wait();
        }
        // Others of this process may be making theirs just now.
        if LIVE.fetch_sub(1, Ordering::SeqCst) == 1 {
            cgroups().iter().for_each(|folder| remove_cgroups(folder));
        }
    }
}

/// Folders of the pods' cgroups of this process' tests, in every hierarchy.
pub fn cgroups() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let own = format!("gantry-test-{}", std::process::id());
    let tops = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path());
    for top in tops.chain([PathBuf::from("/sys/fs/cgroup")]) {
        let groups = fs::read_dir(&top).into_iter().flatten().flatten();
        found.extend(groups.filter(|e| e.file_name().to_string_lossy().starts_with(&own)).map(|e| e.path()));
    }
    found
}

fn remove_cgroups(folder: &Path) {
    for child in fs::read_dir(folder).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        remove_cgroups(&child.path());
    }
    let _ = fs::remove_dir(folder);
}

pub fn pod(name: &str) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "test".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: String::new(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("/gantry-test-{}/{name}", std::process::id()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub fn container(name: &str, script: &str) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
        command: vec!["/bin/busybox".into(), "sh".into(), "-c".into(), script.to_owned()],
        linux: Some(cri::LinuxContainerConfig::default()),
        ..Default::default()
    }
}

/// A pod under this handler: its id.
pub async fn run_pod(
    client: &mut Client,
    config: &cri::PodSandboxConfig,
    runtime_handler: &str,
) -> Result<String, tonic::Status> {
    let runtime_handler = runtime_handler.to_owned();
    let ask = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler };
    Ok(client.run_pod_sandbox(ask).await?.into_inner().pod_sandbox_id)
}

/// A container in a pod, without a process: its id.
pub async fn create(
    client: &mut Client,
    pod: &str,
    config: &cri::PodSandboxConfig,
    container: cri::ContainerConfig,
) -> Result<String, tonic::Status> {
    let ask = cri::CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: Some(container),
        sandbox_config: Some(config.clone()),
    };
    Ok(client.create_container(ask).await?.into_inner().container_id)
}

pub async fn start(client: &mut Client, id: &str) -> Result<(), tonic::Status> {
    client.start_container(cri::StartContainerRequest { container_id: id.to_owned() }).await.map(drop)
}

/// A running container in a pod: its id.
pub async fn create_and_start(
    client: &mut Client,
    pod: &str,
    config: &cri::PodSandboxConfig,
    container: cri::ContainerConfig,
) -> Result<String, tonic::Status> {
    let id = create(client, pod, config, container).await?;
    start(client, &id).await?;
    Ok(id)
}

/// A pod with one running container: their ids.
pub async fn start_pod(client: &mut Client, name: &str, script: &str) -> Result<(String, String), tonic::Status> {
    start_configured(client, pod(name), script).await
}

/// As [`start_pod`], a pod as configured.
pub async fn start_configured(
    client: &mut Client,
    config: cri::PodSandboxConfig,
    script: &str,
) -> Result<(String, String), tonic::Status> {
    let sandbox = run_pod(client, &config, "").await?;
    let id = create_and_start(client, &sandbox, &config, container("main", script)).await?;
    Ok((sandbox, id))
}

pub async fn remove_pod(client: &mut Client, sandbox: &str) -> Result<(), tonic::Status> {
    client.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() }).await?;
    client.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() }).await?;
    Ok(())
}

pub async fn state(client: &mut Client, id: &str) -> cri::ContainerStatus {
    let ask = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    client.container_status(ask).await.unwrap().into_inner().status.unwrap()
}
