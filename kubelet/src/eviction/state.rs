//! Which thresholds are crossed, for how long, and what the node reports about it (pure).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::signal::{Condition, Signal};
use super::threshold::Threshold;

/// What was measured of one signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Observation {
    /// What is left.
    pub(crate) available: i64,
    /// What there is in all.
    pub(crate) capacity: i64,
}

/// What was measured; a signal that could not be measured is missing and crosses nothing.
pub(crate) type Observations = BTreeMap<Signal, Observation>;

/// What is remembered between looks.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Thresholds that were crossed at the last look, grace periods aside.
    first: Vec<(Threshold, Instant)>,
    /// Thresholds that had to be acted on; they stay until the minimum was reclaimed.
    met: Vec<Threshold>,
    last: BTreeMap<Condition, Instant>,
    conditions: BTreeSet<Condition>,
}

/// Whether a threshold is crossed; with `reclaim` it is until its minimum was reclaimed.
fn crossed(threshold: &Threshold, seen: &Observations, reclaim: bool) -> bool {
    let Some(seen) = seen.get(&threshold.signal) else { return false };
    let mut need = threshold.amount.of(seen.capacity);
    if reclaim {
        need += threshold.reclaim.map_or(0, |r| r.of(seen.capacity));
    }
    need > seen.available
}

impl State {
    /// Takes a look's measurements. Gives the thresholds to act on now, the most urgent first.
    pub(crate) fn look(
        &mut self,
        all: &[Threshold],
        seen: &Observations,
        transition: Duration,
        now: Instant,
    ) -> Vec<Threshold> {
        let mut thresholds: Vec<Threshold> = all.iter().filter(|t| crossed(t, seen, false)).copied().collect();
        for old in self.met.iter().filter(|t| crossed(t, seen, true)) {
            if !thresholds.contains(old) {
                thresholds.push(*old);
            }
        }
        let first: Vec<(Threshold, Instant)> = thresholds
            .iter()
            .map(|t| (*t, self.first.iter().find(|(old, _)| old == t).map_or(now, |(_, at)| *at)))
            .collect();
        self.first = first;
        for threshold in &thresholds {
            self.last.insert(threshold.signal.condition(), now);
        }
        self.last.retain(|condition, at| {
            thresholds.iter().any(|t| t.signal.condition() == *condition) || now.duration_since(*at) < transition
        });
        self.conditions = self.last.keys().copied().collect();
        self.met = self
            .first
            .iter()
            .filter(|(t, at)| t.grace.is_none_or(|grace| now.duration_since(*at) >= grace))
            .map(|(t, _)| *t)
            .collect();
        let mut urgent = self.met.clone();
        urgent.sort_by_key(|t| (t.signal, t.grace.is_some()));
        urgent
    }

    /// What the node is in.
    pub(crate) fn conditions(&self) -> &BTreeSet<Condition> {
        &self.conditions
    }

    /// Whether, by newer measurements, everything that was to be reclaimed is.
    pub(crate) fn relieved(&self, seen: &Observations) -> bool {
        !self.met.iter().any(|t| crossed(t, seen, true))
    }

    /// When to look again although nothing else happens: the end of a grace period.
    pub(crate) fn next(&self, now: Instant) -> Option<Duration> {
        let ends = self.first.iter().filter_map(|(t, at)| Some(*at + t.grace?));
        ends.filter(|end| *end > now).min().map(|end| end - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::threshold::Amount;

    const FIVE: Duration = Duration::from_secs(300);

    fn seen(pairs: &[(Signal, i64)]) -> Observations {
        pairs.iter().map(|(s, available)| (*s, Observation { available: *available, capacity: 1000 })).collect()
    }

    fn hard(signal: Signal, amount: i64) -> Threshold {
        Threshold { signal, amount: Amount::Fixed(amount), grace: None, reclaim: None }
    }

    #[test]
    fn a_hard_threshold_acts_at_once_and_its_condition_lasts() {
        let (mut state, start) = (State::default(), Instant::now());
        let all = [hard(Signal::Memory, 100)];
        for (second, available, acts, condition) in [
            (0, 100, false, false),
            (10, 99, true, true),
            (20, 101, false, true),
            (309, 500, false, true),
            (311, 500, false, false),
        ] {
            let now = start + Duration::from_secs(second);
            let got = state.look(&all, &seen(&[(Signal::Memory, available)]), FIVE, now);
            assert_eq!(
                (!got.is_empty(), state.conditions().contains(&Condition::Memory)),
                (acts, condition),
                "{second}"
            );
        }
    }

    #[test]
    fn a_soft_threshold_waits_for_its_grace_period() {
        let (mut state, start) = (State::default(), Instant::now());
        let all = [Threshold { grace: Some(Duration::from_secs(60)), ..hard(Signal::NodeFs, 100) }];
        for (second, available, acts) in
            [(0, 50, false), (59, 50, false), (60, 50, true), (70, 200, false), (80, 50, false)]
        {
            let now = start + Duration::from_secs(second);
            let got = state.look(&all, &seen(&[(Signal::NodeFs, available)]), FIVE, now);
            assert_eq!(!got.is_empty(), acts, "{second}");
            assert!(state.conditions().contains(&Condition::Disk), "the condition does not wait for the grace period");
        }
        assert_eq!(state.next(start + Duration::from_secs(100)), Some(Duration::from_secs(40)));
    }

    #[test]
    fn what_was_crossed_is_acted_on_until_the_minimum_is_reclaimed() {
        let (mut state, now) = (State::default(), Instant::now());
        let all = [Threshold { reclaim: Some(Amount::Fixed(50)), ..hard(Signal::Memory, 100) }];
        let acts: Vec<bool> = [120, 99, 149, 150, 120]
            .map(|available| !state.look(&all, &seen(&[(Signal::Memory, available)]), FIVE, now).is_empty())
            .into();
        assert_eq!(acts, [false, true, true, false, false]);
    }

    #[test]
    fn memory_comes_first_and_hard_before_soft() {
        let mut state = State::default();
        let soft = Threshold { grace: Some(Duration::ZERO), ..hard(Signal::NodeFs, 200) };
        let all = [hard(Signal::Pid, 10), soft, hard(Signal::NodeFs, 100), hard(Signal::Memory, 100)];
        let low = seen(&[(Signal::Pid, 1), (Signal::NodeFs, 1), (Signal::Memory, 1)]);
        let got = state.look(&all, &low, FIVE, Instant::now());
        let order: Vec<(Signal, bool)> = got.iter().map(|t| (t.signal, t.hard())).collect();
        assert_eq!(
            order,
            [(Signal::Memory, true), (Signal::NodeFs, true), (Signal::NodeFs, false), (Signal::Pid, true)]
        );
    }

    #[test]
    fn what_cannot_be_measured_crosses_nothing() {
        let mut state = State::default();
        assert!(state.look(&[hard(Signal::Memory, 100)], &Observations::new(), FIVE, Instant::now()).is_empty());
    }
}
