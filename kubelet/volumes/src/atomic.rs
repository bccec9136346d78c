//! Writing a set of files so that a reader sees either all old or all new ones.
//!
//! Files live in a fresh `..<time>` directory; `..data` is a symlink to it, swapped by rename; the visible names are
//! symlinks through `..data`. A crash at any point leaves the old set visible; the next write removes leftovers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path};

/// One file of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) data: Vec<u8>,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner, if not root (tokens of pods that run as one user).
    pub(crate) uid: Option<u32>,
}

/// Files by their relative path (`a/b`).
pub(crate) type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Whether `path` may name a file of a set: relative, without `.`, `..` or a first component that starts with `..`.
pub(crate) fn valid_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 4096
        && !path.starts_with("..")
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(part) if part.len() <= 255))
}

/// Makes `dir` show exactly `payload`; `gid` is the pod's fsGroup. Tells whether anything changed.
pub(crate) fn write(dir: &Path, payload: &Payload, gid: Option<u32>) -> io::Result<bool> {
    let current = fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && is_same(&dir.join(current), payload, gid)
        && links_are_right(dir, payload)
    {
        return Ok(false);
    }
    let fresh = new_dir(dir)?;
    let result = fill(&dir.join(&fresh), payload, gid).and_then(|()| publish(dir, &fresh, payload));
    if let Err(e) = result {
        if fs::read_link(dir.join(DATA)).ok().as_deref() != Some(Path::new(&fresh)) {
            let _ = fs::remove_dir_all(dir.join(&fresh));
        }
        return Err(e);
    }
    sweep(dir, &fresh, payload)?;
    Ok(true)
}

fn new_dir(dir: &Path) -> io::Result<String> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    for n in 0..1_000_000_u32 {
        let name = format!("{now}.{n:09}");
        match fs::DirBuilder::new().mode(0o755).create(dir.join(&name)) {
            Ok(()) => {
                fs::set_permissions(dir.join(&name), fs::Permissions::from_mode(0o755))?;
                return Ok(name);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other(format!("no free directory name below {}", dir.display())))
}

fn file_mode(file: &File, gid: Option<u32>) -> u32 {
    file.mode & 0o7777 | if gid.is_some() { 0o440 } else { 0 }
}

fn fill(fresh: &Path, payload: &Payload, gid: Option<u32>) -> io::Result<()> {
    own_dir(fresh, gid)?;
    let mut made = BTreeSet::new();
    for (path, file) in payload {
        let target = fresh.join(path);
        let parents: Vec<&Path> = Path::new(path).ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        for parent in parents.into_iter().rev() {
            if made.insert(parent.to_owned()) {
                let parent = fresh.join(parent);
                fs::DirBuilder::new().mode(0o755).create(&parent)?;
                fs::set_permissions(&parent, fs::Permissions::from_mode(0o755))?;
                own_dir(&parent, gid)?;
            }
        }
        fs::write(&target, &file.data)?;
        chown(&target, file.uid, gid)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file_mode(file, gid)))?;
    }
    Ok(())
}

fn own_dir(dir: &Path, gid: Option<u32>) -> io::Result<()> {
    if gid.is_some() {
        chown(dir, None, gid)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o2755))?;
    }
    Ok(())
}

fn publish(dir: &Path, fresh: &str, payload: &Payload) -> io::Result<()> {
    let temporary = dir.join(DATA_NEW);
    gantry_files::remove(&temporary)?;
    symlink(fresh, &temporary)?;
    fs::rename(&temporary, dir.join(DATA))?;
    for name in first_components(payload) {
        let link = dir.join(name);
        let target = Path::new(DATA).join(name);
        if fs::read_link(&link).ok().as_deref() == Some(&target) {
            continue;
        }
        gantry_files::remove(&link)?;
        symlink(&target, &link)?;
    }
    Ok(())
}

/// Removes visible names and directories that do not belong to the published set.
fn sweep(dir: &Path, fresh: &str, payload: &Payload) -> io::Result<()> {
    let keep = first_components(payload);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == DATA || name == fresh || keep.contains(name.as_ref()) {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            gantry_files::remove(&entry.path())?;
        } else if kind.is_dir() && name.starts_with("..") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn first_components(payload: &Payload) -> BTreeSet<&str> {
    payload.keys().filter_map(|path| path.split('/').find(|part| !part.is_empty())).collect()
}

fn links_are_right(dir: &Path, payload: &Payload) -> bool {
    first_components(payload)
        .iter()
        .all(|name| fs::read_link(dir.join(name)).ok().as_deref() == Some(&Path::new(DATA).join(name)))
}

fn is_same(dir: &Path, payload: &Payload, gid: Option<u32>) -> bool {
    let mut found = BTreeSet::new();
    if !list(dir, &mut found) || found.len() != payload.len() {
        return false;
    }
    payload.iter().all(|(path, file)| {
        let path = dir.join(path);
        let same_meta = fs::symlink_metadata(&path).is_ok_and(|m| {
            m.is_file()
                && m.mode() & 0o7777 == file_mode(file, gid)
                && file.uid.is_none_or(|uid| uid == m.uid())
                && gid.is_none_or(|gid| gid == m.gid())
                && m.len() == file.data.len() as u64
        });
        same_meta && fs::read(&path).is_ok_and(|data| data == file.data)
    })
}

fn list(dir: &Path, out: &mut BTreeSet<std::path::PathBuf>) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return false };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => {
                if !list(&entry.path(), out) {
                    return false;
                }
            }
            _ => {
                out.insert(entry.path());
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files.iter().map(|&(p, d)| (p.to_owned(), File { data: d.into(), mode: 0o644, uid: None })).collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut out: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        out.sort();
        out
    }

    #[test]
    fn sets_replace_each_other_completely() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &payload(&[("a", "1"), ("d/x", "2"), ("d/y/z", "3")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("d/y/z")).unwrap(), "3");
        assert_eq!(fs::read_link(dir.join("d")).unwrap(), Path::new("..data/d"));
        let first = fs::read_link(dir.join("..data")).unwrap();
        assert!(
            !write(dir, &payload(&[("a", "1"), ("d/x", "2"), ("d/y/z", "3")]), None).unwrap(),
            "same set: no change"
        );
        assert!(write(dir, &payload(&[("a", "new"), ("b", "4")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "new");
        let second = fs::read_link(dir.join("..data")).unwrap();
        assert_ne!(first, second);
        assert_eq!(names(dir), [second.to_str().unwrap(), "..data", "a", "b"]);
        assert!(write(dir, &Payload::new(), None).unwrap());
        assert_eq!(names(dir).len(), 2, "only ..data and its directory");
    }

    #[test]
    fn a_mode_change_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &payload(&[("a", "1")]), None).unwrap();
        let mut set = payload(&[("a", "1")]);
        set.get_mut("a").unwrap().mode = 0o400;
        assert!(write(dir.path(), &set, None).unwrap());
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().mode() & 0o7777, 0o400);
    }

    #[test]
    fn leftovers_of_a_crash_are_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(dir, &payload(&[("a", "1")]), None).unwrap();
        fs::create_dir(dir.join("..2020_01_01_00_00_00.000000000")).unwrap();
        symlink("..2020_01_01_00_00_00.000000000", dir.join("..data_tmp")).unwrap();
        fs::remove_file(dir.join("a")).unwrap();
        assert!(write(dir, &payload(&[("a", "1")]), None).unwrap(), "the visible link was gone");
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "1");
        assert_eq!(names(dir).len(), 3);
    }

    #[test]
    fn the_group_can_read_everything() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root to change groups");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut set = payload(&[("d/a", "1")]);
        set.get_mut("d/a").unwrap().mode = 0o600;
        write(dir.path(), &set, Some(4242)).unwrap();
        let file = fs::metadata(dir.path().join("d/a")).unwrap();
        assert_eq!((file.gid(), file.mode() & 0o7777), (4242, 0o640));
        let sub = fs::metadata(dir.path().join("d")).unwrap();
        assert_eq!((sub.gid(), sub.mode() & 0o7777), (4242, 0o2755));
        assert!(!write(dir.path(), &set, Some(4242)).unwrap());
    }

    #[test]
    fn only_paths_inside_are_valid() {
        for good in ["a", "a/b", ".hidden", "a..b", "a/..b"] {
            assert!(valid_path(good), "{good}");
        }
        for bad in ["", "/a", "../a", "a/../b", "..", "..data", "..x/y", "./a"] {
            assert!(!valid_path(bad), "{bad}");
        }
    }
}
