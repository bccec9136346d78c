//! Compares what the daemon knows with what is on disk and in the kernel.
//!
//! The host is looked at first and the daemon's memory after it, so that what begins meanwhile is no finding; what ends
//! meanwhile is none because each finding is looked at once more.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;

use crate::daemon::Daemon;
use crate::monitors;

/// What is on the host below the daemon's folders.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Host {
    /// Folders of sandboxes.
    sandboxes: Vec<String>,
    /// Bundles.
    containers: Vec<String>,
    /// Sockets of monitors, by the beginning of the sandbox's id.
    monitors: Vec<String>,
    /// State folders of the OCI runtime.
    runtime: Vec<String>,
    /// Mount points.
    mounts: Vec<PathBuf>,
    /// Ids with a record in the ledger.
    records: Vec<String>,
}

/// What the daemon knows: what it has in memory, and the records of what it is making just now.
#[derive(Debug, Default, Clone)]
struct Known {
    sandboxes: HashSet<String>,
    containers: HashSet<String>,
    /// Of these, and of what is being made, there are records.
    recorded: HashSet<String>,
}

/// Something that belongs to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    Sandbox(String),
    Bundle(String),
    Monitor(String),
    Runtime(String),
    Mount(PathBuf),
    Record(String),
}

impl Finding {
    fn text(&self) -> String {
        match self {
            Self::Sandbox(id) => format!("folder of sandbox {id}, which is not known"),
            Self::Bundle(id) => format!("bundle of container {id}, which is not known"),
            Self::Monitor(name) => format!("socket of monitor {name}, whose sandbox is not known"),
            Self::Runtime(id) => format!("runtime state of container {id}, which is not known"),
            Self::Record(id) => format!("record {id}, which the daemon does not have"),
            Self::Mount(path) => format!("mount {} of nothing that is known", path.display()),
        }
    }
}

/// What of the host belongs to nothing that is known. Pure.
fn compare(host: &Host, known: &Known, state: &Path) -> Vec<Finding> {
    let mut found = Vec::new();
    let unknown = |ids: &[String], set: &HashSet<String>| -> Vec<String> {
        ids.iter().filter(|id| !set.contains(*id)).cloned().collect()
    };
    let sandboxes = unknown(&host.sandboxes, &known.sandboxes);
    let bundles = unknown(&host.containers, &known.containers);
    for mount in &host.mounts {
        let owned = |kind: &str, set: &HashSet<String>| {
            let rest = mount.strip_prefix(state.join(kind)).ok();
            let id = rest.and_then(|r| r.iter().next()).map(|n| n.to_string_lossy().into_owned());
            id.is_some_and(|id| set.contains(&id))
        };
        let inside = mount.starts_with(state.join("sandboxes")) || mount.starts_with(state.join("containers"));
        if inside && !owned("sandboxes", &known.sandboxes) && !owned("containers", &known.containers) {
            found.push(Finding::Mount(mount.clone()));
        }
    }
    found.extend(unknown(&host.records, &known.recorded).into_iter().map(Finding::Record));
    found.extend(sandboxes.into_iter().map(Finding::Sandbox));
    found.extend(bundles.into_iter().map(Finding::Bundle));
    let orphan = |name: &&String| !known.sandboxes.iter().any(|id| id.starts_with(name.as_str()));
    found.extend(host.monitors.iter().filter(orphan).cloned().map(Finding::Monitor));
    found.extend(unknown(&host.runtime, &known.containers).into_iter().map(Finding::Runtime));
    found
}

/// Names in a folder, without those that begin with a dot.
fn names(folder: &Path) -> Vec<String> {
    let all = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        all.map(|e| e.file_name().to_string_lossy().into_owned()).filter(|n| !n.starts_with('.')).collect();
    names.sort();
    names
}

fn look(daemon: &Daemon) -> io::Result<Host> {
    let state = &daemon.config.state;
    let table = fs::read_to_string("/proc/self/mounts")?;
    let points = table.lines().filter_map(|l| l.split(' ').nth(1)).map(PathBuf::from);
    let sockets = names(&state.join("m"));
    let (sandboxes, containers) = (daemon.ledger.sandboxes().0, daemon.ledger.containers().0);
    Ok(Host {
        sandboxes: names(&state.join("sandboxes")),
        containers: names(&state.join("containers")),
        monitors: sockets.iter().filter_map(|n| n.strip_suffix(".sock")).map(str::to_owned).collect(),
        runtime: names(&daemon.config.runtime_root),
        mounts: points.filter(|p| p.starts_with(state)).collect(),
        // Unreadable ones are told elsewhere, and nobody knows whether they are of use.
        records: sandboxes.into_iter().map(|r| r.id).chain(containers.into_iter().map(|r| r.id)).collect(),
    })
}

fn known(daemon: &Daemon) -> Known {
    let (sandboxes, containers) = (daemon.ledger.sandboxes().0, daemon.ledger.containers().0);
    let in_memory = daemon.all_sandboxes().into_iter().map(|s| s.id.clone());
    let in_memory = in_memory.chain(daemon.all_containers().into_iter().map(|c| c.id.clone()));
    Known {
        recorded: in_memory.chain(daemon.being_made()).collect(),
        sandboxes: daemon
            .all_sandboxes()
            .iter()
            .map(|s| s.id.clone())
            .chain(sandboxes.into_iter().map(|r| r.id))
            .collect(),
        containers: daemon
            .all_containers()
            .iter()
            .map(|c| c.id.clone())
            .chain(containers.into_iter().map(|r| r.id))
            .collect(),
    }
}

/// Snapshots that containers need.
fn live(daemon: &Daemon) -> HashSet<String> {
    let records = daemon.all_containers().into_iter().map(|c| c.record()).filter(|r| r.complete);
    records.flat_map(|r| std::iter::once(r.id).chain(r.views)).collect()
}

/// Everything that does not agree, in words; with `repair` what belongs to nothing is removed.
///
/// # Errors
/// The host cannot be looked at, or something could not be removed.
pub async fn run(daemon: &Arc<Daemon>, repair: bool) -> anyhow::Result<Vec<String>> {
    let orphans = find(daemon).await?;
    let mut texts: Vec<String> = orphans.iter().map(Finding::text).collect();
    texts.extend(disagreements(daemon).await);
    let (sandboxes, containers) = (daemon.ledger.sandboxes().1, daemon.ledger.containers().1);
    texts.extend(sandboxes.into_iter().chain(containers).map(|fault| format!("unreadable record {fault}")));
    let task = daemon.clone();
    let images = tokio::task::spawn_blocking(move || {
        let found = task.images.check(&live(&task));
        let faults = if repair { task.images.fsck(&live(&task)).faults } else { Vec::new() };
        (found, faults)
    });
    let (found, faults) = images.await?;
    texts.extend(found);
    anyhow::ensure!(faults.is_empty(), "cannot repair the image store: {}", faults.join("; "));
    if repair {
        for orphan in &orphans {
            remove(daemon, orphan).map_err(|e| anyhow::anyhow!("cannot remove {}: {e}", orphan.text()))?;
        }
    }
    Ok(texts)
}

/// What is on the host and belongs to nothing, seen twice.
async fn find(daemon: &Arc<Daemon>) -> anyhow::Result<Vec<Finding>> {
    let state = daemon.config.state.clone();
    let once = |daemon: &Daemon| -> io::Result<Vec<Finding>> {
        let host = look(daemon)?;
        Ok(compare(&host, &known(daemon), &state))
    };
    let first = once(daemon)?;
    if first.is_empty() {
        return Ok(first);
    }
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let second = once(daemon)?;
    Ok(first.into_iter().filter(|f| second.contains(f)).collect())
}

/// Pods that are looked at beside each other: one that is held up does not make all others wait.
const BESIDE: usize = 4;

/// What is wrong with one pod: its monitor, its network. None while somebody works on it, who decides about it.
async fn disagreement(daemon: &Daemon, sandbox: &crate::daemon::Sandbox) -> Option<String> {
    let _turn = sandbox.turn.try_lock().ok()?;
    let record = sandbox.record();
    if !record.complete {
        return Some(format!("sandbox {} is half made", record.id));
    }
    if record.stopped {
        return None;
    }
    if !monitors::answers(daemon, &record.id).await {
        return Some(format!("the monitor of sandbox {} does not answer", record.id));
    }
    let (list, result) = (record.cni_config.as_ref()?, record.cni_result.as_ref()?);
    let netns = daemon.sandbox_dir(&record.id).join("ns/net");
    let attachment = crate::sandbox::network::attachment(daemon, &record, Some(&netns));
    let error = crate::cni::check(list, result, &attachment).await.err()?;
    Some(format!("network of sandbox {}: {error}", record.id))
}

/// What the daemon knows and the host does not have: monitors of running pods, namespaces.
async fn disagreements(daemon: &Arc<Daemon>) -> Vec<String> {
    let pods = futures::stream::iter(daemon.all_sandboxes())
        .map(|sandbox| async move { disagreement(daemon, &sandbox).await })
        .buffered(BESIDE);
    let mut found: Vec<String> = pods.filter_map(std::future::ready).collect().await;
    for entry in daemon.all_containers() {
        let Ok(_turn) = entry.turn.try_lock() else { continue };
        let record = entry.record();
        if daemon.sandbox(&record.sandbox).is_err() {
            found.push(format!("container {} has no sandbox", record.id));
        } else if !record.complete {
            found.push(format!("container {} is half made", record.id));
        }
    }
    found
}

fn remove(daemon: &Daemon, finding: &Finding) -> io::Result<()> {
    let gone = |outcome: io::Result<()>| match outcome {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    };
    match finding {
        Finding::Mount(path) => gantry_sys::mount::unmount_all(path),
        Finding::Sandbox(id) => {
            let folder = daemon.sandbox_dir(id);
            for name in ["net", "ipc", "uts", "user"] {
                gone(gantry_sys::namespaces::unpin(&folder.join("ns").join(name)))?;
            }
            gone(fs::remove_dir_all(folder))
        }
        Finding::Record(id) => daemon.ledger.remove_sandbox(id).and_then(|()| daemon.ledger.remove_container(id)),
        Finding::Bundle(id) => gone(fs::remove_dir_all(daemon.bundle(id))),
        Finding::Monitor(name) => gone(fs::remove_file(daemon.config.state.join("m").join(format!("{name}.sock")))),
        Finding::Runtime(id) => {
            let runtime = daemon.settings().handler("").unwrap_or_else(|| daemon.settings().runtime.clone());
            let mut delete = std::process::Command::new(runtime);
            let output =
                delete.arg("--root").arg(&daemon.config.runtime_root).args(["delete", "--force", id]).output()?;
            let text = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if output.status.success() { Ok(()) } else { Err(io::Error::other(text())) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_belongs_to_nothing_is_found() {
        let set = |ids: &[&str]| ids.iter().map(|s| (*s).to_owned()).collect::<HashSet<_>>();
        let list = |ids: &[&str]| ids.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let known =
            Known { sandboxes: set(&["aaaa"]), containers: set(&["cccc"]), recorded: set(&["aaaa", "cccc", "made"]) };
        let host = Host {
            sandboxes: list(&["aaaa", "bbbb"]),
            containers: list(&["cccc", "dddd"]),
            monitors: list(&["aa", "bb"]),
            runtime: list(&["cccc", "eeee"]),
            records: list(&["aaaa", "made", "left"]),
            mounts: ["sandboxes/aaaa/ns/net", "containers/cccc/rootfs", "containers/dddd/rootfs", "other"]
                .iter()
                .map(|p| Path::new("/run/x").join(p))
                .collect(),
        };
        let found = compare(&host, &known, Path::new("/run/x"));
        let wanted = [
            Finding::Mount("/run/x/containers/dddd/rootfs".into()),
            Finding::Record("left".into()),
            Finding::Sandbox("bbbb".into()),
            Finding::Bundle("dddd".into()),
            Finding::Monitor("bb".into()),
            Finding::Runtime("eeee".into()),
        ];
        assert_eq!(found, wanted);
        assert!(compare(&Host::default(), &known, Path::new("/run/x")).is_empty());
    }
}
