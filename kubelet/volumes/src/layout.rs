//! Where a pod's files live below the kubelet's root; the same places as upstream, so that either kubelet can take over
//! the other's node.

use std::path::{Path, PathBuf};

/// Paths below the kubelet's root directory.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root` (`/var/lib/kubelet`).
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The kubelet's root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `pods`: one directory per pod uid.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// `pods/<uid>`.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// `pods/<uid>/volumes`.
    pub fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
    }

    /// `pods/<uid>/volumes/kubernetes.io~<plugin>/<name>`.
    pub fn volume(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.volumes(uid).join(format!("kubernetes.io~{plugin}")).join(name)
    }

    /// `pods/<uid>/plugins/kubernetes.io~<plugin>/<name>`: what the kubelet remembers about a volume, out of the
    /// containers' sight.
    pub fn volume_state(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.pod(uid).join("plugins").join(format!("kubernetes.io~{plugin}")).join(name)
    }

    /// `pods/<uid>/volume-subpaths/<volume>/<container>/<index>`: bind mounts that pin sub-paths.
    pub fn subpath(&self, uid: &str, volume: &str, container: &str, index: usize) -> PathBuf {
        self.subpaths(uid).join(volume).join(container).join(index.to_string())
    }

    /// `pods/<uid>/volume-subpaths`.
    pub fn subpaths(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volume-subpaths")
    }

    /// `pods/<uid>/etc-hosts`.
    pub fn hosts(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("etc-hosts")
    }

    /// `pods/<uid>/containers/<container>`.
    pub fn container(&self, uid: &str, container: &str) -> PathBuf {
        self.pod(uid).join("containers").join(container)
    }

    /// `pods/<uid>/containers/<container>/<attempt>`: the file behind the container's termination message path.
    pub fn termination_log(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.container(uid, container).join(attempt.to_string())
    }
}
