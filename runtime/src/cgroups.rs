//! The container's cgroup: found, made, limited and removed through `gantry_cgroup`.

use std::path::Path;

use gantry_cgroup::{Cgroup, Host, Resources};

use crate::error::{Context, Result};

/// The group at `path` on this host. Hosts without any cgroup file system have none.
///
/// # Errors
/// The path is not allowed.
pub(crate) fn find(path: &Path) -> Result<Option<Cgroup>> {
    let Ok(host) = Host::detect() else { return Ok(None) };
    host.cgroup(path).map(Some).context(|| format!("linux.cgroupsPath {}", path.display()))
}

/// Makes the group and sets its limits; on failure nothing of it stays.
///
/// # Errors
/// The group cannot be made or a limit cannot be set.
pub(crate) fn create(group: &Cgroup, limits: &Resources) -> Result<()> {
    let made = group.create().and_then(|()| group.apply(limits));
    if made.is_err() {
        let _ = group.destroy();
    }
    made.context(|| format!("set up cgroup {}", group.path().display()))
}
