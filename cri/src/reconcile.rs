//! A start is a recovery: the ledger is compared with monitors, mounts and this boot.

use std::sync::Arc;

use gantry_monitor::record::ExitRecord;

use crate::daemon::{Container, Daemon, Sandbox};
use crate::oci::spec::is_node;
use crate::{container, monitors, reaper, sandbox};

/// Takes over what an earlier run left.
pub async fn run(daemon: &Arc<Daemon>) {
    daemon.ledger.tidy();
    for ended in load(daemon) {
        let kind = proto::cri::ContainerEventType::ContainerStoppedEvent;
        crate::events::emit(daemon, &ended.id, &ended.sandbox, kind);
    }
    for entry in daemon.all_sandboxes() {
        let record = entry.record();
        if monitors::gone(daemon, &record.id).await {
            monitors::lost(daemon, &record.id).await;
        } else {
            monitors::follow(daemon, &record.id);
        }
        let netns = daemon.sandbox_dir(&record.id).join("ns/net");
        let own_network = !is_node(sandbox::options(&record).network);
        if own_network && record.complete && !gantry_sys::namespaces::is_pinned(&netns) {
            // It was stopped and that could not be recorded, or somebody took its network away.
            entry.change_anyway(&daemon.ledger, |r| r.stopped = true);
        }
        if !record.complete {
            tracing::info!(sandbox = %record.id, "removing a half-made sandbox");
            if let Err(error) = sandbox::remove(daemon, &record.id).await {
                tracing::warn!(sandbox = %record.id, %error, "half-made sandbox stays");
            }
        } else if record.boot != daemon.boot {
            if let Err(error) = sandbox::stop(daemon, &record.id).await {
                tracing::warn!(sandbox = %record.id, %error, "sandbox of an earlier boot is not quite stopped");
            }
            let faults = sandbox::release(daemon, &entry).await;
            if !faults.is_empty() {
                tracing::warn!(sandbox = %record.id, ?faults, "sandbox of an earlier boot still holds things");
            }
        }
    }
    for entry in daemon.all_containers() {
        let orphan = daemon.sandbox(&entry.sandbox).is_err();
        if (orphan || !entry.record().complete)
            && let Err(error) = container::remove(daemon, &entry.id).await
        {
            tracing::warn!(container = %entry.id, %error, "half-made container stays");
        }
    }
    container::find_started(daemon).await;
    container::recover(daemon).await;
    collect_addresses(daemon).await;
    let sandboxes = daemon.all_sandboxes().into_iter().filter(|s| s.record().doomed).map(|s| s.id.clone());
    let containers = daemon.all_containers().into_iter().filter(|c| c.record().doomed).map(|c| c.id.clone());
    for id in sandboxes.chain(containers) {
        reaper::again(daemon, &id);
    }
}

/// Has the network let go of attachments whose pods are gone, as after a crash between ADD and its record.
async fn collect_addresses(daemon: &Arc<Daemon>) {
    let Ok(list) = crate::cni::load(&daemon.settings().cni_conf_dir) else { return };
    // Also those of stopped pods whose DEL is still to come: that is theirs to do.
    let attached = daemon.all_sandboxes().into_iter().filter(|s| s.record().cni_config.is_some());
    let valid: Vec<String> = attached.map(|s| s.id.clone()).collect();
    for fault in crate::cni::collect(&list, &valid, &daemon.settings().cni_bin_dirs).await {
        tracing::warn!(%fault, "collecting what dead pods left in the network");
    }
}

/// Reads the ledger into memory and changes nothing but to add exits that monitors have recorded: those containers are answered.
pub fn load(daemon: &Arc<Daemon>) -> Vec<Arc<Container>> {
    let mut ended = Vec::new();
    let (sandboxes, mut faults) = daemon.ledger.sandboxes();
    let (containers, more) = daemon.ledger.containers();
    faults.extend(more);
    for fault in faults {
        tracing::error!(%fault, "unreadable ledger record left alone");
    }
    for record in sandboxes {
        daemon.add_sandbox(Arc::new(Sandbox::new(record)));
    }
    for record in containers {
        let entry = Arc::new(Container::new(record));
        if let (None, Some(exit)) = (entry.record().exit, ExitRecord::read(&daemon.ledger.exit_file(&entry.id))) {
            let _ = gantry_monitor::record::sync(&daemon.ledger.exit_file(&entry.id));
            let _ = entry.change(&daemon.ledger, |r| r.exit = Some(exit));
            ended.push(entry.clone());
        }
        daemon.add_container(entry);
    }
    ended
}
