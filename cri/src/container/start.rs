//! StartContainer: the monitor has the OCI runtime make the container and start it, in one command where nobody has to be asked in
//! between.
//!
//! The record says that a container has started only after that. A daemon that is killed before it could write so asks the
//! monitors when it starts anew ([`find_started`]): they know, and no intent needs to be on the disk.

use std::fs;
use std::sync::Arc;

use gantry_monitor::protocol::{Answer, Create, Request};
use gantry_monitor::record::ExitRecord;
use proto::cri;

use super::{ended, restore};
use crate::daemon::{Container, Daemon, lock, now};
use crate::error::{Error, Result};
use crate::events::emit;
use crate::ledger::ContainerRecord;
use crate::{monitors, nri};

/// Starts a created container; started already is fine.
///
/// # Errors
/// It has ended, or the runtime fails: in its words, which the container's status says, too (it counts as ended with 128 then).
pub async fn start(daemon: &Arc<Daemon>, id: &str) -> Result<()> {
    let container = daemon.container(id)?;
    let _turn = container.turn.lock().await;
    match container.state() {
        cri::ContainerState::ContainerRunning => return Ok(()),
        cri::ContainerState::ContainerCreated => {}
        _ => return Err(Error::State(format!("container {} has ended already", container.id))),
    }
    // Whether a container ever ran must not be forgotten by a power failure: some are to run once.
    let known = lock(&container.syncing).take();
    known.unwrap_or_else(|| daemon.record_synced(&container.id)).await??;
    match run(daemon, &container).await {
        Ok(since) => started(daemon, &container, since),
        Err(error) => {
            let exit = ExitRecord { code: 128, finished_at: now(), oom_killed: false };
            ended(daemon, &container.id, exit, "StartError", &error.to_string());
            let kill = Request::Kill { id: container.id.clone(), signal: 9, all: false };
            if monitors::call(daemon, &container.sandbox, kill).await.is_err()
                && monitors::call(daemon, &container.sandbox, Request::Ping).await.is_err()
            {
                super::abandon(daemon, &container).await;
            }
            return Err(error);
        }
    }
    emit(daemon, &container.id, &container.sandbox, cri::ContainerEventType::ContainerStartedEvent);
    nri::container_started(daemon, &container).await;
    tracing::info!(container = %container.id, "container started");
    Ok(())
}

/// Makes the container's processes. Answers since when it runs, in nanoseconds since the epoch.
async fn run(daemon: &Arc<Daemon>, container: &Container) -> Result<i64> {
    let record = container.record();
    let restored = record.restore.is_some();
    if restored {
        // Its processes go on as soon as there are any.
        nri::container_starts(daemon, container).await?;
    }
    // Plugins are asked about a container that is made, and before it runs.
    let at_once = restored || !daemon.nri.is_used();
    let began = now();
    let made = monitors::call(daemon, &record.sandbox, request(daemon, &record, at_once)).await?;
    match made {
        Answer::Running { since, .. } => return Ok(since),
        // A monitor of an earlier version does one thing at a time.
        _ if restored => return Ok(began),
        _ => {}
    }
    nri::container_starts(daemon, container).await?;
    let began = now();
    monitors::call(daemon, &record.sandbox, Request::Start { id: record.id }).await?;
    Ok(began)
}

/// What the monitor is asked for to make a container.
fn request(daemon: &Daemon, record: &ContainerRecord, start: bool) -> Request {
    Request::Create(Box::new(Create {
        id: record.id.clone(),
        bundle: daemon.bundle(&record.id),
        terminal: record.config.0.tty,
        stdin: record.config.0.stdin,
        log: (!record.log_path.is_empty()).then(|| record.log_path.clone().into()),
        exit_file: daemon.ledger.exit_file(&record.id),
        cgroup: record.cgroup.clone().into(),
        restore: record.restore.as_ref().map(|_| restore::folder(daemon, &record.id)),
        start,
    }))
}

/// A container runs. What cannot be recorded is found out by the next start of the daemon.
fn started(daemon: &Daemon, container: &Container, since: i64) {
    let restored = container.with(|r| r.restore.is_some());
    container.change_anyway(&daemon.ledger, |r| {
        r.started_at = since;
        r.restore = None;
    });
    if restored {
        let _ = fs::remove_dir_all(restore::folder(daemon, &container.id));
        tracing::info!(container = %container.id, "container restored");
    }
}

/// Finds containers that have started without that being recorded: the daemon was killed meanwhile. Their monitors have answered
/// already since then, so that nothing is at work in them.
pub async fn find_started(daemon: &Arc<Daemon>) {
    for container in daemon.all_containers() {
        let unknown = container.with(|r| r.complete && r.started_at == 0);
        let look = Request::Look { id: container.id.clone() };
        // Refused is what is usual: it is not made yet.
        if unknown && let Ok(Answer::Running { since, .. }) = monitors::call(daemon, &container.sandbox, look).await {
            tracing::info!(container = %container.id, "it had started when the daemon ended");
            started(daemon, &container, since);
        }
    }
}
