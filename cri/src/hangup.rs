//! SIGHUP: the configuration is read again, what can change at once does, and what cannot is named.
//!
//! A wrong file changes nothing. Networks (`net.d`) and registries (`certs.d`) are read whenever they are used and need no signal.

use std::sync::Arc;

use tokio::signal::unix::Signal;

use crate::config::Config;
use crate::daemon::Daemon;

/// Follows hang-ups as long as the daemon runs; `load` reads the file and puts flags over it, as at the start.
pub fn follow(
    daemon: &Arc<Daemon>,
    mut hangups: Signal,
    load: impl Fn() -> anyhow::Result<Config> + Send + Sync + 'static,
) {
    let daemon = Arc::downgrade(daemon);
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            let Some(daemon) = daemon.upgrade() else { return };
            match load() {
                Ok(new) => take(&daemon, &new),
                Err(error) => {
                    tracing::error!(
                        "the configuration is wrong: nothing is changed, and a start would fail: {error:#}"
                    );
                }
            }
        }
    });
}

fn take(daemon: &Daemon, new: &Config) {
    let reload = match daemon.settings().reload(new) {
        Ok(reload) => reload,
        Err(error) => {
            tracing::error!(%error, "the configuration cannot be compared with the running one: nothing is changed");
            return;
        }
    };
    daemon.reload(reload.config);
    tracing::info!(changed = reload.changed.join(" "), "configuration read again");
    if !reload.waiting.is_empty() {
        tracing::warn!(keys = reload.waiting.join(" "), "changes of these keys count from the next start on");
    }
}
