//! Paths inside a folder that a hostile party filled: a container's root file system, a volume.
//!
//! Every look-up is one openat2(2) with `RESOLVE_IN_ROOT`: `..` and absolute links end at the root, magic links are
//! refused. A path is never checked first and used later.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};

/// A folder that look-ups cannot leave.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Opens a folder of the host as a root.
    ///
    /// # Errors
    /// It does not exist or is no folder.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::openat(CWD, path, flags, Mode::empty())? })
    }

    /// Takes a descriptor of a folder as a root.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Opens what `path` names inside the root, following links inside the root.
    ///
    /// # Errors
    /// It does not exist, a link loops, or the flags do not fit it.
    pub fn open_in(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // The kernel answers EAGAIN when a rename elsewhere raced with a `..`: it wants the caller to try again.
        for _ in 0..32 {
            match rustix::fs::openat2(&self.fd, relative(path), flags | OFlags::CLOEXEC, mode, resolve) {
                Err(rustix::io::Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
        Err(io::Error::from(io::ErrorKind::WouldBlock))
    }

    /// A place descriptor (`O_PATH`) for `path`; the last part may be any kind of file, and a link is followed.
    ///
    /// # Errors
    /// As [`Root::open_in`].
    pub fn place(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_in(path, OFlags::PATH, Mode::empty())
    }

    /// As [`Root::place`], but a link as the last part is not followed.
    ///
    /// # Errors
    /// As [`Root::open_in`].
    pub fn place_nofollow(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_in(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())
    }

    /// As [`Root::place`], but no link is followed anywhere on the way: who can exchange links cannot move the place.
    ///
    /// # Errors
    /// As [`Root::open_in`]; `ELOOP` where a part of the path is a link.
    pub fn place_without_links(&self, path: &Path) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(&self.fd, relative(path), flags, Mode::empty(), resolve)?)
    }

    /// A place descriptor for the folder `path`, made with its parents (mode 0755) where missing.
    ///
    /// # Errors
    /// A part exists and is no folder, or cannot be made.
    pub fn make_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.open_in(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
            Ok(fd) => return Ok(fd),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        // From the end up: most often only the last part is missing.
        let Some(name) = path.file_name() else { return self.make_each(path) };
        let at = self.make_dir(path.parent().unwrap_or(Path::new("")))?;
        make_one(at.as_fd(), name)?;
        self.open_in(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
    }

    /// As [`Root::make_dir`] for a path that goes up at its end: part by part.
    fn make_each(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut done = PathBuf::new();
        let mut at = self.open_in(Path::new("."), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        for part in parts(path) {
            done.push(part);
            at = match self.open_in(&done, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
                Ok(fd) => fd,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    make_one(at.as_fd(), part)?;
                    self.open_in(&done, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?
                }
                Err(e) => return Err(e),
            };
        }
        Ok(at)
    }

    /// A place descriptor for the file `path`, made empty (mode 0644) with its parents where missing. What exists may be
    /// of any kind but a folder.
    ///
    /// # Errors
    /// It is a folder, or cannot be made.
    pub fn make_file(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.place(path) {
            Ok(fd) if kind(fd.as_fd())? != FileType::Directory => return Ok(fd),
            Ok(_) => return Err(io::Error::from(io::ErrorKind::IsADirectory)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let parent = self.make_dir(path.parent().unwrap_or(Path::new("")))?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
            Ok(_) | Err(rustix::io::Errno::EXIST) => self.place(path),
            Err(e) => Err(e.into()),
        }
    }

    /// Makes a symbolic link at `path`; an existing one is left as it is.
    ///
    /// # Errors
    /// The parent cannot be made, or something that is no link stands there.
    pub fn make_link(&self, path: &Path, target: &str) -> io::Result<()> {
        let (parent, name) = self.parent_of(path)?;
        make_link_at(parent.as_fd(), name, target)
    }

    /// The folder that holds `path` (made where missing) and the last part of its name.
    ///
    /// # Errors
    /// `path` has no last part, or the folder cannot be made.
    pub fn parent_of<'p>(&self, path: &'p Path) -> io::Result<(OwnedFd, &'p OsStr)> {
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok((self.make_dir(path.parent().unwrap_or(Path::new("")))?, name))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes a symbolic link in an open folder; an existing one is left as it is.
///
/// # Errors
/// Something that is no link stands there, or the kernel's.
pub fn make_link_at(folder: BorrowedFd<'_>, name: &OsStr, target: &str) -> io::Result<()> {
    match rustix::fs::symlinkat(target, folder, name) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::EXIST) if kind_at(folder, name)? == FileType::Symlink => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// What kind of file a descriptor is for.
///
/// # Errors
/// The kernel's.
pub fn kind(fd: BorrowedFd<'_>) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

fn kind_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode))
}

/// A name under which the kernel finds an open descriptor again, for calls that take only paths.
pub fn proc_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Makes a folder that may be there by now. (A dangling link as this part would be found again and again: the caller's look at
/// what it made then fails.)
fn make_one(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn relative(path: &Path) -> &Path {
    let stripped = path.strip_prefix("/").unwrap_or(path);
    if stripped.as_os_str().is_empty() { Path::new(".") } else { stripped }
}

fn parts(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|c| match c {
        Component::Normal(part) => Some(part),
        Component::ParentDir => Some(OsStr::new("..")),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_end_at_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("abs")).unwrap();
        symlink("../../../..", dir.path().join("up")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.make_file(Path::new("/up/made")).unwrap();
        assert!(dir.path().join("made").exists());
        assert!(root.make_file(Path::new("/abs/made")).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn dangling_links_and_ways_up_are_no_folders_to_make() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        symlink("nowhere", dir.path().join("link")).unwrap();
        assert!(root.make_dir(Path::new("/link/below")).is_err());
        assert!(root.make_dir(Path::new("/link")).is_err());
        root.make_dir(Path::new("/x/y/../..")).unwrap();
        assert!(dir.path().join("x/y").is_dir());
        root.make_dir(Path::new("/x/z/../w")).unwrap();
        assert!(dir.path().join("x/z").is_dir() && dir.path().join("x/w").is_dir());
    }

    #[test]
    fn folders_and_files_are_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        for _ in 0..2 {
            root.make_dir(Path::new("/a/b/c")).unwrap();
            root.make_file(Path::new("a/b/c/file")).unwrap();
            root.make_link(Path::new("a/link"), "b").unwrap();
        }
        assert!(root.make_file(Path::new("a/b")).is_err());
        root.make_file(Path::new("a/link/other")).unwrap();
        assert!(dir.path().join("a/b/other").exists());
    }
}
