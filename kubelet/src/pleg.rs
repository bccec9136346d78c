//! What happens to containers, as it happens: the runtime's event stream first, a slow relist as the safety net.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use proto::cri::ContainerEventResponse;
use tokio::sync::mpsc;

use crate::cri::{Cri, UID_LABEL};

/// Between relists while events come, and while the runtime has none.
const WITH_EVENTS: Duration = Duration::from_secs(60);
const WITHOUT_EVENTS: Duration = Duration::from_secs(1);
/// A relist that is so old means that the runtime does not answer.
const UNHEALTHY: i64 = 180;

/// When the last relist succeeded, in seconds since 1970.
#[derive(Clone, Default)]
pub(crate) struct Health(Arc<AtomicI64>);

impl Health {
    /// The time of the last relist that succeeded, in seconds since 1970.
    pub(crate) fn seen(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// An error says for how long the runtime has not answered.
    pub(crate) fn check(&self) -> Result<(), String> {
        let age = Timestamp::now().as_second() - self.0.load(Ordering::Relaxed);
        if age < UNHEALTHY {
            Ok(())
        } else {
            Err(format!("pleg was last seen active {age}s ago; threshold is {UNHEALTHY}s"))
        }
    }
}

/// Sends the uid of each pod that something happened to, for ever.
pub(crate) async fn run(cri: Cri, changed: mpsc::Sender<String>, health: Health) {
    health.0.store(Timestamp::now().as_second(), Ordering::Relaxed);
    let mut known = HashMap::new();
    let mut warned = false;
    loop {
        let stream = cri.events().await;
        relist(&cri, &mut known, &changed, &health).await;
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(e) => {
                if !warned {
                    tracing::warn!(error = %e, "no container events, will list containers every second");
                    warned = true;
                }
                for _ in 0..10 {
                    tokio::time::sleep(WITHOUT_EVENTS).await;
                    relist(&cri, &mut known, &changed, &health).await;
                }
                continue;
            }
        };
        if warned {
            tracing::info!("container events come again");
            warned = false;
        }
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + WITH_EVENTS, WITH_EVENTS);
        loop {
            tokio::select! {
                event = stream.message() => match event {
                    Ok(Some(event)) => {
                        if let Some(uid) = uid_of(&event)
                            && changed.send(uid).await.is_err() {
                                return;
                            }
                    }
                    Ok(None) => break,
                    Err(e) => {
                        tracing::info!(error = %e, "the stream of container events ended, will begin anew");
                        break;
                    }
                },
                _ = ticks.tick() => relist(&cri, &mut known, &changed, &health).await,
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn uid_of(event: &ContainerEventResponse) -> Option<String> {
    let status = event.pod_sandbox_status.as_ref()?;
    status.labels.get(UID_LABEL).or(status.metadata.as_ref().map(|m| &m.uid)).cloned()
}

type Known = HashMap<String, (String, i32)>;

/// Compares what there is with what there was.
async fn relist(cri: &Cri, known: &mut Known, changed: &mpsc::Sender<String>, health: &Health) {
    let start = std::time::Instant::now();
    let Ok((sandboxes, containers)) = tokio::try_join!(cri.sandboxes(None), cri.containers(None)) else { return };
    crate::metrics::own::RELIST_SECONDS.observe(&[], start.elapsed());
    let since = u64::try_from(Timestamp::now().as_second() - health.seen()).unwrap_or_default();
    crate::metrics::own::RELIST_INTERVAL.observe(&[], Duration::from_secs(since));
    health.0.store(Timestamp::now().as_second(), Ordering::Relaxed);
    let mut now = Known::new();
    for (id, labels, state) in sandboxes
        .into_iter()
        .map(|s| (s.id, s.labels, s.state))
        .chain(containers.into_iter().map(|c| (c.id, c.labels, c.state + 10)))
    {
        if let Some(uid) = labels.get(UID_LABEL) {
            now.insert(id, (uid.clone(), state));
        }
    }
    let mut uids: Vec<&String> = Vec::new();
    uids.extend(now.iter().filter(|(id, entry)| known.get(*id) != Some(entry)).map(|(_, (uid, _))| uid));
    uids.extend(known.iter().filter(|(id, _)| !now.contains_key(*id)).map(|(_, (uid, _))| uid));
    uids.sort();
    uids.dedup();
    for uid in uids {
        let _ = changed.send(uid.clone()).await;
    }
    *known = now;
}
