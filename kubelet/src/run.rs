//! Putting the parts together, and ending in order.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kubelet_server::{Authorization, ServeError, Server, ServerConfig};
use kubelet_volumes::{Allocatable, Objects, Volumes};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::certificates::{self, Apiserver};
use crate::config::{Flags, KubeletConfiguration, Loaded, gates, tls_policy};
use crate::cri::Cri;
use crate::events::Recorder;
use crate::eviction::{Kills, Pressure};
use crate::images::Pulls;
use crate::images::providers::Providers;
use crate::images::records::{Policy, Records};
use crate::kubelet::{Dispatcher, Pods};
use crate::node::facts;
use crate::objects::{FromApi, Nowhere, Projections, Strategy};
use crate::pleg::Health;
use crate::pod::{Changed, NodeDns, NodeFacts, NodeResolv};
use crate::resources::cgroups::{Cgroups, Driver};
use crate::resources::memory::MemoryQos;
use crate::resources::pages::{PageSizes, Swap};
use crate::resources::users::Users;
use crate::resources::{allocatable, managers};
use crate::serve::Served;
use crate::shared::{Beat, Shared};
use crate::shutdown::{self, Shutdown};
use crate::sources::manifest::Origin;
use crate::sources::{Source, api, static_pods, url};
use crate::status::manager::Statuses;
use crate::sync::admission::Admission;
use crate::sync::resize::Allocations;
use crate::throttle::Throttle;
use crate::{eviction, gc, images, logs, node, pleg, plugins, sources};

/// How long the kubelet waits for the runtime before it goes on without knowing its name.
const RUNTIME_WAIT: Duration = Duration::from_secs(30);

/// Runs `kubelet explain` or `kubelet check`, if the command line names one of them.
pub fn tool(args: &[std::ffi::OsString]) -> Option<Result<std::process::ExitCode>> {
    crate::tools::run(args)
}

/// Runs the kubelet until SIGTERM or SIGINT. Pods go on without it.
///
/// # Errors
/// The configuration is wrong, or a file or port that the kubelet needs cannot be had.
pub fn main() -> Result<()> {
    let flags = Flags::read(std::env::args_os()).unwrap_or_else(|e| e.exit());
    if flags.version {
        println!("Kubernetes {}", gantry_telemetry::build::git_version());
        return Ok(());
    }
    let Loaded { config, idle } = flags.load()?;
    let format = flags.log_format.as_ref().unwrap_or(&config.logging.format).parse().map_err(anyhow::Error::msg)?;
    let modules = flags.modules(&config)?;
    gantry_telemetry::log::init_with(&flags.level(&config), format, modules).map_err(anyhow::Error::msg)?;
    for (field, why) in idle {
        tracing::warn!(field, why, "this field of the kubelet configuration changes nothing");
    }
    for (flag, why) in &flags.idle {
        tracing::warn!(flag = format!("--{flag}"), why, "this flag changes nothing");
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    gantry_telemetry::memory::one_arena();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the async runtime")?;
    let result = runtime.block_on(serve(flags, config));
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// The runtime's driver, where it tells (Kubernetes since 1.34 prefers it); else what the configuration says.
async fn cgroup_driver(cri: &Cri, config: &KubeletConfiguration) -> Driver {
    let named = |name: &str| if name == "systemd" { Driver::Systemd } else { Driver::Cgroupfs };
    match cri.cgroup_driver().await {
        Ok(Some(driver)) => {
            if driver != named(&config.cgroup_driver) {
                tracing::info!(?driver, configured = config.cgroup_driver, "the runtime's cgroup driver counts");
            }
            driver
        }
        Ok(None) => named(&config.cgroup_driver),
        Err(e) => {
            tracing::warn!(error = %e, configured = config.cgroup_driver, "the runtime does not tell its cgroup driver");
            named(&config.cgroup_driver)
        }
    }
}

async fn shared(
    flags: &Flags,
    config: KubeletConfiguration,
    changes: mpsc::Sender<Changed>,
) -> Result<(Shared, Option<Apiserver>)> {
    let node_name = flags.hostname_override.clone().unwrap_or_else(facts::host_name);
    let api = certificates::connect(flags, &config, &node_name).await?;
    let client = api.as_ref().map(Apiserver::client);
    for ip in &flags.node_ip {
        ip.parse::<IpAddr>().map_err(|_| anyhow::anyhow!("--node-ip: {ip:?} is not an IP address"))?;
    }
    let node_ips = if flags.node_ip.is_empty() { vec![facts::own_address()] } else { flags.node_ip.clone() };
    for folder in [flags.root_dir.join("pods"), PathBuf::from(&config.pod_logs_dir)] {
        std::fs::create_dir_all(&folder).with_context(|| format!("make the folder {}", folder.display()))?;
    }
    if config.fail_swap_on && std::fs::read_to_string("/proc/swaps").is_ok_and(|t| t.lines().count() > 1) {
        bail!("swap is on and failSwapOn is true: turn swap off (swapoff -a) or set failSwapOn to false");
    }
    let cri =
        Cri::new(&config.container_runtime_endpoint, &config.image_service_endpoint, config.runtime_request_timeout.0);
    let runtime_name = runtime_name(&cri, &config).await;
    let period_us =
        config.cpu_cfs_quota.then(|| i64::try_from(config.cpu_cfs_quota_period.0.as_micros()).unwrap_or(100_000));
    let driver = cgroup_driver(&cri, &config).await;
    let (_, allocatable_now) = facts::resources(&config, &flags.root_dir);
    let memory_qos = MemoryQos::here(&config, facts::value(&allocatable_now, "memory", false));
    let cgroups = Cgroups::new(driver, &config.cgroup_root, config.cgroups_per_qos, period_us, config.pod_pids_limit)
        .keeping(memory_qos);
    allocatable::hold_daemons(&config);
    if let Err(e) = cgroups.prepare(&allocatable::here(&config)) {
        tracing::warn!(error = %e, "the parents of pods' control groups are not as they should be");
    }
    let objects: Arc<dyn Objects> = match &client {
        Some(client) => {
            let strategy = Strategy::named(&config.config_map_and_secret_change_detection_strategy);
            Arc::new(FromApi::new(client.clone(), strategy, Projections::of(&config.feature_gates), changes))
        }
        None => Arc::new(Nowhere),
    };
    let shared = Shared {
        managers: managers::managers(&config, &flags.root_dir),
        shutdown: Shutdown::default(),
        kills: Kills::default(),
        pressure: Pressure::default(),
        events: Recorder::start(client.clone(), &node_name, Throttle::new(config.event_record_qps, config.event_burst)),
        allocations: Allocations::default(),
        statuses: Arc::new(Statuses::new(client.clone())),
        volumes: Volumes::new(&flags.root_dir, objects.clone()),
        users: Users::new(
            flags.root_dir.join("pods"),
            u32::try_from(config.user_namespaces.ids_per_pod).unwrap_or(65536),
        ),
        pulls: pulls(flags, &config)?,
        facts: NodeFacts {
            log_root: PathBuf::from(&config.pod_logs_dir),
            seccomp_root: flags.root_dir.join("seccomp"),
            seccomp_default: config.seccomp_default,
            dns: NodeDns {
                cluster: config.cluster_dns.clone(),
                domain: config.cluster_domain.clone(),
                node: NodeResolv::File(PathBuf::from(&config.resolv_conf)),
            },
            period_us,
            memory: i64::try_from(crate::metrics::meminfo("MemTotal")).unwrap_or(i64::MAX),
            pages: PageSizes::here(),
            memory_qos,
            swap: Swap::here(&config.memory_swap.swap_behavior),
            oom_group: config.single_process_oom_kill != Some(true)
                && gantry_cgroup::Host::detect().is_ok_and(|h| h.version() == gantry_cgroup::Version::V2),
        },
        allocatable: Allocatable {
            cpu_milli: facts::value(&allocatable_now, "cpu", true),
            memory_bytes: facts::value(&allocatable_now, "memory", false),
            ephemeral_storage_bytes: facts::value(&allocatable_now, "ephemeral-storage", false),
        },
        root: flags.root_dir.clone(),
        config,
        node_name,
        node_ips,
        client,
        cri,
        runtime_name,
        objects,
        cgroups,
        cpu_rate: crate::stats::Rate::default(),
        worked: Arc::default(),
        beat: Beat::default(),
        external_cloud: flags.cloud_provider == "external",
        flags: flags.told(),
        started: std::time::Instant::now(),
    };
    Ok((shared, api))
}

/// How images are pulled.
fn pulls(flags: &Flags, config: &KubeletConfiguration) -> Result<Pulls> {
    let policy = Policy::named(
        &config.image_pull_credentials_verification_policy,
        &config.preloaded_images_verification_allowlist,
    );
    Ok(Pulls {
        slots: Semaphore::new(images::permits(config.serialize_image_pulls, config.max_parallel_image_pulls)),
        rate: Throttle::new(config.registry_pull_qps, config.registry_burst),
        providers: Providers::read(
            flags.image_credential_provider_config.as_deref(),
            flags.image_credential_provider_bin_dir.as_deref(),
            gates::is_set(gates::PROVIDER_TOKENS, &config.feature_gates),
        )?,
        records: Records::new(&flags.root_dir, policy),
    })
}

/// The runtime's name, which is part of container ids.
async fn runtime_name(cri: &Cri, config: &KubeletConfiguration) -> String {
    let ask = async {
        let mut told = false;
        loop {
            match cri.version().await {
                Ok(version) => return version.runtime_name,
                Err(e) if !told => {
                    told = true;
                    tracing::warn!(endpoint = config.container_runtime_endpoint, error = %e, "waiting for the container runtime");
                }
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    };
    let name = tokio::time::timeout(RUNTIME_WAIT, ask).await.unwrap_or_else(|_| {
        tracing::error!(
            endpoint = config.container_runtime_endpoint,
            "the container runtime does not answer; the node is not ready until it does"
        );
        "cri".to_owned()
    });
    if !config.pod_cidr.is_empty()
        && let Err(e) = cri.update_pod_cidr(&config.pod_cidr).await
    {
        tracing::warn!(error = %e, "the runtime did not take the pod CIDR");
    }
    name
}

async fn serve(flags: Flags, config: KubeletConfiguration) -> Result<()> {
    node::limits::prepare(&config)?;
    if let Err(e) = std::fs::write("/proc/self/oom_score_adj", config.oom_score_adj.to_string()) {
        tracing::debug!(error = %e, "oom_score_adj not set");
    }
    let labels = node::labels::read(&flags.node_labels)?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let (changes, objects) = mpsc::channel(256);
    let (shared, api) = tokio::select! {
        made = shared(&flags, config, changes) => made?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let shared = Arc::new(shared);
    let (pods, health, stop) = (Pods::default(), Health::default(), CancellationToken::new());
    let (updates, received) = mpsc::channel(256);
    let (changed, happened) = mpsc::channel(1024);
    let mut expected = HashSet::new();
    tokio::spawn(pleg::run(shared.cri.clone(), changed, health.clone()));
    tokio::spawn(shared.statuses.clone().run());
    let strict = shared.config.feature_gates.get("PreventStaticPodAPIReferences") != Some(&false);
    let origin = |source| Origin {
        source,
        place: shared.config.static_pod_url.clone(),
        node: shared.node_name.clone(),
        references: !strict,
    };
    let path = PathBuf::from(&shared.config.static_pod_path);
    if !path.as_os_str().is_empty() {
        expected.insert(Source::File);
        let every = shared.config.file_check_frequency.0.max(Duration::from_secs(1));
        tokio::spawn(static_pods::run(path, origin("file"), every, shared.events.clone(), updates.clone()));
    }
    if !shared.config.static_pod_url.is_empty() {
        expected.insert(Source::Url);
        tokio::spawn(url::run(shared.clone(), origin("http"), updates.clone()));
    }
    let object = match &shared.client {
        Some(client) => sources::node::follow(client.clone(), &shared.node_name),
        None => sources::node::nobody(),
    };
    if let Some(client) = &shared.client {
        expected.insert(Source::Api);
        tokio::spawn(api::run(client.clone(), shared.node_name.clone(), object.clone(), updates.clone()));
        tokio::spawn(node::keep_status(shared.clone(), labels, health.clone()));
        tokio::spawn(node::keep_lease(shared.clone()));
        if let Some(api) = &api {
            certificates::keep(&flags, &shared.config, api, &shared.node_name, serving_names(&shared));
        }
    } else {
        tracing::info!("standalone: no kubeconfig, only static pods run");
    }
    let lister = managers::lister(&shared, pods.clone());
    if let Err(e) = shared.managers.serve(lister, stop.clone()).await {
        tracing::error!(error = %e, "no device plugins and no pod resources: a socket cannot be had");
    }
    tokio::spawn(shutdown::run(shared.clone(), pods.clone()));
    tokio::spawn(allocatable::keep_shares(shared.clone(), pods.clone()));
    tokio::spawn(managers::keep_cpus(shared.clone()));
    let images = Arc::new(gc::Images::new());
    tokio::spawn(gc::run(shared.clone(), pods.clone(), images.clone()));
    tokio::spawn(eviction::run(shared.clone(), pods.clone(), images));
    tokio::spawn(logs::rotate(shared.clone()));
    tokio::spawn(gantry_telemetry::memory::give_back_when_quiet(Arc::downgrade(&shared.worked)));
    tokio::spawn(plugins::run(shared.clone()));
    let served: Arc<Served> = Arc::new(Served {
        shared: shared.clone(),
        pods: pods.clone(),
        health,
        volumes: crate::stats::Volumes::default(),
        lives: certificates::Lives::new(&flags, &shared.config, api.as_ref()),
    });
    let server = start_servers(&flags, &shared, served, &stop).await?;
    let dispatcher = tokio::spawn(
        Dispatcher::new(shared.clone(), pods, expected, Admission::new(&shared, object))
            .run(received, happened, objects),
    );
    shared.events.node(&shared.node_name, false, "Starting", "Starting kubelet.".to_owned());
    let _ = gantry_telemetry::notify::ready();
    if let Some(every) = gantry_telemetry::notify::watchdog_interval() {
        let watched = shared.clone();
        tokio::spawn(async move {
            loop {
                // Who is stuck is not fed: the service manager begins the kubelet anew.
                match watched.beat.check() {
                    Ok(()) => drop(gantry_telemetry::notify::watchdog()),
                    Err(e) => tracing::error!(error = %e, "the watchdog is not fed"),
                }
                tokio::time::sleep(every.max(Duration::from_secs(1))).await;
            }
        });
    }
    // The sender stays here, so that a kubelet without sources waits instead of ending.
    let _updates = updates;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = dispatcher => bail!("the dispatcher of pods ended: {ended:?}"),
    }
    tracing::info!("stopping; pods go on");
    let _ = gantry_telemetry::notify::stopping();
    stop.cancel();
    if let Some(server) = server {
        let _ = tokio::time::timeout(Duration::from_secs(4), server).await;
    }
    Ok(())
}

/// What the node answers as: its name and its addresses.
fn serving_names(shared: &Shared) -> Vec<String> {
    let mut names = vec![shared.node_name.clone()];
    names.extend(shared.node_ips.iter().filter(|ip| !names.contains(ip)).cloned().collect::<Vec<_>>());
    names
}

async fn start_servers(
    flags: &Flags,
    shared: &Arc<Shared>,
    node: Arc<Served>,
    stop: &CancellationToken,
) -> Result<Option<tokio::task::JoinHandle<()>>> {
    let config = &shared.config;
    let (path, own, end) = (flags.root_dir.join("kubelet.sock"), node.clone(), stop.clone());
    tokio::spawn(async move {
        if let Err(e) = kubelet_server::serve_local(&path, own, end).await {
            tracing::warn!(path = %path.display(), error = %e, "no socket for kubelet explain");
        }
    });
    let at = |ip: &str, port: i32, field: &str| -> Result<SocketAddr> {
        let ip: IpAddr = ip.parse().with_context(|| format!("field {field}: {ip:?} is not an IP address"))?;
        Ok(SocketAddr::new(ip, u16::try_from(port).with_context(|| format!("port {port}"))?))
    };
    if config.healthz_port > 0 {
        let address = at(&config.healthz_bind_address, config.healthz_port, "healthzBindAddress")?;
        let (node, stop) = (node.clone(), stop.clone());
        tokio::spawn(async move {
            let served = patiently(|| kubelet_server::serve_healthz(address, node.clone(), stop.clone())).await;
            if let Err(e) = served {
                tracing::error!(error = %e, "no health check");
            }
        });
    }
    if !config.enable_server {
        return Ok(None);
    }
    let (cert_file, key_file) = if config.tls_cert_file.is_empty() {
        let mut names = serving_names(shared);
        names.extend(["localhost".to_owned(), "127.0.0.1".to_owned()]);
        kubelet_server::cert::self_signed(&names, &flags.cert_dir).context("make the serving certificate")?
    } else {
        (PathBuf::from(&config.tls_cert_file), PathBuf::from(&config.tls_private_key_file))
    };
    let authorization = match (&shared.client, config.authorization.mode.as_str()) {
        (_, "AlwaysAllow") => Authorization::AlwaysAllow,
        (Some(client), _) => Authorization::Webhook {
            client: client.clone(),
            allowed_ttl: config.authorization.webhook.cache_authorized_ttl.0,
            denied_ttl: config.authorization.webhook.cache_unauthorized_ttl.0,
        },
        // Without an apiserver nobody could decide; only those whom the CA vouches for get in at all.
        (None, _) if config.authentication.anonymous.enabled => {
            bail!(
                "a standalone kubelet that lets anonymous requests in needs authorization.mode AlwaysAllow, said explicitly"
            )
        }
        (None, _) => Authorization::AlwaysAllow,
    };
    let ca = &config.authentication.x509.client_ca_file;
    let config = ServerConfig {
        address: at(&config.address, config.port, "address")?,
        node_name: shared.node_name.clone(),
        cert_file,
        key_file,
        issued_file: certificates::issued_serving(flags, config),
        client_ca_file: (!ca.is_empty()).then(|| PathBuf::from(ca)),
        anonymous: config.authentication.anonymous.enabled,
        token_webhook: shared.client.clone().filter(|_| config.authentication.webhook.enabled),
        token_ttl: config.authentication.webhook.cache_ttl.0,
        authorization,
        debugging_handlers: config.enable_debugging_handlers,
        profiling: config.enable_profiling_handler,
        tls: tls_policy(config),
        streaming_idle: config.streaming_connection_idle_timeout.0,
        log_query: config.enable_system_log_query,
        system_logs: config.enable_system_log_handler.then(|| PathBuf::from("/var/log")),
    };
    let server = patiently(|| Server::bind(config.clone(), node.clone())).await?;
    tracing::info!(address = %server.local_addr(), "serving");
    Ok(Some(tokio::spawn(server.run(stop.clone()))))
}

/// Tries for some seconds to listen: a predecessor that was just killed may hold the port for a moment.
async fn patiently<T, F: Future<Output = Result<T, ServeError>>>(
    mut listen: impl FnMut() -> F,
) -> Result<T, ServeError> {
    for _ in 0..50 {
        match listen().await {
            Err(ServeError::Listen { .. }) => tokio::time::sleep(Duration::from_millis(100)).await,
            other => return other,
        }
    }
    listen().await
}
