//! A mount namespace with hardly anything in it, to copy instead of the host's.
//!
//! A new mount namespace is a copy of the one that its maker is in: on a host with thousands of mounts the kernel copies them
//! all for each container, and drops them all again once the container's root is entered. The kernel's own thread for /dev,
//! kdevtmpfs, lives in a namespace of two mounts on every host. So the container's mounts are made as trees that hang nowhere
//! while the process still sees the host; then it goes there, makes its copy of that, and hangs them in. Where the thread cannot
//! be found or its namespace not be entered (in a container, as a user) the host's is copied as ever.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use gantry_sys::mount;
use gantry_sys::namespaces::{Kind, enter, leave};
use gantry_sys::root::Root;
use rustix::fs::{CWD, Mode, OFlags};

use super::procfs::Procfs;
use super::rootfs::is_of_root;
use crate::spec::{Hooks, Spec};

/// Where the thread's number is kept, beside the containers' folders: hidden, and with a sign that no container's id has.
const MEMO: &str = ".kdevtmpfs~";

/// More mounts than these are made the other way: each is a descriptor until it is in its place.
const MOST_MOUNTS: usize = 128;

/// Whether a container's mounts can all be made before its root is there: none is of the root itself, and no hook expects
/// the host's files in its mount namespace.
pub(super) fn suits(spec: &Spec, bundle: &Path, rootfs: &Path) -> bool {
    let early = |h: &Hooks| [&h.prestart, &h.create_runtime, &h.create_container].iter().any(|list| !list.is_empty());
    let unbindable = spec.linux().rootfs_propagation.as_deref().is_some_and(|word| word.ends_with("unbindable"));
    !spec.hooks.as_ref().is_some_and(early)
        && !spec.mounts.iter().any(|m| is_of_root(m, bundle, rootfs))
        && spec.mounts.len() <= MOST_MOUNTS
        && !unbindable
}

/// Opens the namespace, where this process can. `store` remembers which process the thread is.
pub(super) fn open(store: &Path) -> Option<File> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let uname = rustix::system::uname();
    let kernel = uname.release().to_string_lossy();
    let memo = store.join(MEMO);
    let known = fs::read_to_string(&memo).ok().and_then(|text| number(&text, &kernel));
    let pid = match known {
        // This kernel has no such thread, or it cannot be seen.
        Some(0) => return None,
        Some(pid) if is_thread(pid) => pid,
        _ => {
            let found = find();
            // Whole or not at all; without it the next command searches again.
            let new = store.join(format!("{MEMO}{}", std::process::id()));
            let _ = fs::write(&new, format!("{kernel} {}", found.unwrap_or(0))).and_then(|()| fs::rename(&new, &memo));
            found?
        }
    };
    File::open(format!("/proc/{pid}/ns/mnt")).ok()
}

/// What a memo says, if it is of this kernel.
fn number(memo: &str, kernel: &str) -> Option<i32> {
    memo.strip_prefix(kernel)?.strip_prefix(' ')?.parse().ok()
}

/// Searches the children of kthreadd.
fn find() -> Option<i32> {
    const KTHREADD: i32 = 2;
    kernel_thread(&fs::read_to_string(format!("/proc/{KTHREADD}/stat")).ok()?)?;
    let children = fs::read_to_string(format!("/proc/{KTHREADD}/task/{KTHREADD}/children")).ok()?;
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid| is_thread(*pid))
}

fn is_thread(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| kernel_thread(&stat) == Some("kdevtmpfs"))
}

/// The name in a proc(5) `stat` line, if it is that of a thread of the kernel: a program may take any name, but not this sign.
fn kernel_thread(stat: &str) -> Option<&str> {
    const PF_KTHREAD: u32 = 0x20_0000;
    let (_, rest) = stat.split_once(" (")?;
    let (name, fields) = rest.rsplit_once(") ")?;
    let flags: u32 = fields.split(' ').nth(6)?.parse().ok()?;
    (flags & PF_KTHREAD != 0).then_some(name)
}

/// A process that has gone from the host's mount namespace to one of its own with hardly anything in it.
pub(super) struct Crossing<'a> {
    proc: &'a Procfs,
    /// Where it came from.
    host: OwnedFd,
    /// The root of where it is.
    top: OwnedFd,
}

impl<'a> Crossing<'a> {
    /// Goes to a copy of `bare`; nothing where that cannot be entered, and this process is where it was.
    ///
    /// # Errors
    /// The copy cannot be made.
    pub(super) fn to(bare: &File, proc: &'a Procfs) -> io::Result<Option<Self>> {
        let host = own_namespace(proc)?;
        if enter(bare, Kind::Mount).is_err() {
            return Ok(None);
        }
        leave(Kind::Mount.flag())?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open("/", flags, Mode::empty())?;
        Ok(Some(Self { proc, host, top }))
    }

    /// Hangs a tree over the root: the container's.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn hang(&self, tree: OwnedFd) -> io::Result<Root> {
        mount::attach(tree.as_fd(), self.top.as_fd())?;
        Ok(Root::from_fd(tree))
    }

    /// A copy of what the host has at `path`, as [`mount::clone_tree`] makes it of what is here.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn host_tree(&self, path: &Path) -> io::Result<OwnedFd> {
        let here = own_namespace(self.proc)?;
        enter(&self.host, Kind::Mount)?;
        let tree = mount::clone_tree(CWD, path, false);
        enter(&here, Kind::Mount)?;
        // Coming back led to what hangs over the root by now.
        rustix::process::fchdir(&self.top)?;
        rustix::process::chroot(".")?;
        tree
    }
}

fn own_namespace(proc: &Procfs) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(proc, "self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Mount;

    #[test]
    fn only_the_kernel_s_own_threads_count() {
        let thread = "25 (kdevtmpfs) S 2 0 0 0 -1 2130240 0 0 0 0 0 0 0 0 20 0 1 0 25 0 0";
        assert_eq!(kernel_thread(thread), Some("kdevtmpfs"));
        assert_eq!(kernel_thread(&thread.replace("2130240", "4194560")), None);
        assert_eq!(kernel_thread("7 (a) (kdevtmpfs) S 2 0 0 0 -1 2130240 0"), Some("a) (kdevtmpfs"));
        assert_eq!(kernel_thread(""), None);
    }

    #[test]
    fn a_memo_is_of_one_kernel() {
        assert_eq!(number("6.18.1 25", "6.18.1"), Some(25));
        assert_eq!(number("6.18.1 25", "6.18"), None);
        assert_eq!(number("6.18.1", "6.18.1"), None);
        assert_eq!(number("6.18.1 0", "6.18.1"), Some(0));
    }

    #[test]
    fn mounts_of_the_root_itself_wait_for_it() {
        let spec = |source: &str| Spec {
            mounts: vec![Mount { source: Some(source.into()), ..Mount::default() }],
            ..Spec::default()
        };
        let suits = |source: &str| suits(&spec(source), Path::new("/b"), Path::new("/b/rootfs"));
        assert!(suits("/srv") && suits("data") && suits("/b/rootfs2"));
        assert!(!suits("/b/rootfs/etc") && !suits("rootfs"));
    }
}
