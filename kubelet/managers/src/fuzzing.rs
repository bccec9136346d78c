//! What the fuzz targets of this crate run: one function a target, from files that somebody may have written over.
//!
//! Compiled for fuzzing and for tests only. The tests run what `fuzz/corpus` holds, so that an input that once found a fault is
//! tried by everyone; `fuzz/README.md` says how to look for new ones.

use std::collections::BTreeMap;

use crate::devices::checkpoint;
use crate::machine::{Cpu, Machine};
use crate::{CpuSet, cpu, memory};

fn machine() -> Machine {
    let cpus = (0..8).map(|id| Cpu { id, core: id / 2, socket: id / 4, node: id / 4, cache: id / 4 }).collect();
    let memory = BTreeMap::from([("memory".to_owned(), 1 << 30)]);
    Machine { cpus, nodes: BTreeMap::from([(0, memory.clone()), (1, memory)]), ..Machine::default() }
}

/// A list of CPUs: what is read is written so that it is read again.
pub fn cpu_set(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match text.parse::<CpuSet>() {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(set) => {
            let written = set.to_string();
            assert_eq!(written.parse::<CpuSet>().as_ref(), Ok(&set), "{text:?} is written as {written:?}");
            assert_eq!(set.iter().count(), set.len());
        }
    }
}

/// A state file; its first byte says whose it is. What it says of CPUs and memory that are not there is not believed.
pub fn state(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else { return };
    let machine = machine();
    match kind % 3 {
        0 => {
            let Ok(file) = serde_json::from_slice(text) else { return };
            let mut book = cpu::book::Book { enabled: true, ..cpu::book::Book::default() };
            book.restore(&machine, file);
            assert!(book.shared(&machine).is_subset(&machine.all()));
            let written = serde_json::to_vec(&book.file(&machine)).expect("what was read can be written");
            let mut again = cpu::book::Book { enabled: true, ..cpu::book::Book::default() };
            again.restore(&machine, serde_json::from_slice(&written).expect("what was written can be read"));
            assert_eq!(again.shared(&machine), book.shared(&machine));
        }
        1 => {
            let Ok(file) = serde_json::from_slice(text) else { return };
            let mut book = memory::Book { enabled: true, ..memory::Book::default() };
            book.restore(&machine, file);
        }
        _ => drop(checkpoint::read(text)),
    }
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
#[test]
fn what_fuzzing_found_and_starts_from() {
    replay::corpus(&[("kubelet_cpu_set", cpu_set), ("kubelet_state", state)]);
}
