//! RuntimeClass handlers: the same life on each OCI runtime that is here.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Client, Daemon, remove_pod, state, until};
use proto::cri;

async fn exec(client: &mut Client, id: &str, script: &str) -> String {
    let cmd = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
    let answer = client.exec_sync(cri::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 60 }).await;
    String::from_utf8(answer.unwrap().into_inner().stdout).unwrap()
}

async fn life(daemon: &mut Daemon, handler: &str) {
    let mut client = daemon.client().await;
    let logs = daemon.path("logs").join(handler);
    let mut config = common::pod(&format!("on-{handler}"));
    config.log_directory = logs.display().to_string();
    let sandbox = common::run_pod(&mut client, &config, handler).await.unwrap();
    let mut main =
        common::container("main", "trap 'echo bye; exit 9' TERM; echo hello; while :; do /bin/busybox sleep 0.1; done");
    main.log_path = "main.log".into();
    main.envs = vec![cri::KeyValue { key: "ON".into(), value: handler.into() }];
    let resources = |shares, memory| cri::LinuxContainerResources {
        cpu_shares: shares,
        memory_limit_in_bytes: memory,
        ..Default::default()
    };
    main.linux.as_mut().unwrap().resources = Some(resources(512, 64 << 20));
    let id = common::create_and_start(&mut client, &sandbox, &config, main).await.unwrap();
    assert_eq!(exec(&mut client, &id, "echo $ON; /bin/busybox hostname").await, format!("{handler}\non-{handler}\n"));
    until("its log", Duration::from_secs(30), || {
        fs::read_to_string(logs.join("main.log")).ok()?.ends_with(" stdout F hello\n").then_some(())
    });
    let ask = cri::ContainerStatsRequest { container_id: id.clone() };
    let stats = client.container_stats(ask.clone()).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.memory.unwrap().usage_bytes.unwrap().value > 0);
    assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
    let ask = cri::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(resources(1024, 128 << 20)),
        ..Default::default()
    };
    client.update_container_resources(ask).await.unwrap();
    let now = state(&mut client, &id).await.resources.unwrap().linux.unwrap();
    assert_eq!((now.cpu_shares, now.memory_limit_in_bytes), (1024, 128 << 20));
    daemon.kill();
    daemon.launch();
    let mut client = daemon.client().await;
    assert_eq!(state(&mut client, &id).await.state(), cri::ContainerState::ContainerRunning);
    assert_eq!(exec(&mut client, &id, "echo again").await, "again\n");
    client.stop_container(cri::StopContainerRequest { container_id: id.clone(), timeout: 60 }).await.unwrap();
    let ended = state(&mut client, &id).await;
    assert_eq!((ended.state(), ended.exit_code), (cri::ContainerState::ContainerExited, 9), "{ended:?}");
    assert!(fs::read_to_string(logs.join("main.log")).unwrap().ends_with(" stdout F bye\n"));
    client.remove_container(cri::RemoveContainerRequest { container_id: id }).await.unwrap();
    remove_pod(&mut client, &sandbox).await.unwrap();
    daemon.assert_clean();
}

/// The same life under a handler that is this program.
async fn life_on(name: &str, program: &Path) {
    let handlers = format!("[runtime_handlers]\n{name} = \"{}\"", program.display());
    let Some(mut daemon) = Daemon::start_with(&handlers) else { return };
    if name == "crun" && Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists() {
        // It wants cgroups of one version only.
        daemon.stop();
        daemon.run("umount", &["/sys/fs/cgroup/unified"]);
        daemon.launch();
    }
    let mut client = daemon.client().await;
    let status = client.status(cri::StatusRequest { verbose: false }).await.unwrap().into_inner();
    let told = |name: &str| {
        let handler = status.runtime_handlers.iter().find(|h| h.name == name);
        handler.unwrap_or_else(|| panic!("{name} is not told")).features.unwrap()
    };
    // What is told of a runtime is what it says of itself.
    let said = std::process::Command::new(program).arg("features").output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(told(name).recursive_read_only_mounts, said.contains("\"rro\""), "{said}");
    assert!(told("").recursive_read_only_mounts, "gantry-run can");
    assert!(!told(name).user_namespaces || said.contains("\"idmap\""), "{said}");
    let ask = cri::RunPodSandboxRequest { config: Some(common::pod("none")), runtime_handler: "nowhere".to_owned() };
    let error = client.run_pod_sandbox(ask).await.unwrap_err();
    assert!(error.message().contains("\"nowhere\""), "{error}");
    life(&mut daemon, name).await;
}

async fn life_on_installed(name: &str) {
    match ["/usr/sbin", "/usr/bin"].iter().map(|d| Path::new(d).join(name)).find(|p| p.exists()) {
        Some(program) => life_on(name, &program).await,
        None => eprintln!("skipped: there is no {name}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_on_gantry_run_by_its_path() {
    let own = Path::new(env!("CARGO_BIN_EXE_gantry-cri")).parent().unwrap().join("gantry-run");
    let own = std::env::var_os("GANTRY_BIN_DIR").map_or(own, |d| PathBuf::from(d).join("gantry-run"));
    life_on("own", &own).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_on_runc() {
    life_on_installed("runc").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_on_crun() {
    life_on_installed("crun").await;
}
