//! CSI drivers among the plugins: each gets into the volumes' list and into the node's CSINode.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kubelet_volumes::DriverNode;

use super::csi_node;
use crate::shared::Shared;

/// A driver in use, until it is dropped.
pub(super) struct Driver {
    shared: Arc<Shared>,
    name: String,
    endpoint: PathBuf,
    told: tokio::task::JoinHandle<()>,
}

/// Says it in the cluster until it is heard. Volumes work meanwhile: a node without its apiserver starts its pods, too.
async fn tell(shared: Arc<Shared>, name: String, node: DriverNode) {
    let mut wait = Duration::from_secs(1);
    while let Err(error) = csi_node::add(&shared, &name, &node).await {
        tracing::warn!(driver = name, error, "the driver is not in the node's CSINode yet, will try again");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(60));
    }
}

impl Driver {
    /// Takes the driver if it speaks version 1.
    pub(super) async fn take(
        shared: &Arc<Shared>,
        name: &str,
        endpoint: &Path,
        versions: &[String],
    ) -> Result<Self, String> {
        speaks_ours(versions)?;
        let node = shared.volumes.drivers().register(name, endpoint).await?;
        let told = tokio::spawn(tell(shared.clone(), name.to_owned(), node));
        Ok(Self { shared: shared.clone(), name: name.to_owned(), endpoint: endpoint.to_owned(), told })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.told.abort();
        if !self.shared.volumes.drivers().unregister(&self.name, &self.endpoint) {
            return;
        }
        tracing::info!(driver = self.name, "CSI driver is gone");
        let (shared, name) = (self.shared.clone(), self.name.clone());
        tokio::spawn(async move {
            if let Err(error) = csi_node::remove(&shared, &name).await {
                tracing::warn!(driver = name, error, "the driver is still in the node's CSINode");
            }
        });
    }
}

/// One of the versions must be 1.something.
fn speaks_ours(versions: &[String]) -> Result<(), String> {
    let major = |v: &String| v.trim_start_matches('v').split('.').next().and_then(|m| m.parse::<u32>().ok());
    if versions.iter().any(|v| major(v) == Some(1)) {
        return Ok(());
    }
    Err(format!("it speaks the versions {versions:?}, and this kubelet CSI 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_has_to_speak_version_one() {
        for (versions, fine) in [
            (&["1.0.0"][..], true),
            (&["v1.9.0"], true),
            (&["0.3.0", "1.2.0"], true),
            (&["0.3.0"], false),
            (&["2.0.0"], false),
            (&["one"], false),
            (&[], false),
        ] {
            let versions: Vec<String> = versions.iter().map(|v| (*v).to_owned()).collect();
            assert_eq!(speaks_ours(&versions).is_ok(), fine, "{versions:?}");
        }
    }
}
