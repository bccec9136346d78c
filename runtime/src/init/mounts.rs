//! The container's mounts. Each is made as a tree that hangs nowhere, from what the host has, and then put in its place
//! inside the root: the two halves may happen in different mount namespaces.
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

use super::rootfs::View;
use crate::error::{Context, Result};
use crate::fail;
use crate::plan::mounts::{self, Plan, What};
use crate::spec::{Linux, Mount};

/// A mount that hangs nowhere yet.
pub(crate) struct Made {
    plan: Plan,
    tree: Tree,
}

enum Tree {
    Bind { tree: OwnedFd, folder: bool },
    New(OwnedFd),
    Cgroup(Cgroups),
}

/// The container's own part of the cgroup trees.
enum Cgroups {
    /// One mount on version 2.
    One(OwnedFd),
    /// One per hierarchy below a tmpfs otherwise.
    Each { top: OwnedFd, parts: Vec<(PathBuf, OwnedFd)>, links: Vec<(String, PathBuf)> },
}

/// What a mount is, for an error about it.
pub(super) fn about(m: &Mount) -> String {
    let what = m.kind.as_deref().or(m.source.as_ref().and_then(|s| s.to_str())).unwrap_or("bind");
    format!("mount {what} at {}", m.destination.display())
}

/// Makes a mount from what this process sees of the host.
pub(super) fn make(view: &View<'_>, m: &Mount) -> Result<Made> {
    let plan = mounts::plan(m);
    let tree = match &plan.what {
        What::Bind { recursive } => bind(view, m, &plan, *recursive)?,
        What::Cgroup => Tree::Cgroup(cgroup(view, &plan)?),
        What::New(fs) => {
            let tree = new(fs, m, &plan, view.linux)?;
            finish(&tree, &plan, true)?;
            Tree::New(tree)
        }
    };
    Ok(Made { plan, tree })
}

/// Puts a mount in its place.
pub(super) fn put(root: &Root, m: &Mount, made: Made) -> Result<()> {
    let Made { plan, tree } = made;
    match tree {
        Tree::Bind { tree, folder } => {
            let target = if folder { root.make_dir(&m.destination) } else { root.make_file(&m.destination) };
            let target = target.context(|| format!("make the {}", if folder { "folder" } else { "file" }))?;
            mount::attach(tree.as_fd(), target.as_fd()).context(|| "attach".to_owned())?;
            propagate(root, m, &plan)
        }
        Tree::New(tree) => {
            let target = root.make_dir(&m.destination).context(|| "make the folder".to_owned())?;
            if matches!(&plan.what, What::New(fs) if matches!(fs.as_str(), "proc" | "sysfs")) {
                // What is masked and write-protected below is found by path: a link in the image, which a container that
                // shares it could exchange, would lead elsewhere (CVE-2019-19921, CVE-2023-27561).
                root.place_without_links(&m.destination).context(|| "a link is no place for it".to_owned())?;
            }
            if plan.copy_up {
                copy_up(&target, &tree)?;
            }
            mount::attach(tree.as_fd(), target.as_fd()).context(|| "attach".to_owned())?;
            propagate(root, m, &plan)
        }
        Tree::Cgroup(groups) => put_cgroups(root, m, &plan, groups),
    }
}

/// A copy of what the host has at `path`, whose mounts hear from the host's as those of a copied namespace would.
pub(super) fn host_tree(view: &View<'_>, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let tree = mount::clone_tree(CWD, path, recursive)?;
    if let Some(propagation) = view.propagation {
        let attributes = Attributes { propagation, ..Attributes::default() };
        mount::set_attributes(tree.as_fd(), attributes, true, None)?;
    }
    Ok(tree)
}

fn new(fs: &str, m: &Mount, plan: &Plan, linux: &Linux) -> Result<OwnedFd> {
    let source = m.source.as_ref().and_then(|s| s.to_str()).unwrap_or(fs);
    let mut options: Vec<(&str, Option<&str>)> = plan.data.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
    // The kernel's own views have labels of the policy's.
    let label = linux.mount_label.as_deref().filter(|label| !label.is_empty());
    let label =
        label.filter(|_| !matches!(fs, "proc" | "sysfs" | "mqueue") && options.iter().all(|(k, _)| *k != "context"));
    options.extend(label.map(|label| ("context", Some(label))));
    mount::new_filesystem(fs, Some(source), &options, plan.attributes.set)
        .context(|| format!("make the file system{}", if label.is_some() { " with linux.mountLabel" } else { "" }))
}

fn bind(view: &View<'_>, m: &Mount, plan: &Plan, recursive: bool) -> Result<Tree> {
    let Some(source) = &m.source else { fail!("a bind mount needs a source") };
    let source = view.bundle.join(source);
    let tree = host_tree(view, &source, recursive).context(|| format!("source {}", source.display()))?;
    let folder = kind(tree.as_fd()).context(|| format!("source {}", source.display()))? == FileType::Directory;
    if let Some(all) = plan.idmap {
        idmap(&tree, m, view.linux, all)?;
    }
    finish(&tree, plan, false)?;
    Ok(Tree::Bind { tree, folder })
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

fn cgroup(view: &View<'_>, plan: &Plan) -> Result<Cgroups> {
    let host = crate::cgroups::host().context(|| "find the host's cgroups".to_owned())?;
    if host.version() == Version::V2 {
        if view.cgroup_namespace {
            return mount::new_filesystem("cgroup2", Some("cgroup"), &[], plan.attributes.set)
                .map(Cgroups::One)
                .context(|| "make the file system".to_owned());
        }
        let source = host.unified_mount().unwrap_or(Path::new("/sys/fs/cgroup")).join(relative(view.cgroup));
        return own_part(view, &source, plan).map(Cgroups::One);
    }
    let options = [("mode", Some("755")), ("size", Some("64k"))];
    let flags = mount::NOSUID | mount::NODEV | mount::NOEXEC;
    let top = mount::new_filesystem("tmpfs", Some("tmpfs"), &options, flags).context(|| "make a tmpfs".to_owned())?;
    let mut parts: Vec<(PathBuf, OwnedFd)> = Vec::new();
    let mut links = Vec::new();
    for (controller, point) in host.v1_mounts() {
        let Some(name) = point.file_name().map(Path::new) else { continue };
        let source = point.join(relative(view.cgroup));
        if parts.iter().all(|(done, _)| done != name) && source.is_dir() {
            let part = own_part(view, &source, plan).context(|| controller.to_owned())?;
            parts.push((name.to_owned(), part));
        }
        // `cpu` beside `cpu,cpuacct`, as programs look for it.
        if name != Path::new(controller) && !controller.starts_with("name=") {
            links.push((controller.to_owned(), name.to_owned()));
        }
    }
    if let Some(unified) = host.unified_mount() {
        let source = unified.join(relative(view.cgroup));
        if source.is_dir() {
            let part = own_part(view, &source, plan).context(|| "unified".to_owned())?;
            parts.push(("unified".into(), part));
        }
    }
    Ok(Cgroups::Each { top, parts, links })
}

fn own_part(view: &View<'_>, source: &Path, plan: &Plan) -> Result<OwnedFd> {
    let tree = host_tree(view, source, false).context(|| format!("source {}", source.display()))?;
    let set = plan.attributes.set | mount::NOSUID | mount::NODEV | mount::NOEXEC;
    let attributes = Attributes { set, ..Attributes::default() };
    mount::set_attributes(tree.as_fd(), attributes, false, None).context(|| "set mount options".to_owned())?;
    Ok(tree)
}

fn put_cgroups(root: &Root, m: &Mount, plan: &Plan, groups: Cgroups) -> Result<()> {
    let target = root.make_dir(&m.destination).context(|| "make the folder".to_owned())?;
    let (top, parts, links) = match groups {
        Cgroups::One(tree) => return mount::attach(tree.as_fd(), target.as_fd()).context(|| "attach".to_owned()),
        Cgroups::Each { top, parts, links } => (top, parts, links),
    };
    mount::attach(top.as_fd(), target.as_fd()).context(|| "attach".to_owned())?;
    for (name, tree) in parts {
        let inside = m.destination.join(name);
        let place = root.make_dir(&inside).context(|| format!("make {}", inside.display()))?;
        mount::attach(tree.as_fd(), place.as_fd()).context(|| format!("attach {}", inside.display()))?;
    }
    for (controller, name) in links {
        let target = name.to_string_lossy();
        root.make_link(&m.destination.join(&controller), &target).context(|| format!("link {controller}"))?;
    }
    if plan.attributes.set & mount::RDONLY != 0 {
        let top = root.place(&m.destination).context(|| "find the mount".to_owned())?;
        let read_only = Attributes { set: mount::RDONLY, ..Attributes::default() };
        mount::set_attributes(top.as_fd(), read_only, false, None).context(|| "make it read-only".to_owned())?;
    }
    Ok(())
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}
