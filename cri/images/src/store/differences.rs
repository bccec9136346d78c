//! How a copy of an image differs from the image's layers: the changes of a container whose root is such a copy.
//!
//! The layers are looked at as overlayfs would show them, one directory after another, so that no second copy is made to compare
//! with. Files are compared by what they hold when all else is equal: times can be set by anyone.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::getxattr;
use tar::Builder;

use super::changes::{append, attributes, is_whiteout, mark};
use crate::unpack::tree::{OPAQUE_NAME, OPAQUE_XATTR};

/// Read of two files at once.
const PIECE: usize = 128 << 10;

/// Writes what is other in `copy` than in `layers`, the topmost first, as the entries of a layer.
pub(super) fn write<W: Write>(tar: &mut Builder<W>, copy: &Path, layers: &[PathBuf]) -> io::Result<()> {
    Differences { tar, passed: Vec::new(), pieces: [vec![0; PIECE], vec![0; PIECE]] }.directory(
        copy,
        layers,
        Path::new(""),
    )
}

struct Differences<'a, W: Write> {
    tar: &'a mut Builder<W>,
    /// Unchanged directories on the way to where we are: they come before what is changed in them, with their owner and mode.
    passed: Vec<(PathBuf, PathBuf)>,
    pieces: [Vec<u8>; 2],
}

impl<W: Write> Differences<'_, W> {
    fn directory(&mut self, copy: &Path, layers: &[PathBuf], name: &Path) -> io::Result<()> {
        let mut before = shown(layers)?;
        let mut entries: Vec<_> = fs::read_dir(copy)?.collect::<io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, inside) = (entry.path(), name.join(entry.file_name()));
            // The container may run on: what is gone meanwhile is deleted.
            let Ok(meta) = path.symlink_metadata() else { continue };
            // No archive holds these; what the image has in their place is hidden.
            if meta.file_type().is_socket() || is_whiteout(&meta) {
                continue;
            }
            let old = before.remove(&entry.file_name()).unwrap_or_default();
            let same = old.first().is_some_and(|old| self.is_same(old, &path, &meta));
            if !same {
                self.catch_up()?;
                append(self.tar, &path, &inside)?;
            }
            if meta.is_dir() {
                let below = if old.first().is_some_and(|old| is_dir(old)) { old } else { Vec::new() };
                if same {
                    self.passed.push((path.clone(), inside.clone()));
                }
                self.directory(&path, &below, &inside)?;
                if same {
                    self.passed.pop();
                }
            }
        }
        for gone in before.into_keys() {
            self.catch_up()?;
            let mut hidden = OsString::from(".wh.");
            hidden.push(gone);
            mark(self.tar, &name.join(hidden))?;
        }
        Ok(())
    }

    fn catch_up(&mut self) -> io::Result<()> {
        for (path, inside) in self.passed.drain(..) {
            append(self.tar, &path, &inside)?;
        }
        Ok(())
    }

    /// Whether nothing of a file has changed. What cannot be looked at has.
    fn is_same(&mut self, old: &Path, new: &Path, meta: &Metadata) -> bool {
        let Ok(before) = old.symlink_metadata() else { return false };
        let facts = |m: &Metadata| {
            (m.mode(), m.uid(), m.gid(), m.rdev(), m.mtime(), m.mtime_nsec(), m.is_file().then_some(m.len()))
        };
        facts(&before) == facts(meta)
            && attributes(old).ok() == attributes(new).ok()
            && (!meta.is_symlink() || fs::read_link(old).ok() == fs::read_link(new).ok())
            && (!meta.is_file() || self.hold_same(old, new).unwrap_or(false))
    }

    fn hold_same(&mut self, old: &Path, new: &Path) -> io::Result<bool> {
        let [mut one, mut two] = [File::open(old)?, File::open(new)?];
        let [a, b] = &mut self.pieces;
        loop {
            let n = one.read(a)?;
            let rest = &mut b[..n.max(1)];
            // At the end of the one the other has to end, too.
            match two.read_exact(rest) {
                Ok(()) if n > 0 && rest == &a[..n] => {}
                Ok(()) => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(n == 0),
                Err(e) => return Err(e),
            }
        }
    }
}

fn is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.is_dir())
}

/// What directories of layers, the topmost first, show together: by name the file, or the directories that are one there.
fn shown(dirs: &[PathBuf]) -> io::Result<BTreeMap<OsString, Vec<PathBuf>>> {
    let (mut all, mut closed) = (BTreeMap::<_, Vec<_>>::new(), HashSet::new());
    for dir in dirs {
        let mut opaque = is_opaque(dir);
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            let meta = path.symlink_metadata()?;
            if meta.file_type().is_socket() || is_whiteout(&meta) {
                opaque |= name.as_encoded_bytes() == OPAQUE_NAME;
                closed.insert(name);
                continue;
            }
            if closed.contains(&name) {
                continue;
            }
            let known = all.entry(name.clone()).or_default();
            if meta.is_dir() || known.is_empty() {
                known.push(path);
            }
            if !meta.is_dir() {
                closed.insert(name);
            }
        }
        if opaque {
            break;
        }
    }
    Ok(all)
}

fn is_opaque(dir: &Path) -> bool {
    let mut value = [0; 4];
    getxattr(dir, OPAQUE_XATTR, &mut value).is_ok_and(|n| value[..n] == *b"y")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn layers_show_what_is_topmost_and_not_hidden() {
        let t = tempfile::tempdir().unwrap();
        let [top, middle, base] = ["top", "middle", "base"].map(|n| t.path().join(n));
        for (layer, path) in [
            (&base, "dir/low"),
            (&base, "gone/x"),
            (&base, "file"),
            (&base, "opaque/old"),
            (&base, "was-dir/x"),
            (&middle, "dir/mid"),
            (&middle, "opaque/new"),
            (&middle, "was-dir"),
            (&top, "dir/low"),
            (&top, "was-dir/y"),
        ] {
            fs::create_dir_all(layer.join(path).parent().unwrap()).unwrap();
            fs::write(layer.join(path), "").unwrap();
        }
        for hidden in ["middle/gone", "middle/opaque/.wh..wh..opq"] {
            drop(UnixListener::bind(t.path().join(hidden)).unwrap());
        }
        let layers = [top.clone(), middle.clone(), base.clone()];
        let all = shown(&layers).unwrap();
        let names: Vec<_> = all.keys().map(|n| n.to_str().unwrap()).collect();
        assert_eq!(names, ["dir", "file", "opaque", "was-dir"]);
        let at = |name: &str| all.get(std::ffi::OsStr::new(name)).unwrap();
        assert_eq!(*at("dir"), layers.clone().map(|l| l.join("dir")));
        assert_eq!(*at("was-dir"), [top.join("was-dir")], "a file is between the two");
        assert_eq!(shown(at("dir")).unwrap()[std::ffi::OsStr::new("low")], [top.join("dir/low")]);
        assert_eq!(shown(at("opaque")).unwrap().len(), 1);
    }
}
