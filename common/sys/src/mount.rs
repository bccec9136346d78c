//! The mount API: detached trees, recursive attributes, overlay file systems.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
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

/// Layers of an overlay file system.
#[derive(Clone, Copy, Debug)]
pub struct Overlay<'a> {
    /// Read-only layers, uppermost first; at least one.
    pub lower: &'a [&'a Path],
    /// Where changes go, and the empty work folder beside it on the same file system; none for a read-only overlay.
    pub upper: Option<(&'a Path, &'a Path)>,
    /// Mount attributes (`RDONLY`, ...).
    pub attributes: u64,
}

/// Mounts an overlay at `target`: layer by layer where the kernel can (any number of layers, any characters), otherwise by
/// the classic option string.
///
/// # Errors
/// The kernel's, from the way that was tried last.
pub fn overlay(layers: Overlay<'_>, target: &Path) -> io::Result<()> {
    match overlay_by_layers(layers) {
        Ok(tree) => {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            Ok(rustix::mount::move_mount(tree.as_fd(), "", rustix::fs::CWD, target, flags)?)
        }
        Err(error) => overlay_by_string(layers, target).map_err(|second| match second.raw_os_error() {
            Some(libc::EINVAL) => error,
            _ => second,
        }),
    }
}

fn overlay_by_layers(layers: Overlay<'_>) -> io::Result<OwnedFd> {
    let text = |p: &Path| p.to_str().map(str::to_owned).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput));
    let mut options: Vec<(&str, String)> = Vec::new();
    for lower in layers.lower {
        options.push(("lowerdir+", text(lower)?));
    }
    if let Some((upper, work)) = layers.upper {
        options.push(("upperdir", text(upper)?));
        options.push(("workdir", text(work)?));
    }
    let options: Vec<(&str, Option<&str>)> = options.iter().map(|(k, v)| (*k, Some(v.as_str()))).collect();
    new_filesystem("overlay", Some("overlay"), &options, layers.attributes)
}

fn overlay_by_string(layers: Overlay<'_>, target: &Path) -> io::Result<()> {
    let mut data = b"lowerdir=".to_vec();
    for (i, lower) in layers.lower.iter().enumerate() {
        if i > 0 {
            data.push(b':');
        }
        escape(lower, &mut data);
    }
    if let Some((upper, work)) = layers.upper {
        data.extend_from_slice(b",upperdir=");
        escape(upper, &mut data);
        data.extend_from_slice(b",workdir=");
        escape(work, &mut data);
    }
    let data = CString::new(data).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, layers.attributes & RDONLY != 0);
    flags.set(MountFlags::NODEV, layers.attributes & NODEV != 0);
    flags.set(MountFlags::NOSUID, layers.attributes & NOSUID != 0);
    Ok(rustix::mount::mount("overlay", target, "overlay", flags, Some(data.as_c_str()))?)
}

fn escape(path: &Path, into: &mut Vec<u8>) {
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            into.push(b'\\');
        }
        into.push(byte);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            println!("skipped: needs root");
        }
        root
    }

    #[test]
    fn an_overlay_shows_its_layers_and_is_gone_after_unmounting() {
        if !root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |n: &str| {
            let p = dir.path().join(n);
            std::fs::create_dir(&p).unwrap();
            p
        };
        let (a, b, upper, work, target) = (path("a:1"), path("b,2"), path("upper"), path("work"), path("target"));
        std::fs::write(a.join("one"), "1").unwrap();
        std::fs::write(b.join("two"), "2").unwrap();
        let layers = Overlay { lower: &[&a, &b], upper: Some((&upper, &work)), attributes: NODEV };
        overlay(layers, &target).unwrap();
        assert!(target.join("one").exists() && target.join("two").exists());
        std::fs::write(target.join("three"), "3").unwrap();
        unmount_all(&target).unwrap();
        unmount_all(&target).unwrap();
        assert!(!target.join("one").exists() && upper.join("three").exists());
        overlay_by_string(layers, &target).unwrap();
        assert!(target.join("one").exists() && target.join("two").exists());
        unmount_all(&target).unwrap();
    }
}
