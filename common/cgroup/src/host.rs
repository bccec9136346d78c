//! What the host has mounted: which controllers, of which version, where.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use gantry_sys::mountinfo;

use crate::error::{Error, Result};
use crate::group::Cgroup;

/// The layout of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One folder tree per controller.
    V1,
    /// As version 1, with an extra unified tree that has few or no controllers.
    Hybrid,
    /// One tree for all controllers.
    V2,
}

/// The cgroup mounts of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Version 1 controllers (and named hierarchies, `name=systemd`) and their mount points.
    pub(crate) v1: BTreeMap<String, PathBuf>,
    /// The mount point of version 2, where there is one.
    pub(crate) unified: Option<PathBuf>,
    /// Controllers of the unified tree's root.
    pub(crate) unified_controllers: Vec<String>,
}

impl Host {
    /// Looks where hosts mount their cgroups, and where that is not it, at this process's mounts.
    ///
    /// # Errors
    /// No cgroup file system is mounted.
    pub fn detect() -> Result<Self> {
        let mut host = match Self::usual() {
            Some(host) => host,
            None => Self::mounted()?,
        };
        if let Some(root) = &host.unified {
            let controllers = small(&root.join("cgroup.controllers")).unwrap_or_default();
            host.unified_controllers = controllers.split_whitespace().map(str::to_owned).collect();
        }
        Ok(host)
    }

    /// The layout below /sys/fs/cgroup, each place checked to be of the right file system: the table of mounts is long on a
    /// host with many containers, and the kernel writes all of it for each reader.
    fn usual() -> Option<Self> {
        let top = Path::new("/sys/fs/cgroup");
        if is_on(top, CGROUP2_SUPER_MAGIC) {
            return Some(Self { v1: BTreeMap::new(), unified: Some(top.to_owned()), unified_controllers: Vec::new() });
        }
        let host = Self::named(&small(Path::new("/proc/self/cgroup")).ok()?, top)?;
        let points: BTreeSet<&PathBuf> = host.v1.values().collect();
        let right = points.into_iter().all(|point| is_on(point, CGROUP_SUPER_MAGIC))
            && host.unified.iter().all(|point| is_on(point, CGROUP2_SUPER_MAGIC));
        right.then_some(host)
    }

    /// Where the hierarchies that a process is in (the text of proc(5)'s `cgroup`) are mounted below `top`, by their names.
    fn named(hierarchies: &str, top: &Path) -> Option<Self> {
        let mut host = Self { v1: BTreeMap::new(), unified: None, unified_controllers: Vec::new() };
        for line in hierarchies.lines() {
            match line.split(':').nth(1)? {
                "" => host.unified = Some(top.join("unified")),
                names => {
                    let point = top.join(names.strip_prefix("name=").unwrap_or(names));
                    host.v1.extend(names.split(',').map(|name| (name.to_owned(), point.clone())));
                }
            }
        }
        (!host.v1.is_empty()).then_some(host)
    }

    fn mounted() -> Result<Self> {
        let table = mountinfo::read().map_err(Error::io("read", Path::new("/proc/self/mountinfo")))?;
        Self::parse(&table)
    }

    /// From a table of mounts; controllers of version 2 are left empty.
    fn parse(table: &[u8]) -> Result<Self> {
        let mut host = Self { v1: BTreeMap::new(), unified: None, unified_controllers: Vec::new() };
        for mount in mountinfo::parse(table) {
            match mount.kind {
                // The first mount of a hierarchy counts: later ones are copies inside container roots.
                "cgroup2" if host.unified.is_none() => host.unified = Some(mount.path().to_owned()),
                "cgroup" => {
                    let plain = ["rw", "ro", "xattr", "clone_children", "noprefix", "release_agent"];
                    for option in mount.options.split(',').filter(|o| !plain.iter().any(|p| o.starts_with(p))) {
                        host.v1.entry(option.to_owned()).or_insert_with(|| mount.path().to_owned());
                    }
                }
                _ => {}
            }
        }
        if host.v1.is_empty() && host.unified.is_none() {
            return Err(Error::Host("none is mounted (mount cgroup2 at /sys/fs/cgroup)".to_owned()));
        }
        Ok(host)
    }

    /// The layout.
    pub fn version(&self) -> Version {
        match (self.v1.keys().any(|k| !k.starts_with("name=")), &self.unified) {
            (false, Some(_)) => Version::V2,
            (_, Some(_)) => Version::Hybrid,
            (_, None) => Version::V1,
        }
    }

    /// All controllers, of whatever version.
    pub fn controllers(&self) -> Vec<&str> {
        let v1 = self.v1.keys().filter(|k| !k.starts_with("name=")).map(String::as_str);
        v1.chain(self.unified_controllers.iter().map(String::as_str)).collect()
    }

    /// Whether limits of this controller can be set.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers().contains(&controller)
    }

    /// The group at `path` (`/kubepods/burstable/pod1`), the same below every mount. Nothing is made yet.
    ///
    /// # Errors
    /// The path has `..` in it.
    pub fn cgroup(&self, path: impl AsRef<Path>) -> Result<Cgroup> {
        Cgroup::new(self.clone(), path.as_ref())
    }

    /// Where the version 1 hierarchies are: (`cpu,cpuacct`-like names joined in a mount share it; controller, mount point).
    pub fn v1_mounts(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.v1.iter().map(|(name, point)| (name.as_str(), point.as_path()))
    }

    /// Where version 2 is mounted.
    pub fn unified_mount(&self) -> Option<&Path> {
        self.unified.as_deref()
    }
}

const CGROUP_SUPER_MAGIC: i64 = 0x27_e0eb;
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

fn is_on(path: &Path, file_system: i64) -> bool {
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type == file_system)
}

/// The text of a file of a few words, in as few system calls as there can be.
pub(crate) fn small(path: &Path) -> io::Result<String> {
    let mut buffer = [0; 4096];
    let mut file = fs::File::open(path)?;
    let length = file.read(&mut buffer)?;
    let mut text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    // The kernel gives such files whole; a buffer that is full is the sign of a larger one.
    if length == buffer.len() {
        file.read_to_string(&mut text)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
99 30 0:30 /x /run/c/rootfs/sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";

    #[test]
    fn hierarchies_are_where_their_names_say() {
        let text = "12:cpu,cpuacct:/a\n3:memory:/\n1:name=systemd:/x:y\n0::/\n";
        let host = Host::named(text, Path::new("/c")).unwrap();
        assert_eq!(host.v1["cpuacct"], Path::new("/c/cpu,cpuacct"));
        assert_eq!(host.v1["name=systemd"], Path::new("/c/systemd"));
        assert_eq!(host.unified.unwrap(), Path::new("/c/unified"));
        assert!(Host::named("0::/\n", Path::new("/c")).is_none(), "version 2 alone is not below a folder");
        assert!(Host::named("?", Path::new("/c")).is_none());
    }

    #[test]
    fn both_ways_see_the_same_host() {
        if let (Some(usual), Ok(mounted)) = (Host::usual(), Host::mounted()) {
            assert_eq!(usual, mounted);
        }
    }

    #[test]
    fn layouts_are_told_apart() {
        let hybrid = Host::parse(HYBRID.as_bytes()).unwrap();
        assert_eq!(hybrid.version(), Version::Hybrid);
        assert_eq!(hybrid.v1["cpuacct"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(hybrid.v1["memory"], Path::new("/sys/fs/cgroup/memory"));
        assert!(hybrid.has("memory") && !hybrid.has("pids") && !hybrid.has("name=systemd"));
        let v2 = Host::parse(b"30 24 0:26 / /sys/fs/cgr\\040oup rw - cgroup2 cgroup2 rw\n").unwrap();
        assert_eq!((v2.version(), v2.unified.unwrap()), (Version::V2, PathBuf::from("/sys/fs/cgr oup")));
        assert!(Host::parse(b"1 1 0:1 / / rw - ext4 /dev/sda rw\n").is_err());
    }
}
