//! Which CPUs to take: whole sockets before whole cores before threads, so that what is left stays whole (pure).
//!
//! Source of the behaviour: upstream's pkg/kubelet/cm/cpumanager/cpu_assignment.go.

use std::collections::{BTreeMap, BTreeSet};

use crate::hint::Nodes;
use crate::{Cpu, CpuSet, Machine};

/// `cpuManagerPolicyOptions`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `full-pcpus-only`: no two containers share a core.
    pub full_pcpus_only: bool,
    /// `distribute-cpus-across-numa`: where several nodes are needed, as much of each.
    pub across_numa: bool,
    /// `align-by-socket`: nodes of one socket count as near.
    pub align_by_socket: bool,
    /// `distribute-cpus-across-cores`: threads of different cores first.
    pub across_cores: bool,
    /// `strict-cpu-reservation`: reserved CPUs are not for shared containers either.
    pub strict_reservation: bool,
    /// `prefer-align-cpus-by-uncorecache`: CPUs of one cache first.
    pub by_cache: bool,
}

impl Options {
    /// Reads the map of the configuration.
    ///
    /// # Errors
    /// The first name or value that is none.
    pub fn parse(map: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut out = Self::default();
        for (name, text) in map {
            let field = match name.as_str() {
                "full-pcpus-only" => &mut out.full_pcpus_only,
                "distribute-cpus-across-numa" => &mut out.across_numa,
                "align-by-socket" => &mut out.align_by_socket,
                "distribute-cpus-across-cores" => &mut out.across_cores,
                "strict-cpu-reservation" => &mut out.strict_reservation,
                "prefer-align-cpus-by-uncorecache" => &mut out.by_cache,
                _ => return Err(format!("cpuManagerPolicyOptions: {name:?} is not an option")),
            };
            *field = text
                .parse()
                .map_err(|_| format!("cpuManagerPolicyOptions.{name}: {text:?} is neither true nor false"))?;
        }
        Ok(out)
    }
}

struct Taking<'a> {
    machine: &'a Machine,
    free: BTreeSet<u32>,
    taken: BTreeSet<u32>,
    need: usize,
}

impl Taking<'_> {
    fn groups(&self, key: fn(&Cpu) -> u32) -> BTreeMap<u32, (BTreeSet<u32>, usize)> {
        let mut out: BTreeMap<u32, (BTreeSet<u32>, usize)> = BTreeMap::new();
        for cpu in &self.machine.cpus {
            let group = out.entry(key(cpu)).or_default();
            group.1 += 1;
            if self.free.contains(&cpu.id) {
                group.0.insert(cpu.id);
            }
        }
        out
    }

    fn take(&mut self, cpus: impl IntoIterator<Item = u32>) {
        for id in cpus {
            if self.need > 0 && self.free.remove(&id) {
                self.taken.insert(id);
                self.need -= 1;
            }
        }
    }

    /// Takes groups that are wholly free as long as they are needed whole.
    fn whole(&mut self, key: fn(&Cpu) -> u32) {
        for (free, size) in self.groups(key).into_values() {
            if free.len() == size && size <= self.need && size > 0 {
                self.take(free);
            }
        }
    }

    /// Cores in the order in which they are broken into: those of sockets already used, then those of the fullest.
    fn cores(&self) -> Vec<BTreeSet<u32>> {
        let socket_of: BTreeMap<u32, u32> = self.machine.cpus.iter().map(|c| (c.id, c.socket)).collect();
        let used: BTreeSet<u32> = self.taken.iter().filter_map(|id| socket_of.get(id).copied()).collect();
        let mut left: BTreeMap<u32, usize> = BTreeMap::new();
        for id in &self.free {
            *left.entry(socket_of.get(id).copied().unwrap_or(0)).or_default() += 1;
        }
        let mut cores: Vec<BTreeSet<u32>> = self.groups(|c| c.core).into_values().map(|(free, _)| free).collect();
        cores.retain(|c| !c.is_empty());
        cores.sort_by_key(|core| {
            let first = core.first().copied().unwrap_or(0);
            let socket = socket_of.get(&first).copied().unwrap_or(0);
            (!used.contains(&socket), left.get(&socket).copied().unwrap_or(0), socket, core.len(), first)
        });
        cores
    }
}

/// Takes `need` of the CPUs in `from`; nothing when there are too few.
pub(crate) fn take(machine: &Machine, from: &CpuSet, need: usize, options: Options) -> Option<CpuSet> {
    if from.len() < need {
        return None;
    }
    let mut taking = Taking { machine, free: from.iter().collect(), taken: BTreeSet::new(), need };
    let sockets: BTreeSet<u32> = machine.cpus.iter().map(|c| c.socket).collect();
    if machine.nodes.len() >= sockets.len() {
        taking.whole(|c| c.node);
        taking.whole(|c| c.socket);
    } else {
        taking.whole(|c| c.socket);
        taking.whole(|c| c.node);
    }
    if options.by_cache {
        taking.whole(|c| c.cache);
        // What is left comes from the one cache that it fits best.
        let groups = taking.groups(|c| c.cache);
        let fits = groups.into_values().map(|(free, _)| free).filter(|f| f.len() >= taking.need);
        if let Some(best) = fits.min_by_key(|f| (f.len(), f.first().copied())) {
            let all = std::mem::replace(&mut taking.free, best.clone());
            finish(&mut taking, options);
            let left: Vec<u32> = taking.free.iter().copied().collect();
            taking.free = all.into_iter().filter(|id| !best.contains(id)).chain(left).collect();
        }
    }
    finish(&mut taking, options);
    (taking.need == 0).then(|| taking.taken.into_iter().collect())
}

fn finish(taking: &mut Taking<'_>, options: Options) {
    if options.across_cores {
        while taking.need > 0 {
            let before = taking.need;
            for core in taking.cores() {
                taking.take(core.first().copied());
            }
            if taking.need == before {
                return;
            }
        }
        return;
    }
    let sizes: BTreeMap<u32, usize> =
        taking.groups(|c| c.core).into_values().filter_map(|(f, n)| Some((*f.first()?, n))).collect();
    for core in taking.cores() {
        let whole = core.first().and_then(|f| sizes.get(f)).is_some_and(|n| *n == core.len());
        if whole && core.len() <= taking.need {
            taking.take(core);
        }
    }
    for core in taking.cores() {
        taking.take(core);
    }
}

/// As [`take`], with the same number from each of as few nodes as do.
pub(crate) fn take_across(
    machine: &Machine,
    from: &CpuSet,
    need: usize,
    nodes: Nodes,
    options: Options,
) -> Option<CpuSet> {
    let group = if options.full_pcpus_only { machine.threads_per_core() } else { 1 };
    let mut sets = nodes.subsets();
    sets.sort_by_key(|s| (s.count(), *s));
    for set in sets {
        let free: Vec<CpuSet> = set.iter().map(|n| machine.of_nodes(Nodes::of([n])).intersection(from)).collect();
        if free.iter().map(CpuSet::len).sum::<usize>() < need {
            continue;
        }
        if set.count() == 1 {
            return take(machine, &free[0], need, options);
        }
        let share = need / free.len() / group * group;
        let Some(mut taken) = free
            .iter()
            .map(|own| take(machine, own, share, options))
            .try_fold(CpuSet::default(), |all, own| Some(all.union(&own?)))
        else {
            continue;
        };
        let mut left = need - taken.len();
        for own in &free {
            let rest = own.difference(&taken);
            let more = take(machine, &rest, left.min(group).min(rest.len()), options)?;
            left -= more.len();
            taken = taken.union(&more);
        }
        if left == 0 {
            return Some(taken);
        }
    }
    take(machine, from, need, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    #[test]
    fn whole_sockets_go_before_whole_cores_before_threads() {
        // Two sockets with two cores of two threads: cores are 0,4 1,5 | 2,6 3,7.
        let machine = Machine::made(2, 2, 2, 1);
        let plain = Options::default();
        for (from, need, want) in [
            ("0-7", 1, "0"),
            ("0-7", 2, "0,4"),
            ("0-7", 3, "0-1,4"),
            ("0-7", 4, "0-1,4-5"),
            ("0-7", 6, "0-2,4-6"),
            ("1-7", 2, "1,5"),
            ("1-7", 4, "2-3,6-7"),
            ("1-7", 1, "4"),
            ("0-7", 8, "0-7"),
        ] {
            assert_eq!(take(&machine, &set(from), need, plain).unwrap().to_string(), want, "{from} {need}");
        }
        assert_eq!(take(&machine, &set("0-1"), 3, plain), None);
    }

    #[test]
    fn options_spread_or_keep_together() {
        let machine = Machine::made(2, 2, 2, 1);
        let cores = Options { across_cores: true, ..Default::default() };
        assert_eq!(take(&machine, &set("0-7"), 2, cores).unwrap().to_string(), "0-1");
        let numa = Options { across_numa: true, full_pcpus_only: true, ..Default::default() };
        let nodes = Nodes::of([0, 1]);
        assert_eq!(take_across(&machine, &set("0-7"), 4, nodes, numa).unwrap().to_string(), "0-1,4-5");
        assert_eq!(take_across(&machine, &set("0-2,4-6"), 6, nodes, numa).unwrap().to_string(), "0-2,4-6");
        let big = Machine::made(2, 4, 1, 1);
        let loose = Options { across_numa: true, ..Default::default() };
        assert_eq!(take_across(&big, &set("0-7"), 6, nodes, loose).unwrap().to_string(), "0-2,4-6");
        let mut cached = Machine::made(1, 4, 1, 1);
        cached.cpus.iter_mut().for_each(|c| c.cache = c.id / 2);
        let by_cache = Options { by_cache: true, ..Default::default() };
        assert_eq!(take(&cached, &set("1-3"), 2, by_cache).unwrap().to_string(), "2-3");
        assert_eq!(take(&cached, &set("1-3"), 1, by_cache).unwrap().to_string(), "1");
    }

    #[test]
    fn wrong_options_are_named() {
        let map = |k: &str, v: &str| [(k.to_owned(), v.to_owned())].into();
        assert!(Options::parse(&map("full-pcpus-only", "true")).unwrap().full_pcpus_only);
        assert!(Options::parse(&map("full-pcpus-only", "x")).unwrap_err().contains("full-pcpus-only"));
        assert!(Options::parse(&map("no-such", "true")).unwrap_err().contains("no-such"));
    }
}
