//! What keeps things in the store that nothing refers to yet.

use std::sync::{Arc, Mutex, PoisonError};

use super::Store;
use super::state::{Garbage, State};
use crate::digest::Digest;

/// Keeps blobs and layers of a pull or import in progress from being collected.
pub(crate) struct Lease {
    store: Arc<Store>,
    digests: Mutex<Vec<Digest>>,
    /// Goes after what the lease held has been collected.
    ended: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Lease {
    /// Holds nothing yet.
    pub(super) fn new(store: Arc<Store>) -> Lease {
        Lease { store, digests: Mutex::new(Vec::new()), ended: None }
    }

    /// Resolves when the lease has ended, and what nobody else holds of it is gone.
    pub(crate) fn watch(&mut self) -> tokio::sync::oneshot::Receiver<()> {
        let (ended, watch) = tokio::sync::oneshot::channel();
        self.ended = Some(ended);
        watch
    }

    /// Adds a digest; what has it already stays.
    pub(crate) fn hold(&self, digest: &Digest) {
        self.hold_in(&mut self.store.state(), digest);
    }

    /// The same for who has the state already.
    pub(crate) fn hold_in(&self, state: &mut State, digest: &Digest) {
        *state.leases.entry(digest.clone()).or_insert(0) += 1;
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).push(digest.clone());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let digests = std::mem::take(&mut *self.digests.lock().unwrap_or_else(PoisonError::into_inner));
        let result = {
            let mut state = self.store.state();
            for digest in digests {
                if let Some(count) = state.leases.get_mut(&digest) {
                    *count -= 1;
                    if *count == 0 {
                        state.leases.remove(&digest);
                    }
                }
            }
            self.store.collect(&mut state)
        };
        let result =
            result.and_then(|garbage| if garbage == Garbage::default() { Ok(()) } else { self.store.trash.empty() });
        if let Err(error) = result {
            tracing::warn!(%error, "cannot remove what an unfinished pull left; the next start tries again");
        }
    }
}
