//! The mount API: detached trees and recursive attributes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::process::check;

/// Mount attributes to set and clear (`MOUNT_ATTR_*` bits), with mount_setattr(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear.
    pub clear: u64,
    /// Propagation (`MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`), 0 to leave it.
    pub propagation: u64,
}

/// `MOUNT_ATTR_RDONLY`
pub const RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`
pub const NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`
pub const NODEV: u64 = 0x4;
/// `MOUNT_ATTR_NOEXEC`
pub const NOEXEC: u64 = 0x8;
/// `MOUNT_ATTR_NOATIME`
pub const NOATIME: u64 = 0x10;
/// `MOUNT_ATTR_STRICTATIME`
pub const STRICTATIME: u64 = 0x20;
/// The mask of all access-time modes (`MOUNT_ATTR__ATIME`); `relatime` is 0 within it.
pub const ATIME_MASK: u64 = 0x70;
/// `MOUNT_ATTR_NODIRATIME`
pub const NODIRATIME: u64 = 0x80;
/// `MOUNT_ATTR_IDMAP`
pub const IDMAP: u64 = 0x10_0000;
/// `MOUNT_ATTR_NOSYMFOLLOW`
pub const NOSYMFOLLOW: u64 = 0x20_0000;

/// Changes attributes of the mount at `fd` (a mount root or a detached tree), of all mounts below it when `recursive`.
/// `user_namespace` maps ids when `IDMAP` is set.
///
/// # Errors
/// The kernel's; `EINVAL` where `fd` is no mount root.
pub fn set_attributes(
    fd: BorrowedFd<'_>,
    attributes: Attributes,
    recursive: bool,
    user_namespace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let attr = MountAttr {
        set: attributes.set,
        clear: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: user_namespace.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the empty path and the attributes live across the call; the size is the structure's own.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
}

/// A detached copy of the mount at `path` below `dir`, with everything mounted below it when `recursive`.
///
/// # Errors
/// The kernel's.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(dir, path, flags)?)
}

/// Attaches a detached tree on top of `target`, a descriptor of a folder or file.
///
/// # Errors
/// The kernel's.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", target, "", flags)?)
}

/// A new file system of type `kind` that is not attached anywhere yet. `options` are (key, value) or flags without value.
///
/// # Errors
/// The type is unknown or refuses an option; the message has the kernel's own words where it gave any.
pub fn new_filesystem(
    kind: &str,
    source: Option<&str>,
    options: &[(&str, Option<&str>)],
    attributes: u64,
) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let configure = || -> io::Result<OwnedFd> {
        if let Some(source) = source {
            rustix::mount::fsconfig_set_string(context.as_fd(), "source", source)?;
        }
        for (key, value) in options {
            match value {
                Some(value) => rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?,
                None => rustix::mount::fsconfig_set_flag(context.as_fd(), *key)?,
            }
        }
        rustix::mount::fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
        Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
    };
    configure().map_err(|e| {
        let words = kernel_words(context.as_fd());
        if words.is_empty() { e } else { io::Error::new(e.kind(), format!("{e} ({words})")) }
    })
}

fn kernel_words(context: BorrowedFd<'_>) -> String {
    let mut buffer = [0_u8; 512];
    let mut words = Vec::new();
    while let Ok(n) = rustix::io::read(context, &mut buffer) {
        if n == 0 {
            break;
        }
        words.push(String::from_utf8_lossy(&buffer[..n]).trim().to_owned());
    }
    words.join("; ")
}

/// Bind-mounts `source` at `target`, with everything below when `recursive`.
///
/// # Errors
/// The kernel's.
pub fn bind(source: &Path, target: &Path, recursive: bool) -> io::Result<()> {
    if recursive {
        Ok(rustix::mount::mount_bind_recursive(source, target)?)
    } else {
        Ok(rustix::mount::mount_bind(source, target)?)
    }
}

/// Changes how mount events pass between `target` and its peers.
///
/// # Errors
/// `target` is no mount point, or the flags do not fit together.
pub fn set_propagation(target: &Path, flags: u64) -> io::Result<()> {
    let flags = MountPropagationFlags::from_bits_retain(flags as u32);
    Ok(rustix::mount::mount_change(target, flags)?)
}

/// Detaches whatever is mounted at `target` (lazily when it is busy), however many mounts are stacked there. Nothing
/// mounted, or no such path: nothing to do.
///
/// # Errors
/// The kernel's, beyond those two.
pub fn unmount_all(target: &Path) -> io::Result<()> {
    for _ in 0..64 {
        match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("more than 64 mounts are stacked on one place"))
}
