//! Builds small images from directories, for demos and tests.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};

/// What the built image says about running it.
#[derive(Debug, Clone, Default)]
pub struct BuildConfig {
    /// Start of the command line.
    pub entrypoint: Vec<String>,
    /// Rest of the command line.
    pub cmd: Vec<String>,
    /// `NAME=value` lines.
    pub env: Vec<String>,
    /// `user[:group]`.
    pub user: String,
    /// Directory to start in.
    pub working_dir: String,
    /// Signal that ends the program.
    pub stop_signal: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `port/proto` names.
    pub exposed_ports: Vec<String>,
    /// Paths that want a volume.
    pub volumes: Vec<String>,
}

/// Writes an OCI archive (tar) to `out` with one layer, the tree below `rootfs`, named `name`.
pub fn archive_from_rootfs(rootfs: &Path, name: &str, cfg: &BuildConfig, out: &Path) -> Result<()> {
    let _ = (rootfs, name, cfg, out);
    Err(Error::Invalid("not here yet".into()))
}
