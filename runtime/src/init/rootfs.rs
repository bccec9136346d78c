//! The container's view of files: its root, mounts, devices, and what is hidden. Runs in the new mount namespace.
//!
//! Every place inside the root is reached through [`Root`]: one openat2 that cannot leave it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use gantry_sys::mount::{self, Attributes};
use gantry_sys::namespaces::{Kind, leave};
use gantry_sys::root::{Root, kind};
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid};

use super::bare::Crossing;
use super::mounts::{Made, about, host_tree, make, put};
use super::procfs::Procfs;
use crate::error::{Context, Result};
use crate::fail;
use crate::plan::devices::{DEFAULT, LINKS, is_default};
use crate::plan::mounts::{self, What, propagation_of};
use crate::plan::namespaces::Namespaces;
use crate::spec::{Device, Linux, Mount, Spec};

/// What the child needs to build the root.
pub(crate) struct View<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) linux: &'a Linux,
    pub(crate) rootfs: &'a Path,
    pub(crate) bundle: &'a Path,
    /// The container's cgroup on the host.
    pub(crate) cgroup: &'a Path,
    /// Whether it has a cgroup namespace of its own.
    pub(crate) cgroup_namespace: bool,
    /// Whether ids are mapped, so that device nodes cannot be made.
    pub(crate) user_namespace: bool,
    /// How mounts taken from the host shall hear from it and tell it, where the namespace is no copy of the host's that was
    /// told so as a whole.
    pub(crate) propagation: Option<u64>,
}

/// Whether a mount binds what lies in the container's root, or that itself: no such mount can be made before the root is there.
pub(super) fn is_of_root(mount: &Mount, bundle: &Path, rootfs: &Path) -> bool {
    mount.source.as_deref().is_some_and(|source| bundle.join(source).starts_with(rootfs))
}

impl<'a> View<'a> {
    /// Of a container with these namespaces, a bundle and a root on the host, and a cgroup.
    pub(crate) fn new(
        spec: &'a Spec,
        linux: &'a Linux,
        namespaces: &Namespaces,
        (bundle, rootfs): (&'a Path, &'a Path),
        cgroup: &'a Path,
    ) -> Self {
        let cgroup_namespace = namespaces.makes(Kind::Cgroup);
        let user_namespace = namespaces.makes(Kind::User) || namespaces.joins(Kind::User).is_some();
        Self { spec, linux, rootfs, bundle, cgroup, cgroup_namespace, user_namespace, propagation: None }
    }
}

const PRIVATE: Attributes = Attributes { set: 0, clear: 0, propagation: libc::MS_PRIVATE };

/// Mounts the root and everything into it in a mount namespace of this process's own; the caller enters it afterwards. With
/// `bare` that namespace is still to be made, as a copy of that one; without, it is there, as a copy of the host's.
///
/// `ahead` has, for each mount, what [`make_ahead`] made of it; or it is empty.
pub(crate) fn build(mut view: View<'_>, ahead: Vec<Option<Made>>, bare: Option<&File>, proc: &Procfs) -> Result<Root> {
    let flags = propagation(view.linux)?;
    if let Some(bare) = bare {
        view.propagation = Some(flags & !libc::MS_REC);
        if let Some(root) = in_bare(&view, bare, proc)? {
            return Ok(root);
        }
        view.propagation = None;
        leave(Kind::Mount.flag()).context(|| "make a mount namespace".to_owned())?;
    }
    in_copy(&view, ahead, flags)
}

/// Makes bind mounts while this process still has the host's rights: in a user namespace it may not map ids of the host's file
/// systems, and not reach every source. One of the root itself has to wait for the root.
pub(crate) fn make_ahead(mut view: View<'_>) -> Result<Vec<Option<Made>>> {
    view.propagation = Some(propagation(view.linux)? & !libc::MS_REC);
    let early =
        |m: &&Mount| matches!(mounts::plan(m).what, What::Bind { .. }) && !is_of_root(m, view.bundle, view.rootfs);
    let made = |m: &Mount| Some(m).filter(early).map(|m| make(&view, m).context(|| about(m))).transpose();
    view.spec.mounts.iter().map(made).collect()
}

/// How the container's mounts hear from the host's and tell them.
fn propagation(linux: &Linux) -> Result<u64> {
    match linux.rootfs_propagation.as_deref().filter(|p| !p.is_empty()) {
        // Nothing that happens inside may reach the host unless asked for; what happens outside may come in.
        None => Ok(libc::MS_SLAVE | libc::MS_REC),
        Some(word) => match propagation_of(word) {
            Some(flags) => Ok(flags | libc::MS_REC),
            None => fail!("linux.rootfsPropagation: unknown propagation {word:?}"),
        },
    }
}

fn in_bare(view: &View<'_>, bare: &File, proc: &Procfs) -> Result<Option<Root>> {
    let at_root = || format!("mount the root file system {}", view.rootfs.display());
    let tree = host_tree(view, view.rootfs, true).context(at_root)?;
    mount::set_attributes(tree.as_fd(), PRIVATE, false, None).context(at_root)?;
    let made = view.spec.mounts.iter().map(|m| Ok((m, make(view, m).context(|| about(m))?)));
    let made = made.collect::<Result<Vec<_>>>()?;
    let crossing = Crossing::to(bare, proc).context(|| "make a mount namespace".to_owned())?;
    let Some(crossing) = crossing else { return Ok(None) };
    let root = crossing.hang(tree).context(at_root)?;
    for (m, made) in made {
        put(&root, m, made).context(|| about(m))?;
    }
    devices(view, &root, Some(&crossing))?;
    Ok(Some(root))
}

fn in_copy(view: &View<'_>, ahead: Vec<Option<Made>>, flags: u64) -> Result<Root> {
    mount::set_propagation(Path::new("/"), flags).context(|| "set the propagation of /".to_owned())?;
    let at_root = || format!("mount the root file system {}", view.rootfs.display());
    let tree = mount::clone_tree(CWD, view.rootfs, true).context(at_root)?;
    if flags & libc::MS_SHARED != 0 {
        stop_sharing_above(view.rootfs).context(at_root)?;
    }
    let place = Root::open(view.rootfs).context(at_root)?;
    mount::attach(tree.as_fd(), place.as_fd()).context(at_root)?;
    let root = Root::open(view.rootfs).context(at_root)?;
    mount::set_attributes(root.as_fd(), PRIVATE, false, None).context(at_root)?;
    for (m, made) in view.spec.mounts.iter().zip(ahead.into_iter().chain(std::iter::repeat_with(|| None))) {
        made.map_or_else(|| make(view, m), Ok).and_then(|made| put(&root, m, made)).context(|| about(m))?;
    }
    devices(view, &root, None)?;
    Ok(root)
}

/// Makes the mount that `path` lies on private to this namespace: on a shared one, what is mounted at `path` would be mounted
/// on the host too and stay there, and `pivot_root` refuses a root whose parent is shared.
fn stop_sharing_above(path: &Path) -> io::Result<()> {
    for place in path.canonicalize()?.ancestors() {
        match mount::set_propagation(place, libc::MS_PRIVATE) {
            // Not where a mount begins.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            done => return done,
        }
    }
    Ok(())
}

fn devices(view: &View<'_>, root: &Root, crossing: Option<&Crossing<'_>>) -> Result<()> {
    // A container whose /dev is the host's gets nothing made there.
    let bound = view
        .spec
        .mounts
        .iter()
        .any(|m| m.destination == Path::new("/dev") && matches!(mounts::plan(m).what, What::Bind { .. }));
    if bound {
        return Ok(());
    }
    let dev = root.make_dir(Path::new("/dev")).context(|| "make /dev".to_owned())?;
    let umask = rustix::process::umask(Mode::empty());
    let made = nodes(view, root, &dev, crossing);
    rustix::process::umask(umask);
    made?;
    for (path, target) in LINKS {
        if path == "/dev/ptmx" && root.place_nofollow(Path::new("/dev/pts")).is_err() {
            continue;
        }
        let name = Path::new(path).file_name().unwrap_or_default();
        match gantry_sys::root::make_link_at(dev.as_fd(), name, target) {
            // An image may bring its own /dev/ptmx; a node there is as good.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.context(|| format!("link {path}"))?,
        }
    }
    Ok(())
}

fn nodes(view: &View<'_>, root: &Root, dev: &OwnedFd, crossing: Option<&Crossing<'_>>) -> Result<()> {
    let host = |path: &Path| match crossing {
        Some(crossing) => crossing.host_tree(path),
        None => mount::clone_tree(CWD, path, false),
    };
    for (path, major, minor) in DEFAULT {
        let device = Device {
            path: path.into(),
            kind: "c".to_owned(),
            major: major.into(),
            minor: minor.into(),
            file_mode: Some(0o666),
            ..Device::default()
        };
        let asked = view.linux.devices.iter().find(|d| d.path == device.path).unwrap_or(&device);
        make_device(view, root, dev, asked, host).context(|| format!("make device {path}"))?;
    }
    for device in view.linux.devices.iter().filter(|d| !is_default(d)) {
        make_device(view, root, dev, device, host).context(|| format!("make device {}", device.path.display()))?;
    }
    Ok(())
}

/// Makes a node; `dev` is the container's /dev, where most of them are. `host` copies what the host has at a path.
fn make_device(
    view: &View<'_>,
    root: &Root,
    dev: &OwnedFd,
    device: &Device,
    host: impl Fn(&Path) -> io::Result<OwnedFd>,
) -> Result<()> {
    if view.user_namespace {
        return bind_device(root, device, host);
    }
    let file_type = match device.kind.as_str() {
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        _ => FileType::CharacterDevice,
    };
    let number =
        |n: i64, what: &str| u32::try_from(n).map_err(|_| crate::Error::new(format!("{what} {n} is out of range")));
    let (major, minor) = (number(device.major, "major")?, number(device.minor, "minor")?);
    let (elsewhere, name) = match (device.path.parent(), device.path.file_name()) {
        (Some(parent), Some(name)) if parent == Path::new("/dev") => (None, name),
        _ => {
            let (parent, name) = root.parent_of(&device.path).context(|| "find its folder".to_owned())?;
            (Some(parent), name)
        }
    };
    let parent = elsewhere.as_ref().unwrap_or(dev);
    // The mode as asked for, whatever the umask: this process has none while it builds the root.
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    match rustix::fs::mknodat(parent, name, file_type, mode, rustix::fs::makedev(major, minor)) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => return Ok(()),
        Err(rustix::io::Errno::PERM) => return bind_device(root, device, host),
        Err(e) => return Err(e).context(|| "mknod".to_owned()),
    }
    let owner = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
    if owner == (0, 0) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .context(|| "chown".to_owned())
}

/// Without the right to make nodes, the host's own node is shown instead.
fn bind_device(root: &Root, device: &Device, host: impl Fn(&Path) -> io::Result<OwnedFd>) -> Result<()> {
    let tree = host(&device.path).context(|| "the host's node".to_owned())?;
    let target = root.make_file(&device.path).context(|| "make the file".to_owned())?;
    mount::attach(tree.as_fd(), target.as_fd()).context(|| "attach".to_owned())
}

/// Makes `root` the root of the mount namespace and forgets the host's. `propagation` is what the configuration asks for.
pub(crate) fn enter(root: &Root, propagation: Option<&str>) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty()).context(|| "open the host's root".to_owned())?;
    rustix::process::fchdir(root).context(|| "enter the root file system".to_owned())?;
    rustix::process::pivot_root(".", ".").context(|| "pivot_root".to_owned())?;
    // The old root is now stacked over the new one. What is unmounted here must not be unmounted on the host too.
    rustix::process::fchdir(&old).context(|| "enter the host's root".to_owned())?;
    mount::set_propagation(Path::new("."), libc::MS_SLAVE | libc::MS_REC)
        .context(|| "part from the host".to_owned())?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH).context(|| "detach the host's root".to_owned())?;
    rustix::process::chdir("/").context(|| "chdir /".to_owned())?;
    match propagation.and_then(propagation_of) {
        Some(flags) => mount::set_propagation(Path::new("/"), flags).context(|| "linux.rootfsPropagation".to_owned()),
        None => Ok(()),
    }
}

/// Makes `root` the root of this process only, where there is no mount namespace to change or pivoting is not wanted.
pub(crate) fn enter_by_chroot(root: &Root, namespace: bool) -> Result<()> {
    rustix::process::fchdir(root).context(|| "enter the root file system".to_owned())?;
    if namespace {
        rustix::mount::mount_move(".", "/").context(|| "move the root file system".to_owned())?;
    }
    rustix::process::chroot(".").context(|| "chroot".to_owned())?;
    rustix::process::chdir("/").context(|| "chdir /".to_owned())
}

/// Hides and write-protects paths inside the container's root, which is this process's root now.
pub(crate) fn restrict(linux: &Linux, readonly_root: bool) -> Result<()> {
    let root = Root::open(Path::new("/")).context(|| "open /".to_owned())?;
    let read_only = Attributes { set: mount::RDONLY, ..Attributes::default() };
    for path in &linux.readonly_paths {
        let Some(place) = find(&root, path)? else { continue };
        let what = || format!("make {} read-only", path.display());
        let tree = mount::clone_tree(place.as_fd(), Path::new(""), true).context(what)?;
        mount::set_attributes(tree.as_fd(), read_only, true, None).context(what)?;
        mount::attach(tree.as_fd(), place.as_fd()).context(what)?;
    }
    let mut empty: Option<OwnedFd> = None;
    for path in &linux.masked_paths {
        let Some(place) = find(&root, path)? else { continue };
        let what = || format!("mask {}", path.display());
        let tree = if kind(place.as_fd()).context(what)? == FileType::Directory {
            masked_folder(&mut empty).context(what)?
        } else {
            null_device(&root).context(what)?
        };
        mount::attach(tree.as_fd(), place.as_fd()).context(what)?;
    }
    if readonly_root {
        mount::set_attributes(root.as_fd(), read_only, false, None).context(|| "make / read-only".to_owned())?;
    }
    Ok(())
}

fn find(root: &Root, path: &Path) -> Result<Option<OwnedFd>> {
    match root.place_nofollow(path) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e).context(|| format!("find {}", path.display())),
    }
}

/// One empty read-only tmpfs serves every masked folder.
fn masked_folder(shared: &mut Option<OwnedFd>) -> io::Result<OwnedFd> {
    if shared.is_none() {
        let options = [("size", Some("0k")), ("mode", Some("755"))];
        let tmpfs = mount::new_filesystem("tmpfs", Some("tmpfs"), &options, mount::RDONLY)?;
        *shared = Some(tmpfs);
    }
    match shared {
        // A detached file system can be attached once; further places get copies of it.
        Some(fd) => match mount::clone_tree(fd.as_fd(), Path::new(""), false) {
            Ok(copy) => Ok(copy),
            Err(_) => mount::new_filesystem("tmpfs", Some("tmpfs"), &[("size", Some("0k"))], mount::RDONLY),
        },
        None => Err(io::Error::from(io::ErrorKind::NotFound)),
    }
}

/// /dev/null of the container, which must truly be the null device: an image or another container could have put anything
/// there (CVE-2025-31133).
fn null_device(root: &Root) -> io::Result<OwnedFd> {
    let place = root.place_nofollow(Path::new("/dev/null"))?;
    let stat = rustix::fs::fstat(&place)?;
    let null =
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == rustix::fs::makedev(1, 3);
    if !null {
        return Err(io::Error::other("/dev/null in the container is not the null device"));
    }
    mount::clone_tree(place.as_fd(), Path::new(""), false)
}

/// Shows a terminal as /dev/console.
pub(crate) fn show_console(terminal: BorrowedFd<'_>) -> Result<()> {
    let what = || "mount /dev/console".to_owned();
    let root = Root::open(Path::new("/")).context(what)?;
    // What the image brings as /dev/console may be a link to anywhere: the terminal must not come to stand there
    // (CVE-2025-52565).
    let path = Path::new("/dev/console");
    match root.place_nofollow(path) {
        Ok(fd) if kind(fd.as_fd()).context(what)? == FileType::Symlink => fail!("mount /dev/console: it is a link"),
        _ => {}
    }
    root.make_file(path).context(what)?;
    let target = root.place_without_links(path).context(what)?;
    let tree = mount::clone_tree(terminal, Path::new(""), false).context(what)?;
    mount::attach(tree.as_fd(), target.as_fd()).context(what)
}
