//! Which paths are mount points, from the kernel's own table.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use gantry_sys::mountinfo;
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};

/// All mount points, in the order they were made (a path can appear more than once).
pub(crate) fn mount_points() -> io::Result<Vec<PathBuf>> {
    Ok(mountinfo::parse(&mountinfo::read()?).map(|m| m.path().to_owned()).collect())
}

/// Whether something is mounted exactly on `path`, which is not followed if it is a symlink and may be missing.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    // The kernel answers for one path; reading the table takes longer the more pods there are.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::empty()) {
        Ok(stat) if stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            return Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
        }
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        // A kernel before 5.8, or a path that statx may not read.
        _ => {}
    }
    let path = resolve(path)?;
    Ok(mount_points()?.contains(&path))
}

/// `path` as the kernel writes it: parents resolved, the last component kept.
pub(crate) fn resolve(path: &Path) -> io::Result<PathBuf> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
        _ => Ok(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_a_mount_point_and_its_files_are_not() {
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(Path::new("/proc/self/status")).unwrap());
        assert!(!is_mount_point(Path::new("/none/at/all")).unwrap());
    }
}
