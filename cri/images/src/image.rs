//! What callers see of an image.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Credentials for one registry, shaped like CRI's `AuthConfig`; empty text means "not given".
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Auth {
    /// User name for basic authentication and token requests.
    pub username: String,
    /// Password that goes with it.
    pub password: String,
    /// base64 of `user:password`; used when `username` is empty.
    pub auth: String,
    /// Registry these are for; empty means the registry of the reference.
    pub server_address: String,
    /// OAuth2 refresh token, traded for an access token.
    pub identity_token: String,
    /// Bearer token sent as it is.
    pub registry_token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `sha256:<digest of the config>`.
    pub id: String,
    /// Full names with tag, such as `docker.io/library/busybox:latest`.
    pub repo_tags: Vec<String>,
    /// Full names with manifest digest.
    pub repo_digests: Vec<String>,
    /// Bytes on disk of the unpacked layers (shared layers count in each image).
    pub size: u64,
    /// What the image says about running it.
    pub config: ImageConfig,
    /// Must not be collected.
    pub pinned: bool,
    /// When the image was built, RFC 3339, as the image says.
    pub created: Option<String>,
    /// When the image came into this store, seconds since the epoch.
    pub pulled_at: i64,
    /// Operating system, such as `linux`.
    pub os: String,
    /// Architecture in Go's words, such as `amd64`.
    pub architecture: String,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<String>,
}

/// The `config` section of an image configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `user[:group]`, names or numbers; empty means root.
    #[serde(deserialize_with = "nullable")]
    pub user: String,
    /// `NAME=value` lines.
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Start of the command line.
    #[serde(deserialize_with = "nullable")]
    pub entrypoint: Vec<String>,
    /// Rest of the command line, or all of it without an entry point.
    #[serde(deserialize_with = "nullable")]
    pub cmd: Vec<String>,
    /// Directory to start in; empty means `/`.
    #[serde(deserialize_with = "nullable")]
    pub working_dir: String,
    /// Signal that asks the program to end; empty means SIGTERM.
    #[serde(deserialize_with = "nullable")]
    pub stop_signal: String,
    /// Free-form labels.
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    /// `port/proto` names.
    #[serde(deserialize_with = "nullable")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    /// Paths that want a volume.
    #[serde(deserialize_with = "nullable")]
    pub volumes: BTreeMap<String, serde_json::Value>,
}

/// Go writes empty slices and maps as `null`; both mean "none".
fn nullable<'de, D, T>(d: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// Disk use of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// Bytes used by blobs and layers.
    pub bytes: u64,
    /// Inodes used by them.
    pub inodes: u64,
    /// Folder of the store (what CRI calls `fs_id.mountpoint`).
    pub mountpoint: std::path::PathBuf,
    /// When this was true, nanoseconds since the epoch.
    pub timestamp: i64,
}

/// How far a pull or import is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is being pulled.
    pub reference: String,
    /// What is being done.
    pub phase: Phase,
    /// Layers that are unpacked (or were here already).
    pub layers_done: usize,
    /// Layers of the image.
    pub layers_total: usize,
    /// Compressed bytes that are here.
    pub bytes_done: u64,
    /// Compressed bytes of all layers.
    pub bytes_total: u64,
}

/// Step of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Asking the registry what the name means.
    Resolving,
    /// Downloading and unpacking layers.
    Layers,
    /// All is here.
    Done,
}

/// Called with each step of progress; must return quickly. Called at most every 100 ms plus on each finished layer.
pub type ProgressSink = std::sync::Arc<dyn Fn(&Progress) + Send + Sync>;
