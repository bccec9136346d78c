//! Snapshots where there is no overlayfs: copies of all layers.
//!
//! A container's root is a copy of its own, `snapshots/<id>/fs`; read-only views of one image share `views/<hex>/fs`. Both are
//! made below `unpack/`, which a start empties, and get their place whole, by one rename. They are mounted by a bind mount, which
//! can be read-only and map ids.

use std::collections::hash_map::Entry;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use gantry_sys::mount::{Attributes, IDMAP, NODEV, NOEXEC, NOSUID, RDONLY, attach, clone_tree, set_attributes};
use rustix::fs::CWD;
use rustix::mount::MountPropagationFlags;

use super::Store;
use super::layers::{LayerInfo, Layers};
use super::snapshots::usage;
use super::state::State;
use super::trash::Trash;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::snapshot::{MountOptions, Snapshot};
use crate::unpack::merge::Merge;

/// A copy that has no place yet: what is left of it goes to the trash.
pub(super) struct Made {
    work: PathBuf,
    trash: Trash,
    info: LayerInfo,
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(error) = self.trash.take(&self.work) {
            tracing::warn!(%error, "an unfinished copy stays until the next start");
        }
        self.trash.empty_soon();
    }
}

impl Store {
    /// Copies the layers of a snapshot over one another. They must be held meanwhile. Takes as long as that takes.
    pub(super) fn copy(&self, snapshot: &Snapshot) -> Result<Made> {
        let mut made = Made {
            work: self.layers.scratch(),
            trash: self.trash.clone(),
            info: LayerInfo { bytes: 0, inodes: 0, plain: true },
        };
        let (root, replaced) = (made.work.join("fs"), made.work.join("replaced"));
        for dir in [&made.work, &root, &replaced] {
            fs::create_dir(dir).map_err(|e| Error::io("create", dir, e))?;
        }
        let mut layers = self.lower(snapshot)?;
        layers.reverse();
        self.merge(&root, &replaced, &layers)?;
        if snapshot.view {
            let used = usage(&root);
            made.info = LayerInfo { bytes: used.bytes, inodes: used.inodes, ..made.info };
            Layers::account(&made.work, made.info)?;
            self.trash.take(&replaced)?;
            // Others will use it after this boot, too.
            self.flush()?;
        }
        Ok(made)
    }

    /// Lays folders over what is in `root`, the first first.
    pub(super) fn merge(&self, root: &Path, replaced: &Path, layers: &[PathBuf]) -> Result<()> {
        let open = |path: &Path| File::open(path).map_err(|e| Error::io("open", path, e));
        let mut merge = Merge::new(open(root)?.into(), open(replaced)?.into());
        let done = layers.iter().try_for_each(|layer| merge.layer(layer)).and_then(|()| merge.finish());
        done.map_err(|fault| Error::io("copy layers to", &root.join(fault.entry), fault.error))
    }

    /// Gives a copy its place; a view that has one meanwhile keeps that.
    pub(super) fn settle(&self, state: &mut State, snapshot: &Snapshot, made: &Made) -> Result<()> {
        if !snapshot.view {
            let to = self.snapshots.path(&snapshot.id).join("fs");
            return fs::rename(made.work.join("fs"), &to).map_err(|e| Error::io("rename", &to, e));
        }
        let image = image_of(snapshot)?;
        if let Entry::Vacant(free) = state.views.entry(image) {
            self.views.place(&made.work, free.key())?;
            free.insert(made.info);
        }
        Ok(())
    }

    /// The folder that a native snapshot shows.
    pub(super) fn native_fs(&self, snapshot: &Snapshot) -> Result<PathBuf> {
        if snapshot.view {
            return Ok(self.views.fs(&image_of(snapshot)?));
        }
        Ok(self.snapshots.path(&snapshot.id).join("fs"))
    }

    /// Mounts a native snapshot.
    pub(super) fn bind(&self, snapshot: &Snapshot, target: &Path, options: &MountOptions) -> Result<()> {
        let refuse = |why: String| Error::Invalid(format!("snapshot {}: {why}", snapshot.id));
        if !options.selinux_label.is_empty() {
            return Err(refuse("an SELinux label for all files needs the snapshotter overlayfs".into()));
        }
        let failed = |e| Error::io("mount a copy at", target, e);
        let tree = clone_tree(CWD, &self.native_fs(snapshot)?, false).map_err(failed)?;
        // Like an overlay it takes nothing from the mount that the store is on.
        let mut attributes = Attributes {
            set: 0,
            clear: NOSUID | NODEV | NOEXEC,
            propagation: u64::from(MountPropagationFlags::PRIVATE.bits()),
        };
        if options.read_only || snapshot.view {
            attributes.set |= RDONLY;
        }
        set_attributes(tree.as_fd(), attributes, false, None).map_err(failed)?;
        if let Some(users) = &options.user_namespace {
            let namespace = File::open(users).map_err(|e| Error::io("open", users, e))?;
            let mapped = Attributes { set: IDMAP, ..Attributes::default() };
            set_attributes(tree.as_fd(), mapped, false, Some(namespace.as_fd())).map_err(|e| {
                refuse(format!("the file system of the image store cannot map the ids of a user namespace: {e}"))
            })?;
        }
        attach(tree.as_fd(), File::open(target).map_err(failed)?.as_fd()).map_err(failed)
    }

    /// Whether a native snapshot is mounted at `target` already.
    pub(super) fn is_bound(&self, snapshot: &Snapshot, target: &Path) -> Result<bool> {
        let stat = |path: &Path| fs::metadata(path).map_err(|e| Error::io("stat", path, e));
        let (at, of) = (stat(target)?, stat(&self.native_fs(snapshot)?)?);
        Ok((at.dev(), at.ino()) == (of.dev(), of.ino()))
    }
}

fn image_of(snapshot: &Snapshot) -> Result<Digest> {
    let bad = || Error::Invalid(format!("snapshot {}: {:?} is not a digest", snapshot.id, snapshot.image_id));
    Digest::parse(&snapshot.image_id).ok_or_else(bad)
}
