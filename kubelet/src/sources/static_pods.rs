//! The manifest folder (or one file): read when inotify says that it changed, and every 20 s in case it did not say.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;

use super::manifest::{self, Origin};
use super::{Source, Update};
use crate::events::Recorder;

/// Changes come in bursts; this long after one they are read together.
const SETTLE: Duration = Duration::from_millis(100);

/// Watches for ever.
pub(crate) async fn run(
    path: PathBuf,
    origin: Origin,
    every: Duration,
    events: Recorder,
    updates: mpsc::Sender<Update>,
) {
    let mut known = Known::default();
    loop {
        let pods = known.read(&path, &origin, &events);
        if updates.send(Update::All(Source::File, pods)).await.is_err() {
            return;
        }
        let _ = tokio::time::timeout(every, changed(&path)).await;
        tokio::time::sleep(SETTLE).await;
    }
}

/// Waits for a change in the folder, or for ever where there is nothing to watch.
async fn changed(path: &Path) {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let mask =
        WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE | WatchMask::CREATE;
    let watch = || -> std::io::Result<_> {
        let inotify = Inotify::init()?;
        inotify.watches().add(folder, mask)?;
        inotify.into_event_stream([0u8; 4096])
    };
    match watch() {
        Ok(mut stream) => {
            stream.next().await;
        }
        Err(e) => {
            tracing::debug!(path = %folder.display(), error = %e, "manifests are not watched, only read again now and then");
            std::future::pending::<()>().await;
        }
    }
}

/// What was read last: a file that did not change is not read anew, and one that broke keeps its last good pod.
#[derive(Default)]
struct Known {
    files: HashMap<PathBuf, (String, Vec<Arc<Pod>>)>,
}

impl Known {
    fn read(&mut self, path: &Path, origin: &Origin, events: &Recorder) -> Vec<Arc<Pod>> {
        let mut files: Vec<PathBuf> = if path.is_dir() {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
            entries.filter(|p| p.is_file() && !hidden(p)).collect()
        } else {
            path.is_file().then(|| path.to_owned()).into_iter().collect()
        };
        files.sort();
        self.files.retain(|file, _| files.contains(file));
        for file in files {
            let text = match std::fs::read_to_string(&file) {
                Ok(text) => text,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => {
                    tracing::error!(file = %file.display(), error = %e, "manifest not read");
                    continue;
                }
            };
            if self.files.get(&file).is_some_and(|(known, _)| *known == text) {
                continue;
            }
            let origin = Origin { place: file.to_string_lossy().into_owned(), ..origin.clone() };
            let pods = match manifest::parse(&text, &origin, jiff::Timestamp::now()) {
                Ok(manifest) => manifest::announce(manifest, &origin, events),
                Err(why) => {
                    let message = format!("could not process manifest {}: {why}", file.display());
                    events.node(&origin.node, true, "FailedManifest", message);
                    self.files.get(&file).map(|(_, pods)| pods.clone()).unwrap_or_default()
                }
            };
            self.files.insert(file, (text, pods));
        }
        let mut pods: Vec<Arc<Pod>> = self.files.values().flat_map(|(_, pods)| pods.clone()).collect();
        pods.sort_by_key(|p| crate::pod::key(p));
        pods.dedup_by_key(|p| crate::pod::key(p));
        pods
    }
}

/// Editors' and half-written files.
fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|n| {
        let name = n.to_string_lossy();
        name.starts_with('.') || name.ends_with('~')
    })
}
