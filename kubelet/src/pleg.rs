//! What happens to containers, as it happens: the runtime's event stream first, a slow relist as the safety net.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use proto::cri::ContainerEventResponse;
use tokio::sync::mpsc;

use crate::cri::{Cri, UID_LABEL};

/// Between relists while events come, and while the runtime has none.
const WITH_EVENTS: Duration = Duration::from_secs(60);
const WITHOUT_EVENTS: Duration = Duration::from_secs(1);
/// A relist that is so old means that the runtime does not answer.
const UNHEALTHY: Duration = Duration::from_secs(180);

/// When the last relist succeeded, on a clock that nobody sets and on the wall's; `None` before the first.
#[derive(Clone, Default)]
pub(crate) struct Health(Arc<Mutex<Option<(Instant, Timestamp)>>>);

impl Health {
    /// The time of the last relist that succeeded, in seconds since 1970.
    pub(crate) fn seen(&self) -> i64 {
        self.last().map_or(0, |(_, at)| at.as_second())
    }

    fn last(&self) -> Option<(Instant, Timestamp)> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a relist; gives the time since the one before.
    fn note(&self, now: Instant) -> Duration {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).replace((now, Timestamp::now()));
        before.map_or(Duration::ZERO, |(at, _)| now.saturating_duration_since(at))
    }

    /// An error says for how long the runtime has not answered.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.check_at(Instant::now())
    }

    fn check_at(&self, now: Instant) -> Result<(), String> {
        let Some((at, _)) = self.last() else { return Err("pleg has yet to be successful".to_owned()) };
        let age = now.saturating_duration_since(at);
        if age < UNHEALTHY {
            return Ok(());
        }
        Err(format!("pleg was last seen active {}s ago; threshold is {}s", age.as_secs(), UNHEALTHY.as_secs()))
    }
}

/// Sends the uid of each pod that something happened to, for ever.
pub(crate) async fn run(cri: Cri, changed: mpsc::Sender<String>, health: Health) {
    health.note(Instant::now());
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
    let start = Instant::now();
    let Ok((sandboxes, containers)) = tokio::try_join!(cri.sandboxes(None), cri.containers(None)) else { return };
    crate::metrics::own::RELIST_SECONDS.observe(&[], start.elapsed());
    crate::metrics::own::RELIST_INTERVAL.observe(&[], health.note(Instant::now()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_does_not_answer_is_noticed() {
        let (health, start) = (Health::default(), Instant::now());
        assert_eq!(health.check_at(start).unwrap_err(), "pleg has yet to be successful");
        assert_eq!(health.seen(), 0);
        assert_eq!(health.note(start), Duration::ZERO);
        assert!(health.seen() > 0 && health.check().is_ok());
        for (seconds, well) in [(0, true), (179, true), (180, false), (86_400, false)] {
            let checked = health.check_at(start + Duration::from_secs(seconds));
            assert_eq!(checked.is_ok(), well, "{seconds}: {checked:?}");
        }
        assert_eq!(health.note(start + Duration::from_secs(60)), Duration::from_secs(60));
        assert!(health.check_at(start + Duration::from_secs(200)).is_ok());
    }
}
