//! Which namespaces are new and which are joined.

use std::path::PathBuf;

use gantry_sys::namespaces::Kind;

use crate::spec::Linux;

/// The namespaces of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespaces {
    /// Made new, as `CLONE_NEW*` flags.
    pub(crate) new: i32,
    /// Joined, in the order in which that must happen: the user namespace first, it gives the right to join the others.
    pub(crate) joined: Vec<(Kind, PathBuf)>,
}

/// The kind behind a name of the specification.
pub(crate) fn kind_of(name: &str) -> Option<Kind> {
    Some(match name {
        "pid" => Kind::Pid,
        "network" => Kind::Network,
        "mount" => Kind::Mount,
        "ipc" => Kind::Ipc,
        "uts" => Kind::Uts,
        "user" => Kind::User,
        "cgroup" => Kind::Cgroup,
        "time" => Kind::Time,
        _ => return None,
    })
}

/// Sorts the namespaces of a (checked) configuration.
pub(crate) fn plan(linux: &Linux) -> Namespaces {
    let mut namespaces = Namespaces::default();
    for namespace in &linux.namespaces {
        let Some(kind) = kind_of(&namespace.kind) else { continue };
        match &namespace.path {
            Some(path) => namespaces.joined.push((kind, path.clone())),
            None => namespaces.new |= kind.flag(),
        }
    }
    namespaces.joined.sort_by_key(|(kind, _)| *kind != Kind::User);
    namespaces
}

impl Namespaces {
    /// Whether the container gets a new namespace of this kind.
    pub(crate) fn makes(&self, kind: Kind) -> bool {
        self.new & kind.flag() != 0
    }

    /// The file of the namespace of this kind that the container joins.
    pub(crate) fn joins(&self, kind: Kind) -> Option<&PathBuf> {
        self.joined.iter().find(|(k, _)| *k == kind).map(|(_, path)| path)
    }
}
