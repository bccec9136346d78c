//! Removing what a pod left: unmount first, then delete, and never delete through a mount.
//!
//! The delete opens each directory with openat2(RESOLVE_NO_XDEV): a mount that could not be removed (or that appears
//! meanwhile) stops it there, whatever its device number is. People have lost data to a plain recursive delete here.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};

use crate::{VolumeError, mount_table};

/// Unmounts everything at and below `dir`, the last mount first.
pub(crate) fn unmount_below(dir: &Path) -> Vec<VolumeError> {
    let mut faults = Vec::new();
    if !dir.exists() {
        return faults;
    }
    let points = match mount_table::resolve(dir).and_then(|dir| Ok((mount_table::mount_points()?, dir))) {
        Ok((points, dir)) => points.into_iter().filter(|p| p.starts_with(&dir)).collect::<Vec<_>>(),
        Err(source) => return vec![fault("read the mounts below", dir, source)],
    };
    for point in points.iter().rev() {
        if let Err(source) = unmount(point) {
            faults.push(fault("unmount", point, source));
        }
    }
    faults
}

fn unmount(point: &Path) -> io::Result<()> {
    for _ in 0..5 {
        match umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => return Ok(()),
            Err(nix::Error::EBUSY) => std::thread::sleep(Duration::from_millis(20)),
            Err(e) => return Err(e.into()),
        }
    }
    // Someone on the host still looks inside; its name can go now, the contents with the last user.
    umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    Ok(())
}

/// Deletes `dir` and what is below it, without crossing mounts or following symlinks; goes on after errors.
pub(crate) fn delete(dir: &Path) -> Vec<VolumeError> {
    let mut faults = Vec::new();
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return vec![fault("delete", dir, io::ErrorKind::InvalidInput.into())];
    };
    let name = match CString::new(name.as_encoded_bytes()) {
        Ok(name) => name,
        Err(e) => return vec![fault("delete", dir, e.into())],
    };
    match rustix::fs::open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(parent) => remove(parent.as_fd(), &name, dir, FileType::Unknown, &mut faults),
        Err(rustix::io::Errno::NOENT) => {}
        Err(e) => faults.push(fault("open the parent of", dir, e.into())),
    }
    faults
}

fn remove(parent: BorrowedFd<'_>, name: &CString, shown: &Path, kind: FileType, faults: &mut Vec<VolumeError>) {
    if !matches!(kind, FileType::Directory | FileType::Unknown) {
        return unlink(parent, name, AtFlags::empty(), shown, faults);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(parent, name.as_c_str(), flags, Mode::empty(), resolve) {
        Ok(fd) => {
            match Dir::read_from(&fd) {
                Ok(entries) => {
                    for entry in entries {
                        match entry {
                            Ok(entry) if [&b"."[..], b".."].contains(&entry.file_name().to_bytes()) => {}
                            Ok(entry) => {
                                let name = entry.file_name().to_owned();
                                let below = shown.join(name.to_string_lossy().as_ref());
                                remove(fd.as_fd(), &name, &below, entry.file_type(), faults);
                            }
                            Err(e) => faults.push(fault("list", shown, e.into())),
                        }
                    }
                }
                Err(e) => faults.push(fault("list", shown, e.into())),
            }
            drop(fd);
            unlink(parent, name, AtFlags::REMOVEDIR, shown, faults);
        }
        Err(rustix::io::Errno::NOENT) => {}
        Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            unlink(parent, name, AtFlags::empty(), shown, faults)
        }
        Err(rustix::io::Errno::XDEV) => faults.push(VolumeError::Mounted { path: shown.display().to_string() }),
        Err(e) => faults.push(fault("open", shown, e.into())),
    }
}

fn unlink(parent: BorrowedFd<'_>, name: &CString, flags: AtFlags, shown: &Path, faults: &mut Vec<VolumeError>) {
    match rustix::fs::unlinkat(parent, name.as_c_str(), flags) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        // The children's own faults say why a directory is not empty.
        Err(rustix::io::Errno::NOTEMPTY) if !faults.is_empty() => {}
        Err(rustix::io::Errno::BUSY) => faults.push(VolumeError::Mounted { path: shown.display().to_string() }),
        Err(e) => faults.push(fault("delete", shown, e.into())),
    }
}

fn fault(action: &'static str, path: &Path, source: io::Error) -> VolumeError {
    VolumeError::Path { action, path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{MsFlags, mount};
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tree_goes_and_links_targets_stay() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("pod/a/b")).unwrap();
        fs::write(dir.path().join("pod/a/b/f"), "").unwrap();
        fs::create_dir(dir.path().join("precious")).unwrap();
        fs::write(dir.path().join("precious/f"), "").unwrap();
        symlink("../precious", dir.path().join("pod/link")).unwrap();
        assert!(delete(&dir.path().join("pod")).is_empty());
        assert!(!dir.path().join("pod").exists());
        assert!(dir.path().join("precious/f").exists());
        assert!(delete(&dir.path().join("pod")).is_empty(), "twice is fine");
        assert!(delete(&dir.path().join("none/pod")).is_empty());
    }

    #[test]
    fn a_mount_is_never_deleted_through() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root to mount");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (precious, pod) = (dir.path().join("precious"), dir.path().join("pod"));
        fs::create_dir_all(pod.join("v/mnt")).unwrap();
        fs::write(pod.join("other"), "").unwrap();
        fs::create_dir(&precious).unwrap();
        fs::write(precious.join("f"), "").unwrap();
        // A bind of the same file system: device numbers do not tell it apart.
        mount(Some(&precious), &pod.join("v/mnt"), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let faults = delete(&pod);
        assert!(precious.join("f").exists());
        assert!(matches!(&faults[..], [VolumeError::Mounted { path }] if path.ends_with("pod/v/mnt")), "{faults:?}");
        assert!(!pod.join("other").exists(), "the rest went");
        assert!(unmount_below(&pod).is_empty());
        assert!(delete(&pod).is_empty());
        assert!(precious.join("f").exists());
    }

    #[test]
    fn stacked_and_busy_mounts_go() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root to mount");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("pod/a b");
        fs::create_dir_all(&at).unwrap();
        for _ in 0..2 {
            mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        }
        let held = fs::File::create(at.join("held")).unwrap();
        assert!(unmount_below(&dir.path().join("pod")).is_empty());
        assert!(!mount_table::is_mount_point(&at).unwrap());
        drop(held);
        assert!(delete(&dir.path().join("pod")).is_empty());
    }
}
