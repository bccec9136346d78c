//! What containers of guaranteed pods hold of the node alone, and how it is written down: the books of CPUs and of memory differ
//! in what is held and whether it can still be given, not in whose it is (pure).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a container holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held<T> {
    pub(crate) what: T,
    /// Containers of the pod that come later may have it too.
    pub(crate) passes_on: bool,
}

/// By pod and container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holdings<T>(BTreeMap<(String, String), Held<T>>);

impl<T> Default for Holdings<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Holdings<T> {
    pub(crate) fn of(&self, uid: &str, container: &str) -> Option<&T> {
        self.0.get(&(uid.to_owned(), container.to_owned())).map(|held| &held.what)
    }

    pub(crate) fn insert(&mut self, uid: &str, container: &str, held: Held<T>) {
        self.0.insert((uid.to_owned(), container.to_owned()), held);
    }

    /// What is held, with the pod's uid.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Held<T>)> {
        self.0.iter().map(|((uid, _), held)| (uid.as_str(), held))
    }

    /// Pods that hold any.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|(uid, _)| uid.as_str())
    }

    /// Frees a pod's; tells whether there was any.
    pub(crate) fn release(&mut self, uid: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|(owner, _), _| owner != uid);
        before != self.0.len()
    }

    /// What goes to disk, each holding in its `form` there.
    pub(crate) fn record<D: Default>(&self, form: impl Fn(&T) -> D) -> Record<D> {
        let mut record = Record::default();
        for ((uid, container), held) in &self.0 {
            record.entries.entry(uid.clone()).or_default().insert(container.clone(), form(&held.what));
            if held.passes_on {
                record.passed_on.entry(uid.clone()).or_default().push(container.clone());
            }
        }
        record
    }
}

/// Holdings on disk: `entries` in the layout of upstream's state files; who passes on is ours.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Record<D> {
    entries: BTreeMap<String, BTreeMap<String, D>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    passed_on: BTreeMap<String, Vec<String>>,
}

impl<D> Record<D> {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Each pod's uid, container and what it held.
    pub(crate) fn into_entries(self) -> impl Iterator<Item = (String, String, Held<D>)> {
        let Self { entries, passed_on } = self;
        entries.into_iter().flat_map(move |(uid, containers)| {
            let passing = passed_on.get(&uid).cloned().unwrap_or_default();
            containers.into_iter().map(move |(container, what)| {
                let passes_on = passing.contains(&container);
                (uid.clone(), container, Held { what, passes_on })
            })
        })
    }
}
