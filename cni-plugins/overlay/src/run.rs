//! Putting the parts together, and ending in order: what was programmed stays when the agent ends.

use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::agent::{Agent, Changes, wait};
use crate::api::{self, Cluster};
use crate::config::{Backend, Flags, Network, TxChecksum};
use crate::{kernel, masquerade, peers, probe};

/// How long an answer of the apiserver may keep the kernel's tables unwatched.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the probe may take.
const PROBING: Duration = Duration::from_secs(30);
const RIGHT: &str = "right";
const WRONG: &str = "wrong";

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// Flags or settings are wrong, or the apiserver's kubeconfig cannot be read.
pub fn main() -> Result<()> {
    let flags = Flags::parse();
    if flags.probe_checksums {
        tell_verdict();
        return Ok(());
    }
    let format = flags.log_format.parse().map_err(anyhow::Error::msg)?;
    gantry_telemetry::log::init(&flags.log_level, format).map_err(anyhow::Error::msg)?;
    if flags.clean {
        // The settings may be gone already: the tunnel then had flannel's usual number.
        let network = if flags.net_config_path.exists() { Some(Network::load(&flags.net_config_path)?) } else { None };
        let vni = match network.map(|n| n.backend) {
            Some(Backend::Vxlan { vni, .. }) => Some(vni),
            Some(Backend::HostGw) => None,
            None => Some(1),
        };
        kernel::clean(vni)?;
        let _ = std::fs::remove_file(&flags.subnet_file);
        return masquerade::remove().context("remove masquerade rules");
    }
    let network = Network::load(&flags.net_config_path)?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(flags, network))
}

fn node_name(flags: &Flags) -> Result<String> {
    let named = flags.node_name.clone().or_else(|| std::env::var("NODE_NAME").ok()).filter(|n| !n.is_empty());
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").map(|n| n.trim().to_lowercase());
    named.map_or_else(host, Ok).context("read the host name")
}

async fn client(flags: &Flags) -> Result<Option<kube::Client>> {
    if flags.peers.is_some() {
        return Ok(None);
    }
    let config = match &flags.kubeconfig {
        Some(path) => {
            let what = || format!("kubeconfig {}", path.display());
            let file = kube::config::Kubeconfig::read_from(path).with_context(what)?;
            kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
                .await
                .with_context(what)?
        }
        None => {
            kube::Config::incluster().context("neither --kubeconfig nor --peers, and this is no pod of a cluster")?
        }
    };
    Ok(Some(kube::Client::try_from(config).context("make a client of the apiserver")?))
}

async fn serve(flags: Flags, network: Network) -> Result<()> {
    let name = node_name(&flags)?;
    let client = client(&flags).await?;
    let (known, mut nodes) = watch::channel(Cluster::default());
    let source = match (&client, &flags.peers) {
        (Some(client), _) => tokio::spawn(api::watch(client.clone(), name.clone(), known)),
        (None, Some(path)) => {
            let (path, backend) = (path.clone(), network.backend);
            tokio::spawn(async move {
                if let Err(error) = peers::watch(path, backend, known).await {
                    tracing::error!("{error:#}");
                }
            })
        }
        (None, None) => anyhow::bail!("neither --kubeconfig nor --peers"),
    };
    let healthy = watch::channel(false);
    if let Some(address) = flags.healthz_address {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        tokio::spawn(healthz(listener, healthy.1));
    }
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let work = work(Agent::new(flags, network, name), client, &mut nodes, healthy.0);
    tokio::select! {
        done = work => done?,
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    source.abort();
    Ok(())
}

/// Reconciles whenever something changes; what fails is tried again.
async fn work(
    mut agent: Agent,
    client: Option<kube::Client>,
    nodes: &mut watch::Receiver<Cluster>,
    healthy: watch::Sender<bool>,
) -> Result<()> {
    let mut changes = Changes::new().context("listen to the kernel")?;
    let tunnels = matches!(agent.network.backend, Backend::Vxlan { .. });
    if tunnels && agent.flags.tx_checksum == TxChecksum::Probe {
        let (own, waker) = (agent.own_checksums.clone(), changes.waker());
        tokio::spawn(async move {
            if wrong_checksums().await {
                own.store(true, Ordering::Relaxed);
                waker.notify_one();
            }
        });
    }
    let mut told = None;
    let (mut published, mut last_fault, mut retry) = (None, String::new(), Duration::from_millis(200));
    loop {
        let cluster = nodes.borrow_and_update().clone();
        let mut failed = false;
        if cluster.complete {
            match agent.reconcile(&cluster) {
                Ok(outcome) => {
                    if outcome.changed > 0 {
                        tracing::info!(
                            changes = outcome.changed,
                            nodes = cluster.nodes.len(),
                            "the kernel's tables agree again"
                        );
                    }
                    outcome.faults.iter().for_each(|fault| tracing::warn!("{fault}"));
                    failed = !outcome.faults.is_empty();
                    last_fault.clear();
                    // What others see of this node: also when somebody else has changed it, or made the node anew.
                    let seen = cluster.nodes.iter().find(|n| n.name == outcome.own.name).cloned();
                    let known = published.as_ref() == Some(&outcome.own)
                        && (seen.as_ref() == Some(&outcome.own) || seen == told);
                    if let Some(client) = client.as_ref().filter(|_| !known) {
                        let publishing = api::publish(client, &outcome.own, agent.network.backend, None);
                        match tokio::time::timeout(PATIENCE, publishing)
                            .await
                            .context("the apiserver does not answer")
                            .flatten()
                        {
                            Ok(()) => (published, told) = (Some(outcome.own), seen),
                            Err(error) => {
                                tracing::warn!("{error:#}");
                                failed = true;
                            }
                        }
                    }
                    healthy.send_replace(!failed);
                    let _ = gantry_telemetry::notify::ready();
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    if text != last_fault {
                        tracing::warn!("{text}");
                        last_fault = text;
                    }
                    healthy.send_replace(false);
                    failed = true;
                }
            }
        }
        if failed {
            let _ = tokio::time::timeout(retry, wait(&mut changes, nodes)).await;
            retry = (retry * 2).min(Duration::from_secs(5));
        } else {
            retry = Duration::from_millis(200);
            wait(&mut changes, nodes).await?;
        }
    }
}

/// Tries once whether packets in a tunnel have right checksums when the kernel leaves them to the device below.
async fn wrong_checksums() -> bool {
    // In a process of its own: this one has threads, and may not have the right to make network namespaces.
    let mut program = tokio::process::Command::new("/proc/self/exe");
    program.arg("--probe-checksums").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let told = match tokio::time::timeout(PROBING, program.output()).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it does not end".to_owned(),
    };
    match told.split_once(": ") {
        _ if told == RIGHT => {
            tracing::info!("this kernel sends right checksums through tunnels: they are left to the device below");
            false
        }
        Some((WRONG, why)) => {
            tracing::warn!("checksums are not left to the device below: {why}");
            true
        }
        _ => {
            tracing::info!("checksums in tunnels cannot be probed, and stay as the kernel has them: {told}");
            false
        }
    }
}

/// The probe's process: it tells its verdict.
fn tell_verdict() {
    match probe::probe(false) {
        Ok(probe::Verdict::Right) => println!("{RIGHT}"),
        Ok(probe::Verdict::Wrong(why)) => println!("{WRONG}: {why}"),
        Err(error) => println!("{error}"),
    }
}

/// Answers any request: 200 when all is well, 503 otherwise.
async fn healthz(listener: TcpListener, healthy: watch::Receiver<bool>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let well = *healthy.borrow();
        tokio::spawn(async move {
            let mut request = [0; 1024];
            let _ = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut request)).await;
            let (line, body) = if well { ("200 OK", "ok") } else { ("503 Service Unavailable", "not in order") };
            let text = format!("HTTP/1.1 {line}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            let _ = stream.write_all(text.as_bytes()).await;
        });
    }
}
