//! Containers' logs on disk: a log that has grown too large is renamed and the runtime begins a new one, older parts are
//! compressed, and `/var/log/containers` points at all of them.
//!
//! No line is lost: the runtime writes on to the renamed file until it has opened the new one.

mod files;
mod links;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use gantry_kube::quantity::Quantity;
use proto::cri::ContainerState;

use crate::cri::UID_LABEL;
use crate::shared::Shared;

pub(crate) use files::remove;
pub(crate) use links::link;

/// How often links that lead nowhere are swept, in looks.
const SWEEP: u32 = 6;

/// Looks at all logs now and then, for ever.
pub(crate) async fn rotate(shared: Arc<Shared>) {
    let limit = Quantity::parse(&shared.config.container_log_max_size).map_or(10 << 20, |q| q.value());
    // A negative size turns rotation off.
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    let files = usize::try_from(shared.config.container_log_max_files).unwrap_or(5).max(2);
    let workers = usize::try_from(shared.config.container_log_max_workers).unwrap_or(1).max(1);
    let every = shared.config.container_log_monitor_interval.0.max(Duration::from_secs(1));
    // Paths do not change while a container runs.
    let mut paths: HashMap<String, PathBuf> = HashMap::new();
    let mut looks = 0u32;
    loop {
        tokio::time::sleep(every).await;
        looks = looks.wrapping_add(1);
        if looks % SWEEP == 1 {
            let folder = links::folder(&shared.facts.log_root);
            let _ = tokio::task::spawn_blocking(move || links::sweep(&folder)).await;
        }
        let Ok(mut list) = shared.cri.containers(None).await else { continue };
        list.retain(|c| c.state() == ContainerState::ContainerRunning && c.labels.contains_key(UID_LABEL));
        paths.retain(|id, _| list.iter().any(|c| &c.id == id));
        let mut due = Vec::new();
        for container in list {
            let id = container.id;
            if !paths.contains_key(&id) {
                let Ok(status) = shared.cri.container_status(&id).await else { continue };
                paths.insert(id.clone(), PathBuf::from(status.log_path));
            }
            let Some(path) = paths.get(&id) else { continue };
            if std::fs::metadata(path).map_or(0, |m| m.len()) >= limit {
                due.push((id, path.clone()));
            }
        }
        futures::stream::iter(due)
            .for_each_concurrent(workers, |(id, path)| {
                let shared = shared.clone();
                async move {
                    if let Err(e) = one(&shared, &id, path.clone(), files).await {
                        tracing::warn!(container = %id, path = %path.display(), error = %e, "log not rotated, will try again");
                    }
                }
            })
            .await;
    }
}

async fn one(shared: &Shared, id: &str, path: PathBuf, most: usize) -> Result<(), String> {
    let log = path.clone();
    let prepared = tokio::task::spawn_blocking(move || files::make_room(&log, most).map_err(|e| e.to_string()));
    prepared.await.map_err(|e| e.to_string())??;
    let rotated = files::rename(&path, jiff::Timestamp::now()).map_err(|e| format!("rename it: {e}"))?;
    if let Err(e) = shared.cri.reopen_log(id).await {
        // Back, so that the runtime and readers agree on the name.
        if !path.exists() {
            let _ = std::fs::rename(&rotated, &path);
        }
        return Err(e.to_string());
    }
    Ok(())
}
