//! Mounts that come from outside of a container: criu leaves them out of its images and is told what to put there.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use gantry_cgroup::Version;
use gantry_sys::mount;
use gantry_sys::namespaces::Kind;
use gantry_sys::root::{Root, kind};
use rustix::fs::{CWD, FileType};

use crate::error::{Context, Result};
use crate::fail;
use crate::plan::devices::DEFAULT;
use crate::plan::mounts::{self, What};
use crate::plan::namespaces::Namespaces;
use crate::spec::Spec;

/// Something of the host at a place of the container.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outside {
    pub(super) destination: PathBuf,
    pub(super) source: PathBuf,
}

/// All that a container of this configuration gets from outside.
pub(super) fn outside(spec: &Spec, bundle: &Path, cgroup: &Path, namespaces: &Namespaces) -> Result<Vec<Outside>> {
    let mut all = Vec::new();
    for m in &spec.mounts {
        let destination = m.destination.clone();
        match (mounts::plan(m).what, &m.source) {
            (What::Bind { .. }, Some(source)) => all.push(Outside { destination, source: bundle.join(source) }),
            (What::Cgroup, _) => all.extend(cgroup_parts(&destination, cgroup, namespaces.makes(Kind::Cgroup))?),
            _ => {}
        }
    }
    // Where nodes cannot be made the host's are shown.
    let linux = spec.linux();
    let nodes = DEFAULT.iter().map(|(path, ..)| PathBuf::from(path));
    all.extend(nodes.chain(linux.devices.iter().map(|d| d.path.clone())).map(Outside::same));
    Ok(all)
}

impl Outside {
    fn same(path: PathBuf) -> Self {
        Self { destination: path.clone(), source: path }
    }
}

/// The parts of the host's cgroup trees that a cgroup mount shows, where it is no file system of the container's own.
fn cgroup_parts(destination: &Path, cgroup: &Path, own: bool) -> Result<Vec<Outside>> {
    let host = crate::cgroups::host().context(|| "find the host's cgroups".to_owned())?;
    let below = cgroup.strip_prefix("/").unwrap_or(cgroup);
    if host.version() == Version::V2 {
        let source = host.unified_mount().unwrap_or(Path::new("/sys/fs/cgroup")).join(below);
        return Ok(if own { Vec::new() } else { vec![Outside { destination: destination.to_owned(), source }] });
    }
    let named = host.v1_mounts().filter_map(|(_, point)| Some((point.file_name()?, point)));
    let unified = host.unified_mount().map(|point| ("unified".as_ref(), point));
    let mut parts: Vec<Outside> = Vec::new();
    for (name, point) in named.chain(unified) {
        let part = Outside { destination: destination.join(name), source: point.join(below) };
        if part.source.is_dir() && !parts.contains(&part) {
            parts.push(part);
        }
    }
    Ok(parts)
}

/// Masked files (not folders), which show the null device.
pub(super) fn masked_files(spec: &Spec, root: &Root) -> Vec<PathBuf> {
    let is_file = |path: &&PathBuf| {
        root.place_nofollow(path).and_then(|fd| kind(fd.as_fd())).is_ok_and(|kind| kind != FileType::Directory)
    };
    spec.linux().masked_paths.iter().filter(is_file).cloned().collect()
}

/// Where a destination is once links of the image are followed; as written where there is nothing.
pub(super) fn resolved(root: &Root, above: &Path, destination: &Path) -> PathBuf {
    let found = root.place(destination).and_then(|fd| std::fs::read_link(gantry_sys::root::proc_path(fd.as_fd())));
    match found.as_deref().map(|path| path.strip_prefix(above)) {
        Ok(Ok(path)) => Path::new("/").join(path),
        _ => destination.to_owned(),
    }
}

/// Whether a place is inside of a file system that criu fills itself.
fn is_refilled(spec: &Spec, destination: &Path) -> bool {
    spec.mounts.iter().any(|m| {
        m.kind.as_deref() == Some("tmpfs") && destination.starts_with(&m.destination) && destination != m.destination
    })
}

/// Makes the places of all mounts in the root, as creating the container does, and answers where those from outside are.
/// Mounts what holds such places: to be called in a mount namespace that ends with it.
pub(super) fn make_places(spec: &Spec, bundle: &Path, rootfs: &Path) -> Result<Root> {
    let at = || format!("open {}", rootfs.display());
    let root = Root::open(rootfs).context(at)?;
    for m in &spec.mounts {
        let plan = mounts::plan(m);
        let what = || format!("make a place for {}", m.destination.display());
        if plan.idmap.is_some() {
            fail!("mount {}: a mount with mapped ids cannot be restored", m.destination.display());
        }
        if plan.what == What::Cgroup || is_refilled(spec, &m.destination) {
            continue;
        }
        let (What::Bind { recursive }, Some(source)) = (&plan.what, &m.source) else {
            root.make_dir(&m.destination).context(what)?;
            continue;
        };
        let source = bundle.join(source);
        let tree = mount::clone_tree(CWD, &source, *recursive).context(|| format!("source {}", source.display()))?;
        let folder = kind(tree.as_fd()).context(what)? == FileType::Directory;
        let place = if folder { root.make_dir(&m.destination) } else { root.make_file(&m.destination) };
        mount::attach(tree.as_fd(), place.context(what)?.as_fd()).context(what)?;
    }
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Mount;

    fn spec() -> Spec {
        let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| Mount {
            destination: destination.into(),
            kind: Some(kind.to_owned()),
            source: Some(source.into()),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            ..Mount::default()
        };
        let mounts = vec![
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["mode=755"]),
            mount("/etc/hosts", "bind", "/var/hosts", &["rbind", "ro"]),
            mount("/data", "none", "data", &["bind"]),
            mount("/dev/shm", "bind", "/run/shm", &["rbind"]),
        ];
        Spec { mounts, ..Spec::default() }
    }

    #[test]
    fn binds_and_devices_come_from_outside() {
        let all = outside(&spec(), Path::new("/b"), Path::new("/c"), &Namespaces::default()).unwrap();
        let from = |destination: &str| all.iter().find(|o| o.destination == Path::new(destination)).map(|o| &o.source);
        assert_eq!(from("/etc/hosts"), Some(&"/var/hosts".into()));
        assert_eq!(from("/data"), Some(&"/b/data".into()));
        assert_eq!(from("/dev/shm"), Some(&"/run/shm".into()));
        assert_eq!(from("/dev/null"), Some(&"/dev/null".into()));
        assert_eq!((from("/proc"), from("/dev")), (None, None));
    }

    #[test]
    fn places_in_a_tmpfs_are_made_with_its_files() {
        for (path, inside) in [("/dev", false), ("/dev/shm", true), ("/devices", false), ("/data", false)] {
            assert_eq!(is_refilled(&spec(), Path::new(path)), inside, "{path}");
        }
    }

    #[test]
    fn links_of_the_image_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().canonicalize().unwrap();
        std::fs::create_dir(rootfs.join("run")).unwrap();
        std::fs::create_dir(rootfs.join("var")).unwrap();
        std::os::unix::fs::symlink("/run", rootfs.join("var/run")).unwrap();
        let root = Root::open(&rootfs).unwrap();
        let at = |path: &str| resolved(&root, &rootfs, Path::new(path));
        assert_eq!(at("/var/run"), Path::new("/run"));
        assert_eq!(at("/var/run/../../.."), Path::new("/"));
        assert_eq!(at("/not/there"), Path::new("/not/there"));
    }
}
