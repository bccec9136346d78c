//! Clocks that are set ahead: what is deleted by its age would all be old at once, and cannot be brought back.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// Clocks that are only put right move by less between two looks.
const JUMP: SignedDuration = SignedDuration::from_secs(60);

/// Notices that the clock was set ahead while the server runs, and tells for how long ages then mean nothing.
#[derive(Debug)]
pub(crate) struct Jumps {
    calm: Duration,
    last: Option<(Timestamp, Instant)>,
    until: Option<Instant>,
}

impl Jumps {
    /// After a jump nothing is old for as long as `calm`, which is how old things may become.
    pub(crate) fn new(calm: Duration) -> Self {
        Self { calm, last: None, until: None }
    }

    /// Whether ages by the clock can be believed now; to be asked before each look at them.
    pub(crate) fn believable(&mut self) -> bool {
        self.believable_at(Timestamp::now(), Instant::now())
    }

    /// The same at a time by the clock (`wall`) and by one that nobody sets (`steady`). Pure but for what it remembers.
    fn believable_at(&mut self, wall: Timestamp, steady: Instant) -> bool {
        if let Some((wall_before, steady_before)) = self.last.replace((wall, steady)) {
            let passed = SignedDuration::try_from(steady.saturating_duration_since(steady_before));
            let ahead = wall.duration_since(wall_before).saturating_sub(passed.unwrap_or(SignedDuration::MAX));
            if ahead > JUMP {
                tracing::warn!(
                    seconds = ahead.as_secs(),
                    "the clock was set ahead; nothing is deleted for its age for a while"
                );
                self.until = steady.checked_add(self.calm);
            }
        }
        self.until.is_none_or(|until| steady >= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_old_right_after_a_jump_ahead() {
        let (mut jumps, start) = (Jumps::new(Duration::from_secs(300)), Instant::now());
        const DAY: i64 = 86_400;
        // Seconds that passed, what the clock says, and whether it is believed.
        for (passed, wall, believed) in [
            (0, 0, true),
            (60, 60, true),
            // Put right by some seconds.
            (65, 95, true),
            (70, DAY, false),
            (369, DAY + 299, false),
            (370, DAY + 300, true),
            // Set back: what was written ahead is of the future, and stays until then.
            (380, 400, true),
            // Ahead again, and again before the first is over.
            (390, DAY, false),
            (500, 2 * DAY, false),
            (790, 2 * DAY + 290, false),
            (800, 2 * DAY + 300, true),
        ] {
            let at = Timestamp::from_second(1_000_000_000 + wall).unwrap();
            let got = jumps.believable_at(at, start + Duration::from_secs(passed));
            assert_eq!(got, believed, "{passed} {wall}");
        }
    }
}
