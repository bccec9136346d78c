//! Giving a volume's files to the pod's fsGroup.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

/// Makes `root` and all below belong to `gid`, readable and writable by it, with setgid directories. With
/// `on_root_mismatch` nothing is walked when the root is already right. Mounts below are not entered, symlinks not followed.
pub(crate) fn apply(root: &Path, gid: u32, on_root_mismatch: bool) -> io::Result<()> {
    let meta = fs::symlink_metadata(root)?;
    if on_root_mismatch && is_right(&meta, gid) {
        return Ok(());
    }
    walk(root, gid, meta.dev())?;
    // The root last: an interrupted walk must not look finished to OnRootMismatch.
    give(root, &meta, gid)
}

fn is_right(meta: &fs::Metadata, gid: u32) -> bool {
    meta.gid() == gid && meta.mode() & wanted(meta) == wanted(meta)
}

fn wanted(meta: &fs::Metadata) -> u32 {
    if meta.is_dir() { 0o2070 } else { 0o060 }
}

fn walk(dir: &Path, gid: u32, dev: u64) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if meta.dev() != dev {
            continue;
        }
        if meta.is_dir() {
            walk(&path, gid, dev)?;
        }
        give(&path, &meta, gid)?;
    }
    Ok(())
}

fn give(path: &Path, meta: &fs::Metadata, gid: u32) -> io::Result<()> {
    if meta.gid() != gid {
        lchown(path, None, Some(gid))?;
    }
    // Half the system calls of a volume that is right already.
    if !meta.file_type().is_symlink() && !is_right(meta, gid) {
        fs::set_permissions(path, fs::Permissions::from_mode(meta.mode() & 0o7777 | wanted(meta)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_becomes_the_groups() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root to change groups");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("v");
        fs::create_dir_all(root.join("d")).unwrap();
        fs::write(root.join("d/f"), "x").unwrap();
        fs::write(dir.path().join("outside"), "x").unwrap();
        std::os::unix::fs::symlink("../outside", root.join("link")).unwrap();
        fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
        apply(&root, 4242, true).unwrap();
        let of = |p: &str| {
            let m = fs::symlink_metadata(dir.path().join(p)).unwrap();
            (m.gid(), m.mode() & 0o7777)
        };
        assert_eq!(of("v"), (4242, 0o2775));
        assert_eq!(of("v/d/f"), (4242, 0o660));
        assert_eq!(of("v/link").0, 4242);
        assert_eq!(of("outside").0, 0);
        fs::write(root.join("late"), "x").unwrap();
        lchown(root.join("late"), None, Some(0)).unwrap();
        apply(&root, 4242, true).unwrap();
        assert_eq!(of("v/late").0, 0, "the root matched, nothing was walked");
        apply(&root, 4242, false).unwrap();
        assert_eq!(of("v/late").0, 4242);
    }
}
