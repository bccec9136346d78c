//! Checkpoints with a real criu, where there is one that works on this kernel: through CheckpointContainer into an archive, and
//! from it into a container of another pod.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cri_images::Digest;
use cri_images::build::{BuildConfig, LayerBlob, config_json, layer_from_dir, manifest_json};

use common::{Client, Daemon, remove_pod, state, until};
use proto::cri;

/// Whether criu works here; says why not.
fn criu() -> bool {
    match Command::new("criu").arg("check").output() {
        Err(_) => eprintln!("skipped: criu is not installed"),
        Ok(check) if !check.status.success() => eprintln!("skipped: `criu check` fails on this kernel"),
        Ok(_) => return true,
    }
    false
}

async fn pod(client: &mut Client, name: &str, logs: &Path) -> (String, cri::PodSandboxConfig) {
    let mut config = common::pod(name);
    config.log_directory = logs.display().to_string();
    fs::create_dir_all(logs).unwrap();
    (common::run_pod(client, &config, "").await.unwrap(), config)
}

/// The last number in a log.
fn count(log: &Path) -> u64 {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().rev().find_map(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

fn first(log: &Path) -> u64 {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().find_map(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

/// Imports an image of one layer whose manifest says that it is a checkpoint.
fn import(daemon: &Daemon, layer: &LayerBlob) {
    let layers = std::slice::from_ref(layer);
    let config = config_json(layers, &BuildConfig::default()).to_string().into_bytes();
    let mut manifest = manifest_json(&config, layers);
    manifest["annotations"] = serde_json::json!({"org.criu.checkpoint.container.name": "main"});
    let manifest = manifest.to_string().into_bytes();
    let layout = daemon.path("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    for blob in [&config, &manifest, &layer.bytes] {
        fs::write(blobs.join(Digest::of(blob).hex()), blob).unwrap();
    }
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let digest = Digest::of(&manifest).to_string();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let index = serde_json::json!({"schemaVersion": 2,
        "manifests": [{"mediaType": kind, "digest": digest, "size": manifest.len()}]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    let asked = ["image", "import", "--name", "localhost/checkpoint:1", layout.to_str().unwrap()];
    let imported = daemon.command(&asked);
    assert!(imported.status.success(), "{imported:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_checkpointed_runs_on_and_goes_on_in_another_pod() {
    if !rustix::process::geteuid().is_root() || !criu() {
        return;
    }
    let Some(mut daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let (one, two) = (daemon.path("logs-one"), daemon.path("logs-two"));
    let (sandbox, config) = pod(&mut client, "first", &one).await;
    let script = "/bin/busybox rm /bin/sh; echo kept >/made; exec 3>/open; echo held >&3; i=0; \
                  while :; do i=$((i+1)); echo $i; /bin/busybox sleep 0.05; done";
    let mut container = common::container("main", script);
    container.log_path = "main.log".to_owned();
    let mut create = cri::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(container.clone()),
        sandbox_config: Some(config),
    };
    let id = client.create_container(create.clone()).await.unwrap().into_inner().container_id;
    common::start(&mut client, &id).await.unwrap();
    let log = one.join("main.log");
    until("the count", Duration::from_secs(30), || (count(&log) > 20).then_some(()));
    let archive = daemon.path("checkpoint.tar");
    let ask = cri::CheckpointContainerRequest {
        container_id: id.clone(),
        location: archive.display().to_string(),
        timeout: 60,
    };
    client.checkpoint_container(ask).await.unwrap();
    let then = count(&log);
    until("the count to go on", Duration::from_secs(30), || (count(&log) > then).then_some(()));
    assert_eq!(state(&mut client, &id).await.state(), cri::ContainerState::ContainerRunning);
    // As other engines write them.
    let folder = daemon.path("unpacked");
    fs::create_dir(&folder).unwrap();
    let unpacked = Command::new("tar").arg("-C").arg(&folder).arg("-xf").arg(&archive).status().unwrap();
    assert!(unpacked.success());
    let json =
        |name: &str| -> serde_json::Value { serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap() };
    for name in [
        "checkpoint/inventory.img",
        "checkpoint/pages-1.img",
        "dump.log",
        "stats-dump",
        "rootfs-diff.tar",
        "container.log",
    ] {
        assert!(folder.join(name).exists(), "{name} is missing");
    }
    let about = json("config.dump");
    assert_eq!((&about["id"], &about["name"]), (&id.clone().into(), &"main".into()));
    assert!(about["checkpointedTime"].as_str().unwrap().ends_with('Z'), "{about}");
    assert_eq!(json("status.dump")["metadata"]["name"], "main");
    assert_eq!(json("spec.dump")["process"]["args"][0], "/bin/busybox");
    remove_pod(&mut client, &sandbox).await.unwrap();
    // In another pod, which is killed between create and start: what is to be restored is not forgotten.
    let (sandbox, config) = pod(&mut client, "second", &two).await;
    container.image = Some(cri::ImageSpec { image: archive.display().to_string(), ..Default::default() });
    create.pod_sandbox_id.clone_from(&sandbox);
    create.config = Some(container);
    create.sandbox_config = Some(config);
    let id = client.create_container(create.clone()).await.unwrap().into_inner().container_id;
    assert_eq!(state(&mut client, &id).await.state(), cri::ContainerState::ContainerCreated);
    daemon.kill();
    daemon.launch();
    let mut client = daemon.client().await;
    let log = two.join("main.log");
    assert_eq!(count(&log), 0, "nothing runs before start");
    common::start(&mut client, &id).await.unwrap();
    until("the count to go on in the other pod", Duration::from_secs(30), || (count(&log) > then).then_some(()));
    assert!(first(&log) > 20, "it did not start anew: {}", first(&log));
    let exec = cri::ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["/bin/busybox", "sh", "-c", "/bin/busybox cat /made /open; test -e /bin/sh || echo gone"]
            .map(String::from)
            .into(),
        timeout: 20,
    };
    let said = client.exec_sync(exec).await.unwrap().into_inner();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said, "kept\nheld\ngone\n", "its files are there, and gone as they were");
    let stop = cri::StopContainerRequest { container_id: id.clone(), timeout: 0 };
    client.stop_container(stop).await.unwrap();
    assert_eq!(state(&mut client, &id).await.state(), cri::ContainerState::ContainerExited);
    // An image of it, as other engines make them: only where the configuration says so.
    let layer = layer_from_dir(&folder).unwrap();
    import(&daemon, &layer);
    let config = create.config.as_mut().unwrap();
    config.metadata.as_mut().unwrap().attempt = 3;
    config.log_path = "image.log".to_owned();
    config.image = Some(cri::ImageSpec { image: "localhost/checkpoint:1".to_owned(), ..Default::default() });
    let refused = client.create_container(create.clone()).await.unwrap_err();
    assert!(refused.message().contains("checkpoint_images"), "{refused}");
    daemon.kill();
    let toml = fs::read_to_string(daemon.path("cri.toml")).unwrap();
    fs::write(daemon.path("cri.toml"), format!("{toml}checkpoint_images = true\n")).unwrap();
    daemon.launch();
    let mut client = daemon.client().await;
    let restored = client.create_container(create.clone()).await.unwrap().into_inner().container_id;
    common::start(&mut client, &restored).await.unwrap();
    let log = two.join("image.log");
    until("the count to go on from the image", Duration::from_secs(30), || (count(&log) > then).then_some(()));
    assert!(first(&log) > 20, "it did not start anew: {}", first(&log));
    client.stop_container(cri::StopContainerRequest { container_id: restored, timeout: 0 }).await.unwrap();
    // One that is never started leaves nothing; an archive that is none is refused.
    let config = create.config.as_mut().unwrap();
    config.image = Some(cri::ImageSpec { image: archive.display().to_string(), ..Default::default() });
    let config = create.config.as_mut().unwrap();
    config.metadata.as_mut().unwrap().attempt = 1;
    let unused = client.create_container(create.clone()).await.unwrap().into_inner().container_id;
    let stop = cri::StopContainerRequest { container_id: unused.clone(), timeout: 0 };
    client.stop_container(stop).await.unwrap();
    let config = create.config.as_mut().unwrap();
    config.metadata.as_mut().unwrap().attempt = 2;
    config.image = Some(cri::ImageSpec { image: "/etc/passwd".to_owned(), ..Default::default() });
    let refused = client.create_container(create).await.unwrap_err();
    assert!(refused.message().contains("checkpoint /etc/passwd"), "{refused}");
    remove_pod(&mut client, &sandbox).await.unwrap();
    daemon.assert_clean();
}

/// A runtime whose `checkpoint` has a child write the images, as gantry-run has criu; it takes as long as there is a file `hold`.
fn stand_in(daemon: &Daemon) -> String {
    let (dir, own) = (daemon.path("").display().to_string(), daemon.programs().join("gantry-run"));
    let criu = format!(
        "echo half >\"$1/pages-1.img\"; while [ -e {dir}/hold ]; do sleep 0.05; done; echo whole >\"$1/pages-1.img\""
    );
    let runtime = format!(
        "for a; do\n case \"$last\" in --image-path) images=$a;; --work-path) work=$a;; esac\n \
         [ \"$a\" = checkpoint ] && is=1\n last=$a\ndone\n[ \"${{is-}}\" ] || exec {} \"$@\"\n\
         {dir}/criu \"$images\" 3>\"$work/dump.log\" &\necho $! >{dir}/criu.pid\necho $$ >{dir}/runtime.pid.new\n\
         mv {dir}/runtime.pid.new {dir}/runtime.pid\nwait $! || {{ echo criu is gone >&2; exit 1; }}",
        own.display()
    );
    for (name, script) in [("criu", criu), ("with-criu", runtime)] {
        fs::write(daemon.path(name), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(daemon.path(name), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    format!("[runtime_handlers]\nstand-in = \"{dir}/with-criu\"\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_within_a_checkpoint_leave_nothing_and_the_container_runs_on() {
    let Some(mut daemon) = Daemon::start() else { return };
    let handler = stand_in(&daemon);
    daemon.stop();
    let toml = fs::read_to_string(daemon.path("cri.toml")).unwrap();
    fs::write(daemon.path("cri.toml"), toml + &handler).unwrap();
    daemon.launch();
    let mut client = daemon.client().await;
    let logs = daemon.path("logs");
    fs::create_dir(&logs).unwrap();
    let mut config = common::pod("killed");
    config.log_directory = logs.display().to_string();
    let run = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "stand-in".to_owned() };
    let sandbox = client.run_pod_sandbox(run).await.unwrap().into_inner().pod_sandbox_id;
    let script = "i=0; while :; do i=$((i+1)); echo $i; /bin/busybox sleep 0.05; done";
    let mut container = common::container("main", script);
    container.log_path = "main.log".to_owned();
    let create = cri::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(container),
        sandbox_config: Some(config),
    };
    let id = client.create_container(create).await.unwrap().into_inner().container_id;
    client.start_container(cri::StartContainerRequest { container_id: id.clone() }).await.unwrap();
    let log = logs.join("main.log");
    let goes_on = || {
        let then = count(&log);
        until("the count to go on", Duration::from_secs(30), || (count(&log) > then).then_some(()));
    };
    goes_on();
    let folder = daemon.path("archives");
    fs::create_dir(&folder).unwrap();
    let ask = cri::CheckpointContainerRequest {
        container_id: id.clone(),
        location: folder.join("checkpoint.tar").display().to_string(),
        timeout: 120,
    };
    let names = || -> Vec<String> {
        let all = fs::read_dir(&folder).unwrap();
        all.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    };
    for killed in ["criu", "runtime", "daemon"] {
        fs::write(daemon.path("hold"), "").unwrap();
        let call = tokio::spawn({
            let (mut client, ask) = (daemon.client().await, ask.clone());
            async move { client.checkpoint_container(ask).await }
        });
        until("the runtime", Duration::from_secs(60), || daemon.path("runtime.pid").exists().then_some(()));
        let pid = |of: &str| fs::read_to_string(daemon.path(&format!("{of}.pid"))).unwrap().trim().to_owned();
        let (criu, runtime) = (pid("criu"), pid("runtime"));
        until("criu", Duration::from_secs(60), || {
            let parts = names().into_iter().find(|n| n.ends_with(".parts"))?;
            folder.join(parts).join("checkpoint/pages-1.img").exists().then_some(())
        });
        if killed == "daemon" {
            daemon.kill();
            daemon.launch();
            assert_eq!(names().len(), 1, "what is at work is not disturbed");
        } else {
            daemon.run("/bin/busybox", &["kill", "-9", if killed == "criu" { &criu } else { &runtime }]);
        }
        fs::remove_file(daemon.path("hold")).unwrap();
        let failed = call.await.unwrap().unwrap_err();
        assert!(killed != "criu" || failed.message().contains("criu is gone"), "{failed}");
        until("the parts to go", Duration::from_secs(60), || names().is_empty().then_some(()));
        goes_on();
        let mut client = daemon.client().await;
        assert_eq!(state(&mut client, &id).await.state(), cri::ContainerState::ContainerRunning);
        let left = Path::new("/proc").join(daemon.init().to_string()).join("root/proc").join(&criu);
        assert!(!fs::read_to_string(left.join("cmdline")).is_ok_and(|c| c.contains("/criu")), "criu is left");
        fs::remove_file(daemon.path("runtime.pid")).unwrap();
        // The same call works now.
        client.checkpoint_container(ask.clone()).await.unwrap();
        fs::remove_file(daemon.path("runtime.pid")).unwrap();
        assert_eq!(names(), ["checkpoint.tar"]);
        let archive = folder.join("checkpoint.tar").display().to_string();
        assert_eq!(daemon.run("/bin/busybox", &["tar", "-xOf", &archive, "checkpoint/pages-1.img"]), "whole\n");
        fs::remove_file(folder.join("checkpoint.tar")).unwrap();
        goes_on();
        daemon.assert_clean();
    }
    let mut client = daemon.client().await;
    remove_pod(&mut client, &sandbox).await.unwrap();
    daemon.assert_clean();
}
