//! Marks of removed files, from the plain form to that of overlayfs: for a store that was kept by native copies before.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, XattrFlags, fsetxattr, fstat, futimens, mknodat, openat, renameat, unlinkat,
};
use rustix::io::Errno;

use super::merge::{below, join, names, times, type_of};
use super::tree::{OPAQUE_NAME, OPAQUE_XATTR};

/// Where a mark is made before it has its name; what a crash leaves of it hides nothing.
const NEW: &[u8] = b".wh..wh.new";

/// Changes all marks in a layer. Done by half it can be done again.
pub(crate) fn to_overlay(layer: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, layer, flags, Mode::empty())?;
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let dir = below(&root, &path)?;
        let before = fstat(&dir)?;
        for name in names(dir.as_fd())? {
            match type_of(dir.as_fd(), &name)? {
                Some(FileType::Directory) => todo.push(join(&path, &name)),
                Some(FileType::Socket) if name == OPAQUE_NAME => {
                    fsetxattr(&dir, OPAQUE_XATTR, b"y", XattrFlags::empty())?;
                    unlinkat(&dir, name.as_slice(), AtFlags::empty())?;
                }
                Some(FileType::Socket) => {
                    match mknodat(&dir, NEW, FileType::CharacterDevice, Mode::empty(), 0) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(e) => return Err(e.into()),
                    }
                    renameat(&dir, NEW, &dir, name.as_slice())?;
                }
                _ => {}
            }
        }
        futimens(&dir, &times(&before))?;
    }
    Ok(())
}
