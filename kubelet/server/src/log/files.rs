//! The files of one log: the live one and those rotated away from it.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Uncompressed size of a compressed file that is still read.
const GZIP_MAX: u64 = 1 << 30;

/// How long a log may be rotated away while its files are being opened.
const PATIENCE: Duration = Duration::from_secs(5);

/// A file, whatever its name.
pub(crate) type Inode = (u64, u64);

/// An opened piece of the log. It stays readable when the file is renamed or removed.
#[derive(Debug)]
pub(crate) enum Segment {
    /// A plain file, which may still grow.
    Plain { file: fs::File, inode: Inode },
    /// A compressed one, unpacked into memory when it is first read.
    Packed { file: Option<fs::File>, unpacked: OnceCell<Vec<u8>> },
}

impl Segment {
    /// Opens a file; `.gz` is decompressed.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = fs::File::open(path)?;
        if path.extension().is_some_and(|e| e == "gz") {
            return Ok(Self::Packed { file: Some(file), unpacked: OnceCell::new() });
        }
        let meta = file.metadata()?;
        Ok(Self::Plain { file, inode: (meta.dev(), meta.ino()) })
    }

    #[cfg(test)]
    pub(crate) fn of_bytes(bytes: Vec<u8>) -> Self {
        Self::Packed { file: None, unpacked: OnceCell::from(bytes) }
    }

    /// Which file a plain one is.
    pub(crate) fn inode(&self) -> Option<Inode> {
        match self {
            Self::Plain { inode, .. } => Some(*inode),
            Self::Packed { .. } => None,
        }
    }

    /// Bytes there are now.
    pub(crate) fn len(&self) -> io::Result<u64> {
        match self {
            Self::Plain { file, .. } => Ok(file.metadata()?.len()),
            Self::Packed { .. } => Ok(self.unpacked().len() as u64),
        }
    }

    /// Reads at `offset`; 0 at the end.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Self::Plain { file, .. } => file.read_at(buffer, offset),
            Self::Packed { .. } => {
                let bytes = self.unpacked();
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let n = buffer.len().min(bytes.len() - from);
                buffer[..n].copy_from_slice(&bytes[from..from + n]);
                Ok(n)
            }
        }
    }

    /// What a damaged file holds up to the damage.
    fn unpacked(&self) -> &[u8] {
        let Self::Packed { file, unpacked } = self else { return &[] };
        unpacked.get_or_init(|| {
            let mut bytes = Vec::new();
            if let Some(file) = file
                && let Err(e) = flate2::read::MultiGzDecoder::new(file).take(GZIP_MAX).read_to_end(&mut bytes)
            {
                tracing::warn!(error = %e, "compressed log file is damaged, its rest is left out");
            }
            bytes
        })
    }
}

/// All pieces of a log at one moment.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    /// Rotated files, oldest first.
    pub(crate) rotated: Vec<(PathBuf, Segment)>,
    /// The live file; missing for the moment between its rename and the writer's new one.
    pub(crate) live: Option<Segment>,
    /// Names (without `.gz`) of everything older than the last piece.
    pub(crate) known: HashSet<String>,
}

/// Opens the rotated files that `wanted` (by name) and the live one, so that none is missed: a rotation in between is
/// noticed and all is looked at again.
///
/// # Errors
/// The live file cannot be opened for another reason than being away.
pub(crate) fn chain(live: &Path, wanted: impl Fn(&Path) -> bool) -> io::Result<Chain> {
    // A look takes less than a millisecond, unless the machine has no time for this process.
    let end = Instant::now() + PATIENCE;
    loop {
        let current = match Segment::open(live) {
            Ok(segment) => Some(segment),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        let mut pieces = Vec::new();
        let listed = rotated(live);
        let mut vanished = false;
        let mut known: HashSet<String> = listed.iter().map(|p| stem(p)).collect();
        for path in listed {
            if !wanted(&path) {
                continue;
            }
            match Segment::open(&path) {
                Ok(segment) => pieces.push((path, segment)),
                // Removed or compressed since it was listed; the next listing tells which.
                Err(e) if e.kind() == io::ErrorKind::NotFound => vanished = true,
                Err(e) => tracing::warn!(path = %path.display(), error = %e, "rotated log file left out"),
            }
        }
        let inode = current.as_ref().and_then(Segment::inode);
        let now = fs::metadata(live).ok().map(|m| (m.dev(), m.ino()));
        let twice = inode.is_some() && pieces.iter().any(|(_, s)| s.inode() == inode);
        if now == inode && !twice && !vanished {
            if let (None, Some((last, _))) = (&current, pieces.last()) {
                known.remove(&stem(last));
            }
            return Ok(Chain { rotated: pieces, live: current, known });
        }
        if Instant::now() > end {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "the log is rotated faster than it can be opened"));
        }
    }
}

/// A rotated file's name without `.gz`.
pub(crate) fn stem(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    name.strip_suffix(".gz").map_or(name.clone(), str::to_owned)
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
    let plain: HashSet<String> = names.iter().filter(|n| !n.ends_with(".gz")).cloned().collect();
    names.retain(|n| n.strip_suffix(".gz").is_none_or(|stem| !plain.contains(stem)));
    names.into_iter().map(|n| dir.join(n)).collect()
}

/// Pieces that follow the one with `inode`, if the log went on elsewhere: rotated later, then the live one. Empty while
/// the live file is still that one, is not there, or has no bytes yet (its writer may not have switched; `exited` says
/// that it never will). `known` are the names of rotated files that are older than `inode`.
///
/// # Errors
/// As [`chain`].
pub(crate) fn successors(
    live: &Path,
    inode: Inode,
    known: &HashSet<String>,
    exited: bool,
) -> io::Result<Option<Chain>> {
    let Ok(now) = fs::metadata(live) else { return Ok(None) };
    if (now.dev(), now.ino()) == inode || (now.len() == 0 && !exited) {
        return Ok(None);
    }
    let mut next = chain(live, |path| !known.contains(&stem(path)))?;
    // Ours is the first that is new; it may have been compressed meanwhile and so have another inode.
    let ours = next.rotated.iter().position(|(_, s)| s.inode() == Some(inode)).unwrap_or_default();
    let later = next.rotated.len().min(ours + 1);
    next.rotated.drain(..later);
    Ok(Some(next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(paths: &[PathBuf]) -> Vec<&str> {
        paths.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect()
    }

    fn next(live: &Path, inode: Inode, exited: bool) -> Vec<String> {
        let known = HashSet::from(["0.log.0".to_owned()]);
        let Some(next) = successors(live, inode, &known, exited).unwrap() else { return Vec::new() };
        next.rotated.iter().map(|(p, _)| stem(p)).chain(next.live.map(|_| stem(live))).collect()
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
        fs::write(dir.path().join("0.log.0"), "old").unwrap();
        assert!(next(&live, inode, false).is_empty(), "still live");
        fs::rename(&live, dir.path().join("0.log.1")).unwrap();
        assert!(next(&live, inode, false).is_empty(), "the writer has not reopened");
        fs::write(&live, "").unwrap();
        assert!(next(&live, inode, false).is_empty(), "nothing written there yet");
        assert_eq!(next(&live, inode, true), ["0.log"]);
        fs::write(&live, "y").unwrap();
        fs::rename(&live, dir.path().join("0.log.2")).unwrap();
        fs::write(&live, "z").unwrap();
        assert_eq!(next(&live, inode, false), ["0.log.2", "0.log"]);
        fs::copy(dir.path().join("0.log.1"), dir.path().join("0.log.1.gz")).unwrap();
        fs::remove_file(dir.path().join("0.log.1")).unwrap();
        assert_eq!(next(&live, inode, false), ["0.log.2", "0.log"], "ours was compressed");
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
