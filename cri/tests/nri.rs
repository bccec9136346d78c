//! NRI plugins that are processes of their own: what they are told, what they change, and that they miss nothing.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Client, Daemon, remove_pod, start_pod, until};
use proto::cri;

/// The plugin program, which `cargo test` builds with the examples.
fn program() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_BIN_EXE_gantry-cri")).parent().unwrap().join("examples/nri-plugin");
    if !path.exists() {
        eprintln!("skipped: {} is not built", path.display());
        return None;
    }
    Some(path)
}

struct Plugin {
    child: Child,
    log: PathBuf,
}

impl Plugin {
    fn start(daemon: &Daemon, index: &str, name: &str, words: &[&str]) -> Option<Self> {
        let log = daemon.path(&format!("plugin-{index}-{name}.log"));
        let mut command = Command::new(program()?);
        command.arg(daemon.path("nri.sock")).args([index, name]).arg(&log).args(words).stdin(Stdio::null());
        Some(Self { child: command.spawn().unwrap(), log })
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().filter_map(|l| Some(l.split_once(' ')?.1.to_owned())).collect()
    }

    fn wait_for(&self, line: &str) {
        until(&format!("{line:?} in {:?}", self.lines()), Duration::from_secs(30), || {
            self.lines().iter().any(|l| l.starts_with(line)).then_some(())
        });
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn exec(client: &mut Client, id: &str, command: &[&str]) -> String {
    let cmd = command.iter().map(|w| (*w).to_owned()).collect();
    let ask = cri::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 30 };
    String::from_utf8_lossy(&client.exec_sync(ask).await.unwrap().into_inner().stdout).into_owned()
}

async fn verbose(client: &mut Client, id: &str) -> serde_json::Value {
    let ask = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let info = client.container_status(ask).await.unwrap().into_inner().info;
    serde_json::from_str(&info["info"]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_see_the_life_of_a_pod_in_order_and_change_its_containers() {
    let Some(daemon) = Daemon::start() else { return };
    fs::create_dir_all(daemon.path("shared")).unwrap();
    fs::write(daemon.path("shared/hello"), "from a plugin\n").unwrap();
    let mount = format!("mount={}", daemon.path("shared").display());
    let Some(first) = Plugin::start(&daemon, "10", "first", &["env=FIRST", "shares=333", &mount]) else { return };
    let second = Plugin::start(&daemon, "20", "second", &["env=SECOND", "update=444"]).unwrap();
    first.wait_for("synchronized");
    second.wait_for("synchronized");
    let mut client = daemon.client().await;
    let (sandbox, id) = start_pod(&mut client, "seen", "/bin/busybox sleep 1000").await.unwrap();
    let seen = exec(&mut client, &id, &["/bin/busybox", "sh", "-c", "echo $FIRST $SECOND; cat /nri/hello"]).await;
    assert_eq!(seen, "10-first 20-second\nfrom a plugin\n");
    assert_eq!(verbose(&mut client, &id).await["runtimeSpec"]["linux"]["resources"]["cpu"]["shares"], 333);
    second.wait_for("answered 0");
    // Asked for from within an event about the container itself, it may come after the answer.
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while common::state(&mut client, &id).await.resources.unwrap().linux.unwrap().cpu_shares != 444 {
        assert!(std::time::Instant::now() < end, "the shares do not change");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    remove_pod(&mut client, &sandbox).await.unwrap();
    first.wait_for("RemovePodSandbox");
    let told: Vec<String> = first.lines().iter().map(|l| l.split(' ').next().unwrap().to_owned()).collect();
    let wanted = [
        "configure",
        "synchronized",
        "RunPodSandbox",
        "create",
        "PostCreateContainer",
        "StartContainer",
        "started",
        "StopContainer",
        "StopPodSandbox",
        "RemoveContainer",
        "RemovePodSandbox",
    ];
    let place = |word: &str| told.iter().position(|l| l == word).unwrap_or_else(|| panic!("{word} is not in {told:?}"));
    let order: Vec<usize> = wanted.iter().filter(|w| !w.starts_with("Stop")).map(|w| place(w)).collect();
    assert!(order.is_sorted(), "{told:?}");
    // That a container ends is told at once and beside everything else, but before that it is removed.
    assert!(place("started") < place("StopContainer") && place("StopContainer") < place("RemoveContainer"), "{told:?}");
    assert!(place("StopPodSandbox") < place("RemovePodSandbox"), "{told:?}");
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_may_evict_and_change_what_it_is_being_asked_about() {
    let Some(daemon) = Daemon::start() else { return };
    let Some(plugin) = Plugin::start(&daemon, "10", "guard", &["evict"]) else { return };
    plugin.wait_for("synchronized");
    let mut client = daemon.client().await;
    let (sandbox, id) = start_pod(&mut client, "evicted", "exec /bin/busybox sleep 1000").await.unwrap();
    plugin.wait_for("StopContainer main 137");
    let ended = common::state(&mut client, &id).await;
    assert_eq!((ended.state(), ended.exit_code), (cri::ContainerState::ContainerExited, 137));
    let told = plugin.lines();
    let place = |line: &str| told.iter().position(|l| l == line).unwrap_or_else(|| panic!("{line} is not in {told:?}"));
    assert!(place("answered 0") < place("StartContainer goes on"), "{told:?}");
    assert!(!daemon.log().contains("is dropped"), "it was not waited for until its time was over");
    remove_pod(&mut client, &sandbox).await.unwrap();
    plugin.wait_for("RemovePodSandbox");
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_plugins_refuse_or_decide_twice_is_not_made_and_leaves_nothing() {
    let Some(daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let failure = async |client: &mut Client, name: &str| {
        let error = start_pod(client, name, "/bin/busybox sleep 1000").await.unwrap_err();
        let list = client.list_containers(cri::ListContainersRequest { filter: None }).await.unwrap().into_inner();
        assert!(list.containers.is_empty(), "{list:?}");
        error.message().to_owned()
    };
    {
        let Some(plugin) = Plugin::start(&daemon, "10", "guard", &["refuse=main"]) else { return };
        plugin.wait_for("synchronized");
        assert!(failure(&mut client, "refused").await.contains("10-guard: main is not welcome"));
    }
    {
        let first = Plugin::start(&daemon, "10", "first", &["env=SAME"]).unwrap();
        let second = Plugin::start(&daemon, "20", "second", &["env=SAME"]).unwrap();
        first.wait_for("synchronized");
        second.wait_for("synchronized");
        let error = failure(&mut client, "twice").await;
        assert!(error.contains("10-first and 20-second both set Env \"SAME\""), "{error}");
    }
    {
        let first = Plugin::start(&daemon, "10", "first", &["env=REJECTED"]).unwrap();
        let second = Plugin::start(&daemon, "20", "judge", &["reject"]).unwrap();
        first.wait_for("synchronized");
        second.wait_for("synchronized");
        let error = failure(&mut client, "rejected").await;
        assert!(error.contains("20-judge") && error.contains("10-first must not set REJECTED"), "{error}");
    }
    let list = client.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await.unwrap().into_inner();
    for pod in list.items {
        remove_pod(&mut client, &pod.id).await.unwrap();
    }
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_connects_while_containers_are_made_misses_none_and_a_dead_one_stops_nothing() {
    let Some(daemon) = Daemon::start() else { return };
    let Some(slow) = Plugin::start(&daemon, "10", "slow", &["slow"]) else { return };
    slow.wait_for("synchronized");
    let socket = daemon.path("cri.sock");
    let pods: Vec<_> = (0..6)
        .map(|n| {
            let socket = socket.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(n * 60)).await;
                let address = format!("unix://{}", socket.display());
                let mut client = Client::new(tonic::transport::Endpoint::new(address).unwrap().connect_lazy());
                start_pod(&mut client, &format!("pod-{n}"), "/bin/busybox sleep 1000").await.unwrap()
            })
        })
        .collect();
    // While the first plugin holds creations up, others come.
    let mut late = Vec::new();
    for n in 0..4 {
        late.push(Plugin::start(&daemon, "50", &format!("late-{n}"), &[]).unwrap());
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    let mut made = BTreeSet::new();
    let mut sandboxes = Vec::new();
    for pod in pods {
        let (sandbox, id) = pod.await.unwrap();
        made.insert(id);
        sandboxes.push(sandbox);
    }
    for plugin in &late {
        plugin.wait_for("synchronized");
        let known = || -> BTreeSet<String> {
            let lines = plugin.lines();
            let about = lines.iter().filter(|l| l.starts_with("has ") || l.starts_with("create "));
            about.filter_map(|l| l.rsplit(' ').next().map(str::to_owned)).collect()
        };
        until("every container", Duration::from_secs(30), || made.is_subset(&known()).then_some(()));
        let twice: Vec<_> = plugin.lines().iter().filter(|l| l.starts_with("has ")).cloned().collect();
        let unique: BTreeSet<_> = twice.iter().collect();
        assert_eq!(unique.len(), twice.len(), "{twice:?}");
    }
    drop(slow);
    drop(late);
    let mut client = daemon.client().await;
    let (sandbox, _) = start_pod(&mut client, "after", "/bin/busybox sleep 1000").await.unwrap();
    sandboxes.push(sandbox);
    for sandbox in sandboxes {
        remove_pod(&mut client, &sandbox).await.unwrap();
    }
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn installed_plugins_start_with_the_daemon_and_get_their_configuration() {
    let Some(program) = program() else { return };
    let Some(mut daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let (before, _) = start_pod(&mut client, "before", "/bin/busybox sleep 1000").await.unwrap();
    daemon.stop();
    fs::create_dir_all(daemon.path("nri")).unwrap();
    fs::create_dir_all(daemon.path("nri.conf")).unwrap();
    fs::copy(program, daemon.path("nri/30-installed")).unwrap();
    let log = daemon.path("installed.log");
    fs::write(daemon.path("nri.conf/installed.conf"), format!("{} env=INSTALLED", log.display())).unwrap();
    daemon.launch();
    let text = fs::read_to_string(&log).unwrap_or_default();
    assert!(text.contains("30-installed has-pod before") && text.contains("synchronized"), "{text}");
    let mut client = daemon.client().await;
    let (after, id) = start_pod(&mut client, "after", "/bin/busybox sleep 1000").await.unwrap();
    assert_eq!(exec(&mut client, &id, &["/bin/busybox", "sh", "-c", "echo $INSTALLED"]).await, "30-installed\n");
    remove_pod(&mut client, &before).await.unwrap();
    remove_pod(&mut client, &after).await.unwrap();
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_hangs_is_dropped_and_holds_nothing_up_for_long() {
    let Some(daemon) = Daemon::start() else { return };
    let Some(first) = Plugin::start(&daemon, "10", "hangs", &[]) else { return };
    let second = Plugin::start(&daemon, "20", "works", &["env=WORKS"]).unwrap();
    first.wait_for("synchronized");
    second.wait_for("synchronized");
    common::kill(first.child.id(), nix::sys::signal::Signal::SIGSTOP);
    let mut client = daemon.client().await;
    let begun = std::time::Instant::now();
    let (sandbox, id) = start_pod(&mut client, "held", "/bin/busybox sleep 1000").await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_eq!(exec(&mut client, &id, &["/bin/busybox", "sh", "-c", "echo $WORKS"]).await, "20-works\n");
    assert!(daemon.log().contains("an NRI plugin is dropped"), "{}", daemon.log());
    // It comes back by connecting anew, as any other.
    common::kill(first.child.id(), nix::sys::signal::Signal::SIGCONT);
    drop(first);
    let again = Plugin::start(&daemon, "10", "hangs", &["env=AGAIN"]).unwrap();
    until("the container in what the plugin is told", Duration::from_secs(30), || {
        again.lines().iter().any(|l| *l == format!("has main {id}")).then_some(())
    });
    again.wait_for("synchronized");
    remove_pod(&mut client, &sandbox).await.unwrap();
    again.wait_for("RemovePodSandbox");
    daemon.assert_clean();
}
