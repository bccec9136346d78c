//! A pod's `/etc/hosts`.

use std::io;
use std::path::Path;

use k8s_openapi::api::core::v1::HostAlias;

/// The text of a pod's hosts file. With `host_network` the node's own file (`node_hosts`) is the base.
pub fn render_hosts(
    pod_ips: &[String],
    hostname: &str,
    domain: &str,
    aliases: &[HostAlias],
    host_network: bool,
    node_hosts: &str,
) -> String {
    let mut out = String::new();
    if host_network {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(node_hosts);
        if !node_hosts.is_empty() && !node_hosts.ends_with('\n') {
            out.push('\n');
        }
    } else {
        out.push_str(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
        );
        out.push_str(
            "fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        for ip in pod_ips {
            if domain.is_empty() {
                out.push_str(&format!("{ip}\t{hostname}\n"));
            } else {
                out.push_str(&format!("{ip}\t{hostname}.{domain}\t{hostname}\n"));
            }
        }
    }
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            out.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t")));
        }
    }
    out
}

/// Writes a pod's hosts file in place (containers bind-mount the file itself, so it must keep its inode); does nothing
/// when the text is already there.
///
/// # Errors
/// The file cannot be read or written.
pub fn write_hosts(
    path: &Path,
    pod_ips: &[String],
    hostname: &str,
    domain: &str,
    aliases: &[HostAlias],
    host_network: bool,
) -> io::Result<()> {
    let node_hosts =
        if host_network { std::fs::read_to_string("/etc/hosts").unwrap_or_default() } else { String::new() };
    let text = render_hosts(pod_ips, hostname, domain, aliases, host_network, &node_hosts);
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias(ip: &str, names: &[&str]) -> HostAlias {
        HostAlias { ip: ip.into(), hostnames: Some(names.iter().map(|&n| n.into()).collect()) }
    }

    #[test]
    fn pod_network_file_names_the_pod_and_its_aliases() {
        let text = render_hosts(
            &["10.0.0.4".into(), "fd00::4".into()],
            "web",
            "sub.ns.svc.c.l",
            &[alias("1.2.3.4", &["a", "b"])],
            false,
            "ignored",
        );
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("10.0.0.4\tweb.sub.ns.svc.c.l\tweb\nfd00::4\tweb.sub.ns.svc.c.l\tweb\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
        assert!(!text.contains("ignored"));
        assert!(render_hosts(&["10.0.0.4".into()], "web", "", &[], false, "").ends_with("10.0.0.4\tweb\n"));
    }

    #[test]
    fn host_network_file_starts_from_the_nodes() {
        let text = render_hosts(&["10.0.0.4".into()], "web", "", &[alias("1.2.3.4", &["a"])], true, "127.0.0.1 me");
        assert_eq!(
            text,
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n\n# Entries added by HostAliases.\n1.2.3.4\ta\n"
        );
    }

    #[test]
    fn writing_again_keeps_the_inode() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods/u/etc-hosts");
        write_hosts(&path, &["10.0.0.4".into()], "web", "", &[], false).unwrap();
        let before = std::fs::metadata(&path).unwrap().ino();
        write_hosts(&path, &["10.0.0.5".into()], "web", "", &[], false).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), before);
        assert!(std::fs::read_to_string(&path).unwrap().contains("10.0.0.5\tweb\n"));
    }
}
