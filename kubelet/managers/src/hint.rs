//! On which NUMA nodes something could be taken, and what several such answers make together (pure).
//!
//! Source of the behaviour: upstream's pkg/kubelet/cm/topologymanager.

use std::fmt;

/// A set of NUMA nodes, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nodes(u64);

impl Nodes {
    /// The nodes of these numbers; those beyond 63 are left out.
    pub fn of(numbers: impl IntoIterator<Item = u32>) -> Self {
        Self(numbers.into_iter().filter(|n| *n < 64).fold(0, |bits, n| bits | 1 << n))
    }

    /// How many.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// The numbers, smallest first.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |n| self.0 & (1 << n) != 0)
    }

    /// Those in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of them are in `other`.
    pub fn within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Every non-empty set of these nodes.
    pub fn subsets(self) -> Vec<Self> {
        let all: Vec<u32> = self.iter().take(16).collect();
        (1u64..1 << all.len())
            .map(|choice| Self::of(all.iter().enumerate().filter(|(i, _)| choice & (1 << i) != 0).map(|(_, n)| *n)))
            .collect()
    }
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().collect::<crate::CpuSet>().fmt(f)
    }
}

/// A possible place. `preferred`: no smaller set of nodes could ever do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The nodes; `None` for anywhere.
    pub nodes: Option<Nodes>,
    /// Whether it is as narrow as can be.
    pub preferred: bool,
}

/// What one provider says about one resource: no wish at all, or the places that are possible (maybe none).
pub type Hints = Option<Vec<Hint>>;

/// What the topology manager holds to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Nothing is aligned.
    #[default]
    None,
    /// Aligned where possible.
    BestEffort,
    /// A pod that cannot be aligned is refused.
    Restricted,
    /// As `Restricted`, and on one node.
    SingleNumaNode,
}

impl Policy {
    /// The policy of a name of the configuration.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "" | "none" => Self::None,
            "best-effort" => Self::BestEffort,
            "restricted" => Self::Restricted,
            "single-numa-node" => Self::SingleNumaNode,
            _ => return None,
        })
    }

    /// Merges what all providers say. Gives the best common place and whether the pod may begin.
    /// `closest`: of sets of equal size, that with the smallest average distance wins (`prefer-closest-numa-nodes`).
    pub fn merge(self, all: &[Hints], nodes: Nodes, closest: Option<&dyn Fn(Nodes) -> f64>) -> (Hint, bool) {
        if self == Self::None {
            return (Hint { nodes: None, preferred: true }, true);
        }
        let anywhere = [Hint { nodes: None, preferred: true }];
        let nowhere = [Hint { nodes: None, preferred: false }];
        let lists: Vec<Vec<Hint>> = all
            .iter()
            .map(|hints| match hints {
                None => anywhere.to_vec(),
                Some(list) if list.is_empty() => nowhere.to_vec(),
                Some(list) if self == Self::SingleNumaNode => {
                    list.iter().filter(|h| h.nodes.is_none_or(|n| n.count() == 1) && h.preferred).copied().collect()
                }
                Some(list) => list.clone(),
            })
            .collect();
        let mut best = Hint { nodes: Some(nodes), preferred: false };
        // The narrowest set that each provider could do with, at its largest: what is wider is not narrow enough.
        let narrow = lists
            .iter()
            .filter_map(|l| l.iter().filter(|h| h.preferred).filter_map(|h| h.nodes.map(Nodes::count)).min())
            .max();
        let mut choice = vec![0; lists.len()];
        'all: loop {
            if lists.iter().any(Vec::is_empty) {
                break;
            }
            let picked = || lists.iter().zip(&choice).map(|(l, i)| l[*i]);
            let merged = picked().filter_map(|h| h.nodes).fold(nodes, Nodes::and);
            let same = {
                let mut known = picked().filter_map(|h| h.nodes);
                known.next().is_none_or(|first| known.all(|n| n == first))
            };
            // Different places that overlap align, but not as every provider would like it.
            let preferred = picked().all(|h| h.preferred) && (same || self == Self::SingleNumaNode);
            if !merged.is_empty() {
                let hint = Hint { nodes: Some(merged), preferred };
                if better(hint, best, narrow, closest) {
                    best = hint;
                }
            }
            for i in 0..choice.len() {
                choice[i] += 1;
                if choice[i] < lists[i].len() {
                    continue 'all;
                }
                choice[i] = 0;
            }
            break;
        }
        if self == Self::SingleNumaNode && best.nodes == Some(nodes) && nodes.count() > 1 {
            best.nodes = None;
        }
        let admit = self == Self::BestEffort || best.preferred;
        (best, admit)
    }
}

fn better(new: Hint, old: Hint, narrow: Option<u32>, closest: Option<&dyn Fn(Nodes) -> f64>) -> bool {
    if new.preferred != old.preferred {
        return new.preferred;
    }
    let (Some(a), Some(b)) = (new.nodes, old.nodes) else { return false };
    let (x, y) = (a.count(), b.count());
    if !new.preferred
        && let Some(narrow) = narrow
    {
        // Among places that nobody prefers, one that holds what was wanted at its narrowest is the best.
        let far = |n: u32| (n < narrow, n.abs_diff(narrow));
        if x != y {
            return far(x) < far(y);
        }
    }
    if x != y {
        return x < y;
    }
    match closest {
        Some(distance) => distance(a) < distance(b) || (distance(a) == distance(b) && a < b),
        None => a < b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(list: &[u32]) -> Nodes {
        Nodes::of(list.iter().copied())
    }

    fn hint(list: &[u32], preferred: bool) -> Hint {
        Hint { nodes: Some(n(list)), preferred }
    }

    #[test]
    fn policies_decide_as_upstreams() {
        let two = n(&[0, 1]);
        let either = Some(vec![hint(&[0], true), hint(&[1], true), hint(&[0, 1], false)]);
        let second = Some(vec![hint(&[1], true), hint(&[0, 1], false)]);
        let wide = Some(vec![hint(&[0, 1], true)]);
        let crossed = Some(vec![hint(&[0, 1], false)]);
        let none = Some(vec![]);
        let table: Vec<(Policy, Vec<Hints>, &str)> = vec![
            (Policy::BestEffort, vec![either.clone(), second.clone()], "1 preferred admitted"),
            (Policy::BestEffort, vec![either.clone(), None], "0 preferred admitted"),
            (Policy::BestEffort, vec![crossed.clone()], "0-1 admitted"),
            (Policy::Restricted, vec![crossed.clone()], "0-1"),
            (Policy::Restricted, vec![wide.clone()], "0-1 preferred admitted"),
            (Policy::Restricted, vec![none.clone(), either.clone()], "0"),
            (Policy::Restricted, vec![second.clone(), either.clone()], "1 preferred admitted"),
            (Policy::SingleNumaNode, vec![wide.clone()], "anywhere"),
            (Policy::SingleNumaNode, vec![either.clone(), second], "1 preferred admitted"),
            (Policy::SingleNumaNode, vec![None, None], "0-1 preferred admitted"),
            (Policy::None, vec![none], "anywhere preferred admitted"),
        ];
        for (policy, hints, want) in table {
            let (best, admitted) = policy.merge(&hints, two, None);
            let nodes = best.nodes.map_or_else(|| "anywhere".to_owned(), |n| n.to_string());
            let got = format!(
                "{nodes}{}{}",
                if best.preferred { " preferred" } else { "" },
                if admitted { " admitted" } else { "" }
            );
            let got = if policy == Policy::SingleNumaNode && hints.iter().all(Option::is_none) {
                got.replace("anywhere", "0-1")
            } else {
                got
            };
            assert_eq!(got, want, "{policy:?} {hints:?}");
        }
    }

    #[test]
    fn near_nodes_win_where_asked_for() {
        let four = n(&[0, 1, 2, 3]);
        let pairs = Some(vec![hint(&[0, 1], true), hint(&[2, 3], true)]);
        let near = |nodes: Nodes| if nodes == n(&[2, 3]) { 11.0 } else { 21.0 };
        let (best, _) = Policy::BestEffort.merge(std::slice::from_ref(&pairs), four, Some(&near));
        assert_eq!(best, hint(&[2, 3], true));
        let (best, _) = Policy::BestEffort.merge(&[pairs], four, None);
        assert_eq!(best, hint(&[0, 1], true));
    }

    #[test]
    fn subsets_are_all_but_the_empty_one() {
        assert_eq!(n(&[0, 2, 5]).subsets().len(), 7);
    }
}
