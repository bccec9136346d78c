//! So many a second, and a few at once: a token bucket for pulls, requests and events. Who comes too early waits; nothing
//! is refused.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What is left, which is negative while somebody waits (pure: the clock is handed in).
#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: f64,
    burst: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    /// Takes one; says how long to wait for it.
    fn take(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = passed.mul_add(self.rate, self.left).min(self.burst) - 1.0;
        if self.left >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.left / self.rate) }
    }
}

/// A limit that many share.
#[derive(Debug)]
pub(crate) struct Throttle(Option<Mutex<Bucket>>);

impl Throttle {
    /// `rate` a second and at most `burst` at once; a rate of 0 or less is no limit.
    pub(crate) fn new(rate: i32, burst: i32) -> Self {
        let (rate, burst) = (f64::from(rate), f64::from(burst.max(1)));
        Self((rate > 0.0).then(|| Mutex::new(Bucket { rate, burst, left: burst, at: Instant::now() })))
    }

    /// Waits for its turn; gives how long that was.
    pub(crate) async fn turn(&self) -> Duration {
        let Some(bucket) = &self.0 else { return Duration::ZERO };
        let wait = bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let throttle = Throttle::new(5, 10);
        let start = Instant::now();
        for _ in 0..10 {
            assert_eq!(throttle.turn().await, Duration::ZERO);
        }
        for _ in 0..10 {
            throttle.turn().await;
        }
        let took = start.elapsed();
        assert!((Duration::from_millis(1990)..Duration::from_millis(2100)).contains(&took), "{took:?}");
        // What is not used comes back, up to the burst.
        tokio::time::sleep(Duration::from_secs(60)).await;
        for _ in 0..10 {
            assert_eq!(throttle.turn().await, Duration::ZERO);
        }
        assert!(throttle.turn().await > Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn no_rate_is_no_limit() {
        let throttle = Throttle::new(0, 1);
        for _ in 0..1000 {
            assert_eq!(throttle.turn().await, Duration::ZERO);
        }
    }
}
