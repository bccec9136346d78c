//! Which images go (pure).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// An image, as far as its removal is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// When it was first seen; `None` for those that were here before the kubelet started.
    pub(crate) found: Option<Instant>,
    /// When a container used it last.
    pub(crate) used: Option<Instant>,
    /// Bytes.
    pub(crate) size: u64,
    /// A container or volume uses it now.
    pub(crate) in_use: bool,
    /// The runtime keeps it.
    pub(crate) pinned: bool,
}

/// Known images by id.
pub(crate) type Records = BTreeMap<String, Record>;

/// How much must be freed so that the disk is filled to `low` percent at most, if it is filled to `high` or more.
pub(crate) fn to_free(capacity: u64, available: u64, high: i32, low: i32) -> Option<u64> {
    if capacity == 0 {
        return None;
    }
    let percent = |p: i32| u128::try_from(p).unwrap_or(0);
    let used = 100 - u128::from(available.min(capacity)) * 100 / u128::from(capacity);
    if high >= 100 || used < percent(high) {
        return None;
    }
    let goal = u128::from(capacity) * (100 - percent(low)) / 100;
    u64::try_from(goal.saturating_sub(u128::from(available))).ok().filter(|n| *n > 0)
}

/// Images that may go: not in use, not pinned, old enough; those first that were not used for longest.
pub(crate) fn removable(records: &Records, least: Duration, now: Instant) -> Vec<&str> {
    let old = |r: &Record| r.found.is_none_or(|at| now.duration_since(at) >= least);
    let mut list: Vec<(&String, &Record)> = records.iter().filter(|(_, r)| !r.in_use && !r.pinned && old(r)).collect();
    list.sort_by_key(|(id, r)| (r.used, r.found, *id));
    list.into_iter().map(|(id, _)| id.as_str()).collect()
}

/// Images that nobody has used for longer than `most`; `start` is when the kubelet began to watch.
pub(crate) fn expired(records: &Records, least: Duration, most: Duration, start: Instant, now: Instant) -> Vec<&str> {
    if most.is_zero() {
        return Vec::new();
    }
    let list = removable(records, least, now).into_iter();
    let idle = |id: &str| {
        let record = &records[id];
        now.duration_since(record.used.or(record.found).unwrap_or(start))
    };
    list.filter(|id| idle(id) > most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freeing_begins_at_high_and_ends_at_low() {
        for (available, want) in [(16, None), (15, Some(5)), (14, Some(6)), (0, Some(20)), (100, None)] {
            assert_eq!(to_free(100, available, 85, 80), want, "{available}");
        }
        assert_eq!(to_free(100, 0, 100, 80), None, "100 turns it off");
        assert_eq!(to_free(0, 0, 85, 80), None);
    }

    #[test]
    fn the_longest_unused_goes_first_and_what_is_needed_stays() {
        let (start, now) = (Instant::now(), Instant::now() + Duration::from_secs(1000));
        let at = |s| Some(start + Duration::from_secs(s));
        let record = |found, used| Record { found, used, size: 1, in_use: false, pinned: false };
        let records: Records = [
            ("recent", record(None, at(900))),
            ("never", record(None, None)),
            ("long-ago", record(None, at(10))),
            ("young", record(at(950), None)),
            ("used", Record { in_use: true, ..record(None, at(1000)) }),
            ("pinned", Record { pinned: true, ..record(None, None) }),
        ]
        .into_iter()
        .map(|(id, r)| (id.to_owned(), r))
        .collect();
        let least = Duration::from_secs(120);
        assert_eq!(removable(&records, least, now), ["never", "long-ago", "recent"]);
        let most = Duration::from_secs(500);
        assert_eq!(expired(&records, least, most, start, now), ["never", "long-ago"]);
        assert!(expired(&records, least, Duration::ZERO, start, now).is_empty());
        assert!(expired(&records, least, Duration::from_secs(2000), start, now).is_empty());
    }
}
