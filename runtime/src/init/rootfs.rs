//! The container's view of files: its root, mounts, devices, and what is hidden. Runs in the new mount namespace.
//!
//! Every place inside the root is reached through [`Root`]: one openat2 that cannot leave it.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use gantry_cgroup::Version;
use gantry_sys::mount::{self, Attributes};
use gantry_sys::root::{Root, kind};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};

use crate::error::{Context, Result};
use crate::fail;
use crate::plan::devices::{DEFAULT, LINKS, is_default};
use crate::plan::mounts::{self, Plan, What, propagation_of};
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
}

/// Mounts the root over itself and everything into it; the caller enters it afterwards.
pub(crate) fn build(view: &View<'_>) -> Result<Root> {
    let propagation = view.linux.rootfs_propagation.as_deref().filter(|p| !p.is_empty());
    let flags = match propagation {
        // Nothing that happens inside may reach the host unless asked for; what happens outside may come in.
        None => libc::MS_SLAVE | libc::MS_REC,
        Some(word) => match propagation_of(word) {
            Some(flags) => flags | libc::MS_REC,
            None => fail!("linux.rootfsPropagation: unknown propagation {word:?}"),
        },
    };
    mount::set_propagation(Path::new("/"), flags).context(|| "set the propagation of /".to_owned())?;
    let at_root = || format!("mount the root file system {}", view.rootfs.display());
    let tree = mount::clone_tree(CWD, view.rootfs, true).context(at_root)?;
    // pivot_root refuses a root that shares its mounts with others, and one whose parent does: where sharing was asked
    // for, a private mount comes between.
    let private = Attributes { propagation: libc::MS_PRIVATE, ..Attributes::default() };
    if flags & libc::MS_SHARED != 0 {
        let between = mount::clone_tree(CWD, view.rootfs, false).context(at_root)?;
        mount::set_attributes(between.as_fd(), private, false, None).context(at_root)?;
        let place = Root::open(view.rootfs).context(at_root)?;
        mount::attach(between.as_fd(), place.as_fd()).context(at_root)?;
        let between = Root::open(view.rootfs).context(at_root)?;
        mount::set_attributes(between.as_fd(), private, false, None).context(at_root)?;
    }
    let place = Root::open(view.rootfs).context(at_root)?;
    mount::attach(tree.as_fd(), place.as_fd()).context(at_root)?;
    let root = Root::open(view.rootfs).context(at_root)?;
    mount::set_attributes(root.as_fd(), private, false, None).context(at_root)?;
    for m in &view.spec.mounts {
        let what = m.kind.as_deref().or(m.source.as_ref().and_then(|s| s.to_str())).unwrap_or("bind");
        one(view, &root, m).context(|| format!("mount {what} at {}", m.destination.display()))?;
    }
    devices(view, &root)?;
    Ok(root)
}

fn one(view: &View<'_>, root: &Root, m: &Mount) -> Result<()> {
    let plan = mounts::plan(m);
    match &plan.what {
        What::Bind { recursive } => bind(view, root, m, &plan, *recursive),
        What::Cgroup => cgroup(view, root, m, &plan),
        What::New(fs) => {
            let target = root.make_dir(&m.destination).context(|| "make the folder".to_owned())?;
            if matches!(fs.as_str(), "proc" | "sysfs") {
                // What is masked and write-protected below is found by path: a link in the image, which a container that
                // shares it could exchange, would lead elsewhere (CVE-2019-19921, CVE-2023-27561).
                root.place_without_links(&m.destination).context(|| "a link is no place for it".to_owned())?;
            }
            let tree = new(fs, m, &plan)?;
            finish(&tree, &plan, true)?;
            if plan.copy_up {
                copy_up(&target, &tree)?;
            }
            mount::attach(tree.as_fd(), target.as_fd()).context(|| "attach".to_owned())?;
            propagate(root, m, &plan)
        }
    }
}

fn new(fs: &str, m: &Mount, plan: &Plan) -> Result<OwnedFd> {
    let source = m.source.as_ref().and_then(|s| s.to_str()).unwrap_or(fs);
    let options: Vec<(&str, Option<&str>)> = plan.data.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
    mount::new_filesystem(fs, Some(source), &options, plan.attributes.set).context(|| "make the file system".to_owned())
}

fn bind(view: &View<'_>, root: &Root, m: &Mount, plan: &Plan, recursive: bool) -> Result<()> {
    let Some(source) = &m.source else { fail!("a bind mount needs a source") };
    let source = view.bundle.join(source);
    let tree = mount::clone_tree(CWD, &source, recursive).context(|| format!("source {}", source.display()))?;
    let folder = kind(tree.as_fd()).context(|| format!("source {}", source.display()))? == FileType::Directory;
    let target = if folder { root.make_dir(&m.destination) } else { root.make_file(&m.destination) };
    let target = target.context(|| format!("make the {}", if folder { "folder" } else { "file" }))?;
    if let Some(all) = plan.idmap {
        idmap(&tree, m, view.linux, all)?;
    }
    finish(&tree, plan, false)?;
    mount::attach(tree.as_fd(), target.as_fd()).context(|| "attach".to_owned())?;
    propagate(root, m, plan)
}

/// Sets attributes of a mount that is not attached yet. A new file system got its own when it was made.
fn finish(tree: &OwnedFd, plan: &Plan, new: bool) -> Result<()> {
    let plain = Attributes { propagation: 0, ..plan.attributes };
    if !new && plain != Attributes::default() {
        mount::set_attributes(tree.as_fd(), plain, false, None).context(|| "set mount options".to_owned())?;
    }
    if plan.recursive != Attributes::default() {
        mount::set_attributes(tree.as_fd(), plan.recursive, true, None)
            .context(|| "set recursive mount options".to_owned())?;
    }
    Ok(())
}

fn propagate(root: &Root, m: &Mount, plan: &Plan) -> Result<()> {
    for flags in &plan.propagation {
        let fd = root.place(&m.destination).context(|| "find the mount".to_owned())?;
        let attributes = Attributes { propagation: flags & !libc::MS_REC, ..Attributes::default() };
        mount::set_attributes(fd.as_fd(), attributes, flags & libc::MS_REC != 0, None)
            .context(|| "set propagation".to_owned())?;
    }
    Ok(())
}

/// Maps the ids of a tree through a user namespace that a helper process holds for a moment.
fn idmap(tree: &OwnedFd, m: &Mount, linux: &Linux, all: bool) -> Result<()> {
    let (uids, gids) = if m.uid_mappings.is_empty() {
        (&linux.uid_mappings, &linux.gid_mappings)
    } else {
        (&m.uid_mappings, &m.gid_mappings)
    };
    if uids.is_empty() {
        fail!("an idmapped mount needs uidMappings and gidMappings");
    }
    let namespace = super::identity::user_namespace(uids, gids)?;
    let attributes = Attributes { set: mount::IDMAP, ..Attributes::default() };
    mount::set_attributes(tree.as_fd(), attributes, all, Some(namespace.as_fd())).context(|| "map ids".to_owned())
}

/// Fills a tmpfs with what stands in the folder that it will cover. Every step is taken from an open folder and follows no
/// link: another container could be exchanging them meanwhile.
fn copy_up(from: &OwnedFd, tree: &OwnedFd) -> Result<()> {
    fn open(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?)
    }
    fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let source = open(from, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
                    rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700))?;
                    let target = open(to, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
                    copy(source.as_fd(), target.as_fd())?;
                    rustix::fs::fchown(&target, uid, gid)?;
                    rustix::fs::fchmod(&target, mode)?;
                }
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                    rustix::fs::symlinkat(target, to, name)?;
                    rustix::fs::chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
                }
                FileType::RegularFile => {
                    let mut source = File::from(open(from, name, OFlags::RDONLY)?);
                    let mut target = File::from(open(to, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?);
                    io::copy(&mut source, &mut target)?;
                    rustix::fs::fchown(&target, uid, gid)?;
                    rustix::fs::fchmod(&target, mode)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
    let readable = |fd: &OwnedFd| open(fd.as_fd(), c".", OFlags::RDONLY | OFlags::DIRECTORY);
    readable(from).and_then(|from| copy(from.as_fd(), readable(tree)?.as_fd())).context(|| "tmpcopyup".to_owned())
}

/// The container's own part of the cgroup trees: one mount on version 2, one per hierarchy below a tmpfs otherwise.
fn cgroup(view: &View<'_>, root: &Root, m: &Mount, plan: &Plan) -> Result<()> {
    let host = crate::cgroups::host().context(|| "find the host's cgroups".to_owned())?;
    let target = root.make_dir(&m.destination).context(|| "make the folder".to_owned())?;
    if host.version() == Version::V2 {
        if view.cgroup_namespace {
            let tree = mount::new_filesystem("cgroup2", Some("cgroup"), &[], plan.attributes.set)
                .context(|| "make the file system".to_owned())?;
            return mount::attach(tree.as_fd(), target.as_fd()).context(|| "attach".to_owned());
        }
        let source = host.unified_mount().unwrap_or(Path::new("/sys/fs/cgroup")).join(relative(view.cgroup));
        return own_part(&source, &target, plan);
    }
    let options = [("mode", Some("755")), ("size", Some("64k"))];
    let flags = mount::NOSUID | mount::NODEV | mount::NOEXEC;
    let tree = mount::new_filesystem("tmpfs", Some("tmpfs"), &options, flags).context(|| "make a tmpfs".to_owned())?;
    mount::attach(tree.as_fd(), target.as_fd()).context(|| "attach".to_owned())?;
    let mut done: Vec<PathBuf> = Vec::new();
    for (controller, point) in host.v1_mounts() {
        let Some(name) = point.file_name() else { continue };
        let inside = m.destination.join(name);
        let source = point.join(relative(view.cgroup));
        if !done.contains(&inside) && source.is_dir() {
            let place = root.make_dir(&inside).context(|| format!("make {}", inside.display()))?;
            own_part(&source, &place, plan).context(|| controller.to_owned())?;
            done.push(inside);
        }
        // `cpu` beside `cpu,cpuacct`, as programs look for it.
        if name != controller && !controller.starts_with("name=") {
            let target = name.to_string_lossy();
            root.make_link(&m.destination.join(controller), &target).context(|| format!("link {controller}"))?;
        }
    }
    if let Some(unified) = host.unified_mount() {
        let source = unified.join(relative(view.cgroup));
        if source.is_dir() {
            let place = root.make_dir(&m.destination.join("unified")).context(|| "make unified".to_owned())?;
            own_part(&source, &place, plan).context(|| "unified".to_owned())?;
        }
    }
    if plan.attributes.set & mount::RDONLY != 0 {
        let top = root.place(&m.destination).context(|| "find the mount".to_owned())?;
        let read_only = Attributes { set: mount::RDONLY, ..Attributes::default() };
        mount::set_attributes(top.as_fd(), read_only, false, None).context(|| "make it read-only".to_owned())?;
    }
    Ok(())
}

fn own_part(source: &Path, target: &OwnedFd, plan: &Plan) -> Result<()> {
    let tree = mount::clone_tree(CWD, source, false).context(|| format!("source {}", source.display()))?;
    let set = plan.attributes.set | mount::NOSUID | mount::NODEV | mount::NOEXEC;
    let attributes = Attributes { set, ..Attributes::default() };
    mount::set_attributes(tree.as_fd(), attributes, false, None).context(|| "set mount options".to_owned())?;
    mount::attach(tree.as_fd(), target.as_fd()).context(|| "attach".to_owned())
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn devices(view: &View<'_>, root: &Root) -> Result<()> {
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
    let made = nodes(view, root, &dev);
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

fn nodes(view: &View<'_>, root: &Root, dev: &OwnedFd) -> Result<()> {
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
        make_device(view, root, dev, asked).context(|| format!("make device {path}"))?;
    }
    for device in view.linux.devices.iter().filter(|d| !is_default(d)) {
        make_device(view, root, dev, device).context(|| format!("make device {}", device.path.display()))?;
    }
    Ok(())
}

/// Makes a node; `dev` is the container's /dev, where most of them are.
fn make_device(view: &View<'_>, root: &Root, dev: &OwnedFd, device: &Device) -> Result<()> {
    if view.user_namespace {
        return bind_device(root, device);
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
        Err(rustix::io::Errno::PERM) => return bind_device(root, device),
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
fn bind_device(root: &Root, device: &Device) -> Result<()> {
    let tree = mount::clone_tree(CWD, &device.path, false).context(|| "the host's node".to_owned())?;
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
