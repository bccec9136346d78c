//! The program gantry-apiserver.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use apiserver::auth::Tokens;
use apiserver::router::Api;
use apiserver::store::Store;
use apiserver::{certificates, controllers, event_ttl, limits, node_ipam, pki, server};
use clap::{Args, Parser, Subcommand};
use tokio_util::sync::CancellationToken;

/// The Kubernetes API over an embedded store.
#[derive(Debug, Parser)]
#[command(name = "gantry-apiserver", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a kubeconfig with a new client certificate.
    Kubeconfig {
        /// Folder of the server.
        #[arg(long, default_value = "/var/lib/gantry/apiserver")]
        data_dir: PathBuf,
        /// User name.
        #[arg(long)]
        user: String,
        /// Groups; may be repeated.
        #[arg(long)]
        group: Vec<String>,
        /// Address of the server.
        #[arg(long, default_value = "https://127.0.0.1:6443")]
        server: String,
        /// File to write.
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    bind_address: std::net::IpAddr,
    /// Port to listen on.
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    /// Folder of the store, certificates and the administrator's kubeconfig.
    #[arg(long, default_value = "/var/lib/gantry/apiserver")]
    data_dir: PathBuf,
    /// Further names and addresses for the server's certificate; may be repeated.
    #[arg(long)]
    tls_san: Vec<String>,
    /// CSV file of tokens: token,user,uid,"group1,group2".
    #[arg(long)]
    token_auth_file: Option<PathBuf>,
    /// Networks of all pods, at most one of each family; each node gets a part. Empty: nodes get none.
    #[arg(long, default_value = "10.244.0.0/16", value_delimiter = ',')]
    cluster_cidr: Vec<String>,
    /// Prefix length of a node's IPv4 pod network.
    #[arg(long, default_value_t = 24)]
    node_cidr_mask_size: u8,
    /// Prefix length of a node's IPv6 pod network.
    #[arg(long, default_value_t = 64)]
    node_cidr_mask_size_ipv6: u8,
    /// The longest life of certificates that are asked for (8760h, 30m, 90s).
    #[arg(long, default_value = "8760h", value_parser = duration)]
    cluster_signing_duration: Duration,
    /// Approve serving certificates of kubelets that name only what their node has.
    #[arg(long)]
    approve_kubelet_serving: bool,
    /// How long events are kept.
    #[arg(long, default_value = "1h", value_parser = duration)]
    event_ttl: Duration,
    /// The most requests that read at once; 0: no limit.
    #[arg(long, default_value_t = 400)]
    max_requests_inflight: usize,
    /// The most requests that write at once; 0: no limit.
    #[arg(long, default_value_t = 200)]
    max_mutating_requests_inflight: usize,
    /// Do not bind pods to nodes.
    #[arg(long)]
    no_binder: bool,
    /// Log level or filter.
    #[arg(long, default_value = "info")]
    log_level: String,
    /// text or json.
    #[arg(long, default_value = "text")]
    log_format: gantry_telemetry::log::Format,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Some(Command::Kubeconfig { data_dir, user, group, server, out }) = cli.command {
        return pki::write_kubeconfig(&data_dir, &user, &group, &server, &out);
    }
    gantry_telemetry::log::init(&cli.serve.log_level, cli.serve.log_format).map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(run(cli.serve))
}

/// A duration as upstream's flags have it: `8760h`, `1h30m0s`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 8760h or 30m");
    let (mut seconds, mut number) = (0u64, String::new());
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return Err(wrong()),
        };
        let part: u64 = std::mem::take(&mut number).parse().map_err(|_| wrong())?;
        seconds = part.checked_mul(unit).and_then(|s| seconds.checked_add(s)).ok_or_else(wrong)?;
    }
    if number.is_empty() && seconds > 0 { Ok(Duration::from_secs(seconds)) } else { Err(wrong()) }
}

/// How nodes get pod networks; none when they get none.
fn networks(flags: &Serve) -> Result<Option<node_ipam::Plan>> {
    let cidrs: Vec<node_ipam::Cidr> = flags
        .cluster_cidr
        .iter()
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().map_err(|e| anyhow::anyhow!("--cluster-cidr: {e}")))
        .collect::<Result<_>>()?;
    if cidrs.is_empty() {
        return Ok(None);
    }
    let plan = node_ipam::Plan::new(&cidrs, flags.node_cidr_mask_size, flags.node_cidr_mask_size_ipv6);
    plan.map(Some).map_err(anyhow::Error::msg)
}

async fn run(flags: Serve) -> Result<()> {
    let networks = networks(&flags)?;
    std::fs::create_dir_all(&flags.data_dir).with_context(|| format!("create {}", flags.data_dir.display()))?;
    let mut names = vec![flags.bind_address.to_string()];
    for name in [
        "127.0.0.1",
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "10.96.0.1",
    ] {
        names.push(name.to_owned());
    }
    names.extend(flags.tls_san);
    names.sort();
    names.dedup();
    let pki = pki::load(&flags.data_dir, &names)?;
    let csv = match &flags.token_auth_file {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?,
        None => String::new(),
    };
    let path = flags.data_dir.join("store.redb");
    let store = tokio::task::spawn_blocking(move || Store::open(&path)).await??;
    let listener = tokio::net::TcpListener::bind((flags.bind_address, flags.secure_port))
        .await
        .with_context(|| format!("listen on {}:{}", flags.bind_address, flags.secure_port))?;
    let address = listener.local_addr().context("read the listening address")?;
    let reach =
        if address.ip().is_unspecified() { format!("127.0.0.1:{}", address.port()) } else { address.to_string() };
    let admin = flags.data_dir.join("admin.kubeconfig");
    let url = format!("https://{reach}");
    if !std::fs::read_to_string(&admin).is_ok_and(|text| text.contains(&format!("{url}\""))) {
        pki::write_kubeconfig(&flags.data_dir, "kubernetes-admin", &["system:masters".into()], &url, &admin)?;
    }
    let stop = CancellationToken::new();
    let api = Arc::new(Api {
        store,
        tokens: Tokens::new(&pki.sa_key, &csv)?,
        ca: pki.ca.cert.clone(),
        authority: pki.ca.clone(),
        host: reach,
        limits: limits::Limits::new(flags.max_requests_inflight, flags.max_mutating_requests_inflight),
        kubelet_tls: server::kubelet_tls(&pki)?,
        stop: stop.clone(),
    });
    controllers::bootstrap(&api).await.context("make the default namespaces")?;
    let policy = certificates::Policy {
        lifetime: flags.cluster_signing_duration,
        approve_serving: flags.approve_kubelet_serving,
    };
    tokio::spawn(event_ttl::run(Arc::clone(&api), flags.event_ttl));
    tokio::spawn(certificates::run(Arc::clone(&api), policy));
    tokio::spawn(controllers::namespaces(Arc::clone(&api)));
    tokio::spawn(apiserver::node_lifecycle::run(Arc::clone(&api)));
    if let Some(plan) = networks {
        tokio::spawn(node_ipam::run(Arc::clone(&api), plan));
    }
    if !flags.no_binder {
        tokio::spawn(apiserver::binder::run(Arc::clone(&api)));
    }
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).context("listen for SIGTERM")?;
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = tokio::signal::ctrl_c() => {} }
        let _ = gantry_telemetry::notify::stopping();
        stop.cancel();
    });
    tracing::info!(%address, "serving");
    let _ = gantry_telemetry::notify::ready();
    tokio::spawn(gantry_telemetry::notify::feed_watchdog());
    server::serve(api, &pki, listener).await
}
