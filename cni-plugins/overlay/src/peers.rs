//! Nodes from a file, for clusters without an apiserver.

use std::path::PathBuf;

use anyhow::{Context, Result};
use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::sync::watch;

use crate::api::Cluster;
use crate::config::Backend;
use crate::node;

/// Reads the file.
///
/// # Errors
/// It cannot be read, or a field is wrong.
pub fn load(path: &PathBuf, backend: Backend) -> Result<Cluster> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let nodes = node::read_list(&text, backend).with_context(|| path.display().to_string())?;
    Ok(Cluster { nodes, overwritten: None, complete: true })
}

/// Reads the file whenever its folder says that it changed; a broken file is told and changes nothing.
///
/// # Errors
/// The folder cannot be watched.
pub async fn watch(path: PathBuf, backend: Backend, known: watch::Sender<Cluster>) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).map_or(PathBuf::from("."), PathBuf::from);
    let inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO;
    inotify.watches().add(&folder, mask).with_context(|| format!("watch {}", folder.display()))?;
    let mut events = inotify.into_event_stream([0u8; 4096])?;
    loop {
        match load(&path, backend) {
            Ok(cluster) => drop(known.send_replace(cluster)),
            Err(error) => tracing::error!("{error:#}; the nodes known so far stand"),
        }
        events.next().await.context("nobody tells about the folder any more")??;
    }
}
