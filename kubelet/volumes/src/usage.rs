//! How much a volume holds, for stats and eviction.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Space and inodes of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Name of the volume in the pod's spec (as on disk).
    pub volume: String,
    /// Bytes used by the volume's files.
    pub used_bytes: u64,
    /// Inodes used by the volume's files.
    pub inodes_used: u64,
    /// Size of the file system that holds it.
    pub capacity_bytes: u64,
    /// What is left there.
    pub available_bytes: u64,
    /// All inodes of that file system.
    pub inodes: u64,
    /// Free inodes there.
    pub inodes_free: u64,
    /// What its driver says of its health, if it does.
    pub health: Option<Health>,
}

/// What a driver says of a volume's health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// It is not as it should be.
    pub abnormal: bool,
    /// What is wrong, in the driver's words.
    pub message: String,
}

/// Counts what is below `dir`, staying on its file system; files that vanish meanwhile are left out.
pub(crate) fn measure(volume: &str, dir: &Path) -> Usage {
    let mut usage = Usage { volume: volume.to_owned(), ..Usage::default() };
    if let Ok(meta) = fs::symlink_metadata(dir) {
        let mut seen = HashSet::new();
        count(dir, &meta, meta.dev(), &mut seen, &mut usage);
    }
    if let Ok(stat) = nix::sys::statvfs::statvfs(dir) {
        usage.capacity_bytes = stat.blocks() * stat.fragment_size();
        usage.available_bytes = stat.blocks_available() * stat.fragment_size();
        usage.inodes = stat.files();
        usage.inodes_free = stat.files_free();
    }
    usage
}

fn count(path: &Path, meta: &fs::Metadata, dev: u64, seen: &mut HashSet<u64>, usage: &mut Usage) {
    if meta.dev() != dev || (meta.nlink() > 1 && !meta.is_dir() && !seen.insert(meta.ino())) {
        return;
    }
    usage.used_bytes += meta.blocks() * 512;
    usage.inodes_used += 1;
    if meta.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            if let Ok(meta) = fs::symlink_metadata(entry.path()) {
                count(&entry.path(), &meta, dev, seen, usage);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hard_links_count_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), vec![1; 10_000]).unwrap();
        let one = measure("v", dir.path());
        fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        let two = measure("v", dir.path());
        assert_eq!((one.inodes_used, two.inodes_used), (2, 2));
        assert!(one.used_bytes >= 10_000 && two.used_bytes == one.used_bytes);
        assert!(one.capacity_bytes > 0);
    }
}
