//! Everything is killed at random moments while pods come and go; at the end nothing is left.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::registry::Registry;
use common::{Client, Daemon, remove_pod, start_pod};
use nix::sys::signal::Signal;
use proto::cri;
use proto::cri::image_service_client::ImageServiceClient;

/// Pod lives; more with `GANTRY_STORM_CYCLES`.
const CYCLES: usize = 25;
/// How long one step may be retried.
const PATIENCE: Duration = Duration::from_secs(90);

/// Processes inside the namespaces whose command line contains `word`.
fn find(init: u32, word: &str) -> Vec<u32> {
    let space = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let wanted = space(&init.to_string());
    let all = fs::read_dir("/proc").unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    all.filter(|pid| pid.parse::<u32>().is_ok() && space(pid) == wanted)
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(word)
        })
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

async fn connect(path: &std::path::Path) -> Client {
    let address = format!("unix://{}", path.display());
    Client::new(tonic::transport::Endpoint::new(address).unwrap().connect_lazy())
}

/// One life of a pod, whatever is killed meanwhile: each step is tried again until it succeeds or the pod is given up.
async fn life(socket: &std::path::Path, name: &str) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    let mut client = connect(socket).await;
    let mut last = String::new();
    // A pod whose start was hit is not repaired but removed, as a kubelet does.
    let started = start_pod(&mut client, name, "/bin/busybox sleep 1000").await;
    if let Err(e) = &started {
        last = format!("start: {e}");
    }
    loop {
        if Instant::now() > end {
            return Err(format!("pod {name} is not removed: {last}"));
        }
        let filter = cri::PodSandboxFilter::default();
        let list = client.list_pod_sandbox(cri::ListPodSandboxRequest { filter: Some(filter) }).await;
        let items = match list {
            Ok(list) => list.into_inner().items,
            Err(e) => {
                last = format!("list: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let ours: Vec<_> = items.iter().filter(|s| s.metadata.as_ref().is_some_and(|m| m.name == name)).collect();
        if ours.is_empty() {
            return Ok(());
        }
        for pod in ours {
            if let Err(e) = remove_pod(&mut client, &pod.id).await {
                last = format!("remove: {e}");
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Pulls an image and removes it, over and over: the daemon dies while it downloads and while it unpacks. Answers how often it went
/// well.
async fn pulls(socket: PathBuf, name: String, over: Arc<AtomicBool>) -> usize {
    let address = format!("unix://{}", socket.display());
    let mut client = ImageServiceClient::new(tonic::transport::Endpoint::new(address).unwrap().connect_lazy());
    let mut good = 0;
    while !over.load(Ordering::SeqCst) {
        let image = Some(cri::ImageSpec { image: name.clone(), ..Default::default() });
        let ask = cri::PullImageRequest { image: image.clone(), ..Default::default() };
        let pulled = client.pull_image(ask).await.is_ok();
        let removed = client.remove_image(cri::RemoveImageRequest { image }).await.is_ok();
        good += usize::from(pulled && removed);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let image = Some(cri::ImageSpec { image: name, ..Default::default() });
    let end = Instant::now() + PATIENCE;
    while let Err(e) = client.remove_image(cri::RemoveImageRequest { image: image.clone() }).await {
        assert!(Instant::now() < end, "the image is not removed: {e}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    good
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_whatever_is_killed() {
    let Some(mut daemon) = Daemon::start() else { return };
    let cycles = std::env::var("GANTRY_STORM_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(CYCLES);
    let mut client = daemon.client().await;
    // One pod lives through everything but the death of its own monitor.
    let (keeper, kept) = start_pod(&mut client, "keeper", "/bin/busybox sleep 100000").await.unwrap();
    let keepers_monitor = find(daemon.init(), &keeper[..13]);
    let before: BTreeSet<String> = daemon.run("cat", &["/proc/1/mounts"]).lines().map(str::to_owned).collect();
    let links = daemon.run("ls", &["/sys/class/net"]);

    let socket = daemon.path("cri.sock");
    let over = Arc::new(AtomicBool::new(false));
    let registry = Registry::start(daemon.init(), 3, 1 << 20, daemon.path("no-gate"));
    let puller = tokio::spawn(pulls(socket.clone(), registry.image.clone(), over.clone()));
    let pods = {
        let (socket, over) = (socket.clone(), over.clone());
        tokio::spawn(async move {
            let mut faults = Vec::new();
            for n in 0..cycles {
                if let Err(fault) = life(&socket, &format!("p{n}")).await {
                    faults.push(fault);
                }
            }
            over.store(true, Ordering::SeqCst);
            faults
        })
    };
    let mut kills = 0;
    while !over.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(rand::random_range(5..120))).await;
        let init = daemon.init();
        match rand::random_range(0..4) {
            0 => {
                daemon.kill();
                daemon.launch();
                kills += 1;
            }
            choice => {
                let word = ["gantry-monitor", "gantry-run", "/cni/"][choice - 1];
                let victims: Vec<u32> = find(init, word)
                    .into_iter()
                    .filter(|p| !keepers_monitor.contains(p) && *p != daemon.pid())
                    .collect();
                if !victims.is_empty() {
                    common::kill(victims[rand::random_range(0..victims.len())], Signal::SIGKILL);
                    kills += 1;
                }
            }
        }
    }
    let faults = pods.await.unwrap();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let pulled = puller.await.unwrap();
    let log = daemon.log();
    assert!(!log.contains("panicked"), "the daemon panicked");
    eprintln!("{cycles} pods, {kills} kills, {pulled} pulls that went well");

    let mut client = daemon.client().await;
    let alive = common::state(&mut client, &kept).await;
    assert_eq!(alive.state(), cri::ContainerState::ContainerRunning, "a daemon's death ended a container");
    let after: BTreeSet<String> = daemon.run("cat", &["/proc/1/mounts"]).lines().map(str::to_owned).collect();
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), Vec::<&String>::new(), "mounts are left");
    assert_eq!(daemon.run("ls", &["/sys/class/net"]), links, "links are left");
    assert_eq!(find(daemon.init(), "gantry-monitor").len(), keepers_monitor.len(), "monitors are left");
    daemon.assert_clean();
    remove_pod(&mut client, &keeper).await.unwrap();
    daemon.assert_clean();
    let addresses: Vec<_> = fs::read_dir(daemon.path("addresses/test"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| n.parse::<std::net::IpAddr>().is_ok())
        .collect();
    assert!(addresses.is_empty(), "addresses are left: {addresses:?}");
    for top in common::cgroups() {
        for pod in fs::read_dir(&top).unwrap().flatten().filter(|e| e.path().is_dir()) {
            let left: Vec<_> = fs::read_dir(pod.path()).unwrap().flatten().filter(|e| e.path().is_dir()).collect();
            assert!(left.is_empty(), "cgroups are left: {left:?}");
        }
    }
}
