//! What an operator can set about the image store.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of one image store. [`Config::new`] gives the defaults.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of the store; created when missing. One process owns it at a time.
    pub root: PathBuf,
    /// containerd's `certs.d` folder: `<config_path>/<host[:port]>/hosts.toml` and `_default/hosts.toml`.
    pub config_path: PathBuf,
    /// Layers of one pull that are downloaded at the same time.
    pub max_concurrent_layers: usize,
    /// Layers of all pulls that are unpacked at the same time (bounds CPU and memory).
    pub max_concurrent_unpacks: usize,
    /// A docker `config.json` whose `auths` are used when the caller gives no credentials.
    pub docker_config: Option<PathBuf>,
    /// `host[:port]` asked by plain HTTP; loopback addresses and `localhost` always are unless hosts.toml says otherwise.
    pub plain_http_hosts: Vec<String>,
    /// Proxies for registries; the environment's by default.
    pub proxy: Proxy,
    /// References (or image ids) that are reported as pinned, so that nobody collects them.
    pub pinned: Vec<String>,
    /// Keep compressed layer blobs after unpacking (needed for export).
    pub keep_layer_blobs: bool,
    /// How containers get their files.
    pub snapshotter: Snapshotter,
    /// Bounds against hostile or broken images.
    pub limits: Limits,
    /// Bounds on waiting for a registry.
    pub timeouts: Timeouts,
}

/// How containers get their files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Snapshotter {
    /// overlayfs where it works in the store's folder, which is tried when the store is opened, else copies.
    #[default]
    Auto,
    /// A writable directory over the layers.
    Overlayfs,
    /// A copy of all layers for each container; views of one image share one.
    Native,
}

/// Proxies, written as in the environment: empty means none. Loopback addresses are never reached through a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxy {
    /// For plain HTTP registries: `[http://]host:port`.
    pub http: String,
    /// For HTTPS registries: `[http://][user:password@]host:port`, asked to CONNECT.
    pub https: String,
    /// Hosts reached directly: names (with all below them), `.suffix`, addresses, networks, each with an optional
    /// port, comma separated.
    pub no_proxy: String,
}

impl Proxy {
    /// `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, in upper or lower case.
    pub fn from_env() -> Proxy {
        let get = |name: &str| {
            std::env::var(name).or_else(|_| std::env::var(name.to_lowercase())).unwrap_or_default().trim().to_string()
        };
        Proxy { http: get("HTTP_PROXY"), https: get("HTTPS_PROXY"), no_proxy: get("NO_PROXY") }
    }
}

/// Bounds on what one image may hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a manifest or index.
    pub manifest_bytes: u64,
    /// Bytes of an image config.
    pub config_bytes: u64,
    /// Layers of an image.
    pub layers: usize,
    /// Compressed bytes of one layer.
    pub layer_blob_bytes: u64,
    /// Uncompressed bytes of one layer (the decompression bomb limit).
    pub layer_bytes: u64,
    /// Entries of one layer.
    pub layer_entries: u64,
}

/// Bounds on waiting.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// Name resolution, TCP connect and TLS handshake together.
    pub connect: Duration,
    /// From the request sent to the response headers.
    pub headers: Duration,
    /// Between two pieces of a body.
    pub idle: Duration,
    /// A body that brings fewer than `min_rate` bytes per second over this span is given up.
    pub rate_window: Duration,
    /// Bytes per second, see `rate_window`.
    pub min_rate: u64,
    /// Attempts per request and blob for transient failures.
    pub attempts: u32,
    /// First pause between attempts; doubles each time.
    pub backoff: Duration,
}

impl Config {
    /// The defaults for a store in `root`.
    pub fn new(root: impl Into<PathBuf>) -> Config {
        Config {
            root: root.into(),
            config_path: PathBuf::from("/etc/gantry/certs.d"),
            max_concurrent_layers: 3,
            max_concurrent_unpacks: std::thread::available_parallelism().map_or(2, |n| n.get().max(2)),
            docker_config: None,
            plain_http_hosts: Vec::new(),
            proxy: Proxy::from_env(),
            pinned: Vec::new(),
            keep_layer_blobs: true,
            snapshotter: Snapshotter::Auto,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            layers: 500,
            layer_blob_bytes: 64 << 30,
            layer_bytes: 128 << 30,
            layer_entries: 10_000_000,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(15),
            headers: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            rate_window: Duration::from_secs(120),
            min_rate: 256,
            attempts: 5,
            backoff: Duration::from_millis(250),
        }
    }
}
