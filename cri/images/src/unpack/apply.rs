//! Applies one layer's tar stream to its own directory.
//!
//! Runs on a blocking thread, with one buffer of decompressed bytes and a bounded descriptor cache. It trusts nothing in the stream: see
//! `tree` for names, `decode` for sizes. The caller throws the whole directory away when this fails.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek as _, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown, fsetxattr,
    futimens, linkat, makedev, mkdirat, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::decode::{Checked, decoder};
use super::name::{Meaning, Name};
use super::sparse::Sparse;
use super::tarball::{Entry, Kind, TarReader};
use super::tree::{Form, Tree};
use crate::config::Limits;
use crate::digest::Digest;

/// Directory times kept until the end (setting them earlier would be undone by what is put inside).
const MAX_DIR_TIMES: usize = 500_000;

/// What was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Digest of the uncompressed tar.
    pub(crate) diff_id: Digest,
    /// Bytes of file content.
    pub(crate) bytes: u64,
    /// Files, directories, links and devices.
    pub(crate) inodes: u64,
}

/// Why a layer cannot be applied, and at which entry.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) entry: String,
    pub(crate) error: io::Error,
}

/// Unpacks `input` below `root`, with marks in `form`; `trash` takes what entries replace.
pub(crate) fn apply(
    input: impl Read,
    root: OwnedFd,
    trash: OwnedFd,
    form: Form,
    limits: &Limits,
    stop: &AtomicBool,
) -> Result<Applied, Fault> {
    let at_start = |error: io::Error| Fault { entry: String::new(), error };
    let plain = decoder(input).map_err(at_start)?;
    let mut reader = TarReader::new(Checked::new(plain, limits.layer_bytes, stop));
    let given = Given::look(root.as_fd());
    let mut job =
        Job { tree: Tree::new(root, trash, form), times: Vec::new(), given, limit: limits.layer_bytes, bytes: 0 };
    let mut last = String::new();
    let mut count = 0;
    loop {
        let entry = match reader.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(error) => return Err(Fault { entry: format!("after {last}"), error }),
        };
        last = String::from_utf8_lossy(&entry.path).chars().take(300).collect();
        count += 1;
        if count > limits.layer_entries {
            let text = format!("more than {} entries, the limit for a layer", limits.layer_entries);
            return Err(Fault { entry: last, error: refuse(&text) });
        }
        if let Err(error) = job.entry(&entry, &mut reader) {
            return Err(Fault { entry: last, error });
        }
    }
    job.finish().map_err(at_start)?;
    let (diff_id, _) = reader.into_inner().finish().map_err(at_start)?;
    Ok(Applied { diff_id, bytes: job.bytes, inodes: job.tree.inodes })
}

fn refuse(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

struct Job {
    tree: Tree,
    times: Vec<(Vec<u8>, Timestamps)>,
    given: Option<Given>,
    /// Bytes that a file may seem to have.
    limit: u64,
    bytes: u64,
}

/// What the kernel gives a new file: it need not be set again, which is most of what a small file costs.
struct Given {
    uid: u64,
    gid: u64,
    umask: u32,
}

impl Given {
    /// None where that may differ from one directory to the next.
    fn look(root: BorrowedFd<'_>) -> Option<Given> {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let meta = rustix::fs::fstat(root).ok()?;
        let mut none = [0_u8; 0];
        let inherited = rustix::fs::fgetxattr(root, "system.posix_acl_default", &mut none).is_ok();
        if inherited || meta.st_gid != gid || meta.st_mode & 0o2000 != 0 {
            return None;
        }
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let umask = status.lines().find_map(|l| l.strip_prefix("Umask:"))?;
        let umask = u32::from_str_radix(umask.trim(), 8).ok()?;
        Some(Given { uid: uid.into(), gid: gid.into(), umask })
    }

    /// Whether a file made with its mode has owner and mode as `entry` wants them.
    fn fits(&self, entry: &Entry) -> bool {
        entry.uid == self.uid && entry.gid == self.gid && entry.mode & 0o7000 == 0 && entry.mode & self.umask == 0
    }
}

impl Job {
    fn entry<R: BufRead>(&mut self, entry: &Entry, content: &mut TarReader<R>) -> io::Result<()> {
        let name = Name::parse(&entry.path).map_err(refuse)?;
        if name.base.is_empty() {
            if entry.kind != Kind::Directory {
                return Err(refuse("the layer's root is not a directory"));
            }
            let root = self.tree.find(b"")?;
            self.attributes(root.as_fd(), entry)?;
            if self.given.as_ref().is_some_and(|g| g.gid != entry.gid || entry.mode & 0o2000 != 0) {
                self.given = None;
            }
            self.remember(b"", entry);
            return Ok(());
        }
        match name.meaning().map_err(refuse)? {
            Meaning::Ignore => Ok(()),
            Meaning::Opaque => {
                let dir = self.tree.dir(&name.parent)?;
                Ok(self.tree.opaque((*dir).as_fd())?)
            }
            Meaning::Whiteout(hidden) => self.whiteout(&name.parent, hidden),
            Meaning::Plain => self.plain(&name, entry, content),
        }
    }

    /// Hides `hidden` of lower layers; what this layer itself has under that name stays.
    fn whiteout(&mut self, parent: &[u8], hidden: &[u8]) -> io::Result<()> {
        let dir = self.tree.dir(parent)?;
        match self.tree.kind((*dir).as_fd(), hidden)? {
            Some(FileType::Directory) => {
                let child = self.tree.child((*dir).as_fd(), hidden)?;
                self.tree.opaque(child.as_fd())?;
            }
            Some(_) => {}
            None => {
                self.tree.whiteout((*dir).as_fd(), hidden)?;
                self.tree.inodes += 1;
            }
        }
        Ok(())
    }

    fn plain<R: BufRead>(&mut self, name: &Name, entry: &Entry, content: &mut TarReader<R>) -> io::Result<()> {
        let dir: Rc<OwnedFd> = self.tree.dir(&name.parent)?;
        let (at, form) = ((*dir).as_fd(), self.tree.form());
        let base = name.base.as_slice();
        if entry.kind == Kind::Directory {
            return self.directory(at, name, entry);
        }
        // A hard link's source is looked up before its own name is cleared, so that a link to itself cannot lose the file.
        let source = if entry.kind == Kind::Hardlink { Some(self.link_source(entry, name)?) } else { None };
        match entry.kind {
            Kind::File => self.file(at, base, entry, content)?,
            Kind::Hardlink => {
                if let Some((from, from_base)) = source {
                    self.place(at, base, || linkat(&from, from_base.as_slice(), at, base, AtFlags::empty()))?;
                }
                return Ok(());
            }
            Kind::Symlink => {
                if entry.link.is_empty() || entry.link.contains(&0) {
                    return Err(refuse("a symbolic link without a usable target"));
                }
                self.place(at, base, || symlinkat(entry.link.as_slice(), at, base))?;
                let (uid, gid) = owner(entry)?;
                if !self.given.as_ref().is_some_and(|g| g.uid == entry.uid && g.gid == entry.gid) {
                    chownat(at, base, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                }
                utimensat(at, base, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                let kind = match entry.kind {
                    // What overlayfs takes for a whiteout is one.
                    Kind::CharDevice if entry.device == (0, 0) && form == Form::Plain => FileType::Socket,
                    Kind::CharDevice => FileType::CharacterDevice,
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = makedev(entry.device.0, entry.device.1);
                let mode = Mode::from_raw_mode(entry.mode & 0o7777);
                self.place(at, base, || mknodat(at, base, kind, mode, device))?;
                let (uid, gid) = owner(entry)?;
                chownat(at, base, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                // mknod applies the umask and chown clears set-id bits; the node is ours alone, so it cannot be a link.
                rustix::fs::chmodat(at, base, mode, AtFlags::empty())?;
                utimensat(at, base, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Kind::Directory => {}
        }
        self.tree.inodes += 1;
        Ok(())
    }

    /// Makes something under a name, after clearing what has it.
    fn place<T>(
        &mut self,
        at: BorrowedFd<'_>,
        base: &[u8],
        mut make: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match make() {
            Err(Errno::EXIST) => {
                self.tree.remove(at, base)?;
                make()
            }
            other => other,
        }
    }

    fn directory(&mut self, at: BorrowedFd<'_>, name: &Name, entry: &Entry) -> io::Result<()> {
        let base = name.base.as_slice();
        let mut hidden = false;
        match mkdirat(at, base, Mode::from_raw_mode(0o700)) {
            Ok(()) => self.tree.inodes += 1,
            Err(Errno::EXIST) => {
                hidden = self.tree.is_whiteout(at, base)?;
                if self.tree.kind(at, base)? != Some(FileType::Directory) {
                    self.tree.remove(at, base)?;
                    mkdirat(at, base, Mode::from_raw_mode(0o700))?;
                    self.tree.inodes += 1;
                }
            }
            Err(e) => return Err(e.into()),
        }
        let dir = self.tree.child(at, base)?;
        if hidden {
            self.tree.opaque(dir.as_fd())?;
        }
        self.attributes(dir.as_fd(), entry)?;
        // What is made in it may get its group.
        if self.given.as_ref().is_some_and(|g| g.gid != entry.gid || entry.mode & 0o2000 != 0) {
            self.given = None;
        }
        let path = if name.parent.is_empty() { base.to_vec() } else { [name.parent.as_slice(), b"/", base].concat() };
        self.remember(&path, entry);
        self.tree.keep(path, dir);
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        at: BorrowedFd<'_>,
        base: &[u8],
        entry: &Entry,
        content: &mut TarReader<R>,
    ) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let done = self.given.as_ref().is_some_and(|g| g.fits(entry));
        let mode = Mode::from_raw_mode(if done { entry.mode & 0o777 } else { 0o600 });
        let mut file = File::from(self.place(at, base, || openat(at, base, flags, mode))?);
        let whole = Sparse { size: entry.size, pieces: vec![(0, entry.size)] };
        let sparse = entry.sparse.as_ref().unwrap_or(&whole);
        if sparse.size > self.limit {
            return Err(refuse(&format!("a file of {} bytes, more than the limit for a layer", sparse.size)));
        }
        let mut end = 0;
        // A hole at the end is told as a piece of nothing behind it.
        for (offset, length) in sparse.pieces.iter().filter(|(_, length)| *length > 0) {
            if *offset != end {
                file.seek(SeekFrom::Start(*offset))?;
            }
            let mut left = *length;
            while left > 0 {
                let piece = content.piece(left)?;
                file.write_all(piece)?;
                let n = piece.len();
                content.consume(n);
                left -= n as u64;
            }
            end = offset + length;
        }
        if end != sparse.size {
            file.set_len(sparse.size)?;
        }
        self.bytes += entry.size;
        if done {
            self.extended(file.as_fd(), entry)?;
        } else {
            self.attributes(file.as_fd(), entry)?;
        }
        Ok(futimens(&file, &times(entry))?)
    }

    /// Directory and base name of what a hard link links to; it must be in this layer.
    fn link_source(&self, entry: &Entry, name: &Name) -> io::Result<(OwnedFd, Vec<u8>)> {
        let target = Name::parse(&entry.link).map_err(|why| refuse(&format!("hard link target: {why}")))?;
        let shown = String::from_utf8_lossy(&entry.link).into_owned();
        if target.base.is_empty() || target == *name {
            return Err(refuse(&format!("hard link to {shown:?} makes no sense")));
        }
        let missing = || refuse(&format!("hard link to {shown:?}, which is not in this layer"));
        let dir = self.tree.find(&target.parent).map_err(|_| missing())?;
        match self.tree.kind(dir.as_fd(), &target.base)? {
            Some(FileType::Directory) => Err(refuse(&format!("hard link to the directory {shown:?}"))),
            Some(_) => Ok((dir, target.base)),
            None => Err(missing()),
        }
    }

    /// Owner, then extended attributes and mode: a change of owner clears capabilities and set-id bits.
    fn attributes(&self, fd: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
        let (uid, gid) = owner(entry)?;
        fchown(fd, Some(uid), Some(gid))?;
        fchmod(fd, Mode::from_raw_mode(entry.mode & 0o7777))?;
        self.extended(fd, entry)
    }

    fn extended(&self, fd: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
        for (key, value) in &entry.xattrs {
            // Others are the host's business; trusted.overlay.* could redirect overlayfs to other files.
            if key != b"security.capability" && !key.starts_with(b"user.") {
                continue;
            }
            match fsetxattr(fd, key.as_slice(), value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => {}
                Err(e) => {
                    let text = format!("set attribute {}: {e}", String::from_utf8_lossy(key));
                    return Err(io::Error::new(io::Error::from(e).kind(), text));
                }
            }
        }
        Ok(())
    }

    fn remember(&mut self, path: &[u8], entry: &Entry) {
        if self.times.len() < MAX_DIR_TIMES {
            self.times.push((path.to_vec(), times(entry)));
        }
    }

    /// Sets the directories' times, and deletes nothing: the trash is the caller's.
    fn finish(&mut self) -> io::Result<()> {
        for (path, times) in &self.times {
            match self.tree.find(path) {
                Ok(dir) => futimens(&dir, times)?,
                // Replaced by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

fn owner(entry: &Entry) -> io::Result<(Uid, Gid)> {
    let id =
        |v: u64| u32::try_from(v).ok().filter(|v| *v != u32::MAX).ok_or_else(|| refuse("an owner id beyond 32 bits"));
    Ok((Uid::from_raw(id(entry.uid)?), Gid::from_raw(id(entry.gid)?)))
}

fn times(entry: &Entry) -> Timestamps {
    let at = Timespec { tv_sec: entry.mtime.0, tv_nsec: i64::from(entry.mtime.1) };
    Timestamps { last_access: at, last_modification: at }
}
