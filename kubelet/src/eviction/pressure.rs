//! What the node is short of, for those who report or heed it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use super::signal::Condition;

/// The conditions that hold now; cloning gives another handle on the same.
#[derive(Clone, Debug)]
pub(crate) struct Pressure(Arc<watch::Sender<BTreeSet<Condition>>>);

impl Default for Pressure {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeSet::new())))
    }
}

impl Pressure {
    /// Replaces them; tells which have changed.
    pub(crate) fn set(&self, conditions: &BTreeSet<Condition>) -> Vec<(Condition, bool)> {
        let before = self.get();
        self.0.send_if_modified(|now| {
            let changed = now != conditions;
            now.clone_from(conditions);
            changed
        });
        before.symmetric_difference(conditions).map(|c| (*c, conditions.contains(c))).collect()
    }

    /// Has whoever listens look again: something else about the node has changed.
    pub(crate) fn touch(&self) {
        self.0.send_modify(|_| ());
    }

    /// The conditions.
    pub(crate) fn get(&self) -> BTreeSet<Condition> {
        self.0.borrow().clone()
    }

    /// Hears of changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<BTreeSet<Condition>> {
        self.0.subscribe()
    }
}
