//! Where the control groups of pods and containers are, under either driver.
//!
//! With files a pod's group is the path that the kubelet names, and its containers' are below it. With systemd the kubelet
//! names a slice, and each container is the scope `cri-gantry-ID.scope` in it.

use gantry_cgroup::{Resources, Systemd, Unit, Version};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What stands between a scope's slice and its container's id.
const PREFIX: &str = "cri-gantry";

/// Who makes control groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Folders of the cgroup file systems.
    #[default]
    Cgroupfs,
    /// Slices and scopes of the system's systemd.
    Systemd,
}

/// The group of a pod: that of its parent as the kubelet says it (any path, of which under systemd the last part counts), or
/// one of its own where it says nothing.
///
/// # Errors
/// The driver is systemd and the parent is no slice.
pub fn of_pod(driver: Driver, parent: Option<&str>, sandbox: &str) -> Result<String> {
    let parent = parent.filter(|p| !p.is_empty());
    match (driver, parent) {
        (Driver::Cgroupfs, None) => Ok(format!("/gantry-{sandbox}")),
        (Driver::Cgroupfs, Some(parent)) => Ok(parent.to_owned()),
        (Driver::Systemd, parent) => {
            let own = format!("gantry-{sandbox}.slice");
            let name = parent.map_or(own.as_str(), |p| p.trim_end_matches('/').rsplit('/').next().unwrap_or_default());
            let unit = Unit::slice(name).map_err(|e| {
                Error::Invalid(format!(
                    "linux.cgroup_parent {parent:?}: {e} (cgroup_driver is \"systemd\")",
                    parent = parent.unwrap_or_default()
                ))
            })?;
            Ok(unit.path().to_string_lossy().into_owned())
        }
    }
}

/// The group of a container in that of its pod.
pub fn of_container(driver: Driver, pod: &str, id: &str) -> String {
    let pod = pod.trim_end_matches('/');
    match driver {
        Driver::Cgroupfs => format!("{pod}/{id}"),
        Driver::Systemd => format!("{pod}/{PREFIX}-{id}.scope"),
    }
}

/// What the OCI configuration calls a container's group: its path, or `SLICE:PREFIX:NAME`.
pub fn oci_path(group: &str) -> String {
    let scope = group.strip_suffix(".scope").and_then(|path| path.rsplit_once('/'));
    match scope
        .and_then(|(slice, name)| Some((slice.rsplit('/').next()?, name.strip_prefix(PREFIX)?.strip_prefix('-')?)))
    {
        Some(("", id)) => format!("-.slice:{PREFIX}:{id}"),
        Some((slice, id)) if slice.ends_with(".slice") => format!("{slice}:{PREFIX}:{id}"),
        _ => group.to_owned(),
    }
}

/// The unit of a group that systemd made; none of one that is a mere folder.
pub fn unit(group: &str) -> Option<Unit> {
    match group.rsplit('/').next()? {
        name if name.ends_with(".slice") => Unit::slice(name).ok(),
        name if name.ends_with(".scope") => Unit::parse(&oci_path(group), false).ok(),
        _ => None,
    }
}

/// Tells systemd of new limits of a group, where it is one of systemd's: a reload would undo what it does not know. Blocking.
///
/// # Errors
/// systemd does not answer or refuses.
pub fn tell(group: &str, limits: &Resources, version: Version) -> gantry_cgroup::Result<()> {
    match unit(group) {
        Some(unit) if unit.is_slice() => Systemd::connect(false)?.start_slice(&unit, "gantry pod", limits, version),
        Some(unit) => Systemd::connect(false)?.set(&unit, limits, version),
        None => Ok(()),
    }
}

/// Lets systemd forget a group of its own, whose processes are gone. Blocking.
///
/// # Errors
/// systemd does not answer or refuses.
pub fn forget(group: &str) -> gantry_cgroup::Result<()> {
    match unit(group) {
        Some(unit) => Systemd::connect(false)?.stop(&unit),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_the_names_of_their_driver() {
        let fs = of_pod(Driver::Cgroupfs, Some("/kubepods/podx"), "s").unwrap();
        assert_eq!(of_container(Driver::Cgroupfs, &fs, "c"), "/kubepods/podx/c");
        assert_eq!(of_pod(Driver::Cgroupfs, Some(""), "s").unwrap(), "/gantry-s");
        for parent in ["kubepods-podx.slice", "/kubepods.slice/kubepods-podx.slice"] {
            let pod = of_pod(Driver::Systemd, Some(parent), "s").unwrap();
            assert_eq!(pod, "/kubepods.slice/kubepods-podx.slice");
            let container = of_container(Driver::Systemd, &pod, "c");
            assert_eq!(container, "/kubepods.slice/kubepods-podx.slice/cri-gantry-c.scope");
            assert_eq!(oci_path(&container), "kubepods-podx.slice:cri-gantry:c");
            assert_eq!(unit(&container).unwrap().path().to_str().unwrap(), container);
        }
        assert_eq!(of_pod(Driver::Systemd, None, "s").unwrap(), "/gantry.slice/gantry-s.slice");
        assert!(
            of_pod(Driver::Systemd, Some("/kubepods/podx"), "s").unwrap_err().to_string().contains("cgroup_parent")
        );
    }

    #[test]
    fn paths_of_files_stay_paths() {
        for path in ["/gantry-s/c", "/x.slice/c", "/a/b.scope", "/a/cri-gantry-c.scope"] {
            assert_eq!(oci_path(path), path);
        }
    }
}
