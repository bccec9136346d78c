//! Metrics of the daemon itself.

use proto::cri;

use crate::daemon::{Daemon, lock};

/// Metrics of the daemon itself in Prometheus' text format.
pub fn of_daemon(daemon: &Daemon) -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, values: &[(&str, u64)]| {
        text += &format!("# HELP gantry_cri_{name} {help}\n# TYPE gantry_cri_{name} gauge\n");
        for (labels, value) in values {
            text += &format!("gantry_cri_{name}{labels} {value}\n");
        }
    };
    let sandboxes = daemon.all_sandboxes();
    let ready = sandboxes.iter().filter(|s| !s.record().stopped).count() as u64;
    let values = [("{state=\"ready\"}", ready), ("{state=\"notready\"}", sandboxes.len() as u64 - ready)];
    gauge("sandboxes", "Pod sandboxes by state.", &values);
    let containers = daemon.all_containers();
    let count = |state| containers.iter().filter(|c| c.state() == state).count() as u64;
    let values = [
        ("{state=\"created\"}", count(cri::ContainerState::ContainerCreated)),
        ("{state=\"running\"}", count(cri::ContainerState::ContainerRunning)),
        ("{state=\"exited\"}", count(cri::ContainerState::ContainerExited)),
    ];
    gauge("containers", "Containers by state.", &values);
    let usage = daemon.images.fs_usage();
    gauge("images", "Images in the store.", &[("", daemon.images.list().len() as u64)]);
    gauge("image_bytes", "Bytes used by images.", &[("", usage.bytes)]);
    gauge("event_listeners", "Clients that listen to container events.", &[("", daemon.events.listeners() as u64)]);
    let (calls, failed) = *lock(&daemon.calls);
    text += "# HELP gantry_cri_operations_total Long operations (run, create, start, remove) asked for.\n";
    text += &format!("# TYPE gantry_cri_operations_total counter\ngantry_cri_operations_total {calls}\n");
    text += "# HELP gantry_cri_operation_errors_total Those that failed.\n";
    text += &format!("# TYPE gantry_cri_operation_errors_total counter\ngantry_cri_operation_errors_total {failed}\n");
    text
}
