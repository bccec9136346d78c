//! Which paths are mount points, from the kernel's own table.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};

/// All mount points, in the order they were made (a path can appear more than once).
pub(crate) fn mount_points() -> io::Result<Vec<PathBuf>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
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

fn parse(table: &[u8]) -> Vec<PathBuf> {
    table
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|field| PathBuf::from(std::ffi::OsString::from_vec(unescape(field))))
        .collect()
}

/// Undoes `\040` and its like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal =
            field.get(at + 1..at + 4).filter(|d| field[at] == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal {
            Some(d) => {
                out.push(d.iter().fold(0_u8, |n, b| n.wrapping_mul(8).wrapping_add(b - b'0')));
                at += 4;
            }
            None => {
                out.push(field[at]);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_paths_are_read() {
        let table = b"1 2 0:3 / /a\\040b rw - tmpfs tmpfs rw\n3 2 0:4 / /c\\134d rw shared:1 - x y z\n";
        assert_eq!(parse(table), [PathBuf::from("/a b"), PathBuf::from("/c\\d")]);
    }

    #[test]
    fn proc_is_a_mount_point_and_its_files_are_not() {
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(Path::new("/proc/self/status")).unwrap());
        assert!(!is_mount_point(Path::new("/none/at/all")).unwrap());
    }
}
