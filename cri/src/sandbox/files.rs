//! Files that all containers of a pod share: resolv.conf, hostname, hosts, /dev/shm.

use std::fs;
use std::io;
use std::path::Path;

use proto::cri;

/// The text of resolv.conf; none keeps the host's.
pub(super) fn resolv_conf(dns: Option<&cri::DnsConfig>) -> Option<String> {
    let dns = dns.filter(|d| !d.servers.is_empty() || !d.searches.is_empty() || !d.options.is_empty())?;
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    Some(text)
}

/// Writes the files and mounts the pod's /dev/shm. `owner`: whom they belong to, where it is not root.
pub(super) fn make(
    dir: &Path,
    config: &cri::PodSandboxConfig,
    host_network: bool,
    host_ipc: bool,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let dns = resolv_conf(config.dns_config.as_ref());
    let dns = dns.map_or_else(|| fs::read("/etc/resolv.conf").unwrap_or_default(), String::into_bytes);
    fs::write(dir.join("resolv.conf"), dns)?;
    let host_name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = if host_network || config.hostname.is_empty() { host_name.trim() } else { &config.hostname };
    fs::write(dir.join("hostname"), format!("{name}\n"))?;
    let hosts = match (host_network, fs::read("/etc/hosts")) {
        (true, Ok(hosts)) => hosts,
        _ => b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_vec(),
    };
    fs::write(dir.join("hosts"), hosts)?;
    if !host_ipc {
        let shm = dir.join("shm");
        fs::create_dir_all(&shm)?;
        use nix::mount::{MsFlags, mount};
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("shm"), &shm, Some("tmpfs"), flags, Some("mode=1777,size=65536k"))?;
    }
    if let Some((uid, gid)) = owner {
        for name in ["resolv.conf", "hostname", "hosts"] {
            std::os::unix::fs::chown(dir.join(name), Some(uid), Some(gid))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_written_as_asked() {
        let dns = cri::DnsConfig {
            servers: vec!["10.0.0.10".into()],
            searches: vec!["a.b".into(), "b".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(resolv_conf(Some(&dns)).unwrap(), "search a.b b\nnameserver 10.0.0.10\noptions ndots:5\n");
        assert_eq!(resolv_conf(Some(&cri::DnsConfig::default())), None);
    }
}
