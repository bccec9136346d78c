//! Measures any CRI daemon through its socket: how long each call of a pod's life takes one after another and several at once,
//! how fast status calls are while many pods stand, and what the daemon and its helpers weigh. Run by `scripts/bench/cri.sh`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use proto::cri;
use proto::cri::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

/// Measures CRI daemons through their sockets, one after another.
#[derive(Parser)]
struct Flags {
    /// NAME=SOCKET (repeatable).
    #[arg(long, required = true)]
    target: Vec<String>,
    /// Lives of pods, one after another and again at once.
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// How many pods live at once in the second part.
    #[arg(long, default_value_t = 5)]
    parallel: usize,
    /// Pods that stand while status calls are measured.
    #[arg(long, default_value_t = 20)]
    standing: usize,
    /// Image of the containers, already in the daemon's store.
    #[arg(long)]
    image: String,
    /// Word of the command in it (repeatable); none: the image's own.
    #[arg(long, allow_hyphen_values = true)]
    command: Vec<String>,
    /// RuntimeClass handler.
    #[arg(long, default_value = "")]
    handler: String,
    /// table or json.
    #[arg(long, default_value = "table")]
    output: String,
}

type Client = RuntimeServiceClient<Channel>;
/// Milliseconds by the name of the call.
type Times = BTreeMap<&'static str, Vec<f64>>;

/// The calls in the order of a life, as the table shows them.
const CALLS: [&str; 14] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
    "whole life",
    "PodSandboxStatus",
    "ContainerStatus",
    "ListPodSandbox (one)",
    "ListPodSandbox (all)",
    "ListContainers (pod)",
    "ListContainers (all)",
];

/// What a daemon weighs is asked when it has had nothing to do for so long.
const REST: Duration = Duration::from_secs(5);

struct Target {
    name: String,
    socket: PathBuf,
    client: Client,
}

/// What is asked for, with names that no other run has.
struct Ask<'a> {
    flags: &'a Flags,
    run: u32,
}

/// As a kubelet asks for an ordinary pod: every container has its own PID namespace.
fn namespaces() -> cri::NamespaceOption {
    cri::NamespaceOption { pid: cri::NamespaceMode::Container.into(), ..Default::default() }
}

impl Ask<'_> {
    fn pod(&self, name: &str) -> cri::PodSandboxConfig {
        let name = format!("bench-{}-{name}", self.run);
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                uid: format!("uid-{name}"),
                namespace: "bench".to_owned(),
                attempt: 0,
                name,
            }),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: format!("/gantry-bench-{}", self.run),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn container(&self) -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: self.flags.image.clone(), ..Default::default() }),
            command: self.flags.command.clone(),
            linux: Some(cri::LinuxContainerConfig {
                security_context: Some(cri::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

async fn timed<T>(
    times: &mut Times,
    name: &'static str,
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let answer = tokio::time::timeout(Duration::from_secs(120), call).await;
    let answer = answer.with_context(|| format!("{name}: no answer after 120 s"))?.with_context(|| name.to_owned())?;
    times.entry(name).or_default().push(start.elapsed().as_secs_f64() * 1e3);
    Ok(answer)
}

/// Brings a pod up: sandbox and container.
async fn up(client: &mut Client, ask: &Ask<'_>, name: &str, times: &mut Times) -> anyhow::Result<(String, String)> {
    let config = ask.pod(name);
    let request =
        cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: ask.flags.handler.clone() };
    let pod = timed(times, "RunPodSandbox", client.run_pod_sandbox(request)).await?.into_inner().pod_sandbox_id;
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(ask.container()),
        sandbox_config: Some(config),
    };
    let container = timed(times, "CreateContainer", client.create_container(request)).await?.into_inner().container_id;
    let request = cri::StartContainerRequest { container_id: container.clone() };
    timed(times, "StartContainer", client.start_container(request)).await?;
    Ok((pod, container))
}

async fn down(client: &mut Client, pod: &str, container: &str, times: &mut Times) -> anyhow::Result<()> {
    let id = container.to_owned();
    let request = cri::StopContainerRequest { container_id: id.clone(), timeout: 0 };
    timed(times, "StopContainer", client.stop_container(request)).await?;
    timed(times, "RemoveContainer", client.remove_container(cri::RemoveContainerRequest { container_id: id })).await?;
    let id = pod.to_owned();
    let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
    timed(times, "StopPodSandbox", client.stop_pod_sandbox(request)).await?;
    let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id };
    timed(times, "RemovePodSandbox", client.remove_pod_sandbox(request)).await?;
    Ok(())
}

async fn life(client: &mut Client, ask: &Ask<'_>, name: &str, times: &mut Times) -> anyhow::Result<()> {
    let start = Instant::now();
    let (pod, container) = up(client, ask, name, times).await?;
    down(client, &pod, &container, times).await?;
    times.entry("whole life").or_default().push(start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// `parallel` workers that share `rounds` lives.
async fn lives(target: &Target, ask: &Ask<'_>, rounds: usize, parallel: usize) -> anyhow::Result<Times> {
    let worker = async |worker: usize| {
        let (mut client, mut times) = (target.client.clone(), Times::new());
        for round in (worker..rounds).step_by(parallel) {
            life(&mut client, ask, &format!("{parallel}-{round}"), &mut times).await?;
        }
        anyhow::Ok(times)
    };
    let mut all = Times::new();
    for times in futures::future::try_join_all((0..parallel).map(worker)).await? {
        for (name, more) in times {
            all.entry(name).or_default().extend(more);
        }
    }
    Ok(all)
}

/// Status calls while pods stand, and memory then.
async fn standing(target: &Target, ask: &Ask<'_>) -> anyhow::Result<(Times, serde_json::Value)> {
    let (mut client, mut ignored, mut times) = (target.client.clone(), Times::new(), Times::new());
    let mut pods = Vec::new();
    let start = Instant::now();
    for number in 0..ask.flags.standing {
        pods.push(up(&mut client, ask, &format!("s-{number}"), &mut ignored).await?);
    }
    let seconds = start.elapsed().as_secs_f64();
    tokio::time::sleep(REST).await;
    let weight = weight(&target.socket).await?;
    if !pods.is_empty() {
        for round in 0..200 {
            let (pod, container) = &pods[round * 7 % pods.len()];
            let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: false };
            timed(&mut times, "PodSandboxStatus", client.pod_sandbox_status(request)).await?;
            let request = cri::ContainerStatusRequest { container_id: container.clone(), verbose: false };
            timed(&mut times, "ContainerStatus", client.container_status(request)).await?;
            let filter = cri::PodSandboxFilter { id: pod.clone(), ..Default::default() };
            let request = cri::ListPodSandboxRequest { filter: Some(filter) };
            timed(&mut times, "ListPodSandbox (one)", client.list_pod_sandbox(request)).await?;
            let request = cri::ListPodSandboxRequest { filter: None };
            timed(&mut times, "ListPodSandbox (all)", client.list_pod_sandbox(request)).await?;
            let filter = cri::ContainerFilter { pod_sandbox_id: pod.clone(), ..Default::default() };
            let request = cri::ListContainersRequest { filter: Some(filter) };
            timed(&mut times, "ListContainers (pod)", client.list_containers(request)).await?;
            let request = cri::ListContainersRequest { filter: None };
            timed(&mut times, "ListContainers (all)", client.list_containers(request)).await?;
        }
    }
    for (pod, container) in &pods {
        down(&mut client, pod, container, &mut ignored).await?;
    }
    let mut weight = weight;
    weight["pods"] = pods.len().into();
    weight["seconds_to_start"] = seconds.into();
    Ok((times, weight))
}

/// RSS and PSS in KiB of a process.
fn memory(pid: &str) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some((field("Rss:")?, field("Pss:")?))
}

/// Memory of the daemon behind a socket and of its helper processes (those in this network namespace).
async fn weight(socket: &Path) -> anyhow::Result<serde_json::Value> {
    let stream = tokio::net::UnixStream::connect(socket).await.with_context(|| socket.display().to_string())?;
    let daemon = stream.peer_cred()?.pid().context("who serves the socket is not told")?.to_string();
    let (rss, pss) = memory(&daemon).context("the daemon's memory")?;
    let here = std::fs::read_link("/proc/self/ns/net")?;
    let (mut count, mut all) = (0u64, (0, 0));
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let helper = ["gantry-monitor", "containerd-shim", "conmon"].iter().any(|n| name.starts_with(n));
        if helper
            && std::fs::read_link(entry.path().join("ns/net")).is_ok_and(|n| n == here)
            && let Some((rss, pss)) = memory(&pid)
        {
            count += 1;
            all = (all.0 + rss, all.1 + pss);
        }
    }
    let each = |sum: u64| sum.checked_div(count).unwrap_or(0);
    Ok(serde_json::json!({"daemon_rss_kib": rss, "daemon_pss_kib": pss,
        "helpers": count, "helper_rss_kib": each(all.0), "helper_pss_kib": each(all.1)}))
}

/// Percentiles and mean of a call.
fn summary(times: &[f64]) -> serde_json::Value {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).clamp(1, sorted.len()) - 1];
    let round = |n: f64| (n * 1000.0).round() / 1000.0;
    let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
    serde_json::json!({"n": sorted.len(), "mean": round(mean), "p50": round(at(50)), "p95": round(at(95)), "p99": round(at(99))})
}

fn summaries(times: &Times) -> serde_json::Value {
    times.iter().map(|(name, t)| ((*name).to_owned(), summary(t))).collect::<serde_json::Map<_, _>>().into()
}

async fn measure(flags: &Flags, text: &str) -> anyhow::Result<serde_json::Value> {
    let (name, socket) = text.split_once('=').with_context(|| format!("--target {text:?} is not NAME=SOCKET"))?;
    let channel = Endpoint::new(format!("unix://{socket}"))?.connect().await;
    let channel = channel.with_context(|| format!("no CRI daemon answers at {socket}"))?;
    let client = RuntimeServiceClient::new(channel).max_decoding_message_size(64 << 20);
    let target = Target { name: name.to_owned(), socket: socket.into(), client };
    let ask = Ask { flags, run: std::process::id() };
    let context = |what: &str| format!("{}: {what}", target.name);
    // The first lives fill caches; nobody waits for them twice.
    for round in 0..3 {
        life(&mut target.client.clone(), &ask, &format!("w-{round}"), &mut Times::new())
            .await
            .with_context(|| context("warm up"))?;
    }
    tokio::time::sleep(REST).await;
    let idle = weight(&target.socket).await?;
    let one = lives(&target, &ask, flags.rounds, 1).await.with_context(|| context("one after another"))?;
    let many = lives(&target, &ask, flags.rounds, flags.parallel).await.with_context(|| context("at once"))?;
    let (status, weight) = standing(&target, &ask).await.with_context(|| context("standing pods"))?;
    Ok(serde_json::json!({"name": target.name, "sequential": summaries(&one), "parallel": summaries(&many),
        "status": summaries(&status), "idle": idle, "standing": weight}))
}

fn table(flags: &Flags, all: &[serde_json::Value]) {
    println!(
        "milliseconds; {} rounds one after another, {} at once; status calls with {} pods\n",
        flags.rounds, flags.parallel, flags.standing
    );
    println!(
        "{:<22} {:<12} {:>9} {:>9} {:>9} {:>9} | {:>9} {:>9} {:>9} {:>9} at once",
        "call", "daemon", "mean", "p50", "p95", "p99", "mean", "p50", "p95", "p99"
    );
    for call in CALLS {
        for one in all {
            let first = if one["status"][call].is_null() { &one["sequential"][call] } else { &one["status"][call] };
            if first.is_null() {
                continue;
            }
            let n = |v: &serde_json::Value| v.as_f64().map_or_else(String::new, |n| format!("{n:.2}"));
            let more = &one["parallel"][call];
            println!(
                "{call:<22} {:<12} {:>9} {:>9} {:>9} {:>9} | {:>9} {:>9} {:>9} {:>9}",
                one["name"].as_str().unwrap_or_default(),
                n(&first["mean"]),
                n(&first["p50"]),
                n(&first["p95"]),
                n(&first["p99"]),
                n(&more["mean"]),
                n(&more["p50"]),
                n(&more["p95"]),
                n(&more["p99"]),
            );
        }
    }
    println!("\nmemory in KiB");
    for one in all {
        let (idle, full) = (&one["idle"], &one["standing"]);
        println!(
            "{:<12} daemon idle RSS {} PSS {}; with {} pods RSS {} PSS {}; each of {} helpers RSS {} PSS {}; started in {:.2} s",
            one["name"].as_str().unwrap_or_default(),
            idle["daemon_rss_kib"],
            idle["daemon_pss_kib"],
            full["pods"],
            full["daemon_rss_kib"],
            full["daemon_pss_kib"],
            full["helpers"],
            full["helper_rss_kib"],
            full["helper_pss_kib"],
            full["seconds_to_start"].as_f64().unwrap_or(0.0),
        );
    }
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    anyhow::ensure!(flags.rounds > 0 && flags.parallel > 0, "--rounds and --parallel are at least 1");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let all = runtime.block_on(async {
        let mut all = Vec::new();
        for target in &flags.target {
            all.push(measure(&flags, target).await?);
        }
        anyhow::Ok(all)
    })?;
    match flags.output.as_str() {
        "json" => println!("{}", serde_json::to_string_pretty(&all)?),
        _ => table(&flags, &all),
    }
    Ok(())
}
