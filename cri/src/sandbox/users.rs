//! Pods with user ids of their own: one user namespace that owns the pod's other namespaces.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use gantry_monitor::namespaces::Wanted;
use gantry_sys::namespaces::Kind;
use proto::cri;
use tokio::io::AsyncWriteExt;

use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::oci::spec::is_node;

/// The maps of a pod: one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// User ids.
    pub uids: cri::IdMapping,
    /// Group ids.
    pub gids: cri::IdMapping,
}

impl Ids {
    /// User and group of the pod's root on the host.
    pub fn root(&self) -> (u32, u32) {
        (self.uids.host_id, self.gids.host_id)
    }
}

/// What a pod wants; none for the host's ids. Pure.
///
/// # Errors
/// The mode is unknown here, or the maps are not one line each that begins with id 0.
pub fn wanted(options: &cri::NamespaceOption) -> std::result::Result<Option<Ids>, String> {
    let Some(users) = &options.userns_options else { return Ok(None) };
    match users.mode() {
        cri::NamespaceMode::Node if users.uids.is_empty() && users.gids.is_empty() => return Ok(None),
        cri::NamespaceMode::Node => return Err("userns_options: mode NODE has no id mappings".to_owned()),
        cri::NamespaceMode::Pod => {}
        other => return Err(format!("userns_options: mode {} is not supported", other.as_str_name())),
    }
    if is_node(options.network) {
        return Err("userns_options: a pod on the host's network cannot have its own user ids".to_owned());
    }
    let one = |what: &str, maps: &[cri::IdMapping]| match maps {
        [map] if map.container_id != 0 => Err(format!("userns_options: {what}: container id 0 is not mapped")),
        [map] if map.length == 0 => Err(format!("userns_options: {what}: the mapping is empty")),
        [map] => Ok(*map),
        _ => Err(format!("userns_options: {what}: {} mappings instead of one", maps.len())),
    };
    Ok(Some(Ids { uids: one("uids", &users.uids)?, gids: one("gids", &users.gids)? }))
}

/// Where a pod's user namespace is pinned.
pub fn path(daemon: &Daemon, sandbox: &str) -> PathBuf {
    daemon.sandbox_dir(sandbox).join("ns/user")
}

/// Whether this kernel can do it: overlayfs takes id-mapped layers that are attached nowhere from Linux 6.15 on.
pub fn supported() -> bool {
    let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    gantry_sys::kernel::at_least(6, 15) && most.trim() != "0"
}

fn line(map: &cri::IdMapping) -> String {
    format!("{} {} {}\n", map.container_id, map.host_id, map.length)
}

/// Makes a pod's namespaces inside a new user namespace.
///
/// # Errors
/// The helper program cannot be run, or says why it failed; nothing is left then.
pub(super) async fn make(
    daemon: &Daemon,
    sandbox: &str,
    ids: &Ids,
    kinds: &[(Kind, PathBuf)],
    hostname: Option<String>,
    sysctls: Vec<(String, String)>,
) -> Result<()> {
    let wanted = Wanted {
        user: path(daemon, sandbox),
        uids: line(&ids.uids),
        gids: line(&ids.gids),
        others: kinds.iter().map(|(kind, path)| (kind.proc_name().to_owned(), path.clone())).collect(),
        hostname,
        sysctls,
    };
    let what = format!("namespaces of sandbox {sandbox}");
    let text = serde_json::to_vec(&wanted).map_err(|e| Error::Failed(format!("{what}: {e}")))?;
    let mut helper = tokio::process::Command::new(daemon.settings().monitor_program())
        .arg("namespaces")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::failed(&what))?;
    if let Some(mut input) = helper.stdin.take() {
        let _ = input.write_all(&text).await;
    }
    let output = tokio::time::timeout(Duration::from_secs(30), helper.wait_with_output()).await;
    let output =
        output.map_err(|_| Error::Timeout(format!("{what}: no end after 30 s")))?.map_err(Error::failed(&what))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Failed(format!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_maps_id_0_by_one_line_or_uses_the_hosts_ids() {
        let map = |container_id, host_id| cri::IdMapping { container_id, host_id, length: 65536 };
        let ask = |mode: cri::NamespaceMode, maps: Vec<cri::IdMapping>| {
            let userns_options = Some(cri::UserNamespace { mode: mode.into(), uids: maps.clone(), gids: maps });
            wanted(&cri::NamespaceOption { userns_options, ..Default::default() })
        };
        assert_eq!(wanted(&cri::NamespaceOption::default()), Ok(None));
        assert_eq!(ask(cri::NamespaceMode::Node, vec![]), Ok(None));
        assert!(ask(cri::NamespaceMode::Node, vec![map(0, 1)]).is_err());
        let ids = ask(cri::NamespaceMode::Pod, vec![map(0, 1000)]).unwrap().unwrap();
        assert_eq!(ids.root(), (1000, 1000));
        assert!(ask(cri::NamespaceMode::Pod, vec![map(1, 1000)]).unwrap_err().contains("id 0"));
        assert!(ask(cri::NamespaceMode::Pod, vec![map(0, 1000), map(0, 2000)]).unwrap_err().contains("2 mappings"));
        assert!(ask(cri::NamespaceMode::Pod, vec![]).is_err());
        assert!(ask(cri::NamespaceMode::Container, vec![]).unwrap_err().contains("CONTAINER"));
        assert!(ask(cri::NamespaceMode::Target, vec![]).is_err());
    }
}
