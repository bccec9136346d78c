//! Whose CPUs are whose (pure).

use serde::{Deserialize, Serialize};

use super::take::{Options, take, take_across};
use crate::hint::{Hint, Hints, Nodes};
use crate::holdings::{Held, Holdings, Record};
use crate::{CpuSet, Machine};

/// Why CPUs cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Shortage {
    /// Upstream's words.
    #[error(
        "Allocate failed due to not enough cpus available to satisfy request: requested={asked}, available={available}, which is unexpected"
    )]
    Few { asked: usize, available: usize },
    /// Upstream's words.
    #[error("SMT Alignment Error: requested {asked} cpus not multiple cpus per core = {threads}")]
    Threads { asked: usize, threads: usize },
}

/// The static policy's state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    pub(crate) enabled: bool,
    pub(crate) options: Options,
    pub(crate) reserved: CpuSet,
    pub(crate) held: Holdings<CpuSet>,
}

/// The state on disk, in the layout of upstream's `cpu_manager_state`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct File {
    policy_name: String,
    default_cpu_set: String,
    #[serde(flatten)]
    held: Record<String>,
    checksum: u64,
}

impl Book {
    /// CPUs of containers that have none of their own.
    pub(crate) fn shared(&self, machine: &Machine) -> CpuSet {
        let taken = self.held.iter().fold(CpuSet::default(), |all, (_, h)| all.union(&h.what));
        let rest = machine.all().difference(&taken);
        if self.options.strict_reservation { rest.difference(&self.reserved) } else { rest }
    }

    /// CPUs that a container of the pod may get: free, not reserved; and those that the pod's init containers pass on.
    fn available(&self, machine: &Machine, uid: &str) -> (CpuSet, CpuSet) {
        let (mut taken, mut passed) = (CpuSet::default(), CpuSet::default());
        for (owner, held) in self.held.iter() {
            let list = if owner == uid && held.passes_on { &mut passed } else { &mut taken };
            *list = list.union(&held.what);
        }
        let passed = passed.difference(&taken);
        (machine.all().difference(&taken).difference(&self.reserved).difference(&passed), passed)
    }

    /// CPUs that exclusive containers can have at all.
    pub(crate) fn allocatable(&self, machine: &Machine) -> CpuSet {
        machine.all().difference(&self.reserved)
    }

    /// Where `need` CPUs could come from.
    pub(crate) fn hints(&self, machine: &Machine, uid: &str, container: Option<&str>, need: usize) -> Hints {
        if !self.enabled || need == 0 {
            return None;
        }
        let held = container.and_then(|c| self.of(uid, c));
        let (free, passed) = match held {
            Some(held) => (held.clone(), CpuSet::default()),
            None => self.available(machine, uid),
        };
        let all = self.allocatable(machine);
        let usable = free.union(&passed);
        let mut least = u32::MAX;
        let mut out = Vec::new();
        for mask in machine.all_nodes().subsets() {
            let here = machine.of_nodes(mask);
            if here.intersection(&all).len() >= need {
                least = least.min(mask.count());
            }
            let fits = usable.intersection(&here).len() >= need;
            let keeps = passed.len() > need || passed.is_subset(&here);
            if fits && keeps {
                out.push(Hint { nodes: Some(mask), preferred: false });
            }
        }
        for hint in &mut out {
            let Some(nodes) = hint.nodes else { continue };
            let sockets: CpuSet =
                machine.cpus.iter().filter(|c| nodes.iter().any(|n| n == c.node)).map(|c| c.socket).collect();
            hint.preferred = nodes.count() == least || (self.options.align_by_socket && sockets.len() == 1);
        }
        Some(out)
    }

    /// Gives a container CPUs of its own; nothing to do when it has them.
    pub(crate) fn allocate(
        &mut self,
        machine: &Machine,
        uid: &str,
        container: &str,
        need: usize,
        place: Option<Nodes>,
        passes_on: bool,
    ) -> Result<(), Shortage> {
        if !self.enabled || need == 0 || self.of(uid, container).is_some() {
            return Ok(());
        }
        let threads = machine.threads_per_core();
        if self.options.full_pcpus_only && !need.is_multiple_of(threads) {
            return Err(Shortage::Threads { asked: need, threads });
        }
        let (mut free, passed) = self.available(machine, uid);
        if self.options.full_pcpus_only {
            free = whole_cores(machine, &free.union(&passed)).difference(&passed);
        }
        let usable = free.union(&passed);
        let few = Shortage::Few { asked: need, available: usable.len() };
        if usable.len() < need {
            return Err(few);
        }
        let choose = |from: &CpuSet, need: usize| {
            if self.options.across_numa {
                take_across(machine, from, need, place.unwrap_or_else(|| machine.all_nodes()), self.options)
            } else {
                take(machine, from, need, self.options)
            }
        };
        let near = place.map_or_else(|| machine.all(), |p| machine.of_nodes(p));
        let mut got = CpuSet::default();
        // What the pod has already, then what is near, then the rest.
        for from in [passed, free.intersection(&near), free.difference(&near)] {
            let want = (need - got.len()).min(from.len());
            if want > 0 {
                got = got.union(&choose(&from, want).ok_or_else(|| few.clone())?);
            }
        }
        self.held.insert(uid, container, Held { what: got, passes_on });
        Ok(())
    }

    /// A container's own CPUs.
    pub(crate) fn of(&self, uid: &str, container: &str) -> Option<&CpuSet> {
        self.held.of(uid, container)
    }

    /// What goes to disk.
    pub(crate) fn file(&self, machine: &Machine) -> File {
        File {
            policy_name: if self.enabled { "static" } else { "none" }.to_owned(),
            default_cpu_set: if self.enabled { self.shared(machine).to_string() } else { String::new() },
            held: self.held.record(CpuSet::to_string),
            ..File::default()
        }
    }

    /// Takes what was on disk as far as it still holds: another policy, other CPUs or a broken entry cost that entry, not
    /// the node.
    pub(crate) fn restore(&mut self, machine: &Machine, file: File) {
        if !self.enabled || file.policy_name != "static" {
            if !file.held.is_empty() {
                tracing::warn!(
                    was = file.policy_name,
                    "the CPU manager's policy changed; earlier assignments are dropped"
                );
            }
            return;
        }
        for (uid, container, Held { what: text, passes_on }) in file.held.into_entries() {
            let taken = self.held.iter().filter(|(owner, h)| *owner != uid || !(h.passes_on || passes_on));
            let taken = taken.fold(CpuSet::default(), |all, (_, h)| all.union(&h.what));
            match text.parse::<CpuSet>() {
                Ok(cpus) if cpus.is_subset(&self.allocatable(machine)) && cpus.intersection(&taken).is_empty() => {
                    self.held.insert(&uid, &container, Held { what: cpus, passes_on });
                }
                _ => tracing::warn!(
                    uid,
                    container,
                    cpus = text,
                    "these CPUs cannot be given any more; assignment dropped"
                ),
            }
        }
    }
}

fn whole_cores(machine: &Machine, from: &CpuSet) -> CpuSet {
    let broken: CpuSet = machine.cpus.iter().filter(|c| !from.contains(c.id)).map(|c| c.core).collect();
    machine.cpus.iter().filter(|c| !broken.contains(c.core)).map(|c| c.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(options: Options) -> (Book, Machine) {
        let reserved = "0".parse().unwrap();
        (Book { enabled: true, options, reserved, ..Default::default() }, Machine::made(2, 2, 2, 1))
    }

    #[test]
    fn exclusive_cpus_leave_the_shared_pool() {
        let (mut book, machine) = book(Options::default());
        book.allocate(&machine, "u", "c", 2, None, false).unwrap();
        assert_eq!(book.of("u", "c").unwrap().to_string(), "1,5");
        assert_eq!(book.shared(&machine).to_string(), "0,2-4,6-7");
        book.allocate(&machine, "u", "c", 2, None, false).unwrap();
        let error = book.allocate(&machine, "v", "c", 6, None, false).unwrap_err();
        assert_eq!(error, Shortage::Few { asked: 6, available: 5 });
        assert!(book.held.release("u"));
        book.allocate(&machine, "v", "c", 6, None, false).unwrap();
        assert_eq!(book.shared(&machine).to_string(), "0,4");
    }

    #[test]
    fn options_are_heeded() {
        let (mut full, machine) = book(Options { full_pcpus_only: true, ..Default::default() });
        let error = full.allocate(&machine, "u", "c", 3, None, false).unwrap_err().to_string();
        assert_eq!(error, "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2");
        full.allocate(&machine, "u", "c", 6, None, false).unwrap();
        assert_eq!(full.of("u", "c").unwrap().to_string(), "1-3,5-7", "not the reserved core's other thread");
        let (strict, machine) = book(Options { strict_reservation: true, ..Default::default() });
        assert_eq!(strict.shared(&machine).to_string(), "1-7");
    }

    #[test]
    fn init_containers_pass_their_cpus_on() {
        let (mut book, machine) = book(Options::default());
        book.allocate(&machine, "u", "init", 4, None, true).unwrap();
        book.allocate(&machine, "u", "main", 2, None, false).unwrap();
        assert!(book.of("u", "main").unwrap().is_subset(book.of("u", "init").unwrap()));
        assert_eq!(book.shared(&machine).len(), 4);
    }

    #[test]
    fn hints_tell_where_there_is_room() {
        let (mut book, machine) = book(Options::default());
        let texts = |hints: Hints| -> Vec<String> {
            hints.unwrap().iter().map(|h| format!("{} {}", h.nodes.unwrap(), h.preferred)).collect()
        };
        assert_eq!(texts(book.hints(&machine, "u", Some("c"), 4)), ["1 true", "0-1 false"]);
        book.allocate(&machine, "v", "c", 4, Some(Nodes::of([1])), false).unwrap();
        assert_eq!(book.of("v", "c").unwrap().to_string(), "2-3,6-7");
        assert!(texts(book.hints(&machine, "u", Some("c"), 4)).is_empty());
        assert_eq!(book.hints(&machine, "u", Some("c"), 0), None);
    }

    #[test]
    fn the_state_survives_what_changed() {
        let (mut old, machine) = book(Options::default());
        old.allocate(&machine, "u", "c", 2, None, false).unwrap();
        old.allocate(&machine, "v", "c", 4, None, false).unwrap();
        let text = serde_json::to_string(&old.file(&machine)).unwrap();
        let file = || serde_json::from_str::<File>(&text).unwrap();
        let (mut same, _) = book(Options::default());
        same.restore(&machine, file());
        assert_eq!(same.held, old.held);
        let (mut grown, _) = book(Options::default());
        grown.reserved = "0-1".parse().unwrap();
        grown.restore(&machine, file());
        assert_eq!(grown.of("u", "c"), None, "CPU 1 is reserved now");
        assert!(grown.of("v", "c").is_some());
        let mut none = Book::default();
        none.restore(&machine, file());
        assert_eq!(none.held, Holdings::default());
    }
}
