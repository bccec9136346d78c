//! Namespaces of a pod with its own user ids. Only a program with one thread may make user namespaces, so gantry-cri has this
//! one do it.

use std::io::Read;
use std::path::PathBuf;

use anyhow::Context;
use gantry_sys::namespaces::{Kind, create_pinned_within};
use serde::{Deserialize, Serialize};

/// What is made, and where it is pinned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Place of the user namespace.
    pub user: PathBuf,
    /// Lines of its uid map: container id, host id, length.
    pub uids: String,
    /// Lines of its gid map.
    pub gids: String,
    /// Places of the others, by their names below `/proc/PID/ns`.
    pub others: Vec<(String, PathBuf)>,
    /// Host name to set.
    pub hostname: Option<String>,
    /// Sysctls to set.
    pub sysctls: Vec<(String, String)>,
}

/// Makes what the JSON in `from` says.
///
/// # Errors
/// It is not understood, or the kernel refuses; nothing is left then.
pub fn make(from: impl Read) -> anyhow::Result<()> {
    let wanted: Wanted = serde_json::from_reader(from).context("read the request")?;
    let kind = |name: &str| [Kind::Network, Kind::Uts, Kind::Ipc].into_iter().find(|k| k.proc_name() == name);
    let others = wanted.others.iter().map(|(name, path)| {
        kind(name).map(|k| (k, path.clone())).with_context(|| format!("namespaces of kind {name:?} cannot be pinned"))
    });
    let others = others.collect::<anyhow::Result<Vec<_>>>()?;
    let user = (wanted.user.as_path(), wanted.uids.as_str(), wanted.gids.as_str());
    Ok(create_pinned_within(user, &others, wanted.hostname.as_deref(), &wanted.sysctls)?)
}
