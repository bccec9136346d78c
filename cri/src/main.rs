//! gantry-cri: daemon and command line.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand};
use cri::config::Config;
use cri::daemon::Daemon;
use cri::ledger::Ledger;
use cri::service::Service;
use cri_images::Images;
use cri_images::build::{BuildConfig, archive_from_rootfs};
use proto::cri::image_service_server::ImageServiceServer;
use proto::cri::runtime_service_server::RuntimeServiceServer;

const CONFIG: &str = "/etc/gantry/cri.toml";

/// The Container Runtime Interface daemon of Gantry.
#[derive(Parser)]
#[command(name = "gantry-cri", version)]
struct Flags {
    /// Configuration file.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// Unix socket to serve.
    #[arg(long, global = true)]
    socket: Option<PathBuf>,
    /// Persistent state.
    #[arg(long, global = true)]
    root: Option<PathBuf>,
    /// Volatile state.
    #[arg(long, global = true)]
    state: Option<PathBuf>,
    /// State folder of the OCI runtime.
    #[arg(long)]
    runtime_root: Option<PathBuf>,
    /// Folder of CNI configuration.
    #[arg(long)]
    cni_conf_dir: Option<PathBuf>,
    /// Folder of CNI plugins (repeatable).
    #[arg(long)]
    cni_bin_dir: Vec<PathBuf>,
    /// OCI runtime.
    #[arg(long)]
    runtime: Option<PathBuf>,
    /// Monitor program.
    #[arg(long)]
    monitor: Option<PathBuf>,
    /// Address for exec, attach and port-forward sessions.
    #[arg(long)]
    streaming_address: Option<String>,
    /// Level or filter.
    #[arg(long, global = true, default_value = "info")]
    log_level: String,
    /// text or json.
    #[arg(long, global = true, default_value = "text")]
    log_format: gantry_telemetry::log::Format,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Pods, through the daemon.
    Pods {
        /// What to do.
        #[command(subcommand)]
        command: PodsCommand,
    },
    /// Prints what the daemon holds for a container or sandbox.
    Explain {
        /// Its id.
        id: String,
    },
    /// Compares what the daemon knows (or, while none runs, has recorded) with disk, mounts and namespaces; prints what does not
    /// agree. Exit code 0 when nothing is found, 1 otherwise.
    Fsck {
        /// Remove what belongs to nothing.
        #[arg(long)]
        repair: bool,
    },
    /// Images of the node.
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// The configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Subcommand)]
enum ImageCommand {
    /// Imports an OCI layout or archive or a `docker save` archive, while the daemon runs.
    Import {
        /// The archive or folder.
        path: PathBuf,
        /// Name for a single image.
        #[arg(long)]
        name: Option<String>,
    },
    /// Writes an image as an OCI archive.
    Export {
        /// Reference, id or digest.
        name: String,
        /// Archive to write.
        #[arg(long, short)]
        output: PathBuf,
    },
    /// Lists images.
    Ls {
        /// Only ids.
        #[arg(long, short)]
        quiet: bool,
    },
    /// Pulls an image.
    Pull {
        /// Reference.
        name: String,
    },
    /// Removes an image.
    Rm {
        /// Reference, id or digest.
        name: String,
    },
    /// Packs a folder as an OCI archive; needs no daemon.
    Build {
        /// Root folder of the image.
        rootfs: PathBuf,
        /// Archive to write.
        #[arg(long, short)]
        output: PathBuf,
        /// Name of the image.
        #[arg(long)]
        name: String,
        /// Word of the entry point (repeatable).
        #[arg(long, allow_hyphen_values = true)]
        entrypoint: Vec<String>,
        /// Word of the default arguments (repeatable).
        #[arg(long, allow_hyphen_values = true)]
        cmd: Vec<String>,
        /// NAME=value (repeatable).
        #[arg(long)]
        env: Vec<String>,
        /// user[:group].
        #[arg(long, default_value = "")]
        user: String,
    },
}

#[derive(Subcommand)]
enum PodsCommand {
    /// Stops and removes pods.
    Rm {
        /// All of them.
        #[arg(long, required = true)]
        all: bool,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Prints the defaults.
    Default,
    /// Checks the file.
    Check,
}

impl Flags {
    fn path(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| CONFIG.into())
    }

    /// The file, with flags over it.
    fn settings(&self) -> anyhow::Result<Config> {
        let mut config = Config::load(&self.path(), self.config.is_some())?;
        let set = |to: &mut PathBuf, from: &Option<PathBuf>| {
            if let Some(path) = from {
                to.clone_from(path);
            }
        };
        set(&mut config.socket, &self.socket);
        set(&mut config.root, &self.root);
        set(&mut config.state, &self.state);
        set(&mut config.runtime_root, &self.runtime_root);
        set(&mut config.cni_conf_dir, &self.cni_conf_dir);
        set(&mut config.runtime, &self.runtime);
        set(&mut config.monitor, &self.monitor);
        if !self.cni_bin_dir.is_empty() {
            config.cni_bin_dirs.clone_from(&self.cni_bin_dir);
        }
        if let Some(address) = &self.streaming_address {
            config.streaming_address.clone_from(address);
        }
        Ok(config)
    }
}

fn main() -> anyhow::Result<()> {
    let mut flags = Flags::parse();
    let command = flags.command.take();
    if let Some(Command::Config { command: ConfigCommand::Default }) = &command {
        print!("{}", cri::config::explained()?);
        return Ok(());
    }
    let config = flags.settings()?;
    match command {
        None => {
            gantry_telemetry::memory::one_arena();
            gantry_telemetry::log::init(&flags.log_level, flags.log_format).map_err(anyhow::Error::msg)?;
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?
                .block_on(serve(config, flags))
        }
        Some(Command::Config { .. }) => {
            println!("{}: ok", flags.path().display());
            Ok(())
        }
        Some(Command::Pods { command: PodsCommand::Rm { .. } }) => {
            let work = cri::client::remove_all_pods(&config.socket);
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
        }
        Some(Command::Explain { id }) => {
            let work = cri::client::explain(&config.socket, &id);
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
        }
        Some(Command::Fsck { repair }) => {
            let admin = config.socket.with_extension("admin");
            let work = cri::admin::fsck(&admin, repair, async || {
                let daemon = open(config).await?;
                let _ = cri::reconcile::load(&daemon);
                cri::fsck::run(&daemon, repair).await
            });
            let found = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)?;
            std::process::exit(i32::from(found > 0 && !repair));
        }
        Some(Command::Image { command }) => {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(image(config, command))
        }
    }
}

/// The daemon's state, with nothing in memory yet.
async fn open(config: Config) -> anyhow::Result<Arc<Daemon>> {
    for folder in [&config.root, &config.state, &config.runtime_root] {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))?;
    }
    let mut store = cri_images::Config::new(config.root.join("images"));
    store.config_path.clone_from(&config.registry_config);
    store.snapshotter = config.snapshotter;
    store.pinned.clone_from(&config.pinned_images);
    store.docker_config = Some(config.docker_config.clone()).filter(|path| !path.as_os_str().is_empty());
    let images = tokio::task::spawn_blocking(move || Images::open(store)).await??;
    let ledger = Ledger::open(&config.root).with_context(|| format!("open the ledger in {}", config.root.display()))?;
    let host = gantry_cgroup::Host::detect().context("find cgroups")?;
    Ok(Arc::new(Daemon::new(config, images, ledger, host)))
}

/// The listening socket that systemd hands over (sd_listen_fds), if it does.
fn handed_socket() -> anyhow::Result<Option<tokio::net::UnixListener>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) || number("LISTEN_FDS").unwrap_or(0) == 0 {
        return Ok(None);
    }
    anyhow::ensure!(number("LISTEN_FDS") == Some(1), "LISTEN_FDS: more than one socket is handed over");
    gantry_sys::fd::close_on_exec_from(3)?;
    let fd = gantry_sys::fd::inherited(3).context("take the socket that systemd hands over")?;
    let listener = std::os::unix::net::UnixListener::from(fd);
    listener.local_addr().context("what systemd hands over is no listening unix socket")?;
    listener.set_nonblocking(true)?;
    Ok(Some(tokio::net::UnixListener::from_std(listener)?))
}

fn own_socket(path: &Path) -> anyhow::Result<tokio::net::UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // A killed daemon's half-started child holds its socket until it runs its program.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(2);
    while std::os::unix::net::UnixStream::connect(path).is_ok() {
        anyhow::ensure!(std::time::Instant::now() < deadline, "{} is served by another process", path.display());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let _ = std::fs::remove_file(path);
    let listener = tokio::net::UnixListener::bind(path).with_context(|| format!("bind {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn serve(config: Config, flags: Flags) -> anyhow::Result<()> {
    // Caught from the beginning: one that comes early must not end the daemon.
    let hangups = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
    let socket = config.socket.clone();
    let daemon = open(config).await?;
    cri::reconcile::run(&daemon).await;
    cri::streams::start(&daemon).await.context("start the streaming server")?;
    cri::prometheus::serve(&daemon).await.context("serve metrics")?;
    cri::nri::serve(&daemon).await;
    tokio::spawn(gantry_telemetry::memory::give_back_when_quiet(Arc::downgrade(&daemon.worked)));
    let (listener, handed) = match handed_socket()? {
        Some(listener) => (listener, true),
        None => (own_socket(&socket)?, false),
    };
    let _ = gantry_telemetry::notify::ready();
    tokio::spawn(gantry_telemetry::notify::feed_watchdog());
    tracing::info!(socket = %socket.display(), "serving");
    cri::hangup::follow(&daemon, hangups, move || flags.settings());
    let imports = cri::admin::serve(&daemon, &socket.with_extension("admin")).context("serve imports")?;
    let service = Service::new(daemon.clone());
    let stop = async {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
        let term = async {
            match &mut term {
                Some(term) => drop(term.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! { () = term => {}, _ = tokio::signal::ctrl_c() => {} }
    };
    let limit = 16 << 20;
    let serving = tonic::transport::Server::builder()
        .add_service(
            RuntimeServiceServer::new(service.clone())
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
        )
        .add_service(ImageServiceServer::new(service).max_decoding_message_size(limit).max_encoding_message_size(limit))
        .serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener));
    tokio::select! { done = serving => done?, () = stop => {} }
    let _ = gantry_telemetry::notify::stopping();
    imports.abort();
    // One that systemd handed over stays: it starts the daemon again.
    if !handed {
        let _ = std::fs::remove_file(&socket);
    }
    let _ = std::fs::remove_file(socket.with_extension("admin"));
    cri::nri::unlisten(&daemon);
    Ok(())
}

async fn image(config: Config, command: ImageCommand) -> anyhow::Result<()> {
    let quiet = matches!(command, ImageCommand::Ls { quiet: true });
    let (verb, path, name) = match command {
        ImageCommand::Build { rootfs, output, name, entrypoint, cmd, env, user } => {
            let settings = BuildConfig { entrypoint, cmd, env, user, ..Default::default() };
            archive_from_rootfs(&rootfs, &name, &settings, &output)?;
            println!("{}", output.display());
            return Ok(());
        }
        ImageCommand::Import { path, name } => {
            let path = std::fs::canonicalize(&path).with_context(|| format!("find {}", path.display()))?;
            ("import", path.display().to_string(), name)
        }
        ImageCommand::Export { name, output } => {
            let output = std::path::absolute(&output).with_context(|| format!("find {}", output.display()))?;
            ("export", output.display().to_string(), Some(name))
        }
        ImageCommand::Ls { .. } => ("ls", String::new(), None),
        ImageCommand::Pull { name } => ("pull", name, None),
        ImageCommand::Rm { name } => ("rm", name, None),
    };
    cri::admin::ask(&config.socket.with_extension("admin"), verb, &path, name.as_deref(), quiet).await
}
