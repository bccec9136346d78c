//! Numbers about the kubelet, its pods and the machine, in Prometheus' text format.

mod cadvisor;
mod host;
pub(crate) mod own;
#[cfg(test)]
mod promtool;
mod resource;
mod text;

use std::time::Instant;

pub(crate) use cadvisor::{Source as CadvisorSource, page as cadvisor};
pub(crate) use host::{
    Interface, boot_time, default_interface, interfaces, meminfo, node_usage, processes, put_process,
};
pub(crate) use resource::page as resource;
pub(crate) use text::{Kind, Page, labels};

use crate::probe::Target;

fn probe_type(target: &Target) -> &'static str {
    match target.kind.name() {
        "startup" => "Startup",
        "liveness" => "Liveness",
        _ => "Readiness",
    }
}

/// Counts one try of a probe.
pub(crate) fn probed(target: &Target, ok: bool) {
    own::PROBES.count(&[
        ("probe_type", probe_type(target)),
        ("result", if ok { "successful" } else { "failed" }),
        ("container", &target.container.name),
        ("pod", &target.pod.1),
        ("namespace", &target.pod.0),
        ("pod_uid", &target.pod.2),
    ]);
}

/// Waits for a probe and takes down how long it took.
pub(crate) async fn timed_probe<T>(target: &Target, probe: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let found = probe.await;
    own::PROBE_SECONDS.observe(
        &[
            ("probe_type", probe_type(target)),
            ("container", &target.container.name),
            ("pod", &target.pod.1),
            ("namespace", &target.pod.0),
        ],
        start.elapsed(),
    );
    found
}

/// `/metrics/probes`
pub(crate) fn probes() -> String {
    let mut page = Page::default();
    own::put(&mut page, true);
    page.render()
}
