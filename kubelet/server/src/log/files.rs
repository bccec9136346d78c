//! The files of one log: the live one and those rotated away from it.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Uncompressed size of a compressed file that is still read.
const GZIP_MAX: u64 = 1 << 30;

/// An opened piece of the log.
#[derive(Debug)]
pub(crate) enum Segment {
    /// A plain file, which may still grow.
    Plain { file: fs::File, inode: (u64, u64) },
    /// A decompressed one.
    Unpacked(Vec<u8>),
}

impl Segment {
    /// Opens a file; `.gz` is decompressed.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = fs::File::open(path)?;
        if path.extension().is_some_and(|e| e == "gz") {
            let mut bytes = Vec::new();
            flate2::read::MultiGzDecoder::new(file).take(GZIP_MAX).read_to_end(&mut bytes)?;
            return Ok(Self::Unpacked(bytes));
        }
        let meta = file.metadata()?;
        Ok(Self::Plain { file, inode: (meta.dev(), meta.ino()) })
    }

    /// Bytes there are now.
    pub(crate) fn len(&self) -> io::Result<u64> {
        match self {
            Self::Plain { file, .. } => Ok(file.metadata()?.len()),
            Self::Unpacked(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// Reads at `offset`; 0 at the end.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Self::Plain { file, .. } => file.read_at(buffer, offset),
            Self::Unpacked(bytes) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let n = buffer.len().min(bytes.len() - from);
                buffer[..n].copy_from_slice(&bytes[from..from + n]);
                Ok(n)
            }
        }
    }
}

/// Rotated files of the log at `live`, oldest first: `<name>.<suffix>` in the same folder. A compressed file beside its
/// original (compression under way) is left out.
pub(crate) fn rotated(live: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (live.parent(), live.file_name().and_then(|n| n.to_str())) else { return Vec::new() };
    let prefix = format!("{name}.");
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| n.starts_with(&prefix) && !n.ends_with(".tmp"))
        .collect();
    names.sort();
    let plain: std::collections::HashSet<String> = names.iter().filter(|n| !n.ends_with(".gz")).cloned().collect();
    names.retain(|n| n.strip_suffix(".gz").is_none_or(|stem| !plain.contains(stem)));
    names.into_iter().map(|n| dir.join(n)).collect()
}

/// Files that follow the one with `inode`, if the log went on elsewhere: rotated later, then the live one. Empty while
/// the live file is still that one, is not there, or has no bytes yet (its writer may not have switched).
pub(crate) fn successors(live: &Path, inode: (u64, u64), exited: bool) -> Vec<PathBuf> {
    let Ok(now) = fs::metadata(live) else { return Vec::new() };
    if (now.dev(), now.ino()) == inode || (now.len() == 0 && !exited) {
        return Vec::new();
    }
    let rotated: Vec<(PathBuf, Option<(u64, u64)>)> = rotated(live)
        .into_iter()
        .map(|p| {
            let inode = fs::metadata(&p).ok().map(|m| (m.dev(), m.ino()));
            (p, inode)
        })
        .collect();
    // When ours is no longer in the list (compressed or removed), nothing older than the live file can be told apart.
    let after = rotated.iter().position(|(_, i)| *i == Some(inode)).map_or(rotated.len(), |at| at + 1);
    rotated.into_iter().skip(after).map(|(p, _)| p).chain([live.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(paths: &[PathBuf]) -> Vec<&str> {
        paths.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect()
    }

    #[test]
    fn rotated_files_are_in_order_of_time() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "0.log",
            "0.log.20260102-000000",
            "0.log.20260101-000000.gz",
            "0.log.20260102-000000.gz",
            "0.log.20260102-000000.tmp",
            "1.log",
            "1.log.20260101-000000",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let got = rotated(&dir.path().join("0.log"));
        assert_eq!(names(&got), ["0.log.20260101-000000.gz", "0.log.20260102-000000"]);
    }

    #[test]
    fn successors_come_after_a_switch_only() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("0.log");
        fs::write(&live, "x").unwrap();
        let meta = fs::metadata(&live).unwrap();
        let inode = (meta.dev(), meta.ino());
        assert!(successors(&live, inode, false).is_empty(), "still live");
        fs::rename(&live, dir.path().join("0.log.1")).unwrap();
        assert!(successors(&live, inode, false).is_empty(), "the writer has not reopened");
        fs::write(&live, "").unwrap();
        assert!(successors(&live, inode, false).is_empty(), "nothing written there yet");
        assert_eq!(names(&successors(&live, inode, true)), ["0.log"]);
        fs::write(&live, "y").unwrap();
        fs::rename(&live, dir.path().join("0.log.2")).unwrap();
        fs::write(&live, "z").unwrap();
        assert_eq!(names(&successors(&live, inode, false)), ["0.log.2", "0.log"]);
        fs::remove_file(dir.path().join("0.log.1")).unwrap();
        assert_eq!(names(&successors(&live, inode, false)), ["0.log"]);
    }

    #[test]
    fn compressed_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log.1.gz");
        let mut gz = flate2::write::GzEncoder::new(fs::File::create(&path).unwrap(), flate2::Compression::fast());
        gz.write_all(b"hello").unwrap();
        gz.finish().unwrap();
        let segment = Segment::open(&path).unwrap();
        let mut buffer = [0; 3];
        assert_eq!(segment.len().unwrap(), 5);
        assert_eq!((segment.read_at(&mut buffer, 3).unwrap(), &buffer[..2]), (2, &b"lo"[..]));
        assert_eq!(segment.read_at(&mut buffer, 9).unwrap(), 0);
    }
}
