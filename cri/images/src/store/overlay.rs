//! Mounting overlayfs: the new mount API with one `lowerdir+` per layer, or mount(2) on kernels without it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};

use crate::error::{Error, Result};

/// The kernel takes string options of up to 255 bytes.
const MAX_OPTION: usize = 255;

/// One overlay mount.
#[derive(Debug, Clone)]
pub(crate) struct Overlay {
    /// Shown as the source in mountinfo; how we find our mounts.
    pub(crate) source: String,
    /// Lower directories, topmost first; at least one, at least two without `upper`.
    pub(crate) lower: Vec<PathBuf>,
    /// Writable directory and work directory.
    pub(crate) upper: Option<(PathBuf, PathBuf)>,
    /// Mount read-only.
    pub(crate) read_only: bool,
    /// SELinux label, empty for none.
    pub(crate) label: String,
    /// User namespace that maps the ids of all directories.
    pub(crate) users: Option<PathBuf>,
}

impl Overlay {
    /// Mounts at `target`, which must exist.
    pub(crate) fn mount(&self, target: &Path) -> Result<()> {
        if let Some(users) = &self.users {
            return self.mount_mapped(users, target).map_err(|e| Error::io("mount id-mapped overlay at", target, e));
        }
        // Older kernels do not know `lowerdir+`, and say so in their log at each attempt.
        if gantry_sys::kernel::at_least(6, 7) {
            match self.mount_new(target) {
                Err(Errno::INVAL | Errno::NOSYS | Errno::PERM) => {}
                Ok(()) => return Ok(()),
                Err(e) => return Err(Error::io("mount overlay at", target, e)),
            }
        }
        self.mount_old(target).map_err(|e| Error::io("mount overlay at", target, e))
    }

    /// Mounts with each directory replaced by a copy of its mount in which ids are mapped; the copies are attached nowhere.
    fn mount_mapped(&self, users: &Path, target: &Path) -> std::io::Result<()> {
        use gantry_sys::mount::{Attributes, IDMAP, clone_tree, set_attributes};
        let namespace = std::fs::File::open(users)?;
        let mut held = Vec::new();
        let mut mapped = |dir: &Path| -> std::io::Result<PathBuf> {
            let tree = clone_tree(CWD, dir, false)?;
            let attributes = Attributes { set: IDMAP, ..Attributes::default() };
            set_attributes(tree.as_fd(), attributes, false, Some(namespace.as_fd()))?;
            let name = format!("/proc/self/fd/{}", tree.as_raw_fd());
            held.push(tree);
            Ok(name.into())
        };
        let lower = self.lower.iter().map(|dir| mapped(dir)).collect::<std::io::Result<Vec<_>>>()?;
        // The writable directory is not mapped: overlayfs works in it as root of the host. What the container makes there belongs
        // to its ids on the host already; only the directory itself, which is `/` in there, must be given to it.
        if let (Some((upper, _)), Some(top)) = (&self.upper, lower.first()) {
            let meta = std::fs::metadata(top)?;
            std::os::unix::fs::chown(upper, Some(meta.uid()), Some(meta.gid()))?;
        }
        Ok(Overlay { lower, users: None, ..self.clone() }.mount_new(target)?)
    }

    fn mount_new(&self, target: &Path) -> Result<(), Errno> {
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let mut held = Vec::new();
        fsconfig_set_string(fs.as_fd(), "source", self.source.as_str())?;
        for dir in &self.lower {
            fsconfig_set_string(fs.as_fd(), "lowerdir+", short(dir, &mut held)?)?;
        }
        if let Some((upper, work)) = &self.upper {
            fsconfig_set_string(fs.as_fd(), "upperdir", short(upper, &mut held)?)?;
            fsconfig_set_string(fs.as_fd(), "workdir", short(work, &mut held)?)?;
            // Without this each unmount flushes the whole disk, other programs' files included. What a container has written is of
            // no use after a power failure: nothing runs in it again.
            fsconfig_set_flag(fs.as_fd(), "volatile")?;
            forget_volatile(work);
        }
        if !self.label.is_empty() {
            fsconfig_set_string(fs.as_fd(), "context", self.label.as_str())?;
        }
        fsconfig_create(fs.as_fd())?;
        let attributes = if self.read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
        let mounted = fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        move_mount(mounted.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    }

    /// mount(2) takes one page of options: directories go in as descriptors, which are short whatever the store's path.
    pub(crate) fn mount_old(&self, target: &Path) -> Result<(), Errno> {
        let mut held = Vec::new();
        let lower: Vec<String> = self.lower.iter().map(|d| by_fd(d, &mut held)).collect::<Result<_, _>>()?;
        let mut data = format!("lowerdir={}", lower.join(":"));
        if let Some((upper, work)) = &self.upper {
            data += &format!(",upperdir={},workdir={}", by_fd(upper, &mut held)?, by_fd(work, &mut held)?);
        }
        if !self.label.is_empty() {
            data += &format!(",context=\"{}\"", self.label);
        }
        let data = std::ffi::CString::new(data).map_err(|_| Errno::INVAL)?;
        let flags = if self.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        mount(self.source.as_str(), target, "overlay", flags, Some(data.as_c_str()))
    }
}

/// Takes away the mark by which the kernel refuses a directory that was mounted without flushing before: within one boot nothing of
/// it is lost.
fn forget_volatile(work: &Path) {
    let _ = std::fs::remove_dir_all(work.join("work/incompat"));
}

/// The path itself when it fits, else a name of its descriptor.
fn short(dir: &Path, held: &mut Vec<OwnedFd>) -> Result<String, Errno> {
    match dir.to_str() {
        Some(text) if text.len() <= MAX_OPTION => Ok(text.to_string()),
        _ => by_fd(dir, held),
    }
}

fn by_fd(dir: &Path, held: &mut Vec<OwnedFd>) -> Result<String, Errno> {
    let fd = open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
    held.push(fd);
    Ok(name)
}

/// Detaches the topmost mount at `target`; false when nothing is mounted there (or there is no such path).
pub(crate) fn detach(target: &Path) -> Result<bool> {
    match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(e) => Err(Error::io("unmount", target, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn both_ways_of_mounting_give_the_same_view() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        // A folder with characters that are special in mount options, and longer than an option may be.
        let t = tempfile::tempdir().unwrap();
        let base = t.path().join("a,b:c\\d e").join("x".repeat(200)).join("y".repeat(200));
        for old in [false, true] {
            let dir = |n: &str| {
                let d = base.join(format!("{n}{old}"));
                fs::create_dir_all(&d).unwrap();
                d
            };
            // More layers than names of this length fit into a page.
            let mut lower: Vec<PathBuf> = (0..60).map(|n| dir(&format!("layer{n}"))).collect();
            fs::write(lower[59].join("f"), "lowest").unwrap();
            fs::write(lower[0].join("g"), "top").unwrap();
            fs::write(lower[1].join("g"), "hidden").unwrap();
            let target = dir("target");
            let mut overlay = Overlay {
                source: "test".into(),
                lower: lower.clone(),
                upper: Some((dir("upper"), dir("work"))),
                read_only: false,
                label: String::new(),
                users: None,
            };
            let mount = |o: &Overlay| if old { o.mount_old(&target) } else { o.mount_new(&target) };
            match mount(&overlay) {
                Err(Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
                    eprintln!("skipped: this kernel or container cannot mount overlayfs so (old {old})");
                    continue;
                }
                other => other.unwrap(),
            }
            assert_eq!(fs::read_to_string(target.join("f")).unwrap(), "lowest");
            assert_eq!(fs::read_to_string(target.join("g")).unwrap(), "top");
            fs::write(target.join("new"), "n").unwrap();
            assert!(detach(&target).unwrap());
            assert!(!detach(&target).unwrap());
            assert!(dir("upper").join("new").exists());
            mount(&overlay).unwrap();
            assert_eq!(fs::read_to_string(target.join("new")).unwrap(), "n");
            detach(&target).unwrap();
            lower.truncate(2);
            overlay = Overlay { lower, upper: None, read_only: true, ..overlay };
            mount(&overlay).unwrap();
            assert_eq!(fs::read_to_string(target.join("g")).unwrap(), "top");
            assert!(fs::write(target.join("x"), "").is_err());
            detach(&target).unwrap();
        }
    }
}
