//! Removal when things are wrong: it takes bounded time, says why it could not be finished, and is finished by itself when the
//! cause is gone.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::fuse::{Silent, is_uninterruptible};
use common::{Client, Daemon, remove_pod, start_pod, until};
use proto::cri;

/// What a client would wait.
const LIMIT: Duration = Duration::from_secs(100);

async fn pods(client: &mut Client) -> Vec<cri::PodSandbox> {
    client.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await.unwrap().into_inner().items
}

async fn gone_by_itself(client: &mut Client) {
    let end = Instant::now() + Duration::from_secs(120);
    while !pods(client).await.is_empty() {
        assert!(Instant::now() < end, "it is not removed by itself");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn inside(daemon: &Daemon, script: &str) {
    let output = daemon.run("/bin/sh", &["-c", &format!("{{ {script}; }} 2>&1 && echo fine")]);
    assert!(output.ends_with("fine\n"), "{script}: {output}");
}

/// A daemon whose store is on a small file system of its own.
fn on_small_disk() -> Option<(Daemon, PathBuf)> {
    let mut daemon = Daemon::start()?;
    daemon.stop();
    let root = daemon.path("root");
    let (shown, kept) = (root.display(), daemon.path("kept"));
    inside(&daemon, &format!("cp -a {shown} {} && mount -t tmpfs -o size=24m disk {shown}", kept.display()));
    inside(&daemon, &format!("cp -a {}/. {shown}/", kept.display()));
    daemon.launch();
    Some((daemon, root))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_does_not_keep_a_pod() {
    let Some((daemon, root)) = on_small_disk() else { return };
    let mut client = daemon.client().await;
    let (sandbox, _) = start_pod(&mut client, "full", "echo x >/file; exec /bin/busybox sleep 1000").await.unwrap();
    let filler = root.join("filler");
    let fill = format!("/bin/busybox dd if=/dev/zero of={0} bs=4096 2>/dev/null; test -s {0}", filler.display());
    inside(&daemon, &fill);
    let error = start_pod(&mut client, "more", "/bin/busybox sleep 1000").await.unwrap_err();
    assert!(error.message().contains("No space left") || error.message().contains("bytes are free"), "{error}");
    let begun = Instant::now();
    remove_pod(&mut client, &sandbox).await.unwrap();
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    for pod in pods(&mut client).await {
        remove_pod(&mut client, &pod.id).await.unwrap();
    }
    inside(&daemon, &format!("rm {}", filler.display()));
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_disk_is_told_and_the_removal_is_made_up_for() {
    let Some(mut daemon) = Daemon::start() else { return };
    let root = daemon.path("root");
    let mut client = daemon.client().await;
    let (sandbox, id) = start_pod(&mut client, "stuck", "/bin/busybox sleep 1000").await.unwrap();
    let (second, _) = start_pod(&mut client, "second", "/bin/busybox sleep 1000").await.unwrap();
    // The whole cannot be made so while files in it are open.
    let records = root.join("containers").display().to_string();
    inside(&daemon, &format!("mount --bind {records} {records} && mount -o remount,bind,ro {records}"));
    let begun = Instant::now();
    let error = remove_pod(&mut client, &sandbox).await.unwrap_err();
    assert!(error.message().contains("Read-only file system"), "{error}");
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    let status = common::state(&mut client, &id).await;
    assert_eq!(status.state(), cri::ContainerState::ContainerExited);
    assert!(status.message.contains("Read-only file system"), "{status:?}");
    inside(&daemon, &format!("umount {records}"));
    let end = Instant::now() + Duration::from_secs(120);
    while pods(&mut client).await.iter().any(|p| p.id == sandbox) {
        assert!(Instant::now() < end, "it is not removed by itself");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // A wish that could be written down outlives the daemon. A running pod is none of its business.
    inside(&daemon, &format!("mkdir -p {0}/held && mount --bind {0}/held {0}/images/trash", root.display()));
    inside(&daemon, &format!("mount -o remount,bind,ro {}/images/trash", root.display()));
    assert!(remove_pod(&mut client, &second).await.is_err());
    daemon.kill();
    inside(&daemon, &format!("umount {}/images/trash", root.display()));
    daemon.launch();
    let mut client = daemon.client().await;
    gone_by_itself(&mut client).await;
    inside(&daemon, &format!("rmdir {}/held", root.display()));
    daemon.assert_clean();
}

/// The cgroup folders of a pid.
fn groups_of(pid: u32) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let folder = |line: &str| {
        let mut parts = line.splitn(3, ':');
        let (id, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        let top = match (id, names) {
            ("0", "") if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() => "/sys/fs/cgroup".to_owned(),
            ("0", "") => "/sys/fs/cgroup/unified".to_owned(),
            (_, names) => format!("/sys/fs/cgroup/{}", names.trim_start_matches("name=")),
        };
        Some(PathBuf::from(top + path))
    };
    text.lines().filter_map(folder).collect()
}

/// A container's first process, as this namespace numbers it.
fn process_with(word: &str) -> u32 {
    until("the container's process", Duration::from_secs(20), || {
        fs::read_dir("/proc").ok()?.flatten().find_map(|e| {
            let pid = e.file_name().to_string_lossy().parse().ok()?;
            let line = fs::read(e.path().join("cmdline")).ok()?;
            let root = fs::read_link(e.path().join("root")).ok()?;
            let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
            (words.contains(&word.as_bytes()) && words.contains(&&b"sleep"[..]) && root == Path::new("/"))
                .then_some(pid)
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn vanished_namespaces_and_cgroups_and_busy_mounts_do_not_keep_a_pod() {
    let Some(daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let (sandbox, id) = start_pod(&mut client, "odd", "exec /bin/busybox sleep 31415").await.unwrap();
    let pid = process_with("31415");
    let groups = groups_of(pid);
    let dir = format!("/run/gt/cri/sandboxes/{sandbox}");
    // Somebody else's mount in the container's root, and somebody who stands there.
    let root = format!("/run/gt/cri/containers/{id}/rootfs");
    inside(&daemon, &format!("mkdir -p {root}/mnt && mount -t tmpfs other {root}/mnt"));
    inside(&daemon, &format!("cd {root}/mnt && (exec /bin/busybox sleep 1000 >/dev/null 2>&1 </dev/null &)"));
    inside(&daemon, &format!("umount -l {dir}/ns/net"));
    common::kill(pid, nix::sys::signal::Signal::SIGKILL);
    until("the end of the process", Duration::from_secs(20), || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
    for group in groups {
        let own = group.to_string_lossy().contains("gantry-test-");
        if own && group.exists() {
            until("an empty cgroup", Duration::from_secs(20), || fs::remove_dir(&group).ok());
        }
    }
    let begun = Instant::now();
    remove_pod(&mut client, &sandbox).await.unwrap();
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert!(pods(&mut client).await.is_empty());
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_cannot_die_is_told_and_its_pod_goes_when_it_does() {
    let freezer = Path::new("/sys/fs/cgroup/freezer");
    if !freezer.join("cgroup.procs").exists() {
        eprintln!("skipped: only the freezer of cgroup version 1 holds a process so that SIGKILL waits");
        return;
    }
    let Some(daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let (sandbox, id) = start_pod(&mut client, "frozen", "exec /bin/busybox sleep 27182").await.unwrap();
    let (other, _) = start_pod(&mut client, "other", "/bin/busybox sleep 1000").await.unwrap();
    let pid = process_with("27182");
    // A group that is not the pod's: nobody thaws it.
    let ice = freezer.join(format!("gantry-test-{}-ice", std::process::id()));
    fs::create_dir_all(&ice).unwrap();
    struct Thaw(PathBuf);
    impl Drop for Thaw {
        fn drop(&mut self) {
            let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        }
    }
    let thaw = Thaw(ice.clone());
    fs::write(ice.join("cgroup.procs"), pid.to_string()).unwrap();
    fs::write(ice.join("freezer.state"), "FROZEN").unwrap();
    let begun = Instant::now();
    let ask = cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    let error = client.remove_pod_sandbox(ask).await.unwrap_err();
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert!(error.message().contains(&id) && error.message().contains("SIGKILL"), "{error}");
    remove_pod(&mut client, &other).await.unwrap();
    let status = common::state(&mut client, &id).await;
    assert_eq!(status.state(), cri::ContainerState::ContainerRunning, "it does run");
    drop(thaw);
    gone_by_itself(&mut client).await;
    until("the end of the process", Duration::from_secs(20), || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
    until("an empty cgroup", Duration::from_secs(20), || fs::remove_dir(&ice).ok());
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_waits_for_a_dead_file_server_keeps_its_pod_until_the_server_is_gone() {
    let Some(mut daemon) = Daemon::start() else { return };
    let volume = daemon.path("volume");
    let Some(silent) = Silent::mount(daemon.init(), &volume) else { return };
    let mut client = daemon.client().await;
    let config = common::pod("waits");
    let sandbox = common::run_pod(&mut client, &config, "").await.unwrap();
    let mut main = common::container("main", "exec /bin/busybox cat /volume/sleep");
    main.mounts = vec![cri::Mount {
        container_path: "/volume".into(),
        host_path: volume.display().to_string(),
        ..Default::default()
    }];
    let id = common::create_and_start(&mut client, &sandbox, &config, main).await.unwrap();
    until("a read that waits", Duration::from_secs(30), || (silent.held() > 0).then_some(()));
    let pid = until("the container's process", Duration::from_secs(20), || {
        let words = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let all = fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().to_string_lossy().parse().ok());
        all.into_iter().find(|pid| words(pid).contains("/volume/sleep") && words(pid).contains("cat"))
    });
    let begun = Instant::now();
    let ask = cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    let error = client.remove_pod_sandbox(ask).await.unwrap_err();
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert!(error.message().contains(&id) && error.message().contains("SIGKILL"), "{error}");
    until("a wait that SIGKILL does not end", Duration::from_secs(20), || is_uninterruptible(pid).then_some(()));
    let ask = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: true };
    let told = client.pod_sandbox_status(ask).await.unwrap().into_inner();
    assert!(told.info["info"].contains("SIGKILL"), "{:?}", told.info);
    // Nobody else has to wait for it, a new daemon neither.
    let (other, _) = start_pod(&mut client, "other", "/bin/busybox sleep 1000").await.unwrap();
    daemon.kill();
    daemon.launch();
    let mut client = daemon.client().await;
    remove_pod(&mut client, &other).await.unwrap();
    drop(silent);
    gone_by_itself(&mut client).await;
    inside(&daemon, &format!("umount {}", volume.display()));
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_on_a_dead_file_server_holds_up_its_own_pod_only_and_not_for_ever() {
    let Some(mut daemon) = Daemon::start() else { return };
    let logs = daemon.path("logs");
    let Some(silent) = Silent::mount(daemon.init(), &logs) else { return };
    let mut client = daemon.client().await;
    let mut config = common::pod("mute");
    config.log_directory = logs.display().to_string();
    let sandbox = common::run_pod(&mut client, &config, "").await.unwrap();
    let mut main = common::container("main", "echo one; exec /bin/busybox sleep 1000");
    main.log_path = "main.log".into();
    let id = common::create_and_start(&mut client, &sandbox, &config, main).await.unwrap();
    until("a line that waits", Duration::from_secs(30), || (silent.held() > 0).then_some(()));
    // Everything about another pod is as quick as ever, what can be told without the monitor is told, by a new daemon, too.
    daemon.kill();
    daemon.launch();
    let mut client = daemon.client().await;
    let begun = Instant::now();
    let (other, _) = start_pod(&mut client, "other", "/bin/busybox sleep 1000").await.unwrap();
    remove_pod(&mut client, &other).await.unwrap();
    assert_eq!(common::state(&mut client, &id).await.state(), cri::ContainerState::ContainerRunning);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let cmd = vec!["/bin/busybox".into(), "true".into()];
    let ask = cri::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 2 };
    let error = client.exec_sync(ask).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let ask = cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    let error = client.remove_pod_sandbox(ask).await.unwrap_err();
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert!(error.message().contains(&id) && error.message().contains("monitor"), "{error}");
    silent.answer();
    gone_by_itself(&mut client).await;
    drop(silent);
    inside(&daemon, &format!("umount {}", logs.display()));
    daemon.assert_clean();
}
