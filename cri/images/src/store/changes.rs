//! What a container has changed in its root, as a layer: files, and marks for what it deleted.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rustix::fs::{getxattr, lgetxattr, llistxattr};
use tar::{Builder, EntryType, Header};

use super::{Store, differences};
use crate::error::{Error, Result};
use crate::unpack::apply::apply;
use crate::unpack::tree::{Form, OPAQUE_XATTR};

impl Store {
    /// Writes what a container has changed as a tar, in the form of an OCI layer.
    pub(crate) fn write_changes(&self, id: &str, to: impl Write) -> Result<()> {
        let snapshot = self.state().snapshots.get(id).cloned();
        let snapshot = snapshot.ok_or_else(|| Error::NotFound { what: "snapshot", name: id.to_string() })?;
        let upper = self.snapshots.path(id).join("fs");
        let mut tar = Builder::new(to);
        tar.follow_symlinks(false);
        let written = if snapshot.native {
            // Its layers stay as long as it does.
            differences::write(&mut tar, &upper, &self.lower(&snapshot)?)
        } else {
            add(&mut tar, &upper, Path::new(""))
        };
        written.and_then(|()| tar.into_inner().map(drop)).map_err(|e| Error::io("write the changes in", &upper, e))
    }

    /// Applies such a tar to a snapshot's writable directory, while that is not mounted.
    pub(crate) fn apply_changes(&self, id: &str, from: &Path) -> Result<()> {
        let native = self.state().snapshots.get(id).is_some_and(|s| s.native);
        let (root, replaced) = (self.beside(id).join("fs"), self.beside(id).join("replaced"));
        let make = |path: &Path| fs::create_dir(path).map_err(|e| Error::io("create", path, e));
        let open = |path: &Path| fs::File::open(path).map_err(|e| Error::io("open", path, e));
        make(&replaced)?;
        // A copy gets them as one more layer.
        let (upper, form) =
            if native { (self.beside(id).join("changes"), Form::Plain) } else { (root.clone(), Form::Overlay) };
        if native {
            make(&upper)?;
        }
        let stop = AtomicBool::new(false);
        let limits = &self.config.limits;
        let applied = apply(open(from)?, open(&upper)?.into(), open(&replaced)?.into(), form, limits, &stop)
            .map_err(|fault| Error::io("apply the changes to", &upper.join(fault.entry), fault.error));
        let mut merged = Ok(());
        if native {
            merged = applied.as_ref().map_or(Ok(()), |_| {
                let meta = fs::metadata(&root).map_err(|e| Error::io("stat", &root, e))?;
                let kept = fs::set_permissions(&upper, meta.permissions())
                    .and_then(|()| std::os::unix::fs::chown(&upper, Some(meta.uid()), Some(meta.gid())));
                kept.map_err(|e| Error::io("set owner and mode of", &upper, e))?;
                self.merge(&root, &replaced, std::slice::from_ref(&upper))
            });
            self.trash.take(&upper)?;
        }
        self.trash.take(&replaced)?;
        self.trash.empty_soon();
        applied.and(merged)
    }

    /// A snapshot's own folder.
    pub(crate) fn beside(&self, id: &str) -> PathBuf {
        self.snapshots.path(id)
    }
}

fn add<W: Write>(tar: &mut Builder<W>, dir: &Path, name: &Path) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (path, inside) = (entry.path(), name.join(entry.file_name()));
        // The container may run on: what is gone meanwhile is left out.
        let Ok(meta) = path.symlink_metadata() else { continue };
        let kind = meta.file_type();
        if is_whiteout(&meta) {
            let hidden = format!(".wh.{}", entry.file_name().to_string_lossy());
            mark(tar, &name.join(hidden))?;
        } else if kind.is_socket() {
            // No archive holds one.
        } else {
            append(tar, &path, &inside)?;
            if kind.is_dir() {
                let mut value = [0; 4];
                if getxattr(&path, OPAQUE_XATTR, &mut value).is_ok_and(|n| value[..n] == *b"y") {
                    mark(tar, &inside.join(".wh..wh..opq"))?;
                }
                add(tar, &path, &inside)?;
            }
        }
    }
    Ok(())
}

/// Whether overlayfs takes this for the mark of what is deleted.
pub(super) fn is_whiteout(meta: &fs::Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}

/// Writes one entry with the attributes that unpacking knows: a program keeps its capabilities.
pub(super) fn append<W: Write>(tar: &mut Builder<W>, path: &Path, inside: &Path) -> io::Result<()> {
    let all = attributes(path)?;
    if !all.is_empty() {
        let keyed = all.iter().map(|(key, value)| (format!("SCHILY.xattr.{key}"), value.as_slice()));
        let keyed: Vec<_> = keyed.collect();
        tar.append_pax_extensions(keyed.iter().map(|(key, value)| (key.as_str(), *value)))?;
    }
    tar.append_path_with_name(path, inside)
}

/// The capabilities and users' own attributes of a file, in order of their names.
pub(super) fn attributes(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    // The kernel's bound for all names, and for a value.
    let mut buffer = vec![0; 64 << 10];
    let n = match llistxattr(path, &mut buffer) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let names = String::from_utf8_lossy(&buffer[..n]).into_owned();
    let ours = |key: &&str| *key == "security.capability" || key.starts_with("user.");
    let mut all = Vec::new();
    for key in names.split('\0').filter(ours) {
        let n = lgetxattr(path, key, &mut buffer)?;
        all.push((key.to_owned(), buffer[..n].to_vec()));
    }
    all.sort();
    Ok(all)
}

pub(super) fn mark<W: Write>(tar: &mut Builder<W>, name: &Path) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_size(0);
    tar.append_data(&mut header, name, io::empty())
}
