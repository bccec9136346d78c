//! Endurance: many pods at once, many starts at once, many lives one after another. What the daemon holds is measured, and must be
//! the same after the last life as after the first ones.
//!
//! Short in a run of all tests; `scripts/soak.sh` asks for the whole of it through the environment.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Client, Daemon, remove_pod};
use futures::StreamExt;
use proto::cri;

/// Control groups are counted for the whole process: one test at a time.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A number of the environment.
fn option(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// Pods of one control group: a parent for each would be left to whoever made it.
fn pod(name: &str) -> cri::PodSandboxConfig {
    let mut config = common::pod(name);
    config.linux.as_mut().unwrap().cgroup_parent = format!("/gantry-test-{}/soak", std::process::id());
    config
}

async fn start(client: &Client, name: &str) -> Result<(String, String), tonic::Status> {
    common::start_configured(&mut client.clone(), pod(name), "exec /bin/busybox sleep 100000").await
}

/// What a host has more or less of when pods have been there.
#[derive(Debug)]
struct Host {
    mounts: BTreeSet<String>,
    links: BTreeSet<String>,
    processes: usize,
    cgroups: usize,
    addresses: usize,
}

impl Host {
    /// What is more or less now than before, in words.
    fn differences(&self, before: &Self) -> Vec<String> {
        let mut all = Vec::new();
        for (now, then) in [(&self.mounts, &before.mounts), (&self.links, &before.links)] {
            all.extend(now.difference(then).map(|l| format!("more: {l}")));
            all.extend(then.difference(now).map(|l| format!("less: {l}")));
        }
        let counts = |h: &Self| [("processes", h.processes), ("cgroups", h.cgroups), ("addresses", h.addresses)];
        for ((name, now), (_, then)) in counts(self).into_iter().zip(counts(before)) {
            if now != then {
                all.push(format!("{name}: {then} -> {now}"));
            }
        }
        all
    }
}

/// What the host has when a first pod has made what stays (the bridge), and is gone.
async fn settled(daemon: &Daemon, client: &Client) -> Host {
    let first = start(client, "first").await.unwrap();
    remove_all(client, &[first], 1).await;
    common::until("the end of all but the daemon", Duration::from_secs(60), || {
        Some(host(daemon)).filter(|h| h.processes == 1 && h.addresses == 0)
    })
}

/// The host gets back to what it was; the kernel takes its time over the last processes.
fn assert_host(daemon: &Daemon, before: &Host) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let differences = host(daemon).differences(before);
        if differences.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "the host is not what it was: {differences:#?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

/// The daemon's mounts: those that the namespace got at its birth go when others remove their folders.
fn mounts(daemon: &Daemon) -> BTreeSet<String> {
    let own = daemon.path("").display().to_string();
    let all = daemon.run("cat", &["/proc/1/mounts"]);
    all.lines().filter(|l| l.contains(" /run/gt/") || l.contains(&own)).map(str::to_owned).collect()
}

/// Folders below these.
fn folders(top: &Path) -> usize {
    let inner = fs::read_dir(top).into_iter().flatten().flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    inner.map(|e| 1 + folders(&e.path())).sum()
}

fn cgroups() -> usize {
    common::cgroups().iter().map(|top| folders(top)).sum()
}

fn host(daemon: &Daemon) -> Host {
    let names = fs::read_dir(daemon.path("addresses/test")).into_iter().flatten().flatten();
    let space = fs::read_link(format!("/proc/{}/ns/pid", daemon.init())).unwrap();
    let all = fs::read_dir("/proc").unwrap().flatten();
    let running = all.filter(|e| {
        let program = fs::read_link(e.path().join("exe")).unwrap_or_default();
        let ours = program.file_name().is_some_and(|n| n.to_string_lossy().starts_with("gantry-") || n == "busybox");
        ours && fs::read_link(e.path().join("ns/pid_for_children")).is_ok_and(|s| s == space)
    });
    Host {
        mounts: mounts(daemon),
        links: lines(&daemon.run("ls", &["/sys/class/net"])),
        processes: running.count(),
        cgroups: cgroups(),
        addresses: names.filter(|e| e.file_name().to_string_lossy().parse::<std::net::IpAddr>().is_ok()).count(),
    }
}

/// What the daemon holds.
#[derive(Debug, Clone, Copy, Default)]
struct Footprint {
    rss_kib: u64,
    descriptors: u64,
    threads: u64,
    cgroups: u64,
    mounts: u64,
    files: u64,
    disk_kib: u64,
}

impl Footprint {
    const NAMES: [&str; 7] = ["RSS KiB", "descriptors", "threads", "cgroups", "mounts", "files", "disk KiB"];

    fn values(&self) -> [u64; 7] {
        [self.rss_kib, self.descriptors, self.threads, self.cgroups, self.mounts, self.files, self.disk_kib]
    }
}

/// Files and KiB on the disk below a folder.
fn weight(folder: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let mut sum = (0, 0);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(meta) = fs::symlink_metadata(entry.path()) else { continue };
        sum = (sum.0 + 1, sum.1 + meta.blocks() / 2);
        if meta.is_dir() {
            let inner = weight(&entry.path());
            sum = (sum.0 + inner.0, sum.1 + inner.1);
        }
    }
    sum
}

fn footprint(daemon: &Daemon) -> Footprint {
    let process = PathBuf::from(format!("/proc/{}", daemon.pid()));
    let status = fs::read_to_string(process.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let inside = PathBuf::from(format!("/proc/{}/root/run/gt", daemon.init()));
    let parts = [weight(&daemon.path("root")), weight(&daemon.path("addresses")), weight(&inside)];
    Footprint {
        rss_kib: field("VmRSS:"),
        descriptors: fs::read_dir(process.join("fd")).unwrap().count() as u64,
        threads: field("Threads:"),
        cgroups: cgroups() as u64,
        mounts: mounts(daemon).len() as u64,
        files: parts.iter().map(|p| p.0).sum(),
        disk_kib: parts.iter().map(|p| p.1).sum(),
    }
}

fn mean(all: &[Footprint]) -> [f64; 7] {
    let mut sum = [0.0; 7];
    for one in all {
        for (sum, value) in sum.iter_mut().zip(one.values()) {
            *sum += value as f64 / all.len() as f64;
        }
    }
    sum
}

/// Milliseconds that most calls (the median) and nearly all (99 of 100) take.
async fn measure<F: Future<Output = Result<(), tonic::Status>>>(
    rounds: usize,
    call: impl Fn(usize) -> F,
) -> (f64, f64) {
    let mut times = Vec::new();
    for round in 0..rounds {
        let begun = Instant::now();
        call(round).await.unwrap();
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

async fn remove_all(client: &Client, pods: &[(String, String)], at_once: usize) {
    let removals = pods.iter().map(|(sandbox, _)| {
        let mut client = client.clone();
        async move { remove_pod(&mut client, sandbox).await }
    });
    let ends: Vec<_> = futures::stream::iter(removals).buffer_unordered(at_once).collect().await;
    for end in ends {
        end.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_stand_are_told_quickly_and_go_without_a_trace() {
    let _turn = TURN.lock().await;
    let Some(mut daemon) = Daemon::start() else { return };
    let count = option("GANTRY_SOAK_PODS", 16);
    let client = daemon.client().await.max_decoding_message_size(64 << 20);
    let before = settled(&daemon, &client).await;
    let idle = footprint(&daemon);
    let begun = Instant::now();
    let starts = (0..count).map(|n| {
        let client = client.clone();
        async move { start(&client, &format!("s{n}")).await }
    });
    let pods: Vec<_> = futures::stream::iter(starts).buffer_unordered(4).collect::<Vec<_>>().await;
    let pods: Vec<(String, String)> = pods.into_iter().map(Result::unwrap).collect();
    let started = begun.elapsed();
    let full = footprint(&daemon);
    let (pods_ref, client_ref) = (&pods, &client);
    let calls = async |what: &str, times: (f64, f64)| {
        eprintln!("{what} with {count} pods: p50 {:.3} ms, p99 {:.3} ms", times.0, times.1)
    };
    let rounds = 300;
    let times = measure(rounds, |n| async move {
        let ask = cri::PodSandboxStatusRequest { pod_sandbox_id: pods_ref[n * 7 % count].0.clone(), verbose: false };
        client_ref.clone().pod_sandbox_status(ask).await.map(drop)
    });
    calls("PodSandboxStatus", times.await).await;
    let times = measure(rounds, |n| async move {
        let ask = cri::ContainerStatusRequest { container_id: pods_ref[n * 7 % count].1.clone(), verbose: false };
        client_ref.clone().container_status(ask).await.map(drop)
    });
    calls("ContainerStatus", times.await).await;
    let times = measure(rounds, |n| async move {
        let filter = cri::PodSandboxFilter { id: pods_ref[n * 7 % count].0.clone(), ..Default::default() };
        client_ref.clone().list_pod_sandbox(cri::ListPodSandboxRequest { filter: Some(filter) }).await.map(drop)
    });
    calls("ListPodSandbox (one)", times.await).await;
    let times = measure(rounds, |n| async move {
        let filter = cri::ContainerFilter { pod_sandbox_id: pods_ref[n * 7 % count].0.clone(), ..Default::default() };
        client_ref.clone().list_containers(cri::ListContainersRequest { filter: Some(filter) }).await.map(drop)
    });
    calls("ListContainers (pod)", times.await).await;
    let times = measure(rounds / 3, |_| async move {
        let listed =
            client_ref.clone().list_containers(cri::ListContainersRequest { filter: None }).await?.into_inner();
        assert_eq!(listed.containers.len(), count);
        Ok(())
    });
    calls("ListContainers (all)", times.await).await;
    let times = measure(rounds / 3, |_| async move {
        let listed =
            client_ref.clone().list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await?.into_inner();
        assert_eq!(listed.items.len(), count);
        Ok(())
    });
    calls("ListPodSandbox (all)", times.await).await;
    // A daemon that comes back has to find all of them.
    daemon.kill();
    let begun = Instant::now();
    daemon.launch();
    let restarted = begun.elapsed();
    let client = daemon.client().await.max_decoding_message_size(64 << 20);
    let running = cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning.into() };
    let filter = cri::ContainerFilter { state: Some(running), ..Default::default() };
    let listed = client.clone().list_containers(cri::ListContainersRequest { filter: Some(filter) }).await.unwrap();
    assert_eq!(listed.into_inner().containers.len(), count, "a daemon's death ended containers");
    daemon.assert_clean();
    let begun = Instant::now();
    remove_all(&client, &pods, 4).await;
    eprintln!(
        "{count} pods: started in {:.1} s, taken over by a new daemon in {:.1} s, removed in {:.1} s; daemon's RSS {} KiB idle, {} KiB with them",
        started.as_secs_f64(),
        restarted.as_secs_f64(),
        begun.elapsed().as_secs_f64(),
        idle.rss_kib,
        full.rss_kib
    );
    daemon.assert_clean();
    assert_host(&daemon, &before);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_are_asked_for_at_once_all_come_up() {
    let _turn = TURN.lock().await;
    let Some(daemon) = Daemon::start() else { return };
    let count = option("GANTRY_SOAK_AT_ONCE", 12);
    let client = daemon.client().await;
    let before = settled(&daemon, &client).await;
    let begun = Instant::now();
    let names: Vec<String> = (0..count).map(|n| format!("o{n}")).collect();
    let starts = futures::future::join_all(names.iter().map(|name| start(&client, name))).await;
    let pods: Vec<(String, String)> = starts.into_iter().map(Result::unwrap).collect();
    let up = begun.elapsed();
    let mut addresses = BTreeSet::new();
    for (sandbox, id) in &pods {
        let ask = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: false };
        let status = client.clone().pod_sandbox_status(ask).await.unwrap().into_inner();
        assert_eq!(status.containers_statuses[0].id, *id);
        assert_eq!(status.containers_statuses[0].state(), cri::ContainerState::ContainerRunning);
        addresses.insert(status.status.unwrap().network.unwrap().ip);
    }
    assert_eq!(addresses.len(), count, "each has an address of its own");
    let begun = Instant::now();
    remove_all(&client, &pods, count).await;
    eprintln!("{count} pods at once: up in {:.2} s, gone in {:.2} s", up.as_secs_f64(), begun.elapsed().as_secs_f64());
    daemon.assert_clean();
    assert_host(&daemon, &before);
}

#[tokio::test(flavor = "multi_thread")]
async fn lives_one_after_another_leave_the_daemon_as_it_was() {
    let _turn = TURN.lock().await;
    let Some(daemon) = Daemon::start() else { return };
    let cycles = option("GANTRY_SOAK_CYCLES", 40).max(20);
    let limit = Duration::from_secs(option("GANTRY_SOAK_SECONDS", 3600) as u64);
    let client = daemon.client().await;
    let at_once = 2;
    let life = |name: String| {
        let mut client = client.clone();
        async move {
            let (sandbox, id) = start(&client, &name).await?;
            let cmd = vec!["/bin/busybox".into(), "true".into()];
            client.exec_sync(cri::ExecSyncRequest { container_id: id, cmd, timeout: 60 }).await?;
            remove_pod(&mut client, &sandbox).await
        }
    };
    // Caches and pools fill.
    for n in 0..5 {
        life(format!("w{n}")).await.unwrap();
    }
    let before = settled(&daemon, &client).await;
    let begun = Instant::now();
    let step = (cycles / 100).max(2);
    let (mut samples, mut done) = (Vec::new(), 0);
    while done < cycles && begun.elapsed() < limit {
        let lives = (done..done + step).map(|n| life(format!("c{n}")));
        for end in futures::stream::iter(lives).buffer_unordered(at_once).collect::<Vec<_>>().await {
            end.unwrap();
        }
        done += step;
        samples.push(footprint(&daemon));
        if [1000, 5000, 10_000].iter().any(|mark| (done - step..done).contains(&(mark - 1))) {
            let now = samples[samples.len() - 1];
            eprintln!("after {done} lives: RSS {} KiB, {} descriptors", now.rss_kib, now.descriptors);
        }
    }
    let each = begun.elapsed().as_secs_f64() * 1e3 / done as f64;
    let tenth = (samples.len() / 10).max(2);
    let (first, last) = (mean(&samples[..tenth]), mean(&samples[samples.len() - tenth..]));
    eprintln!("{done} lives, {each:.1} ms each, {at_once} at once; means of the first and the last tenth:");
    for (n, name) in Footprint::NAMES.iter().enumerate() {
        eprintln!("  {name:<12} {:>10.1} -> {:>10.1}", first[n], last[n]);
    }
    // Allocators and thread pools breathe; whatever grows with each life would be beyond these after a while.
    // A short run is over before the allocator has all that it keeps.
    let memory = if done < 1000 { 8192.0 } else { 2560.0 };
    let slack = [memory, 2.0, 4.0, 0.0, 0.0, 2.0, 1024.0];
    if std::env::var_os("GANTRY_SOAK_LIST").is_some() {
        eprintln!(
            "{}",
            daemon.run(
                "find",
                &[
                    "/run/gt",
                    &daemon.path("root").display().to_string(),
                    &daemon.path("addresses").display().to_string()
                ]
            )
        );
    }
    // What was removed is deleted behind the calls, and idle threads end later: only what stays has grown.
    let grown = |now: &[f64; 7]| (0..now.len()).filter(|n| now[*n] > first[*n] + slack[*n]).collect::<Vec<_>>();
    let (mut now, end) = (last, Instant::now() + Duration::from_secs(60));
    while !grown(&now).is_empty() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(300)).await;
        now = footprint(&daemon).values().map(|v| v as f64);
    }
    if let Some(&n) = grown(&now).first() {
        panic!("{} grew from {:.1} to {:.1} over {done} lives", Footprint::NAMES[n], first[n], now[n]);
    }
    daemon.assert_clean();
    assert_host(&daemon, &before);
}
