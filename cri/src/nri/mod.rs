//! NRI, the node resource interface: plugins that see pods and containers come and go, and adjust them.
//!
//! Who is asked about an event is decided together with what a plugin that connects at the same moment is told: a pod or
//! container is either among what that plugin is told first, or its events come afterwards. So nobody has to wait for plugins
//! to connect, and none misses anything ([`State`]).

mod adjust;
#[cfg(test)]
mod adjust_tests;
mod convert;
mod events;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod plugin;
mod updates;
mod wire;

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use proto::nri;
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

pub use events::{
    Coming, container_changed, container_ended, container_made, container_removed, container_started, container_starts,
    pod_changed, pod_changes, pod_removed, pod_runs, pod_stopped,
};
pub use events::{container_changes, container_comes};

use crate::daemon::{Container, Daemon, Sandbox, lock};
use plugin::Plugin;

/// Everything about plugins.
#[derive(Default)]
pub struct Nri {
    state: Mutex<State>,
    /// The inode of the socket that is served.
    socket: std::sync::OnceLock<u64>,
}

/// Changed only under its lock, so that every pod and container is on one side of a plugin's connecting.
#[derive(Default)]
struct State {
    /// In the order in which they are asked.
    plugins: Vec<Arc<Plugin>>,
    /// Pods that plugins were asked about and that are not listed yet.
    pods: HashMap<String, Arc<Sandbox>>,
    /// The same of containers, with their configuration.
    containers: HashMap<String, (Arc<Container>, Arc<Value>)>,
    /// Ids that plugins were told to be gone and that are still listed.
    leaving: HashSet<String>,
    /// Messages about ends under way: what comes after an end waits for them.
    ends: HashMap<String, JoinHandle<()>>,
}

impl Nri {
    /// The plugins to ask, after noting something about pods and containers.
    fn noting(&self, note: impl FnOnce(&mut State)) -> Vec<Arc<Plugin>> {
        let mut state = lock(&self.state);
        state.plugins.retain(|p| !p.is_closed());
        note(&mut state);
        state.plugins.clone()
    }

    /// Whether any plugin is connected.
    pub fn is_used(&self) -> bool {
        !self.noting(|_| {}).is_empty()
    }

    /// Names of the plugins that are connected.
    pub fn plugins(&self) -> Vec<String> {
        self.noting(|_| {}).iter().map(|p| p.name()).collect()
    }
}

/// Serves plugins at the configured socket and starts those of the configured folder. What is wrong with it is told and does not
/// keep the daemon from starting.
pub async fn serve(daemon: &Arc<Daemon>) {
    let config = &daemon.config;
    launch_all(daemon).await;
    if config.nri_socket.as_os_str().is_empty() {
        return;
    }
    let listener = match listen(&config.nri_socket).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(socket = %config.nri_socket.display(), %error, "no NRI plugins can connect");
            return;
        }
    };
    if let Ok(meta) = std::fs::metadata(&config.nri_socket) {
        let _ = daemon.nri.socket.set(meta.ino());
    }
    let daemon = daemon.clone();
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let daemon = daemon.clone();
                    tokio::spawn(async move { connect(&daemon, stream, None).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting an NRI plugin");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    });
}

/// A socket that another process serves is left to it: containerd has the same default.
async fn listen(path: &Path) -> std::io::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, "another process serves it"));
    }
    if let Some(folder) = path.parent()
        && !folder.exists()
    {
        std::fs::create_dir_all(folder)?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    }
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Takes the socket away at the daemon's end, if it is still the one that this daemon made, and its folder when that is empty.
pub fn unlisten(daemon: &Daemon) {
    let path = &daemon.config.nri_socket;
    let ours = daemon.nri.socket.get().copied();
    if ours.is_some() && std::fs::metadata(path).ok().map(|m| m.ino()) == ours {
        let _ = std::fs::remove_file(path);
        let _ = path.parent().map(std::fs::remove_dir);
    }
}

/// Executables `NN-name` of the plugin folder, in order.
fn installed(folder: &Path) -> Vec<(std::path::PathBuf, (String, String))> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let runs = |e: &std::fs::DirEntry| e.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let mut found: Vec<_> = entries
        .filter(runs)
        .filter_map(|e| Some((e.path(), plugin::file_identity(&e.file_name().to_string_lossy())?)))
        .collect();
    found.sort();
    found
}

async fn launch_all(daemon: &Arc<Daemon>) {
    if daemon.config.nri_plugin_dir.as_os_str().is_empty() {
        return;
    }
    for (path, identity) in installed(&daemon.config.nri_plugin_dir) {
        let name = format!("{}-{}", identity.0, identity.1);
        match launch(&path, &identity) {
            // One after another: they are synchronised before the daemon serves its first request.
            Ok(stream) => {
                let (done, synchronised) = tokio::sync::oneshot::channel();
                let daemon = daemon.clone();
                tokio::spawn(async move { connect(&daemon, stream, Some((identity, done))).await });
                let _ = tokio::time::timeout(plugin::REGISTRATION + plugin::REQUEST * 2, synchronised).await;
            }
            Err(error) => tracing::warn!(plugin = name, %error, "an NRI plugin does not start"),
        }
    }
}

/// Starts a plugin with its end of a socket as descriptor 3.
fn launch(path: &Path, (index, base): &(String, String)) -> std::io::Result<UnixStream> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut child = tokio::process::Command::new("/bin/sh")
        .args(["-c", "exec \"$0\" 3<&0 </dev/null"])
        .arg(path)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("NRI_PLUGIN_NAME", base)
        .env("NRI_PLUGIN_IDX", index)
        .env("NRI_PLUGIN_SOCKET", "3")
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .kill_on_drop(true)
        .spawn()?;
    tokio::spawn(async move { child.wait().await });
    UnixStream::from_std(ours)
}

/// The configuration of a plugin: `NN-name.conf`, else `name.conf`.
fn configuration(folder: &Path, index: &str, base: &str) -> String {
    let names = [format!("{index}-{base}.conf"), format!("{base}.conf")];
    names.iter().find_map(|name| std::fs::read_to_string(folder.join(name)).ok()).unwrap_or_default()
}

type Launched = ((String, String), tokio::sync::oneshot::Sender<()>);

/// One plugin from its connection to its end.
async fn connect(daemon: &Arc<Daemon>, stream: UnixStream, launched: Option<Launched>) {
    let (identity, done) = launched.map_or((None, None), |(identity, done)| (Some(identity), Some(done)));
    let folder = daemon.settings().nri_plugin_config_dir.clone();
    let accepted = Plugin::accept(stream, identity, |index, base| configuration(&folder, index, base)).await;
    let (plugin, mut incoming) = match accepted {
        Ok((plugin, incoming)) => (Arc::new(plugin), incoming),
        Err(why) => {
            tracing::warn!(why, "an NRI plugin is refused");
            return;
        }
    };
    let name = plugin.name();
    let (pods, containers) = join(daemon, &plugin);
    tracing::info!(plugin = name, pods = pods.len(), containers = containers.len(), "NRI plugin connected");
    let serving = {
        let (daemon, plugin) = (daemon.clone(), plugin.clone());
        tokio::spawn(async move {
            while let Some(request) = incoming.recv().await {
                let answer = updates::serve(&daemon, &plugin, &request).await;
                plugin.answer(&request, answer).await;
            }
        })
    };
    match plugin.synchronize(pods, containers).await {
        Ok(wanted) => updates::apply_all(daemon, wanted, Vec::new(), &name).await,
        Err(error) => tracing::warn!(plugin = name, error, "an NRI plugin is dropped"),
    }
    drop(done);
    plugin.closed().await;
    serving.abort();
    daemon.nri.noting(|_| {});
    tracing::info!(plugin = name, "NRI plugin gone");
}

/// Puts a plugin among those that are asked, and answers what there is at that very moment.
fn join(daemon: &Arc<Daemon>, plugin: &Arc<Plugin>) -> (Vec<nri::PodSandbox>, Vec<nri::Container>) {
    let (pods, listed, coming) = {
        let mut state = lock(&daemon.nri.state);
        let mut pods: HashMap<String, Arc<Sandbox>> = state.pods.clone();
        pods.extend(daemon.all_sandboxes().into_iter().map(|s| (s.id.clone(), s)));
        pods.retain(|id, _| !state.leaving.contains(id));
        let mut listed = daemon.all_containers();
        listed.retain(|c| !state.leaving.contains(&c.id));
        let mut coming = state.containers.clone();
        coming.retain(|id, _| !state.leaving.contains(id));
        listed.retain(|c| !coming.contains_key(&c.id));
        let place = state.plugins.partition_point(|p| (&p.index, &p.base) <= (&plugin.index, &plugin.base));
        state.plugins.insert(place, plugin.clone());
        (pods, listed, coming)
    };
    let mut pods: Vec<_> = pods.into_values().collect();
    pods.sort_by_key(|s| s.created_at);
    let pods = pods.iter().map(|s| events::pod(daemon, s)).collect();
    let mut containers: Vec<_> = listed.iter().map(|c| events::container(daemon, c)).collect();
    containers.extend(coming.values().map(|(c, oci)| convert::container(&c.record(), oci, 0)));
    (pods, containers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_plugins_are_executables_with_an_index_and_the_nearest_configuration_counts() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("20-b", 0o755), ("10-a", 0o755), ("30-c", 0o644), ("notes", 0o755)] {
            std::fs::write(dir.path().join(name), "").unwrap();
            std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let names: Vec<_> = installed(dir.path()).into_iter().map(|(_, (index, base))| index + &base).collect();
        assert_eq!(names, ["10a", "20b"]);
        std::fs::write(dir.path().join("a.conf"), "every").unwrap();
        assert_eq!(configuration(dir.path(), "10", "a"), "every");
        std::fs::write(dir.path().join("10-a.conf"), "this").unwrap();
        assert_eq!(configuration(dir.path(), "10", "a"), "this");
        assert_eq!(configuration(dir.path(), "20", "b"), "");
    }
}
