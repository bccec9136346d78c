//! Copies unpacked layers over one another into one directory: what overlayfs would show of them, as files of their own.
//!
//! Every directory is opened by its path from a root, links refused, so that no depth of an image costs stack or descriptors. Marks
//! of removed files are understood in both forms, see [`super::tree::Form`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, fgetxattr, flistxattr, fremovexattr, fsetxattr, fstat, futimens, ioctl_ficlone, linkat,
    mkdirat, mknodat, openat, openat2, readlinkat, renameat, seek, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::apply::Fault;
use super::tree::{OPAQUE_NAME, OPAQUE_XATTR};

/// The kernel's bound for the names, and for a value, of a file's attributes.
const ATTRIBUTES: usize = 64 << 10;

/// The copy being made.
pub(crate) struct Merge {
    root: OwnedFd,
    replaced: OwnedFd,
    serial: u64,
    /// Directories' times are set at the end: what is put inside changes them.
    times: HashMap<Vec<u8>, Timestamps>,
    buffer: Vec<u8>,
}

/// What a layer has already given a name of the copy, by device and inode of its own.
type Links = HashMap<(u64, u64), Vec<u8>>;

impl Merge {
    /// `root` gets the files; directories that are replaced go to `replaced`, on the same file system.
    pub(crate) fn new(root: OwnedFd, replaced: OwnedFd) -> Merge {
        Merge { root, replaced, serial: 0, times: HashMap::new(), buffer: vec![0; ATTRIBUTES] }
    }

    /// Lays one more layer over what is there.
    pub(crate) fn layer(&mut self, layer: &Path) -> Result<(), Fault> {
        let at = |path: &[u8], error: io::Error| Fault { entry: String::from_utf8_lossy(path).into_owned(), error };
        let from = openat(CWD, layer, DIRECTORY, Mode::empty()).map_err(|e| at(b"", e.into()))?;
        let (mut links, mut todo) = (Links::new(), vec![Vec::new()]);
        while let Some(path) = todo.pop() {
            self.directory(&from, &path, &mut links, &mut todo).map_err(|e| at(&path, e))?;
        }
        Ok(())
    }

    /// Sets the directories' times.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        for (path, times) in &self.times {
            let set = below(&self.root, path).and_then(|dir| futimens(&dir, times));
            match set {
                // Removed or replaced by a later layer.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => {
                    return Err(Fault { entry: String::from_utf8_lossy(path).into_owned(), error: e.into() });
                }
            }
        }
        Ok(())
    }

    /// One directory of a layer; those in it come into `todo`.
    fn directory(&mut self, from: &OwnedFd, path: &[u8], links: &mut Links, todo: &mut Vec<Vec<u8>>) -> io::Result<()> {
        let (source, target) = (below(from, path)?, below(&self.root, path)?);
        if is_opaque(source.as_fd()) {
            for name in names(target.as_fd())? {
                self.remove(target.as_fd(), &name)?;
            }
        }
        let stat = fstat(&source)?;
        self.attributes(source.as_fd(), target.as_fd(), &stat)?;
        self.times.insert(path.to_vec(), times(&stat));
        for name in names(source.as_fd())? {
            let stat = statat(&source, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Directory {
                if type_of(target.as_fd(), &name)? != Some(FileType::Directory) {
                    self.remove(target.as_fd(), &name)?;
                    mkdirat(&target, name.as_slice(), Mode::from_raw_mode(0o700))?;
                }
                todo.push(join(path, &name));
                continue;
            }
            self.remove(target.as_fd(), &name)?;
            if kind == FileType::Socket || (kind == FileType::CharacterDevice && stat.st_rdev == 0) {
                continue;
            }
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = links.get(&key).filter(|_| stat.st_nlink > 1) {
                match linkat(&self.root, first.as_slice(), &target, name.as_slice(), AtFlags::empty()) {
                    Ok(()) => continue,
                    // More than this file system can: one more copy begins.
                    Err(Errno::MLINK) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            let made = self.one(source.as_fd(), target.as_fd(), &name, &stat);
            made.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", String::from_utf8_lossy(&name))))?;
            if stat.st_nlink > 1 {
                links.insert(key, join(path, &name));
            }
        }
        Ok(())
    }

    /// Anything but a directory.
    fn one(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> io::Result<()> {
        let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => return self.file(source, target, name, stat),
            FileType::Symlink => {
                symlinkat(readlinkat(source, name, Vec::new())?, target, name)?;
                chownat(target, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            kind => {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                mknodat(target, name, kind, mode, stat.st_rdev)?;
                chownat(target, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
                // mknod applies the umask and chown clears set-id bits; the node is ours alone, so it cannot be a link.
                chmodat(target, name, mode, AtFlags::empty())?;
            }
        }
        Ok(utimensat(target, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn file(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> io::Result<()> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let input = File::from(openat(source, name, OFlags::RDONLY | flags, Mode::empty())?);
        let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let output = File::from(openat(target, name, new | flags, Mode::from_raw_mode(0o600))?);
        if ioctl_ficlone(&output, &input).is_err() {
            content(&input, &output, stat.st_size.cast_unsigned())?;
        }
        self.attributes(input.as_fd(), output.as_fd(), stat)?;
        Ok(futimens(&output, &times(stat))?)
    }

    /// Owner, then extended attributes and mode: a change of owner clears capabilities and set-id bits. The attributes are those that
    /// unpacking sets; the copy of a lower layer's directory loses what the upper one does not have.
    fn attributes(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
        fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
        let wanted = self.listed(from)?;
        for key in self.listed(to)?.iter().filter(|key| !wanted.contains(key)) {
            fremovexattr(to, key.as_slice())?;
        }
        for key in &wanted {
            let n = fgetxattr(from, key.as_slice(), &mut self.buffer[..])?;
            fsetxattr(to, key.as_slice(), &self.buffer[..n], XattrFlags::empty())?;
        }
        Ok(fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?)
    }

    fn listed(&mut self, of: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
        let n = match flistxattr(of, &mut self.buffer[..]) {
            Err(Errno::OPNOTSUPP) => 0,
            other => other?,
        };
        let ours = |key: &&[u8]| *key == b"security.capability" || key.starts_with(b"user.");
        Ok(self.buffer[..n].split(|b| *b == 0).filter(ours).map(<[u8]>::to_vec).collect())
    }

    /// Missing is fine.
    fn remove(&mut self, at: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        match type_of(at, name)? {
            None => Ok(()),
            Some(FileType::Directory) => {
                self.serial += 1;
                renameat(at, name, &self.replaced, self.serial.to_string())
            }
            Some(_) => unlinkat(at, name, AtFlags::empty()),
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The directory `path` below `root`; no part of it is a link.
pub(super) fn below(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    openat2(root, path, DIRECTORY, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV)
}

/// What is in a directory.
pub(super) fn names(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut out = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            out.push(name.to_vec());
        }
    }
    Ok(out)
}

pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

pub(super) fn times(stat: &Stat) -> Timestamps {
    let at = |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds.cast_signed() };
    Timestamps {
        last_access: at(stat.st_atime, stat.st_atime_nsec),
        last_modification: at(stat.st_mtime, stat.st_mtime_nsec),
    }
}

pub(super) fn type_of(at: BorrowedFd<'_>, name: &[u8]) -> Result<Option<FileType>, Errno> {
    match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_opaque(dir: BorrowedFd<'_>) -> bool {
    let mut value = [0_u8; 4];
    fgetxattr(dir, OPAQUE_XATTR, &mut value[..]).is_ok_and(|n| value[..n] == *b"y")
        || type_of(dir, OPAQUE_NAME) == Ok(Some(FileType::Socket))
}

/// The bytes of a file where it has some; its holes stay holes. The kernel copies within the file system where it can.
fn content(input: &File, output: &File, size: u64) -> io::Result<()> {
    use rustix::fs::SeekFrom::{Data, Hole};
    let mut at = 0;
    while at < size {
        let start = match seek(input, Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // A file system that knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(e) => return Err(e.into()),
        };
        let end = seek(input, Hole(start)).unwrap_or(size).min(size);
        let (mut from, mut to) = (input, output);
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        let copied = io::copy(&mut from.take(end.saturating_sub(start)), &mut to)?;
        if copied == 0 || start + copied != end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at = end;
    }
    output.set_len(size)
}
