//! What the host has mounted: which controllers, of which version, where.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

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
    /// Looks at this process's mounts.
    ///
    /// # Errors
    /// No cgroup file system is mounted.
    pub fn detect() -> Result<Self> {
        let path = Path::new("/proc/self/mountinfo");
        // Read with room for a usual table: procfs tells no size, and growing from nothing would read it in many pieces.
        let mut text = String::with_capacity(16 * 1024);
        let read = fs::File::open(path).and_then(|mut f| f.read_to_string(&mut text));
        read.map_err(Error::io("read", path))?;
        let mut host = Self::parse(&text)?;
        if let Some(root) = &host.unified {
            let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            host.unified_controllers = controllers.split_whitespace().map(str::to_owned).collect();
        }
        Ok(host)
    }

    /// As [`Host::detect`] from the text of a mountinfo file (proc(5)); controllers of version 2 are left empty.
    ///
    /// # Errors
    /// No cgroup file system is in it.
    pub fn parse(mountinfo: &str) -> Result<Self> {
        let mut host = Self { v1: BTreeMap::new(), unified: None, unified_controllers: Vec::new() };
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let fields: Vec<&str> = before.split(' ').collect();
            let mut after = after.split(' ');
            let (Some(kind), _, options) = (after.next(), after.next(), after.next().unwrap_or_default()) else {
                continue;
            };
            let Some(point) = fields.get(4).map(|p| unescape(p)) else { continue };
            match kind {
                // The first mount of a hierarchy counts: later ones are copies inside container roots.
                "cgroup2" if host.unified.is_none() => host.unified = Some(point),
                "cgroup" => {
                    let plain = ["rw", "ro", "xattr", "clone_children", "noprefix", "release_agent"];
                    for option in options.split(',').filter(|o| !plain.iter().any(|p| o.starts_with(p))) {
                        host.v1.entry(option.to_owned()).or_insert_with(|| point.clone());
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

/// Undoes the octal escapes of proc files (`\040` is a space).
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let code = (bytes[i] == b'\\').then(|| text.get(i + 1..i + 4)).flatten();
        match code.and_then(|c| u8::from_str_radix(c, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    use std::os::unix::ffi::OsStringExt;
    PathBuf::from(std::ffi::OsString::from_vec(out))
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
    fn layouts_are_told_apart() {
        let hybrid = Host::parse(HYBRID).unwrap();
        assert_eq!(hybrid.version(), Version::Hybrid);
        assert_eq!(hybrid.v1["cpuacct"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(hybrid.v1["memory"], Path::new("/sys/fs/cgroup/memory"));
        assert!(hybrid.has("memory") && !hybrid.has("pids") && !hybrid.has("name=systemd"));
        let v2 = Host::parse("30 24 0:26 / /sys/fs/cgr\\040oup rw - cgroup2 cgroup2 rw\n").unwrap();
        assert_eq!((v2.version(), v2.unified.unwrap()), (Version::V2, PathBuf::from("/sys/fs/cgr oup")));
        assert!(Host::parse("1 1 0:1 / / rw - ext4 /dev/sda rw\n").is_err());
    }
}
