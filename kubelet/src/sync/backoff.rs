//! Waits that double: after failed pulls, sandboxes and volumes; and before restarts (pure).

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// The first wait.
pub(crate) const FIRST: Duration = Duration::from_secs(10);
/// The longest one.
pub(crate) const LONGEST: Duration = Duration::from_secs(300);
/// A container that ran for so long starts anew with the shortest wait.
const RESET: SignedDuration = SignedDuration::from_secs(600);
/// An end that lies further ahead than this was noted before the clock was set back.
const SLACK: Duration = Duration::from_secs(10);

/// `at` plus a wait.
pub(crate) fn after(at: Timestamp, wait: Duration) -> Timestamp {
    SignedDuration::try_from(wait).ok().and_then(|w| at.checked_add(w).ok()).unwrap_or(Timestamp::MAX)
}

/// How long to wait from now.
pub(crate) fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

/// When a container that has ended may be started again (none for at once), and what its successor shall note as the
/// wait of the one after it. The first restart is immediate, the second comes 10 s after the end, then 20 s, 40 s, ...
/// A container that ended later than `now` waits for nothing: the clock was set back, and how long ago that was is unknown.
pub(crate) fn restart(
    delay_ms: u64,
    started: Timestamp,
    finished: Timestamp,
    cap: Duration,
    now: Timestamp,
) -> (Timestamp, u64) {
    let cap = u64::try_from(cap.as_millis()).unwrap_or(u64::MAX);
    let first = (FIRST.as_millis() as u64).min(cap);
    if finished.duration_since(started) >= RESET {
        return (finished.min(now), first);
    }
    let next = if delay_ms == 0 { first } else { (delay_ms * 2).min(cap) };
    if until(finished, now) > SLACK {
        return (now, next);
    }
    (after(finished, Duration::from_millis(delay_ms.min(cap))), next)
}

/// Failures by what failed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backoff {
    entries: HashMap<String, (Duration, Timestamp)>,
}

impl Backoff {
    /// Notes a failure; gives the time of the next try.
    pub(crate) fn failed(&mut self, what: &str, now: Timestamp, first: Duration, longest: Duration) -> Timestamp {
        let wait = self.entries.get(what).map_or(first, |(wait, _)| (*wait * 2).min(longest));
        let at = after(now, wait);
        self.entries.insert(what.to_owned(), (wait, at));
        at
    }

    /// Forgets past failures.
    pub(crate) fn succeeded(&mut self, what: &str) {
        self.entries.remove(what);
    }

    /// The time of the next try, if it is still to come. One that lies further ahead than its wait was noted before the
    /// clock was set back: the try is due.
    pub(crate) fn waiting(&self, what: &str, now: Timestamp) -> Option<Timestamp> {
        self.entries.get(what).filter(|(wait, at)| *at > now && until(*at, now) <= *wait).map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_wait_nothing_then_ten_seconds_then_double_up_to_the_cap() {
        let start = Timestamp::from_second(1000).unwrap();
        let end = Timestamp::from_second(1001).unwrap();
        let mut delay = 0;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let (at, next) = restart(delay, start, end, LONGEST, end);
            waits.push(until(at, end).as_secs());
            delay = next;
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_minutes_of_running_forgive() {
        let start = Timestamp::from_second(1000).unwrap();
        let end = Timestamp::from_second(1600).unwrap();
        assert_eq!(restart(300_000, start, end, LONGEST, end), (end, 10_000));
    }

    #[test]
    fn a_clock_that_is_set_back_makes_nothing_wait_longer() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        const DAY: i64 = 86_400;
        // The second that it is, whether the container starts, and what its successor will wait.
        for (now, due, next) in [
            (2 * DAY, false, 40_000),
            (2 * DAY + 19, false, 40_000),
            (2 * DAY + 20, true, 40_000),
            (3 * DAY, true, 40_000),
            // A few seconds back are a clock that is put right.
            (2 * DAY - 5, false, 40_000),
            (DAY, true, 40_000),
        ] {
            let (start, then) = restart(20_000, at(2 * DAY - 3), at(2 * DAY), LONGEST, at(now));
            assert_eq!((start <= at(now), then), (due, next), "{now}");
        }
        let mut backoff = Backoff::default();
        backoff.failed("x", at(2 * DAY), FIRST, LONGEST);
        for (now, waits) in
            [(2 * DAY, true), (2 * DAY + 9, true), (2 * DAY + 10, false), (3 * DAY, false), (DAY, false)]
        {
            assert_eq!(backoff.waiting("x", at(now)).is_some(), waits, "{now}");
        }
    }

    #[test]
    fn failures_double_their_wait_until_a_success() {
        let now = Timestamp::from_second(0).unwrap();
        let mut backoff = Backoff::default();
        let waits: Vec<i64> = (0..7).map(|_| backoff.failed("x", now, FIRST, LONGEST).as_second()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
        assert!(backoff.waiting("x", now).is_some() && backoff.waiting("y", now).is_none());
        backoff.succeeded("x");
        assert!(backoff.waiting("x", now).is_none());
    }
}
