//! What happens to volumes between the calls that ask for it, kept until whoever records events asks.

use std::sync::{Arc, Mutex, PoisonError};

/// Something that a pod's events shall tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// It is trouble.
    pub warning: bool,
    /// The event's reason.
    pub reason: &'static str,
    /// The event's text.
    pub message: String,
}

/// Notes by the pod's uid; cloning is cheap.
#[derive(Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<Vec<(String, Note)>>>);

impl Notes {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(String, Note)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, uid: &str, warning: bool, reason: &'static str, message: String) {
        self.lock().push((uid.to_owned(), Note { warning, reason, message }));
    }

    /// Takes those of a pod.
    pub(crate) fn take(&self, uid: &str) -> Vec<Note> {
        self.lock().extract_if(.., |(of, _)| of == uid).map(|(_, note)| note).collect()
    }
}
