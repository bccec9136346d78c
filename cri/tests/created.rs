//! Between CreateContainer and StartContainer: there is a root file system and a configuration, and no process yet.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use common::{Client, Daemon, create, remove_pod, run_pod, start, state, until};
use gantry_monitor::protocol::{Create, Request};
use proto::cri;

const LIMIT: Duration = Duration::from_secs(60);

async fn stop(client: &mut Client, id: &str) {
    let ask = cri::StopContainerRequest { container_id: id.to_owned(), timeout: 0 };
    client.stop_container(ask).await.unwrap();
}

/// What the OCI runtime knows of.
fn made(daemon: &Daemon) -> Vec<String> {
    daemon.run("ls", &["/run/gt/run"]).lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_created_container_is_measured_changed_stopped_and_removed_without_a_process() {
    let Some(daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let mut config = common::pod("created");
    config.log_directory = daemon.path("logs").display().to_string();
    let pod = run_pod(&mut client, &config, "").await.unwrap();
    let sleeper = |name: &str| common::container(name, "exec /bin/busybox sleep 1000");
    let main = create(&mut client, &pod, &config, sleeper("main")).await.unwrap();
    assert_eq!(state(&mut client, &main).await.state(), cri::ContainerState::ContainerCreated);
    assert_eq!(made(&daemon), Vec::<String>::new(), "no process is made yet");
    let stats = client.container_stats(cri::ContainerStatsRequest { container_id: main.clone() }).await.unwrap();
    assert_eq!(stats.into_inner().stats.unwrap().cpu.unwrap().usage_core_nano_seconds.unwrap().value, 0);
    let linux = Some(cri::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() });
    let ask = cri::UpdateContainerResourcesRequest { container_id: main.clone(), linux, ..Default::default() };
    client.update_container_resources(ask).await.unwrap();

    // What a request says wrong is told before anything starts.
    let mut wrong = sleeper("wrong");
    wrong.mounts = vec![cri::Mount { host_path: "/no/such".into(), container_path: "/m".into(), ..Default::default() }];
    assert!(create(&mut client, &pod, &config, wrong).await.unwrap_err().message().contains("/no/such"));
    let mut wrong = sleeper("wrong");
    let target =
        cri::NamespaceOption { pid: cri::NamespaceMode::Target.into(), target_id: main.clone(), ..Default::default() };
    let security = cri::LinuxContainerSecurityContext { namespace_options: Some(target), ..Default::default() };
    wrong.linux.as_mut().unwrap().security_context = Some(security);
    let error = create(&mut client, &pod, &config, wrong).await.unwrap_err();
    assert!(error.message().contains(&main) && error.message().contains("not running"), "{error}");
    let mut wrong = sleeper("wrong");
    fs::create_dir_all(daemon.path("logs")).unwrap();
    fs::write(daemon.path("logs/file"), "").unwrap();
    wrong.log_path = "file/0.log".into();
    assert!(create(&mut client, &pod, &config, wrong).await.unwrap_err().message().contains("logs/file"));

    // What only the runtime finds is told by StartContainer, and stays to be read.
    let mut absent = sleeper("absent");
    absent.command = vec!["/no/such/program".into()];
    let absent = create(&mut client, &pod, &config, absent).await.unwrap();
    let error = start(&mut client, &absent).await.unwrap_err();
    assert!(error.message().contains("/no/such/program"), "{error}");
    let status = state(&mut client, &absent).await;
    assert_eq!((status.state(), status.exit_code), (cri::ContainerState::ContainerExited, 128));
    assert!(status.reason == "StartError" && status.message.contains("/no/such/program"), "{status:?}");

    let stopped = create(&mut client, &pod, &config, sleeper("stopped")).await.unwrap();
    stop(&mut client, &stopped).await;
    let status = state(&mut client, &stopped).await;
    assert_eq!((status.state(), status.exit_code), (cri::ContainerState::ContainerExited, 137));
    assert!(start(&mut client, &stopped).await.unwrap_err().message().contains("has ended already"));
    let removed = create(&mut client, &pod, &config, sleeper("removed")).await.unwrap();
    client.remove_container(cri::RemoveContainerRequest { container_id: removed.clone() }).await.unwrap();
    let list = client.list_containers(cri::ListContainersRequest { filter: None }).await.unwrap().into_inner();
    assert_eq!(list.containers.len(), 3, "{list:?}");

    // One that is over before its start is told has started all the same, and ended after that.
    let mut events = client.get_container_events(cri::GetEventsRequest {}).await.unwrap().into_inner();
    let short = create(&mut client, &pod, &config, common::container("short", "exit 3")).await.unwrap();
    start(&mut client, &short).await.unwrap();
    let mut told = Vec::new();
    while told.last() != Some(&cri::ContainerEventType::ContainerStoppedEvent) {
        let event = tokio::time::timeout(LIMIT, events.message()).await.expect("an event in time").unwrap().unwrap();
        if event.container_id == short {
            told.push(event.container_event_type());
        }
    }
    use cri::ContainerEventType::{ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent};
    assert_eq!(told, [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent]);
    let status = state(&mut client, &short).await;
    assert_eq!(status.exit_code, 3);
    assert!(status.created_at < status.started_at && status.started_at <= status.finished_at, "{status:?}");

    start(&mut client, &main).await.unwrap();
    until("the one container that runs", LIMIT, || (made(&daemon) == [main.as_str()]).then_some(()));
    let limit = common::cgroups().iter().find_map(|top| {
        let group = top.join("created").join(&main);
        let file =
            ["memory.limit_in_bytes", "memory.max"].map(|name| group.join(name)).into_iter().find(|f| f.exists());
        fs::read_to_string(file?).ok()
    });
    assert_eq!(limit.as_deref().map(str::trim), Some("67108864"), "the limit that it was given before it started");
    remove_pod(&mut client, &pod).await.unwrap();
    daemon.assert_clean();
}

/// A daemon whose runtime notes its containers' starts and waits while `hold` is there.
fn held() -> Option<(Daemon, PathBuf)> {
    let mut daemon = Daemon::start()?;
    daemon.stop();
    let (runtime, folder) = (daemon.path("runtime"), daemon.path(""));
    let wait = format!("echo >>{0}/starts; while [ -e {0}/hold ]; do /bin/busybox sleep 0.05; done", folder.display());
    let own = daemon.programs().join("gantry-run");
    let text =
        format!("#!/bin/sh\nfor a; do [ \"$a\" != run ] || {{ {wait}; }}; done\nexec {} \"$@\"\n", own.display());
    fs::write(&runtime, text).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
    let config = fs::read_to_string(daemon.path("cri.toml")).unwrap();
    fs::write(daemon.path("cri.toml"), format!("runtime = \"{}\"\n{config}", runtime.display())).unwrap();
    daemon.launch();
    Some((daemon, folder))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_within_a_start_or_after_an_older_ones_create_takes_over_what_there_is() {
    let Some((mut daemon, folder)) = held() else { return };
    let mut client = daemon.client().await;
    let config = common::pod("cut");
    let pod = run_pod(&mut client, &config, "").await.unwrap();
    let sleeper = |name: &str| common::container(name, "exec /bin/busybox sleep 1000");
    let mut ids = Vec::new();
    for name in ["cut", "older", "unwanted"] {
        ids.push(create(&mut client, &pod, &config, sleeper(name)).await.unwrap());
    }
    // As daemons did whose CreateContainer made the process, too.
    let root = format!("/proc/{}/root", daemon.init());
    let socket = format!("{root}/run/gt/cri/m/{}.sock", &pod[..13]);
    for id in &ids[1..] {
        let request = Create {
            id: id.clone(),
            bundle: format!("/run/gt/cri/containers/{id}").into(),
            terminal: false,
            stdin: false,
            log: None,
            exit_file: daemon.path(&format!("root/containers/{id}.exit")),
            cgroup: format!("/gantry-test-{}/cut/{id}", std::process::id()).into(),
            restore: None,
            start: false,
        };
        let monitor = gantry_monitor::client::Client::new(&socket);
        let asked = tokio::task::spawn_blocking(move || monitor.call(&Request::Create(Box::new(request))));
        asked.await.unwrap().unwrap();
    }
    let starts = || fs::read_to_string(folder.join("starts")).unwrap_or_default().lines().count();
    fs::write(folder.join("hold"), "").unwrap();
    let (mut caller, id) = (client.clone(), ids[0].clone());
    let cut = tokio::spawn(async move { start(&mut caller, &id).await });
    until("the start", LIMIT, || (starts() == 1).then_some(()));
    daemon.kill();
    assert!(cut.await.unwrap().is_err());
    fs::remove_file(folder.join("hold")).unwrap();
    daemon.launch();

    let mut client = daemon.client().await;
    let status = state(&mut client, &ids[0]).await;
    assert_eq!(status.state(), cri::ContainerState::ContainerRunning, "its monitor has started it");
    assert!(status.started_at >= status.created_at, "{status:?}");
    start(&mut client, &ids[0]).await.unwrap();
    assert_eq!(starts(), 1, "it is started once");
    assert_eq!(state(&mut client, &ids[1]).await.state(), cri::ContainerState::ContainerCreated);
    start(&mut client, &ids[1]).await.unwrap();
    assert_eq!(state(&mut client, &ids[1]).await.state(), cri::ContainerState::ContainerRunning);
    client.remove_container(cri::RemoveContainerRequest { container_id: ids[2].clone() }).await.unwrap();
    let mut left = ids[..2].to_vec();
    left.sort();
    assert_eq!(made(&daemon), left);
    stop(&mut client, &ids[0]).await;
    assert_eq!(state(&mut client, &ids[0]).await.state(), cri::ContainerState::ContainerExited);
    remove_pod(&mut client, &pod).await.unwrap();
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_told_to_have_failed_is_not_finished_by_an_orphan() {
    let Some((daemon, folder)) = held() else { return };
    let mut client = daemon.client().await;
    let config = common::pod("orphan");
    let pod = run_pod(&mut client, &config, "").await.unwrap();
    let sleeper = common::container("main", "exec /bin/busybox sleep 1000");
    let id = create(&mut client, &pod, &config, sleeper).await.unwrap();
    fs::write(folder.join("hold"), "").unwrap();
    let (mut caller, asked) = (client.clone(), id.clone());
    let started = tokio::spawn(async move { start(&mut caller, &asked).await });
    let at_work = |word: &str| {
        let line = |pid: &u32| {
            String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).into_owned()
        };
        let pids =
            fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_string_lossy().parse().ok());
        pids.filter(|pid| line(pid).contains(word)).collect::<Vec<u32>>()
    };
    until("the runtime", LIMIT, || fs::exists(folder.join("starts")).unwrap().then_some(()));
    for monitor in at_work(&format!("/run/gt/cri/m/{}.sock", &pod[..13])) {
        common::kill(monitor, nix::sys::signal::Signal::SIGKILL);
    }
    assert!(started.await.unwrap().is_err());
    assert_eq!(at_work(&id), Vec::<u32>::new(), "nobody goes on with it");
    assert_eq!(state(&mut client, &id).await.state(), cri::ContainerState::ContainerExited);
    remove_pod(&mut client, &pod).await.unwrap();
    daemon.assert_clean();
}
