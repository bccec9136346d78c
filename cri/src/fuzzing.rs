//! What the fuzz targets of this crate run: one function a target, from bytes that plugins, files or older versions give.
//!
//! Compiled for fuzzing and for tests only. The tests run what `fuzz/corpus` holds, so that an input that once found a fault is
//! tried by everyone; `fuzz/README.md` says how to look for new ones.

use crate::config::Config;
use crate::{cni, ledger, nri};

/// A network's configuration, and behind NUL bytes what its plugins answer.
pub fn cni_answers(data: &[u8]) {
    cni::understood(data);
}

/// Frames and messages of an NRI plugin.
pub fn nri_frames(data: &[u8]) {
    nri::fuzzing::frames(data);
}

/// What an NRI plugin wants of a container.
pub fn nri_adjustment(data: &[u8]) {
    nri::fuzzing::adjustment(data);
}

/// A record of a pod or a container, as another version wrote it or a disk gives it back.
pub fn ledger_records(data: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<ledger::SandboxRecord>(data) {
        serde_json::to_vec(&record).expect("it is written again");
    }
    if let Ok(record) = serde_json::from_slice::<ledger::ContainerRecord>(data) {
        serde_json::to_vec(&record).expect("it is written again");
    }
}

/// cri.toml.
pub fn settings(data: &[u8]) {
    if let Err(error) = toml::from_str::<Config>(&String::from_utf8_lossy(data)) {
        assert!(!error.to_string().is_empty());
    }
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
#[test]
fn what_fuzzing_found_and_starts_from() {
    replay::corpus(&[
        ("node_cni_answers", cni_answers),
        ("node_nri_frames", nri_frames),
        ("node_nri_adjustment", nri_adjustment),
        ("node_ledger_records", ledger_records),
        ("node_settings", settings),
    ]);
}
