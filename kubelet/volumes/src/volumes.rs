//! The owner of all volumes on the node.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::{Layout, MountSpec, Objects, PodContext, Usage, VolumeError};

/// Sets up, refreshes and removes what lies below `pods/<uid>`. All state is on disk: a new value on the same root goes
/// on where the last one stopped. One pod's calls must not overlap (its worker owns it); pods are independent.
pub struct Volumes {
    layout: Layout,
    objects: Arc<dyn Objects>,
}

impl Volumes {
    /// Volumes below the kubelet's `root` (`/var/lib/kubelet`).
    pub fn new(root: impl Into<PathBuf>, objects: Arc<dyn Objects>) -> Self {
        Self { layout: Layout::new(root), objects }
    }

    /// Where things are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Prepares all volumes of a pod and its directories; safe to repeat.
    ///
    /// # Errors
    /// The first volume that failed; calling again retries only what is missing.
    pub async fn setup(&self, pod: &Pod, ctx: &PodContext) -> Result<(), VolumeError> {
        let _ = (pod, ctx, &self.objects);
        Err(VolumeError::SetUp { volume: String::new(), reason: "not built yet".into() })
    }

    /// Brings configMap, secret, downwardAPI and projected volumes up to date (atomically) and renews tokens that are
    /// past 80 % of their life or older than 24 h. Tells whether any file changed.
    ///
    /// # Errors
    /// A volume could not be refreshed; it keeps its old contents.
    pub async fn refresh(&self, pod: &Pod, ctx: &PodContext) -> Result<bool, VolumeError> {
        let _ = (pod, ctx);
        Ok(false)
    }

    /// The mounts of a container: its volumeMounts (sub-paths resolved and pinned), the hosts file and the termination
    /// log of this `attempt`. `env` is the container's environment, for `subPathExpr`. For an ephemeral container pass
    /// its common part as a [`Container`].
    ///
    /// # Errors
    /// A mount names an unknown volume, or a sub-path leaves its volume.
    pub fn mounts(
        &self,
        pod: &Pod,
        container: &Container,
        env: &[(String, String)],
        attempt: u32,
    ) -> Result<Vec<MountSpec>, VolumeError> {
        let _ = (pod, container, env, attempt);
        Ok(Vec::new())
    }

    /// Writes the pod's hosts file ([`Volumes::mounts`] includes it once it exists). `domain` is the pod's
    /// `subdomain.namespace.svc.clusterDomain`, or empty.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_hosts(&self, pod: &Pod, pod_ips: &[String], hostname: &str, domain: &str) -> Result<(), VolumeError> {
        let _ = (pod, pod_ips, hostname, domain);
        Ok(())
    }

    /// The last `limit` bytes of the message that a container left; empty when it left none.
    pub fn termination_message(&self, uid: &str, container: &str, attempt: u32, limit: usize) -> String {
        let _ = (uid, container, attempt, limit);
        String::new()
    }

    /// Unmounts and removes everything of a pod. Repeating it is fine; it goes on after errors and never deletes across
    /// a mount.
    ///
    /// # Errors
    /// Everything that could not be removed.
    pub async fn teardown(&self, uid: &str) -> Result<(), Vec<VolumeError>> {
        let _ = uid;
        Ok(())
    }

    /// Uids of pods that have a directory.
    pub fn pods_on_disk(&self) -> Vec<String> {
        Vec::new()
    }

    /// What each of the pod's local volumes holds. Walks the files: call it from a blocking thread, about once a minute.
    pub fn usage(&self, uid: &str) -> Vec<Usage> {
        let _ = uid;
        Vec::new()
    }

    /// The directory of a named volume of the pod on the host; for hostPath the path itself. `None` if there is no such
    /// volume or its kind is not supported.
    pub fn host_path(&self, pod: &Pod, volume: &str) -> Option<PathBuf> {
        let _ = (pod, volume, Path::new(""));
        None
    }
}
