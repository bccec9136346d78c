//! The real daemon through its socket: what survives it, what it finds, what it measures.

mod common;

use std::fs;
use std::time::Duration;

use common::{Daemon, remove_pod, start_pod, state};
use proto::cri;

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_the_daemon_and_their_ends_are_not_lost() {
    let Some(mut daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let (lives, id) = start_pod(&mut client, "lives", "/bin/busybox sleep 1000").await.unwrap();
    let (ends, short) = start_pod(
        &mut client,
        "ends",
        "read x </dev/null; while [ ! -e /go ]; do /bin/busybox sleep 0.1; done; exit 7",
    )
    .await
    .unwrap();
    daemon.kill();
    // Its root is reached through its first process.
    let go = common::until("the container's process", Duration::from_secs(20), || {
        fs::read_dir("/proc").ok()?.flatten().find_map(|e| {
            let line = fs::read(e.path().join("cmdline")).ok()?;
            String::from_utf8_lossy(&line).contains("exit 7").then(|| e.path().join("root/go"))
        })
    });
    fs::write(&go, "").unwrap();
    common::until("the container's end", Duration::from_secs(20), || (!go.exists()).then_some(()));
    daemon.launch();
    let mut client = daemon.client().await;
    assert_eq!(state(&mut client, &id).await.state(), cri::ContainerState::ContainerRunning);
    let ended = state(&mut client, &short).await;
    assert_eq!((ended.state(), ended.exit_code), (cri::ContainerState::ContainerExited, 7));
    let ask = cri::ExecSyncRequest {
        container_id: id.clone(),
        cmd: vec!["/bin/busybox".into(), "echo".into(), "hi".into()],
        timeout: 20,
    };
    assert_eq!(client.exec_sync(ask).await.unwrap().into_inner().stdout, b"hi\n");
    remove_pod(&mut client, &lives).await.unwrap();
    remove_pod(&mut client, &ends).await.unwrap();
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn fsck_finds_and_repairs_what_belongs_to_nothing_with_the_daemon_running_and_stopped() {
    let Some(mut daemon) = Daemon::start() else { return };
    daemon.assert_clean();
    let orphan = "ab".repeat(32);
    for stopped in [false, true] {
        if stopped {
            daemon.stop();
            daemon.assert_clean();
        }
        daemon.run(
            "mkdir",
            &["-p", &format!("/run/gt/cri/containers/{orphan}"), &format!("/run/gt/cri/sandboxes/{orphan}/shm")],
        );
        daemon.run("mount", &["-t", "tmpfs", "shm", &format!("/run/gt/cri/sandboxes/{orphan}/shm")]);
        let found = daemon.command(&["fsck"]);
        let text = String::from_utf8_lossy(&found.stdout).into_owned();
        assert_eq!(found.status.code(), Some(1), "{text}");
        for wanted in ["mount /run/gt/cri/sandboxes", "bundle of container abab", "folder of sandbox abab"] {
            assert!(text.contains(wanted), "{text}");
        }
        let repaired = daemon.command(&["fsck", "--repair"]);
        assert!(repaired.status.success(), "{repaired:?}");
        daemon.assert_clean();
    }
}

/// The pid of a pod's monitor.
fn monitor(sandbox: &str) -> u32 {
    let socket = format!("/run/gt/cri/m/{}.sock", &sandbox[..13]);
    common::until("the monitor", Duration::from_secs(10), || {
        fs::read_dir("/proc").ok()?.flatten().find_map(|e| {
            let line = fs::read(e.path().join("cmdline")).ok()?;
            String::from_utf8_lossy(&line)
                .contains(&socket)
                .then(|| e.file_name().to_string_lossy().parse::<u32>().ok())?
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn fsck_tells_of_monitors_that_do_not_answer_and_does_not_wait_for_them() {
    let Some(daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let mut pods = Vec::new();
    for name in ["one", "two", "three"] {
        pods.push(start_pod(&mut client, name, "exec /bin/busybox sleep 1000").await.unwrap().0);
    }
    let held: Vec<u32> = pods[..2].iter().map(|pod| monitor(pod)).collect();
    held.iter().for_each(|pid| common::kill(*pid, nix::sys::signal::Signal::SIGSTOP));
    let begun = std::time::Instant::now();
    let found = daemon.command(&["fsck"]);
    let took = begun.elapsed();
    held.iter().for_each(|pid| common::kill(*pid, nix::sys::signal::Signal::SIGCONT));
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    let wanted: Vec<_> = pods[..2].iter().map(|pod| format!("the monitor of sandbox {pod} does not answer")).collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
    assert!(took < Duration::from_secs(60), "{took:?}: a call to a monitor may take two minutes");
    for pod in pods {
        remove_pod(&mut client, &pod).await.unwrap();
    }
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_monitor_ends_its_containers_and_leaves_nothing() {
    let Some(daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let (sandbox, id) = start_pod(&mut client, "lost", "/bin/busybox sleep 1000").await.unwrap();
    let pid = monitor(&sandbox);
    common::kill(pid, nix::sys::signal::Signal::SIGKILL);
    let mut status = state(&mut client, &id).await;
    for _ in 0..200 {
        if status.state() == cri::ContainerState::ContainerExited {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        status = state(&mut client, &id).await;
    }
    assert_eq!(status.state(), cri::ContainerState::ContainerExited);
    assert!(status.message.contains("monitor"), "{}", status.message);
    remove_pod(&mut client, &sandbox).await.unwrap();
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_measured_and_their_resources_recorded() {
    let Some(mut daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let (sandbox, id) = start_pod(&mut client, "measured", "/bin/busybox sleep 1000").await.unwrap();
    let descriptors = client.list_metric_descriptors(cri::ListMetricDescriptorsRequest {}).await.unwrap().into_inner();
    let keys = |name: &str| descriptors.descriptors.iter().find(|d| d.name == name).map(|d| d.label_keys.len());
    let pods = client.list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {}).await.unwrap().into_inner();
    let pod = pods.pod_metrics.iter().find(|p| p.pod_sandbox_id == sandbox).unwrap();
    let all = pod.container_metrics.iter().find(|c| c.container_id == id).unwrap();
    for metric in pod.metrics.iter().chain(&all.metrics) {
        assert_eq!(keys(&metric.name), Some(metric.label_values.len()), "{metric:?}");
    }
    let value = |name: &str| all.metrics.iter().find(|m| m.name == name).and_then(|m| m.value).map(|v| v.value);
    assert_eq!(value("container_threads"), Some(1));
    assert_eq!(value("container_processes"), Some(1));
    assert!(value("container_memory_usage_bytes") > Some(0));
    assert!(pod.metrics.iter().any(|m| m.name == "container_network_receive_packets_total"));
    assert!(value("container_fs_limit_bytes") > value("container_fs_usage_bytes"));
    assert!(value("container_ulimits_soft") > Some(0));
    let ask = cri::ContainerStatsRequest { container_id: id.clone() };
    let stats = client.container_stats(ask).await.unwrap().into_inner().stats.unwrap();
    let (cpu, memory, io) = (stats.cpu.unwrap(), stats.memory.unwrap(), stats.io.unwrap());
    // What the kernel counts is told, wherever it counts it.
    let pressures = [cpu.psi.is_some(), memory.psi.is_some(), io.psi.is_some()];
    let there = |path: &str| std::path::Path::new(path).exists();
    let unified = there("/sys/fs/cgroup/cgroup.controllers") || there("/sys/fs/cgroup/unified/cgroup.controllers");
    assert_eq!(pressures, [there("/proc/pressure/cpu") && unified; 3]);
    let ask = cri::PodSandboxStatsRequest { pod_sandbox_id: sandbox.clone() };
    let of_pod = client.pod_sandbox_stats(ask).await.unwrap().into_inner().stats.unwrap().linux.unwrap();
    assert!(of_pod.cpu.unwrap().usage_core_nano_seconds.unwrap().value >= cpu.usage_core_nano_seconds.unwrap().value);
    assert_eq!(of_pod.process.unwrap().process_count.unwrap().value, 1);
    assert_eq!(of_pod.io.unwrap().psi.is_some(), pressures[2]);

    let overhead = cri::LinuxContainerResources { memory_limit_in_bytes: 5 << 20, ..Default::default() };
    let ask = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: sandbox.clone(),
        overhead: Some(overhead),
        resources: None,
    };
    client.update_pod_sandbox_resources(ask).await.unwrap();
    let ask = |id: &str| cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.to_owned(),
        overhead: None,
        resources: None,
    };
    let unknown = client.update_pod_sandbox_resources(ask("nothing")).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    daemon.kill();
    daemon.launch();
    let mut client = daemon.client().await;
    remove_pod(&mut client, &sandbox).await.unwrap();
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_its_own_user_ids_owns_its_files_and_its_network() {
    own_user_ids("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_does_where_its_root_is_a_copy_of_the_image() {
    own_user_ids("snapshotter = \"native\"").await;
}

async fn own_user_ids(settings: &str) {
    let Some(daemon) = Daemon::start_with(settings) else { return };
    let mut client = daemon.client().await;
    let status = client.status(cri::StatusRequest { verbose: false }).await.unwrap().into_inner();
    if !status.runtime_handlers.iter().any(|h| h.features.is_some_and(|f| f.user_namespaces)) {
        eprintln!("skipped: this kernel cannot do it");
        return;
    }
    let maps = vec![cri::IdMapping { container_id: 0, host_id: 300_000, length: 65_536 }];
    let users = cri::UserNamespace { mode: cri::NamespaceMode::Pod.into(), uids: maps.clone(), gids: maps };
    let mut config = common::pod("mapped");
    let options = cri::NamespaceOption { userns_options: Some(users), ..Default::default() };
    let security = cri::LinuxSandboxSecurityContext { namespace_options: Some(options.clone()), ..Default::default() };
    config.linux.as_mut().unwrap().security_context = Some(security);
    let sandbox = common::run_pod(&mut client, &config, "").await.unwrap();
    let mut main = common::container("main", "exec /bin/busybox sleep 1000");
    let security = cri::LinuxContainerSecurityContext {
        namespace_options: Some(options),
        capabilities: Some(cri::Capability { add_capabilities: vec!["NET_ADMIN".into()], ..Default::default() }),
        ..Default::default()
    };
    main.linux.as_mut().unwrap().security_context = Some(security);
    main.working_dir = "/made/here".into();
    let id = common::create_and_start(&mut client, &sandbox, &config, main).await.unwrap();
    let script = "set -e; cat=/bin/busybox; $cat cat /proc/self/uid_map; $cat stat -c %u:%g / /bin/busybox /etc/hosts /made/here; \
                  $cat touch /new; $cat stat -c %u /new; $cat hostname; $cat ip link add dev probe type veth; \
                  $cat ip link del probe; $cat timeout 1 /bin/busybox nc -l -p 80 || [ $? != 1 ]; echo done";
    let cmd = vec!["/bin/busybox".into(), "sh".into(), "-c".into(), script.into()];
    let ask = cri::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 20 };
    let output = client.exec_sync(ask).await.unwrap().into_inner();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<&str> = text.split_whitespace().collect();
    let wanted = ["0", "300000", "65536", "0:0", "0:0", "0:0", "0:0", "0", "mapped", "done"];
    assert_eq!(words, wanted, "{}", String::from_utf8_lossy(&output.stderr));
    remove_pod(&mut client, &sandbox).await.unwrap();
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_tells_about_itself_and_reads_its_configuration_again_at_a_hangup() {
    let Some(daemon) = Daemon::start_with("metrics_address = \"127.0.0.1:9464\"") else { return };
    let mut client = daemon.client().await;
    let (sandbox, _) = start_pod(&mut client, "counted", "/bin/busybox sleep 1000").await.unwrap();
    let get =
        |path: &str| daemon.run("/bin/busybox", &["wget", "-q", "-O", "-", &format!("http://127.0.0.1:9464{path}")]);
    let text = get("/metrics");
    for wanted in [
        "gantry_cri_sandboxes{state=\"ready\"} 1\n",
        "gantry_cri_containers{state=\"running\"} 1\n",
        "gantry_cri_images 1\n",
        "gantry_cri_operation_errors_total 0\n",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in\n{text}");
    }
    assert_eq!(get("/else"), "");
    let before = daemon.pid();
    let good = fs::read_to_string(daemon.path("cri.toml")).unwrap();
    fs::write(daemon.path("cri.toml"), "sokket = 1\n").unwrap();
    common::kill(before, nix::sys::signal::Signal::SIGHUP);
    common::until("a complaint about the file", Duration::from_secs(20), || {
        daemon.log().contains("sokket").then_some(())
    });
    assert_eq!(daemon.pid(), before);
    let handlers = async |client: &mut common::Client| {
        let status = client.status(cri::StatusRequest { verbose: false }).await.unwrap().into_inner();
        status.runtime_handlers.into_iter().map(|h| h.name).collect::<Vec<_>>()
    };
    assert_eq!(handlers(&mut client).await, [""]);
    let root = daemon.path("elsewhere");
    let text = format!("{good}root = \"{}\"\n[runtime_handlers]\nother = \"/nowhere\"\n", root.display());
    fs::write(daemon.path("cri.toml"), text.replacen("root = ", "# ", 1)).unwrap();
    common::kill(before, nix::sys::signal::Signal::SIGHUP);
    common::until("what the file says now", Duration::from_secs(20), || {
        daemon.log().contains("count from the next start on").then_some(())
    });
    assert_eq!(handlers(&mut client).await, ["", "other"]);
    assert!(!root.exists(), "a root cannot move under a running daemon");
    remove_pod(&mut client, &sandbox).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_is_ready_when_its_plugins_say_so_and_bandwidth_must_be_a_quantity() {
    let Some(daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let mut config = common::pod("fast");
    config.annotations.insert("kubernetes.io/egress-bandwidth".into(), "very".into());
    let ask = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    let error = client.run_pod_sandbox(ask).await.unwrap_err();
    assert!(error.message().contains("egress-bandwidth"), "{error}");
    async fn network(client: &mut common::Client) -> cri::RuntimeCondition {
        let status = client.status(cri::StatusRequest { verbose: false }).await.unwrap().into_inner().status.unwrap();
        status.conditions.into_iter().find(|c| c.r#type == "NetworkReady").unwrap()
    }
    let ready = network(&mut client).await;
    assert!(ready.status, "{ready:?}");
    let refuses = daemon.path("cni/refuses");
    fs::write(&refuses, "#!/bin/sh\necho '{\"code\": 50, \"msg\": \"the fabric is down\"}'\nexit 1\n").unwrap();
    fs::set_permissions(&refuses, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let list = r#"{"cniVersion": "1.1.0", "name": "other", "plugins": [{"type": "refuses"}]}"#;
    fs::write(daemon.path("net.d/10-test.conflist"), list).unwrap();
    let down = network(&mut client).await;
    assert!(!down.status && down.message.contains("the fabric is down"), "{down:?}");
    fs::remove_file(daemon.path("net.d/10-test.conflist")).unwrap();
    let none = network(&mut client).await;
    assert!(!none.status && none.message.contains("no network configuration"), "{none:?}");
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_the_runtimes_and_what_belongs_to_it_or_says_why_it_is_not() {
    let Some(mut daemon) = Daemon::start() else { return };
    daemon.stop();
    // Stands in for a runtime with criu, which few machines have.
    let runtime = daemon.path("with-criu");
    let script = "for a; do [ \"$last\" = --image-path ] && images=$a; [ \"$a\" = checkpoint ] && is=1; last=$a; done\n\
                  if [ \"${is-}\" ]; then echo pages >\"$images/pages-1.img\"; exit; fi";
    let own = std::path::Path::new(env!("CARGO_BIN_EXE_gantry-cri")).parent().unwrap().join("gantry-run");
    let own = std::env::var_os("GANTRY_BIN_DIR").map_or(own, |d| std::path::PathBuf::from(d).join("gantry-run"));
    fs::write(&runtime, format!("#!/bin/sh\n{script}\nexec {} \"$@\"\n", own.display())).unwrap();
    fs::set_permissions(&runtime, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let more = format!("[runtime_handlers]\nfrozen = \"{}\"\n", runtime.display());
    let config = fs::read_to_string(daemon.path("cri.toml")).unwrap();
    fs::write(daemon.path("cri.toml"), config + &more).unwrap();
    daemon.launch();
    let mut client = daemon.client().await;
    let archive = daemon.path("checkpoint.tar").display().to_string();
    let ask = |id: &str| cri::CheckpointContainerRequest {
        container_id: id.to_owned(),
        location: archive.clone(),
        timeout: 60,
    };
    let config = common::pod("kept");
    let sandbox = common::run_pod(&mut client, &config, "frozen").await.unwrap();
    let script = "echo new >/made; /bin/busybox rm /bin/sh; exec /bin/busybox sleep 1000";
    let id = common::create(&mut client, &sandbox, &config, common::container("main", script)).await.unwrap();
    let error = client.checkpoint_container(ask(&id)).await.unwrap_err();
    assert!(error.message().contains("does not run"), "{error}");
    common::start(&mut client, &id).await.unwrap();
    let list = |archive: &str| daemon.run("/bin/busybox", &["tar", "-tf", archive]);
    let end = std::time::Instant::now() + Duration::from_secs(60);
    let changes = loop {
        client.checkpoint_container(ask(&id)).await.unwrap();
        let folder = daemon.path("").display().to_string();
        daemon.run("/bin/busybox", &["tar", "-C", &folder, "-xf", &archive, "rootfs-diff.tar"]);
        let changes = list(&daemon.path("rootfs-diff.tar").display().to_string());
        if changes.contains(".wh.sh") {
            break changes;
        }
        assert!(std::time::Instant::now() < end, "the deletion is not in {changes}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(changes.lines().any(|l| l == "made") && changes.lines().any(|l| l == "bin/.wh.sh"), "{changes}");
    let names = list(&archive);
    for wanted in ["checkpoint/pages-1.img", "config.dump", "spec.dump"] {
        assert!(names.lines().any(|l| l == wanted), "{wanted} is not in {names}");
    }
    assert_eq!(state(&mut client, &id).await.state(), cri::ContainerState::ContainerRunning);
    fs::remove_file(&archive).unwrap();
    let able = fs::read_to_string(&runtime).unwrap();
    let other = daemon.path("without-criu");
    fs::write(&other, able.replace("echo pages", "echo criu is not here >&2; exit 1; echo pages")).unwrap();
    fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(&other, &runtime).unwrap();
    let error = client.checkpoint_container(ask(&id)).await.unwrap_err();
    assert!(error.message().contains("criu is not here"), "{error}");
    let left = fs::read_dir(daemon.path("")).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    assert!(left.into_iter().all(|n| !n.contains("checkpoint")), "a failed checkpoint leaves nothing");
    remove_pod(&mut client, &sandbox).await.unwrap();
    daemon.assert_clean();
}
