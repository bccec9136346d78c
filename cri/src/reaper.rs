//! Removals that could not be finished are tried again until they are: when the cause is gone (a process that the kernel held, a
//! full or read-only disk, a plugin that was away), nobody has to ask again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::daemon::{Daemon, lock};
use crate::{container, sandbox};

/// Pause before the first new attempt; doubles up to the longest.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Ids of what is being tried again.
#[derive(Default)]
pub struct Reaper(Mutex<HashSet<String>>);

/// Tries to remove a sandbox or container again, in the background, until it is gone. One that is tried already is left to that.
pub fn again(daemon: &Arc<Daemon>, id: &str) {
    if !lock(&daemon.reaper.0).insert(id.to_owned()) {
        return;
    }
    let (weak, id) = (Arc::downgrade(daemon), id.to_owned());
    tokio::spawn(async move {
        let mut pause = FIRST;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST);
            let Some(daemon) = weak.upgrade() else { return };
            let done = if daemon.sandbox(&id).is_ok() {
                sandbox::try_remove(&daemon, &id).await
            } else {
                container::try_remove(&daemon, &id).await
            };
            match done {
                Ok(()) => {
                    lock(&daemon.reaper.0).remove(&id);
                    tracing::info!(id, "what could not be removed is gone now");
                    return;
                }
                Err(error) => tracing::debug!(id, %error, "still not removed"),
            }
        }
    });
}
