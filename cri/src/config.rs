//! /etc/gantry/cri.toml and what flags change of it.

mod keys;
mod reload;

pub use keys::explained;
pub use reload::Reload;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::cgroups::Driver;
use cri_images::Snapshotter;
use serde::{Deserialize, Serialize};

/// All settings of the daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Unix socket that is served.
    pub socket: PathBuf,
    /// Persistent state: images, ledger.
    pub root: PathBuf,
    /// State that a reboot clears: namespaces, mounts, sockets.
    pub state: PathBuf,
    /// The OCI runtime's own state folder.
    pub runtime_root: PathBuf,
    /// Who makes control groups: `cgroupfs` or `systemd`. The kubelet asks for it and does the same.
    pub cgroup_driver: Driver,
    /// OCI runtime; empty: gantry-run beside this program, then in PATH.
    pub runtime: PathBuf,
    /// Monitor program; empty: gantry-monitor beside this program, then in PATH.
    pub monitor: PathBuf,
    /// RuntimeClass handlers: name to OCI runtime.
    pub runtime_handlers: BTreeMap<String, PathBuf>,
    /// Address of the exec/attach/port-forward server.
    pub streaming_address: String,
    /// Certificate of that server (PEM, with those that vouch for it); empty: no TLS, and loopback addresses only.
    pub streaming_tls_cert_file: PathBuf,
    /// Its key (PEM).
    pub streaming_tls_key_file: PathBuf,
    /// How long an exec, attach or port-forward session may carry nothing before it is ended, in seconds; 0: for ever.
    pub streaming_idle_seconds: u64,
    /// Address of the Prometheus endpoint (`127.0.0.1:9464`), path /metrics; empty: none.
    pub metrics_address: String,
    /// Folders with CNI plugins.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Folder with CNI configuration lists.
    pub cni_conf_dir: PathBuf,
    /// Folder of registry settings (`certs.d`).
    pub registry_config: PathBuf,
    /// How containers get their files: `auto`, `overlayfs` or `native`.
    pub snapshotter: Snapshotter,
    /// Images that are never collected.
    pub pinned_images: Vec<String>,
    /// Whether containers may be made of images that hold a checkpoint.
    pub checkpoint_images: bool,
    /// Folders of CDI files; the later counts more.
    pub cdi_dirs: Vec<PathBuf>,
    /// Docker's config.json with logins and credential helpers; empty: none.
    pub docker_config: PathBuf,
    /// Folder of localhost seccomp profiles.
    pub seccomp_profile_root: PathBuf,
    /// Socket to which NRI plugins connect; empty: none.
    pub nri_socket: PathBuf,
    /// Folder of NRI plugins (`NN-name`) that are started with the daemon; empty: none.
    pub nri_plugin_dir: PathBuf,
    /// Folder of their configuration: `NN-name.conf` or `name.conf`.
    pub nri_plugin_config_dir: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: "/run/gantry/cri.sock".into(),
            root: "/var/lib/gantry/cri".into(),
            state: "/run/gantry/cri".into(),
            runtime_root: "/run/gantry/run".into(),
            cgroup_driver: Driver::default(),
            runtime: PathBuf::new(),
            monitor: PathBuf::new(),
            runtime_handlers: BTreeMap::new(),
            streaming_address: "127.0.0.1:0".into(),
            streaming_tls_cert_file: PathBuf::new(),
            streaming_tls_key_file: PathBuf::new(),
            streaming_idle_seconds: 4 * 3600,
            metrics_address: String::new(),
            cni_bin_dirs: vec!["/opt/cni/bin".into()],
            cni_conf_dir: "/etc/cni/net.d".into(),
            registry_config: "/etc/gantry/certs.d".into(),
            snapshotter: Snapshotter::Auto,
            pinned_images: Vec::new(),
            checkpoint_images: false,
            cdi_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            docker_config: PathBuf::new(),
            seccomp_profile_root: "/var/lib/kubelet/seccomp".into(),
            nri_socket: "/var/run/nri/nri.sock".into(),
            nri_plugin_dir: "/opt/nri/plugins".into(),
            nri_plugin_config_dir: "/etc/nri/conf.d".into(),
        }
    }
}

impl Config {
    /// How long a session may carry nothing.
    pub fn streaming_idle(&self) -> std::time::Duration {
        // For ever is long enough when it is longer than anyone waits.
        std::time::Duration::from_secs(match self.streaming_idle_seconds {
            0 => 10 * 365 * 86400,
            seconds => seconds,
        })
    }

    /// Reads a file; a missing file is only fine at the default place.
    ///
    /// # Errors
    /// The file cannot be read, or has an unknown key or a wrong value (named).
    pub fn load(path: &Path, required: bool) -> anyhow::Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !required => Ok(Self::default()),
            Err(e) => Err(anyhow::anyhow!("read {}: {e}", path.display())),
        }
    }

    /// The OCI runtime of a RuntimeClass handler; none when it is unknown.
    pub fn handler(&self, name: &str) -> Option<PathBuf> {
        if let Some(path) = self.runtime_handlers.get(name) {
            return Some(path.clone());
        }
        name.is_empty().then(|| program(&self.runtime, "gantry-run"))
    }

    /// The monitor program.
    pub fn monitor_program(&self) -> PathBuf {
        program(&self.monitor, "gantry-monitor")
    }
}

fn program(set: &Path, name: &str) -> PathBuf {
    if !set.as_os_str().is_empty() {
        return set.to_path_buf();
    }
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(|dir| dir.join(name)));
    beside.filter(|p| p.exists()).unwrap_or_else(|| PathBuf::from(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_reads_back_and_unknown_keys_are_named() {
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap().socket, Config::default().socket);
        assert!(toml::from_str::<Config>("sokket = 1").unwrap_err().to_string().contains("sokket"));
    }

    #[test]
    fn only_known_handlers_have_a_runtime() {
        let mut config = Config::default();
        config.runtime_handlers.insert("runc".into(), "/usr/bin/runc".into());
        assert!(config.handler("").is_some() && config.handler("runc").is_some() && config.handler("x").is_none());
    }
}
