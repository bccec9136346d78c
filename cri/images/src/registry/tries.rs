//! How often a request is made again, and after what pause.

use std::time::Duration;

use crate::config::Timeouts;
use crate::error::Error;

/// A registry that asks for a longer pause is not waited for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Attempts made and the pause before the next.
pub(crate) struct Tries {
    done: u32,
    allowed: u32,
    pause: Duration,
}

impl Tries {
    /// None made yet.
    pub(super) fn new(timeouts: &Timeouts) -> Self {
        Self { done: 0, allowed: timeouts.attempts, pause: timeouts.backoff }
    }

    /// After failure `e`: waits and says true when it makes sense to try again. A time-out has cost its time already: it
    /// is repeated once only.
    pub(crate) async fn again(&mut self, e: &Error) -> bool {
        self.done += 1;
        let allowed = if matches!(e, Error::Timeout { .. }) { self.allowed.min(2) } else { self.allowed };
        if !e.is_transient() || self.done >= allowed {
            return false;
        }
        let pause = match e.retry_after() {
            // Whoever asked for the image tries again before that.
            Some(wished) if wished > LONGEST_PAUSE => return false,
            Some(wished) => wished.max(self.pause),
            None => self.pause,
        };
        tracing::debug!(error = %e, attempt = self.done, ?pause, "registry request failed, trying again");
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 2).min(Duration::from_secs(10));
        true
    }

    /// Something was achieved: the count starts again.
    pub(crate) fn progressed(&mut self) {
        self.done = 0;
    }
}
