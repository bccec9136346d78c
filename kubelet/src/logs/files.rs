//! The files of one log: `0.log`, then `0.log.20260102-150405` as the last part, then `0.log.20260101-150405.gz`, ...

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

const COMPRESSED: &str = ".gz";
const UNFINISHED: &str = ".tmp";

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The parts of a log that were rotated, oldest first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let Some((folder, name)) = path.parent().zip(path.file_name()) else { return Vec::new() };
    let prefix = format!("{}.", name.to_string_lossy());
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter(|e| e.file_name().to_string_lossy().starts_with(&prefix)).map(|e| e.path()).collect();
    found.sort();
    found
}

/// Makes room for one more rotated part: unfinished files go, old parts go, what stays is compressed. `most` counts all
/// files of the log, the current one and the one about to be rotated too.
///
/// # Errors
/// The disk refuses.
pub(super) fn make_room(path: &Path, most: usize) -> io::Result<()> {
    let ends = |p: &Path, suffix: &str| p.to_string_lossy().ends_with(suffix);
    let (unfinished, mut kept): (Vec<PathBuf>, Vec<PathBuf>) =
        parts(path).into_iter().partition(|p| ends(p, UNFINISHED));
    for file in unfinished {
        fs::remove_file(file)?;
    }
    // One that was compressed but not yet removed when the kubelet died.
    let (twice, rest): (Vec<PathBuf>, Vec<PathBuf>) =
        kept.into_iter().partition(|p| !ends(p, COMPRESSED) && with_suffix(p, COMPRESSED).exists());
    for file in twice {
        fs::remove_file(file)?;
    }
    kept = rest;
    let excess = kept.len().saturating_sub(most.saturating_sub(2));
    for file in kept.drain(..excess) {
        fs::remove_file(file)?;
    }
    for file in kept.iter().filter(|p| !ends(p, COMPRESSED)) {
        compress(file)?;
    }
    Ok(())
}

/// Replaces a file by its compressed form; a crash leaves one of the two, or both whole.
fn compress(path: &Path) -> io::Result<()> {
    let temporary = with_suffix(path, UNFINISHED);
    let mut encoder = GzEncoder::new(File::create(&temporary)?, Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    let mut file = encoder.finish()?;
    file.flush()?;
    file.sync_all()?;
    fs::set_permissions(&temporary, fs::metadata(path)?.permissions())?;
    fs::rename(&temporary, with_suffix(path, COMPRESSED))?;
    fs::remove_file(path)
}

/// How the name of a part says when it was rotated (UTC).
const STAMP: &str = "%Y%m%d-%H%M%S";

/// When a part of a log was rotated, by its name.
fn rotated_at(log: &Path, part: &Path) -> Option<jiff::Timestamp> {
    let name = part.file_name()?.to_str()?;
    let stamp = name.strip_prefix(log.file_name()?.to_str()?)?.strip_prefix('.')?;
    let stamp = stamp.strip_suffix(COMPRESSED).unwrap_or(stamp);
    jiff::civil::DateTime::strptime(STAMP, stamp).ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|z| z.timestamp())
}

/// Gives the log the name of a rotated part: now, and later than every part that there is. The clock may have been set back
/// since, and what looks oldest is thrown away first.
///
/// # Errors
/// The disk refuses.
pub(super) fn rename(path: &Path, now: jiff::Timestamp) -> io::Result<PathBuf> {
    let newest = parts(path).iter().filter_map(|part| rotated_at(path, part)).max();
    let first = newest.map_or(now, |newest| newest.max(now));
    for later in 0..60 {
        let at = first.checked_add(jiff::SignedDuration::from_secs(later)).unwrap_or(now);
        let to = with_suffix(path, &format!(".{}", at.strftime(STAMP)));
        if !to.exists() && !with_suffix(&to, COMPRESSED).exists() {
            fs::rename(path, &to)?;
            return Ok(to);
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "all names of the next minute are taken"))
}

/// Removes a log and its rotated parts.
pub(crate) fn remove(path: &str) {
    let path = Path::new(path);
    for file in std::iter::once(path.to_owned()).chain(parts(path)) {
        match fs::remove_file(&file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %file.display(), error = %e, "old log not removed");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn names(folder: &Path) -> Vec<String> {
        let mut out: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        out.sort();
        out
    }

    #[test]
    fn old_parts_go_and_the_others_are_compressed() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "0.log",
            "0.log.20260101-000000.gz",
            "0.log.20260102-000000.gz",
            "0.log.20260103-000000",
            "0.log.20260103-000000.gz",
            "0.log.20260104-000000",
            "0.log.20260104-000000.tmp",
            "1.log.20250101-000000",
        ] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        make_room(&dir.path().join("0.log"), 5).unwrap();
        assert_eq!(
            names(dir.path()),
            [
                "0.log",
                "0.log.20260102-000000.gz",
                "0.log.20260103-000000.gz",
                "0.log.20260104-000000.gz",
                "1.log.20250101-000000"
            ]
        );
        let mut text = String::new();
        let file = File::open(dir.path().join("0.log.20260104-000000.gz")).unwrap();
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "0.log.20260104-000000");
        remove(&dir.path().join("0.log").to_string_lossy());
        assert_eq!(names(dir.path()), ["1.log.20250101-000000"]);
    }

    #[test]
    fn parts_of_the_same_second_have_different_names() {
        let dir = tempfile::tempdir().unwrap();
        let (log, now) = (dir.path().join("0.log"), jiff::Timestamp::from_second(0).unwrap());
        fs::write(&log, "a").unwrap();
        let first = rename(&log, now).unwrap();
        compress(&first).unwrap();
        fs::write(&log, "b").unwrap();
        rename(&log, now).unwrap();
        assert_eq!(names(dir.path()), ["0.log.19700101-000000.gz", "0.log.19700101-000001"]);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_make_the_newest_part_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        const DAY: i64 = 86_400;
        for (round, second) in [0, DAY, 10, 20, 2 * DAY].into_iter().enumerate() {
            make_room(&log, 4).unwrap();
            fs::write(&log, round.to_string()).unwrap();
            rename(&log, jiff::Timestamp::from_second(second).unwrap()).unwrap();
        }
        let kept = ["0.log.19700102-000001.gz", "0.log.19700102-000002.gz", "0.log.19700103-000000"];
        assert_eq!(names(dir.path()), kept);
        assert_eq!(fs::read_to_string(dir.path().join(kept[2])).unwrap(), "4");
        assert_eq!(rotated_at(&log, &dir.path().join("0.log.notes")), None);
        assert_eq!(rotated_at(&log, &dir.path().join("0.log.19700101-000001.gz.tmp")), None);
    }
}
