//! Plugins that make themselves known by a socket in `plugins_registry`: found by inotify, asked who they are, and
//! forgotten when their socket goes.

mod csi;
mod csi_node;
mod registration;

use std::collections::HashMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::task::JoinHandle;

use crate::shared::Shared;

/// Folders in the folder are looked at as well, not deeper than this.
const DEPTH: usize = 3;
/// A look without an event, should the kernel have lost some.
const LOOK: Duration = Duration::from_secs(60);

/// What tells one socket of a path from the next.
type Identity = (u64, u64, i64);

/// Looks after the folder for ever.
pub(crate) async fn run(shared: Arc<Shared>) {
    let folder = shared.root.join("plugins_registry");
    if let Err(e) = std::fs::create_dir_all(&folder) {
        tracing::error!(folder = %folder.display(), error = %e, "no plugins can register");
        return;
    }
    csi_node::ensure(&shared).await;
    let mut known: HashMap<PathBuf, (Identity, JoinHandle<()>)> = HashMap::new();
    loop {
        // Watched before it is read, so that nothing is missed between.
        let events = watch(&folder);
        let mut found = HashMap::new();
        sockets(&folder, DEPTH, &mut found);
        let gone: Vec<PathBuf> =
            known.iter().filter(|(path, (id, _))| found.get(*path) != Some(id)).map(|(path, _)| path.clone()).collect();
        for path in gone {
            if let Some((_, task)) = known.remove(&path) {
                // It holds the plugin while it runs.
                task.abort();
                let _ = task.await;
            }
        }
        for (path, id) in found {
            known.entry(path.clone()).or_insert_with(|| (id, tokio::spawn(registration::keep(shared.clone(), path))));
        }
        match events {
            Ok(mut events) => {
                let _ = tokio::time::timeout(LOOK, events.next()).await;
            }
            Err(e) => {
                tracing::debug!(folder = %folder.display(), error = %e, "plugins are not watched, only looked for now and then");
                tokio::time::sleep(LOOK / 6).await;
            }
        }
    }
}

fn watch(folder: &Path) -> std::io::Result<inotify::EventStream<[u8; 4096]>> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM;
    let mut folders = vec![(folder.to_owned(), DEPTH)];
    while let Some((dir, depth)) = folders.pop() {
        inotify.watches().add(&dir, mask)?;
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        let below = entries.filter(|e| depth > 0 && e.file_type().is_ok_and(|t| t.is_dir()));
        folders.extend(below.map(|e| (e.path(), depth - 1)));
    }
    inotify.into_event_stream([0u8; 4096])
}

/// The sockets in a folder; names that begin with a dot are not for us.
fn sockets(folder: &Path, depth: usize, found: &mut HashMap<PathBuf, Identity>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() && depth > 0 {
            sockets(&path, depth - 1, found);
        } else if meta.file_type().is_socket() {
            // A new socket may get the old one's inode.
            found.insert(path, (meta.dev(), meta.ino(), meta.ctime() * 1_000_000_000 + meta.ctime_nsec()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_are_plugins() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("deep")).unwrap();
        std::fs::write(at("file.sock"), "").unwrap();
        let _held: Vec<_> = ["a.sock", ".hidden.sock", "deep/b"]
            .map(|name| std::os::unix::net::UnixListener::bind(at(name)).unwrap())
            .into();
        let mut found = HashMap::new();
        sockets(dir.path(), DEPTH, &mut found);
        let mut paths: Vec<_> = found.into_keys().collect();
        paths.sort();
        assert_eq!(paths, [at("a.sock"), at("deep/b")]);
    }
}
