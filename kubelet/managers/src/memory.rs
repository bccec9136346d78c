//! Memory and huge pages of NUMA nodes for guaranteed pods: the static policy (pure).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Machine;
use crate::hint::{Hint, Hints, Nodes};
use crate::holdings::{Held, Holdings, Record};

/// Bytes by name: `memory`, `hugepages-2Mi`.
pub(crate) type Amounts = BTreeMap<String, u64>;

/// Upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Allocate failed due to [memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available, which is unexpected"
)]
pub(crate) struct Shortage;

/// A part of some nodes' memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Block {
    #[serde(rename = "numaAffinity")]
    pub(crate) nodes: Vec<u32>,
    #[serde(rename = "type")]
    pub(crate) name: String,
    pub(crate) size: u64,
}

/// The static policy's state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    pub(crate) enabled: bool,
    /// What pods do not get, by node.
    pub(crate) reserved: BTreeMap<u32, Amounts>,
    pub(crate) held: Holdings<Vec<Block>>,
}

/// The state on disk, in the layout of upstream's `memory_manager_state`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct File {
    policy_name: String,
    #[serde(flatten)]
    held: Record<Vec<Block>>,
    checksum: u64,
}

impl Book {
    fn allocatable(&self, machine: &Machine, node: u32, name: &str) -> u64 {
        let all = machine.nodes.get(&node).and_then(|n| n.get(name)).copied().unwrap_or(0);
        let kept = self.reserved.get(&node).and_then(|n| n.get(name)).copied().unwrap_or(0);
        all.saturating_sub(kept)
    }

    /// What pods may have of each node.
    pub(crate) fn offered(&self, machine: &Machine) -> Vec<Block> {
        let nodes = machine.nodes.iter();
        nodes
            .flat_map(|(node, memory)| {
                memory.keys().map(|name| Block {
                    nodes: vec![*node],
                    name: name.clone(),
                    size: self.allocatable(machine, *node, name),
                })
            })
            .collect()
    }

    /// Blocks that count for a newcomer of a pod: init containers pass theirs on.
    fn counted<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a Block> {
        let all = self.held.iter().filter(move |(owner, h)| !(*owner == uid && h.passes_on));
        all.flat_map(|(_, h)| &h.what)
    }

    /// Nodes are used alone or in fixed groups, so that what is promised of a node can be had there.
    fn may_group(&self, uid: &str, mask: Nodes) -> bool {
        self.counted(uid).all(|b| {
            let used = Nodes::of(b.nodes.iter().copied());
            used == mask || used.and(mask).is_empty()
        })
    }

    fn free(&self, machine: &Machine, uid: &str, mask: Nodes, name: &str) -> u64 {
        let all: u64 = mask.iter().map(|n| self.allocatable(machine, n, name)).sum();
        let taken: u64 = self
            .counted(uid)
            .filter(|b| b.name == name && !Nodes::of(b.nodes.iter().copied()).and(mask).is_empty())
            .map(|b| b.size)
            .sum();
        all.saturating_sub(taken)
    }

    fn fits(&self, machine: &Machine, uid: &str, mask: Nodes, asked: &Amounts) -> bool {
        self.may_group(uid, mask) && asked.iter().all(|(name, size)| self.free(machine, uid, mask, name) >= *size)
    }

    /// Where the amounts could come from, resource by resource.
    pub(crate) fn hints(&self, machine: &Machine, uid: &str, container: Option<&str>, asked: &Amounts) -> Hints {
        if !self.enabled || asked.is_empty() {
            return None;
        }
        if let Some(held) = container.and_then(|c| self.of(uid, c)) {
            let nodes = held.first().map(|b| Nodes::of(b.nodes.iter().copied()));
            return Some(vec![Hint { nodes, preferred: true }]);
        }
        let mut least = u32::MAX;
        let mut out = Vec::new();
        for mask in machine.all_nodes().subsets() {
            let ever = |(name, size): (&String, &u64)| {
                mask.iter().map(|n| self.allocatable(machine, n, name)).sum::<u64>() >= *size
            };
            if asked.iter().all(ever) {
                least = least.min(mask.count());
            }
            if self.fits(machine, uid, mask, asked) {
                out.push(Hint { nodes: Some(mask), preferred: false });
            }
        }
        for hint in &mut out {
            hint.preferred = hint.nodes.is_some_and(|n| n.count() == least);
        }
        Some(out)
    }

    /// Gives a container its memory at `place`, or at the smallest place that has it.
    pub(crate) fn allocate(
        &mut self,
        machine: &Machine,
        uid: &str,
        container: &str,
        asked: &Amounts,
        place: Option<Nodes>,
        passes_on: bool,
    ) -> Result<(), Shortage> {
        if !self.enabled || asked.is_empty() || self.of(uid, container).is_some() {
            return Ok(());
        }
        let mut masks = machine.all_nodes().subsets();
        // The place that was agreed on, then what holds it, then anything: narrow before wide.
        masks.sort_by_key(|m| (place.is_some_and(|p| !p.within(*m)), m.count(), *m));
        let mask = masks.into_iter().find(|m| self.fits(machine, uid, *m, asked)).ok_or(Shortage)?;
        let blocks =
            asked.iter().map(|(name, size)| Block { nodes: mask.iter().collect(), name: name.clone(), size: *size });
        self.held.insert(uid, container, Held { what: blocks.collect(), passes_on });
        Ok(())
    }

    /// A container's blocks.
    pub(crate) fn of(&self, uid: &str, container: &str) -> Option<&[Block]> {
        self.held.of(uid, container).map(Vec::as_slice)
    }

    /// What goes to disk.
    pub(crate) fn file(&self) -> File {
        let policy_name = if self.enabled { "Static" } else { "None" }.to_owned();
        File { policy_name, held: self.held.record(Vec::clone), ..File::default() }
    }

    /// Takes what was on disk as far as it still holds.
    pub(crate) fn restore(&mut self, machine: &Machine, file: File) {
        if !self.enabled || file.policy_name != "Static" {
            if !file.held.is_empty() {
                tracing::warn!(
                    was = file.policy_name,
                    "the memory manager's policy changed; earlier blocks are dropped"
                );
            }
            return;
        }
        for (uid, container, held) in file.held.into_entries() {
            let asked: Amounts = held.what.iter().map(|b| (b.name.clone(), b.size)).collect();
            let mask = held.what.first().map(|b| Nodes::of(b.nodes.iter().copied())).unwrap_or_default();
            if mask.within(machine.all_nodes()) && self.fits(machine, &uid, mask, &asked) {
                self.held.insert(&uid, &container, held);
            } else {
                tracing::warn!(uid, container, nodes = %mask, "this memory cannot be given any more; block dropped");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn book() -> (Book, Machine) {
        let reserved = [(0, [("memory".to_owned(), GIB)].into())].into();
        (Book { enabled: true, reserved, ..Default::default() }, Machine::made(2, 1, 1, 4))
    }

    fn gib(n: u64) -> Amounts {
        [("memory".to_owned(), n * GIB)].into()
    }

    fn nodes(book: &Book, uid: &str) -> Vec<u32> {
        book.of(uid, "c").unwrap()[0].nodes.clone()
    }

    #[test]
    fn memory_comes_from_the_smallest_place() {
        let (mut book, machine) = book();
        book.allocate(&machine, "a", "c", &gib(2), None, false).unwrap();
        book.allocate(&machine, "b", "c", &gib(2), None, false).unwrap();
        assert_eq!((nodes(&book, "a"), nodes(&book, "b")), (vec![0], vec![1]), "node 0 has 3 GiB for pods");
        assert_eq!(book.allocate(&machine, "d", "c", &gib(3), None, false), Err(Shortage), "both nodes are used alone");
        assert!(book.held.release("a") && book.held.release("b"));
        book.allocate(&machine, "d", "c", &gib(6), None, false).unwrap();
        assert_eq!(nodes(&book, "d"), [0, 1]);
        assert_eq!(book.allocate(&machine, "a", "c", &gib(1), Some(Nodes::of([1])), false), Ok(()));
        assert_eq!(nodes(&book, "a"), [0, 1], "the nodes are a group now");
    }

    #[test]
    fn hints_prefer_what_could_ever_be_narrow() {
        let (mut book, machine) = book();
        let texts = |hints: Hints| -> Vec<String> {
            hints.unwrap().iter().map(|h| format!("{} {}", h.nodes.unwrap(), h.preferred)).collect()
        };
        assert_eq!(texts(book.hints(&machine, "u", Some("c"), &gib(4))), ["1 true", "0-1 false"]);
        assert_eq!(texts(book.hints(&machine, "u", Some("c"), &gib(5))), ["0-1 true"]);
        book.allocate(&machine, "v", "c", &gib(3), Some(Nodes::of([1])), false).unwrap();
        assert!(texts(book.hints(&machine, "u", Some("c"), &gib(4))).is_empty());
    }

    #[test]
    fn the_state_survives_what_changed() {
        let (mut old, machine) = book();
        old.allocate(&machine, "u", "c", &gib(4), None, false).unwrap();
        let text = serde_json::to_string(&old.file()).unwrap();
        let (mut same, _) = book();
        same.restore(&machine, serde_json::from_str(&text).unwrap());
        assert_eq!(same.held, old.held);
        let (mut smaller, _) = book();
        smaller.reserved.insert(1, gib(2));
        smaller.restore(&machine, serde_json::from_str(&text).unwrap());
        assert_eq!(smaller.held, Holdings::default());
    }
}
