//! The configuration with its defaults and what each key means, for people.

use std::fmt::Write as _;

use super::Config;
use super::reload::RELOADED;

/// What each key means, in the order in which people look for them.
const KEYS: &[(&str, &str)] = &[
    ("socket", "Unix socket that is served; imports and fsck use one beside it, with the ending .admin."),
    ("root", "Persistent state: images and the records of pods and containers."),
    ("state", "State that a reboot clears: namespaces, mounts, sockets of monitors."),
    ("runtime_root", "The OCI runtime's own state folder."),
    ("cgroup_driver", "Who makes control groups: cgroupfs or systemd. The kubelet asks for it and does the same."),
    ("runtime", "OCI runtime of pods without a RuntimeClass; empty: gantry-run beside this program, then in PATH."),
    ("monitor", "Monitor program; empty: gantry-monitor beside this program, then in PATH."),
    ("runtime_handlers", "RuntimeClass handlers: name = path of an OCI runtime."),
    ("streaming_address", "Address and port of the server of exec, attach and port-forward sessions; port 0: any."),
    (
        "streaming_tls_cert_file",
        "Certificate of that server, PEM; empty: no TLS, which only a loopback address may do without.",
    ),
    ("streaming_tls_key_file", "Its key, PEM."),
    ("streaming_idle_seconds", "A session that carries nothing for so long is ended; 0: never."),
    ("metrics_address", "Address and port of the Prometheus endpoint, path /metrics; empty: none."),
    ("cni_bin_dirs", "Folders with CNI plugins, the first that has one counts."),
    ("cni_conf_dir", "Folder with CNI configuration lists; the first by name counts, read whenever it is used."),
    (
        "registry_config",
        "Folder of registry settings: HOST/hosts.toml and _default/hosts.toml, as containerd's certs.d.",
    ),
    ("docker_config", "Docker's config.json with logins and credential helpers; empty: none."),
    (
        "snapshotter",
        "How containers get their files: overlayfs; native: a copy of all layers for each; auto: overlayfs where it works in root.",
    ),
    ("pinned_images", "Images (names or ids) that the kubelet must not collect."),
    (
        "checkpoint_images",
        "Whether an image that holds a checkpoint is restored: its processes go on with the ids and rights that they had.",
    ),
    ("cdi_dirs", "Folders of CDI files; the later counts more."),
    ("seccomp_profile_root", "Folder of the seccomp profiles that pods name as Localhost."),
    ("nri_socket", "Socket to which NRI plugins connect; empty: none. One that another process serves is left to it."),
    ("nri_plugin_dir", "Folder of NRI plugins, executables NN-name, that are started with the daemon; empty: none."),
    ("nri_plugin_config_dir", "Folder of their configuration: NN-name.conf, else name.conf."),
];

/// The default configuration as a file that says what each key means.
///
/// # Errors
/// A default cannot be written as TOML.
pub fn explained() -> Result<String, toml::ser::Error> {
    let values = toml::Table::try_from(Config::default())?;
    let mut text = "# Settings of gantry-cri with their defaults. Keys marked (SIGHUP) are read again at that signal, the others at a \
                    start.\n"
        .to_owned();
    // Tables come last, or what follows would be in them.
    let (tables, plain): (Vec<_>, Vec<_>) = KEYS.iter().partition(|(key, _)| values[*key].is_table());
    for &(key, meaning) in plain.into_iter().chain(tables) {
        let mark = if RELOADED.contains(&key) { " (SIGHUP)" } else { "" };
        let one = toml::Table::from_iter([(key.to_owned(), values[key].clone())]);
        let _ = write!(text, "\n# {meaning}{mark}\n{}", toml::to_string(&one)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_explained_and_the_text_reads_back_as_the_defaults() {
        let values = toml::Table::try_from(Config::default()).unwrap();
        let mut known: Vec<&str> = KEYS.iter().map(|(key, _)| *key).collect();
        known.sort_unstable();
        assert_eq!(known, values.keys().map(String::as_str).collect::<Vec<_>>());
        let text = explained().unwrap();
        let read: Config = toml::from_str(&text).unwrap();
        assert_eq!(toml::Table::try_from(read).unwrap(), values);
        assert!(text.contains("(SIGHUP)\npinned_images = []\n"), "{text}");
    }
}
