//! `/var/log/containers`: one link per container, under the names that log collectors read.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// The longest file name that is used.
const NAME: usize = 251;

/// The folder of links beside that of logs.
pub(super) fn folder(log_root: &Path) -> PathBuf {
    log_root.parent().unwrap_or(log_root).join("containers")
}

fn name(pod: &Pod, container: &str, id: &str) -> String {
    let mut stem = format!("{}_{}_{container}-{id}", pod::name(pod), pod::namespace(pod));
    stem.truncate(stem.floor_char_boundary(NAME));
    format!("{stem}.log")
}

/// Makes the link of a container; that it cannot be made harms nobody but the collector.
pub(crate) fn link(log_root: &Path, pod: &Pod, container: &str, id: &str, log: &Path) {
    let folder = folder(log_root);
    let path = folder.join(name(pod, container, id));
    let make = || -> std::io::Result<()> {
        std::fs::create_dir_all(&folder)?;
        match std::os::unix::fs::symlink(log, &path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    };
    if let Err(e) = make() {
        tracing::warn!(path = %path.display(), error = %e, "link to a container's log not made");
    }
}

/// Removes links whose logs are gone.
pub(super) fn sweep(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = path.extension().is_some_and(|e| e == "log") && path.is_symlink();
        if ours
            && !path.exists()
            && let Err(e) = std::fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), error = %e, "link to a container's log not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn links_stand_as_long_as_their_logs() {
        let dir = tempfile::tempdir().unwrap();
        let (root, log) = (dir.path().join("pods"), dir.path().join("0.log"));
        std::fs::write(&log, "x").unwrap();
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}})).unwrap();
        for _ in 0..2 {
            link(&root, &pod, "c", "abc", &log);
        }
        let path = dir.path().join("containers/p_n_c-abc.log");
        sweep(&folder(&root));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x");
        std::fs::remove_file(&log).unwrap();
        sweep(&folder(&root));
        assert!(!path.is_symlink());
    }
}
