//! Rotation of containers' logs: a log that has grown too large is renamed and the runtime begins a new one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_kube::quantity::Quantity;
use proto::cri::ContainerState;

use crate::cri::UID_LABEL;
use crate::shared::Shared;

/// Looks at all logs now and then, for ever.
pub(crate) async fn rotate(shared: Arc<Shared>) {
    let limit = Quantity::parse(&shared.config.container_log_max_size).map_or(10 << 20, |q| q.value());
    let Ok(limit) = u64::try_from(limit) else { return };
    let files = usize::try_from(shared.config.container_log_max_files).unwrap_or(5).max(2);
    let every = shared.config.container_log_monitor_interval.0.max(std::time::Duration::from_secs(3));
    // Paths do not change while a container runs.
    let mut paths: std::collections::HashMap<String, PathBuf> = std::collections::HashMap::new();
    loop {
        tokio::time::sleep(every).await;
        let Ok(mut list) = shared.cri.containers(None).await else { continue };
        list.retain(|c| c.state() == ContainerState::ContainerRunning && c.labels.contains_key(UID_LABEL));
        paths.retain(|id, _| list.iter().any(|c| &c.id == id));
        for container in list {
            let id = container.id;
            if !paths.contains_key(&id) {
                let Ok(status) = shared.cri.container_status(&id).await else { continue };
                paths.insert(id.clone(), PathBuf::from(status.log_path));
            }
            let Some(path) = paths.get(&id) else { continue };
            if std::fs::metadata(path).map_or(0, |m| m.len()) < limit {
                continue;
            }
            if let Err(e) = one(&shared, &id, path, files).await {
                tracing::warn!(container = %id, path = %path.display(), error = %e, "log not rotated, will try again");
            }
        }
    }
}

async fn one(shared: &Shared, id: &str, path: &Path, files: usize) -> Result<(), String> {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let mut rotated = path.as_os_str().to_owned();
    rotated.push(format!(".{stamp}"));
    let rotated = PathBuf::from(rotated);
    std::fs::rename(path, &rotated).map_err(|e| format!("rename it to {}: {e}", rotated.display()))?;
    if let Err(e) = shared.cri.reopen_log(id).await {
        // Back, so that the runtime and readers agree on the name.
        if !path.exists() {
            let _ = std::fs::rename(&rotated, path);
        }
        return Err(e.to_string());
    }
    for old in excess(path, files - 1) {
        std::fs::remove_file(&old).map_err(|e| format!("remove {}: {e}", old.display()))?;
    }
    Ok(())
}

/// Rotated logs beyond the newest `keep`.
fn excess(path: &Path, keep: usize) -> Vec<PathBuf> {
    let Some((folder, name)) = path.parent().zip(path.file_name()) else { return Vec::new() };
    let prefix = format!("{}.", name.to_string_lossy());
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut rotated: Vec<PathBuf> =
        entries.filter(|e| e.file_name().to_string_lossy().starts_with(&prefix)).map(|e| e.path()).collect();
    rotated.sort();
    rotated.truncate(rotated.len().saturating_sub(keep));
    rotated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_rotated_logs_go() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "0.log",
            "0.log.20260101-000000",
            "0.log.20260102-000000",
            "0.log.20260103-000000",
            "1.log.20250101-000000",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let gone = excess(&dir.path().join("0.log"), 2);
        assert_eq!(gone, [dir.path().join("0.log.20260101-000000")]);
    }
}
