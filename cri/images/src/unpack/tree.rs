//! A directory tree that is only ever touched through directory file descriptors below its root.
//!
//! Every lookup is one openat2 with RESOLVE_IN_ROOT, so a symbolic link in the layer can point where it likes: it is
//! followed as if the layer's root were `/`, never outside. The last part of a name is never followed.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags, fsetxattr, mkdirat, mknodat, openat2, readlinkat,
    renameat, statat, unlinkat,
};
use rustix::io::Errno;

/// Directory descriptors kept open.
const CACHE: usize = 64;
/// Links followed while making missing directories, the kernel's own bound.
const MAX_LINKS: usize = 40;

/// Marks a directory as hiding all of the same name in lower layers.
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// The same in the plain form: a socket of this name, which no layer's file can have.
pub(crate) const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// How a layer marks what it removes of lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As overlayfs wants it: character devices 0:0 and an attribute.
    Overlay,
    /// Sockets, which any file system takes and no archive can hold: overlayfs itself has no devices 0:0 to store.
    Plain,
}

/// The tree being written.
pub(crate) struct Tree {
    root: OwnedFd,
    trash: OwnedFd,
    dirs: HashMap<Vec<u8>, Rc<OwnedFd>>,
    serial: u64,
    form: Form,
    /// Directories and other things made less those removed.
    pub(crate) inodes: u64,
}

impl Tree {
    /// `root` is the layer's root directory; replaced directories go to `trash`, on the same file system.
    pub(crate) fn new(root: OwnedFd, trash: OwnedFd, form: Form) -> Tree {
        Tree { root, trash, dirs: HashMap::new(), serial: 0, form, inodes: 1 }
    }

    /// How removed files are marked.
    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// The existing directory `path`.
    pub(crate) fn find(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        retry(|| openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS))
    }

    /// The directory `path`, made (root:root 0755) as far as it is missing.
    pub(crate) fn dir(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Errno> {
        if let Some(fd) = self.dirs.get(path) {
            return Ok(fd.clone());
        }
        let fd = self.make(path, 0)?;
        Ok(self.keep(path.to_vec(), fd))
    }

    /// Remembers an open directory: most entries are in the directory of the one before.
    pub(crate) fn keep(&mut self, path: Vec<u8>, dir: OwnedFd) -> Rc<OwnedFd> {
        if self.dirs.len() >= CACHE {
            self.dirs.clear();
        }
        let dir = Rc::new(dir);
        self.dirs.insert(path, dir.clone());
        dir
    }

    fn make(&mut self, path: &[u8], links: usize) -> Result<OwnedFd, Errno> {
        match self.find(path) {
            Err(Errno::NOENT | Errno::NOTDIR) if !path.is_empty() => {}
            other => return other,
        }
        if links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        let mut done: Vec<u8> = Vec::new();
        let mut at = self.find(b"")?;
        for part in path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".") {
            let whole = if done.is_empty() { part.to_vec() } else { [done.as_slice(), b"/", part].concat() };
            at = match self.find(&whole) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR) => match self.make_one(&at, part) {
                    Ok(()) => self.find(&whole)?,
                    Err(Errno::EXIST) => {
                        // A link to a place that this layer does not have (a lower one may): make that place.
                        let target = readlinkat(&at, part, Vec::new()).map_err(|_| Errno::NOTDIR)?;
                        let target = join_link(&done, target.as_bytes());
                        self.make(&target, links + 1)?
                    }
                    Err(e) => return Err(e),
                },
                Err(e) => return Err(e),
            };
            done = whole;
        }
        Ok(at)
    }

    /// Makes directory `name`; one that stood as a whiteout becomes opaque, as lower layers stay hidden.
    fn make_one(&mut self, at: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        let hidden = self.is_whiteout(at.as_fd(), name)?;
        if hidden {
            unlinkat(at, name, AtFlags::empty())?;
            self.inodes = self.inodes.saturating_sub(1);
        }
        mkdirat(at, name, Mode::from_raw_mode(0o755))?;
        self.inodes += 1;
        if hidden {
            self.opaque(self.child(at.as_fd(), name)?.as_fd())?;
        }
        Ok(())
    }

    /// Directory `name` in `at`, not followed.
    pub(crate) fn child(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(at, name, flags, Mode::empty())
    }

    /// Hides what lower layers have in this directory.
    pub(crate) fn opaque(&self, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        if self.form == Form::Overlay {
            return fsetxattr(dir, OPAQUE_XATTR, b"y", XattrFlags::empty());
        }
        match self.whiteout(dir, OPAQUE_NAME) {
            Err(Errno::EXIST) if self.is_whiteout(dir, OPAQUE_NAME)? => Ok(()),
            other => other,
        }
    }

    /// Makes the mark that hides `name` of lower layers.
    pub(crate) fn whiteout(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        let kind = if self.form == Form::Overlay { FileType::CharacterDevice } else { FileType::Socket };
        mknodat(at, name, kind, Mode::empty(), 0)
    }

    /// Type of `name` in `at`, not followed; `None` when it does not exist.
    pub(crate) fn kind(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<Option<FileType>, Errno> {
        match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether `name` in `at` is a whiteout.
    pub(crate) fn is_whiteout(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
        match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(s) => Ok(match self.form {
                Form::Overlay => FileType::from_raw_mode(s.st_mode) == FileType::CharacterDevice && s.st_rdev == 0,
                Form::Plain => FileType::from_raw_mode(s.st_mode) == FileType::Socket,
            }),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Removes `name` from `at`, whatever it is; missing is fine. A directory is moved to the trash, deleted later.
    pub(crate) fn remove(&mut self, at: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        match self.kind(at, name)? {
            None => return Ok(()),
            Some(FileType::Directory) => {
                self.serial += 1;
                renameat(at, name, &self.trash, PathBuf::from(self.serial.to_string()))?;
                self.dirs.clear();
            }
            Some(_) => {
                unlinkat(at, name, AtFlags::empty())?;
                // A link on the way to a cached directory may be gone.
                self.dirs.clear();
            }
        }
        self.inodes = self.inodes.saturating_sub(1);
        Ok(())
    }
}

/// openat2 answers EAGAIN when a rename elsewhere raced with `..` handling; the kernel asks to try again.
fn retry<T>(mut f: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..64 {
        match f() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    f()
}

/// Where a link with `target`, standing in directory `dir`, points to below the root.
fn join_link(dir: &[u8], target: &[u8]) -> Vec<u8> {
    let whole = if target.starts_with(b"/") { target.to_vec() } else { [dir, b"/", target].concat() };
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in whole.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_targets_stay_below_the_root() {
        assert_eq!(join_link(b"a/b", b"../../../../etc"), b"etc");
        assert_eq!(join_link(b"a/b", b"/x/../y"), b"y");
        assert_eq!(join_link(b"a", b"c"), b"a/c");
    }
}
