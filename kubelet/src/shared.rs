//! What all parts of one kubelet share.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kubelet_managers::Managers;
use kubelet_volumes::{Allocatable, Objects, PodContext, Volumes};

use crate::config::KubeletConfiguration;
use crate::cri::Cri;
use crate::events::Recorder;
use crate::eviction::{Kills, Pressure};
use crate::images::Pulls;
use crate::pod::NodeFacts;
use crate::resources::cgroups::Cgroups;
use crate::resources::users::Users;
use crate::shutdown::Shutdown;
use crate::status::manager::Statuses;
use crate::sync::resize::Allocations;

/// When the loop that hands pods to workers last turned.
#[derive(Debug, Default)]
pub(crate) struct Beat(Mutex<Option<Instant>>);

impl Beat {
    /// A loop that has not turned for so long is stuck: upstream's number.
    const STUCK: Duration = Duration::from_secs(300);

    /// It has turned.
    pub(crate) fn turned(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// An error says since when it has not turned. Before it begins it is not stuck.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.check_at(Instant::now())
    }

    fn check_at(&self, now: Instant) -> Result<(), String> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let age = last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        if age < Self::STUCK {
            return Ok(());
        }
        Err(format!("sync Loop took longer than expected: it has not turned for {} s", age.as_secs()))
    }
}

/// Handles and facts; made once at the start.
pub(crate) struct Shared {
    /// The configuration with the flags applied.
    pub(crate) config: KubeletConfiguration,
    /// The node's name.
    pub(crate) node_name: String,
    /// The node's addresses.
    pub(crate) node_ips: Vec<String>,
    /// The kubelet's folder.
    pub(crate) root: PathBuf,
    /// The apiserver; none when standalone.
    pub(crate) client: Option<kube::Client>,
    /// The runtime.
    pub(crate) cri: Cri,
    /// The scheme of container ids.
    pub(crate) runtime_name: String,
    /// Pods' volumes.
    pub(crate) volumes: Volumes,
    /// Objects that pods refer to.
    pub(crate) objects: Arc<dyn Objects>,
    /// Pods' control groups.
    pub(crate) cgroups: Cgroups,
    /// User ids of pods that have their own.
    pub(crate) users: Users,
    /// Facts for container configurations.
    pub(crate) facts: NodeFacts,
    /// What pods may take together.
    pub(crate) allocatable: Allocatable,
    /// Events.
    pub(crate) events: Recorder,
    /// What each pod was given.
    pub(crate) allocations: Allocations,
    /// Statuses.
    pub(crate) statuses: Arc<Statuses>,
    /// Another program tells the cloud's facts of the node (`--cloud-provider=external`).
    pub(crate) external_cloud: bool,
    /// The command line's flags with their texts.
    pub(crate) flags: Vec<(String, String)>,
    /// When this kubelet started.
    pub(crate) started: std::time::Instant,
    /// CPU use of the node between two looks.
    pub(crate) cpu_rate: crate::stats::Rate,
    /// Orders to end pods.
    pub(crate) kills: Kills,
    /// What the node is short of.
    pub(crate) pressure: Pressure,
    /// Whether the machine is going down.
    pub(crate) shutdown: Shutdown,
    /// Who gets which devices, CPUs and memory.
    pub(crate) managers: Managers,
    /// How images are pulled, and for whom.
    pub(crate) pulls: Pulls,
    /// The life sign of the loop over pods.
    pub(crate) beat: Beat,
    /// Notified by each look at a pod.
    pub(crate) worked: Arc<tokio::sync::Notify>,
}

impl Shared {
    /// The facts that fields of a pod refer to.
    pub(crate) fn context(&self, pod_ips: Vec<String>) -> PodContext {
        PodContext {
            node_name: self.node_name.clone(),
            host_ips: self.node_ips.clone(),
            pod_ips,
            allocatable: self.allocatable.clone(),
            cluster_domain: self.config.cluster_domain.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_no_longer_turns_is_noticed() {
        let beat = Beat::default();
        assert!(beat.check().is_ok(), "not begun");
        beat.turned();
        assert!(beat.check().is_ok());
        let later = |seconds| beat.check_at(Instant::now() + Duration::from_secs(seconds));
        assert!(later(290).is_ok());
        assert!(later(301).unwrap_err().contains("has not turned"));
    }
}
