//! Sub-paths of volumes, resolved by the kernel below the volume and pinned by a bind mount.
//!
//! A container may own the volume and swap directories for symlinks at any moment; so a sub-path is never used as a
//! string. It is opened with openat2(RESOLVE_BENEATH) and the open file, not its name, is bound to a place of ours.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::mount_table;

/// Whether a subPath may be used at all: relative and without `..`.
pub(crate) fn check(path: &str) -> Result<(), String> {
    if path.starts_with('/') {
        return Err(format!("subPath must be a relative path: {path:?}"));
    }
    if Path::new(path).components().any(|c| c == Component::ParentDir) {
        return Err(format!("subPath must not contain '..': {path:?}"));
    }
    Ok(())
}

/// Opens `path` below `volume`, making missing directories (with the volume's own permissions). Symlinks may be on the
/// way as long as they stay inside.
pub(crate) fn open(volume: &Path, path: &str) -> io::Result<OwnedFd> {
    let root = rustix::fs::open(volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::fstat(&root)?.st_mode & 0o170_000 != 0o040_000 {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "the volume is not a directory"));
    }
    match open_beneath(root.as_fd(), Path::new(path)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mode = Mode::from_raw_mode(fs::metadata(volume)?.mode() & 0o777);
    let mut so_far = std::path::PathBuf::new();
    let mut parent = open_beneath(root.as_fd(), Path::new("."))?;
    for part in Path::new(path).components() {
        let Component::Normal(name) = part else { continue };
        so_far.push(name);
        parent = match open_beneath(root.as_fd(), &so_far) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                match rustix::fs::mkdirat(&parent, name, mode) {
                    Err(rustix::io::Errno::EXIST) | Ok(()) => {}
                    Err(e) => return Err(e.into()),
                }
                let made = open_beneath(root.as_fd(), &so_far)?;
                // The umask must not narrow it; the fd is a plain directory that was just made here.
                let _ = fs::set_permissions(
                    format!("/proc/self/fd/{}", made.as_raw_fd()),
                    std::os::unix::fs::PermissionsExt::from_mode(mode.as_raw_mode()),
                );
                made
            }
            other => other?,
        };
    }
    Ok(parent)
}

/// Opens `path` below `volume` if it is there, and makes nothing.
pub(crate) fn open_there(volume: &Path, path: &str) -> io::Result<Option<OwnedFd>> {
    let root = rustix::fs::open(volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    match open_beneath(root.as_fd(), Path::new(path)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn open_beneath(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..32 {
        match rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename elsewhere raced with the look-up of "..": the kernel asks to try again.
            Err(rustix::io::Errno::AGAIN) => {}
            Err(rustix::io::Errno::XDEV) => {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the subPath leaves the volume"));
            }
            other => return Ok(other?),
        }
    }
    Err(io::Error::from(io::ErrorKind::WouldBlock))
}

/// Binds the opened file or directory to `target` (made if missing). A bind of the same file is kept, another replaced.
pub(crate) fn pin(fd: &OwnedFd, target: &Path) -> io::Result<()> {
    let source = rustix::fs::fstat(fd)?;
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if mount_table::is_mount_point(target)? {
        let there = fs::metadata(target)?;
        if (there.dev(), there.ino()) == (source.st_dev, source.st_ino) {
            return Ok(());
        }
        umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    }
    let is_dir = source.st_mode & 0o170_000 == 0o040_000;
    match fs::symlink_metadata(target) {
        Ok(meta) if meta.is_dir() && !is_dir => fs::remove_dir(target)?,
        Ok(meta) if !meta.is_dir() && is_dir => fs::remove_file(target)?,
        _ => {}
    }
    if is_dir {
        fs::create_dir_all(target)?;
    } else {
        fs::OpenOptions::new().append(true).create(true).open(target)?;
    }
    let from = format!("/proc/self/fd/{}", fd.as_raw_fd());
    mount(Some(from.as_str()), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    // Host mounts below may appear here, but taking them off here must not take them off the host; and the runtime
    // needs a shared mount for propagation into the container.
    let propagate = |how| mount(None::<&str>, target, None::<&str>, how, None::<&str>);
    propagate(MsFlags::MS_SLAVE).and_then(|()| propagate(MsFlags::MS_SHARED)).inspect_err(|_| {
        let _ = umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn names_that_cannot_be_sub_paths() {
        for good in ["a", "a/b", "..a", ""] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["/a", "..", "a/../b", "../a"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn symlinks_may_not_leave_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fs::create_dir_all(volume.join("in")).unwrap();
        fs::create_dir(dir.path().join("out")).unwrap();
        fs::write(volume.join("in/f"), "x").unwrap();
        symlink("in", volume.join("good")).unwrap();
        symlink("../out", volume.join("relative")).unwrap();
        symlink(dir.path().join("out"), volume.join("absolute")).unwrap();
        symlink("/proc/self/root", volume.join("magic")).unwrap();
        open(&volume, "good/f").unwrap();
        for bad in ["relative", "absolute", "absolute/made", "relative/made", "magic", "good/../../out"] {
            assert!(open(&volume, bad).is_err(), "{bad}");
        }
        assert!(fs::read_dir(dir.path().join("out")).unwrap().next().is_none(), "nothing was made outside");
    }

    #[test]
    fn missing_directories_are_made_with_the_volumes_mode() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        open(dir.path(), "a/b/c").unwrap();
        assert_eq!(fs::metadata(dir.path().join("a/b/c")).unwrap().mode() & 0o777, 0o777);
        open(dir.path(), "a/b/c").unwrap();
    }
}
