//! What a newly read configuration means for a running daemon. Pure.

use std::collections::BTreeSet;

use super::Config;

/// Keys that count from a SIGHUP on; the others need a start.
pub(super) const RELOADED: [&str; 13] = [
    "cdi_dirs",
    "checkpoint_images",
    "cni_bin_dirs",
    "cni_conf_dir",
    "docker_config",
    "monitor",
    "nri_plugin_config_dir",
    "pinned_images",
    "registry_config",
    "runtime",
    "runtime_handlers",
    "seccomp_profile_root",
    "streaming_idle_seconds",
];

/// A configuration that was read again.
#[derive(Debug)]
pub struct Reload {
    /// What counts from now on.
    pub config: Config,
    /// Keys that have changed.
    pub changed: Vec<String>,
    /// Keys of which a change counts from the next start on only.
    pub waiting: Vec<String>,
}

impl Config {
    /// Compares with what the file says now.
    ///
    /// # Errors
    /// A value cannot be written down as TOML (a path that is no UTF-8).
    pub fn reload(&self, new: &Self) -> Result<Reload, toml::ser::Error> {
        let (old, read) = (toml::Table::try_from(self)?, toml::Table::try_from(new)?);
        let all: BTreeSet<&String> = old.keys().chain(read.keys()).collect();
        let differs = |key: &&String| old.get(*key) != read.get(*key);
        let (changed, waiting): (Vec<String>, Vec<String>) =
            all.into_iter().filter(differs).cloned().partition(|key| RELOADED.contains(&key.as_str()));
        let config = Self {
            socket: self.socket.clone(),
            root: self.root.clone(),
            state: self.state.clone(),
            runtime_root: self.runtime_root.clone(),
            cgroup_driver: self.cgroup_driver,
            snapshotter: self.snapshotter,
            streaming_address: self.streaming_address.clone(),
            streaming_tls_cert_file: self.streaming_tls_cert_file.clone(),
            streaming_tls_key_file: self.streaming_tls_key_file.clone(),
            metrics_address: self.metrics_address.clone(),
            nri_socket: self.nri_socket.clone(),
            nri_plugin_dir: self.nri_plugin_dir.clone(),
            ..new.clone()
        };
        Ok(Reload { config, changed, waiting })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_change_does_and_what_cannot_is_named() {
        let old = Config::default();
        let mut new = Config { root: "/other".into(), pinned_images: vec!["a".into()], ..Config::default() };
        new.runtime_handlers.insert("runc".into(), "/usr/bin/runc".into());
        let reload = old.reload(&new).unwrap();
        assert_eq!(reload.changed, ["pinned_images", "runtime_handlers"]);
        assert_eq!(reload.waiting, ["root"]);
        assert_eq!((&reload.config.root, &reload.config.pinned_images), (&old.root, &new.pinned_images));
    }

    #[test]
    fn the_list_of_keys_is_what_is_taken() {
        let old = Config::default();
        let table = toml::Table::try_from(&old).unwrap();
        let other = table.iter().map(|(key, value)| {
            let value = match value {
                toml::Value::String(_) if key == "cgroup_driver" => "systemd".into(),
                toml::Value::String(_) if key == "snapshotter" => "native".into(),
                toml::Value::String(_) => "/other".into(),
                toml::Value::Integer(n) => (n + 1).into(),
                toml::Value::Boolean(b) => (!b).into(),
                toml::Value::Array(_) => vec!["/other"].into(),
                _ => toml::Table::from_iter([("other".to_owned(), "/other".into())]).into(),
            };
            (key.clone(), value)
        });
        let new: Config = other.collect::<toml::Table>().try_into().unwrap();
        let first = old.reload(&new).unwrap();
        assert_eq!(first.changed, RELOADED);
        assert_eq!(first.changed.len() + first.waiting.len(), table.len());
        let second = first.config.reload(&new).unwrap();
        assert_eq!((second.changed, second.waiting), (Vec::new(), first.waiting));
    }
}
