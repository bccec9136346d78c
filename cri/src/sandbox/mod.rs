//! Pod sandboxes: pinned namespaces, network, shared files and one monitor; no pause process unless asked for.

mod files;
pub(crate) mod network;
mod run;
mod stop;
pub mod users;

use proto::cri;

pub use run::run;
pub(crate) use stop::{release, try_remove};
pub use stop::{remove, stop, update_resources};

use crate::cgroups;
use crate::daemon::{Daemon, Sandbox};
use crate::error::Result;
use crate::ledger::SandboxRecord;

/// Namespace options of a sandbox request.
pub fn options(record: &SandboxRecord) -> cri::NamespaceOption {
    let linux = record.config.0.linux.as_ref();
    linux.and_then(|l| l.security_context.as_ref()?.namespace_options.clone()).unwrap_or_default()
}

/// The control group of a pod.
///
/// # Errors
/// The parent that its configuration names is none under the driver.
pub fn cgroup(daemon: &Daemon, record: &SandboxRecord) -> Result<String> {
    let parent = record.config.0.linux.as_ref().map(|l| l.cgroup_parent.as_str());
    cgroups::of_pod(daemon.config.cgroup_driver, parent, &record.id)
}

fn state(record: &SandboxRecord) -> cri::PodSandboxState {
    if record.stopped { cri::PodSandboxState::SandboxNotready } else { cri::PodSandboxState::SandboxReady }
}

/// CRI status.
pub fn status(sandbox: &Sandbox) -> cri::PodSandboxStatus {
    sandbox.with(status_of)
}

fn status_of(record: &SandboxRecord) -> cri::PodSandboxStatus {
    let config = &record.config.0;
    let mut ips = record.ips.iter().cloned();
    let network = cri::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
    };
    let namespaces = cri::Namespace { options: Some(options(record)) };
    cri::PodSandboxStatus {
        id: record.id.clone(),
        metadata: config.metadata.clone(),
        state: state(record).into(),
        created_at: record.created_at,
        network: Some(network),
        linux: Some(cri::LinuxPodSandboxStatus { namespaces: Some(namespaces) }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

/// CRI list entry.
pub fn summary(sandbox: &Sandbox) -> cri::PodSandbox {
    sandbox.with(|record| {
        let config = &record.config.0;
        cri::PodSandbox {
            id: record.id.clone(),
            metadata: config.metadata.clone(),
            state: state(record).into(),
            created_at: record.created_at,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            runtime_handler: record.handler.clone(),
        }
    })
}

/// Whether a list with this filter has the sandbox.
pub fn matches(sandbox: &Sandbox, filter: &cri::PodSandboxFilter) -> bool {
    sandbox.id.starts_with(&filter.id)
        && sandbox.with(|record| {
            filter.state.as_ref().is_none_or(|wanted| wanted.state == i32::from(state(record)))
                && crate::container::labels_match(&filter.label_selector, &record.config.0.labels)
        })
}
