//! Gives memory back after work: a pod's life or a pull allocates far more than what the daemon keeps of it.

use std::sync::Arc;
use std::time::Duration;

use crate::daemon::Daemon;

/// No operation for so long means that memory is not needed again at once.
const QUIET: Duration = Duration::from_secs(3);

/// Follows the daemon's operations for as long as it lives.
pub fn follow(daemon: &Arc<Daemon>) {
    let daemon = Arc::downgrade(daemon);
    tokio::spawn(async move {
        while let Some(worked) = daemon.upgrade().map(|d| d.worked.clone()) {
            worked.notified().await;
            while tokio::time::timeout(QUIET, worked.notified()).await.is_ok() {}
            let _ = tokio::task::spawn_blocking(gantry_sys::memory::give_back).await;
        }
    });
}
