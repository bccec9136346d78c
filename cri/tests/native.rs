//! The daemon where containers get copies of their images: `snapshotter = "native"`.

mod common;

use std::fs;

use common::{Daemon, remove_pod, state};
use proto::cri;

#[tokio::test(flavor = "multi_thread")]
async fn a_container_with_a_copy_of_its_image_lives_like_any_other() {
    let Some(mut daemon) = Daemon::start_with("snapshotter = \"native\"") else { return };
    // Stands in for a runtime with criu.
    daemon.stop();
    let (runtime, own) = (daemon.path("with-criu"), daemon.programs().join("gantry-run"));
    let script = format!("for a; do [ \"$a\" = checkpoint ] && exit 0; done\nexec {} \"$@\"", own.display());
    fs::write(&runtime, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&runtime, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let toml = fs::read_to_string(daemon.path("cri.toml")).unwrap();
    fs::write(daemon.path("cri.toml"), format!("{toml}runtime = \"{}\"\n", runtime.display())).unwrap();
    daemon.launch();
    assert_eq!(daemon.log().matches("snapshotter chosen").count(), 2, "{}", daemon.log());
    let mut client = daemon.client().await;
    let pod = common::pod("copied");
    let sandbox = common::run_pod(&mut client, &pod, "").await.unwrap();
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let mut config = common::container(name, "/bin/busybox echo $HOSTNAME >/mine; exec /bin/busybox sleep 1000");
        config.mounts =
            vec![cri::Mount { container_path: "/volume".into(), image: config.image.clone(), ..Default::default() }];
        let id = common::create_and_start(&mut client, &sandbox, &pod, config).await.unwrap();
        ids.push(id);
    }
    let images = daemon.path("root/images");
    let count = |folder: &str| fs::read_dir(images.join(folder)).unwrap().count();
    assert_eq!((count("snapshots"), count("views")), (4, 1), "two roots and two volumes, which share a copy");
    daemon.kill();
    daemon.launch();
    let mut client = daemon.client().await;
    let script = "set -e; cd /bin; ./busybox cat /mine; ./busybox cmp busybox /volume/bin/busybox; ./busybox readlink sh; \
                  ! ./busybox touch /volume/new 2>/dev/null; ./busybox rm /bin/sh; ./busybox mkdir -p /more/of/it; \
                  ./busybox grep -c ' / overlay' /proc/mounts || true";
    let cmd = vec!["/bin/busybox".to_owned(), "sh".to_owned(), "-c".to_owned(), script.to_owned()];
    for id in &ids {
        assert_eq!(state(&mut client, id).await.state(), cri::ContainerState::ContainerRunning);
        let ask = cri::ExecSyncRequest { container_id: id.clone(), cmd: cmd.clone(), timeout: 20 };
        let output = client.exec_sync(ask).await.unwrap().into_inner();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text, "copied\nbusybox\n0\n", "{}", String::from_utf8_lossy(&output.stderr));
    }
    let ask = cri::ContainerStatsRequest { container_id: ids[0].clone() };
    let stats = client.container_stats(ask).await.unwrap().into_inner().stats.unwrap();
    let used = stats.writable_layer.and_then(|layer| layer.used_bytes).map_or(0, |bytes| bytes.value);
    assert!(used >= fs::metadata("/bin/busybox").unwrap().len() / 2, "{used}: a copy takes its place on the disk");
    let archive = daemon.path("checkpoint.tar").display().to_string();
    let ask = cri::CheckpointContainerRequest { container_id: ids[0].clone(), location: archive.clone(), timeout: 20 };
    client.checkpoint_container(ask).await.unwrap();
    let folder = daemon.path("").display().to_string();
    daemon.run("/bin/busybox", &["tar", "-C", &folder, "-xf", &archive, "rootfs-diff.tar"]);
    let changes = daemon.run("/bin/busybox", &["tar", "-tf", &daemon.path("rootfs-diff.tar").display().to_string()]);
    for changed in ["mine", "bin/.wh.sh", "more/of/it"] {
        assert!(changes.lines().any(|l| l == changed), "{changed} is not in {changes}");
    }
    assert!(!changes.contains("busybox"), "what is as it was is in {changes}");
    client.stop_container(cri::StopContainerRequest { container_id: ids[0].clone(), timeout: 1 }).await.unwrap();
    client.remove_container(cri::RemoveContainerRequest { container_id: ids[0].clone() }).await.unwrap();
    assert_eq!((count("snapshots"), count("views")), (2, 1));
    daemon.assert_clean();
    remove_pod(&mut client, &sandbox).await.unwrap();
    assert_eq!((count("snapshots"), count("views")), (0, 0));
    daemon.assert_clean();
}

#[test]
fn an_unknown_snapshotter_is_refused_with_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cri.toml");
    fs::write(&file, "snapshotter = \"btrfs\"\n").unwrap();
    let check = std::process::Command::new(env!("CARGO_BIN_EXE_gantry-cri"))
        .args(["--config", &file.display().to_string(), "config", "check"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&check.stderr);
    assert!(!check.status.success() && text.contains("snapshotter") && text.contains("native"), "{text}");
}
