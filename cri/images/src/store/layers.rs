//! Unpacked layers: `layers/<hex of the diff id>/{fs,layer.json}`, complete or not there.
//!
//! A layer is written below `unpack/` and becomes visible, whole, by one rename. That it outlives a power failure is seen to once
//! per image, see [`super::Store::add`]: a layer that no image names is thrown away by the next start.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::content::write_renamed;
use super::trash::Trash;
use crate::config::Limits;
use crate::digest::Digest;
use crate::error::{Error, Result, is_full};
use crate::unpack::apply::{Fault, apply};
use crate::unpack::marks::to_overlay;
use crate::unpack::tree::Form;

/// Accounting of one layer, kept beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerInfo {
    /// Bytes of file content.
    pub(crate) bytes: u64,
    /// Inodes.
    pub(crate) inodes: u64,
    /// Marks in it are in the plain form.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) plain: bool,
}

/// Where layers live.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    dir: PathBuf,
    work: PathBuf,
    trash: Trash,
    form: Form,
}

static SERIAL: AtomicU64 = AtomicU64::new(0);

impl Layers {
    /// Makes the folders below `root` and drops what a crash left half-unpacked. New layers get their marks in `form`.
    pub(crate) fn open(root: &Path, trash: Trash, form: Form) -> Result<Layers> {
        let layers = Layers { dir: root.join("layers"), work: root.join("unpack"), trash, form };
        for dir in [&layers.dir, &layers.work] {
            fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        }
        for entry in fs::read_dir(&layers.work).map_err(|e| Error::io("read", &layers.work, e))? {
            layers.trash.take(&entry.map_err(|e| Error::io("read", &layers.work, e))?.path())?;
        }
        Ok(layers)
    }

    /// The same for whole images, see [`super::native`]; after [`Layers::open`].
    pub(crate) fn beside(&self, root: &Path, folder: &str) -> Result<Layers> {
        let dir = root.join(folder);
        fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        Ok(Layers { dir, ..self.clone() })
    }

    /// A new name for what is being made; a start removes what has such a name.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.work.join(SERIAL.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Gives the folder `made`, whole, its place.
    pub(crate) fn place(&self, made: &Path, digest: &Digest) -> Result<()> {
        let to = self.dir.join(digest.hex());
        fs::rename(made, &to).map_err(|e| Error::io("rename", &to, e))
    }

    /// Writes down what is in such a folder.
    pub(crate) fn account(folder: &Path, info: LayerInfo) -> Result<()> {
        let text = serde_json::to_vec(&info).map_err(|e| Error::io("encode", folder, e))?;
        write_renamed(&folder.join("layer.json"), &text)
    }

    /// Brings layers to the form of overlayfs that have another. `flush` makes it last before it is relied on.
    pub(crate) fn convert(
        &self,
        layers: &mut HashMap<Digest, LayerInfo>,
        flush: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let plain: Vec<_> = layers.iter_mut().filter(|(_, info)| info.plain).collect();
        if plain.is_empty() {
            return Ok(());
        }
        for (diff_id, _) in &plain {
            let fs = self.fs(diff_id);
            to_overlay(&fs).map_err(|e| Error::io("change the marks for overlayfs in", &fs, e))?;
        }
        flush()?;
        for (diff_id, info) in plain {
            info.plain = false;
            Layers::account(&self.dir.join(diff_id.hex()), *info)?;
        }
        Ok(())
    }

    /// Root directory of a layer, whether it exists or not.
    pub(crate) fn fs(&self, diff_id: &Digest) -> PathBuf {
        self.dir.join(diff_id.hex()).join("fs")
    }

    /// All complete layers. One without readable accounting is thrown away.
    pub(crate) fn list(&self) -> Result<Vec<(Digest, LayerInfo)>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| Error::io("read", &self.dir, e))? {
            let path = entry.map_err(|e| Error::io("read", &self.dir, e))?.path();
            let Some(digest) = path.file_name().and_then(|n| n.to_str()).and_then(Digest::from_hex) else { continue };
            let info = fs::read(path.join("layer.json")).ok().and_then(|b| serde_json::from_slice(&b).ok());
            match info {
                Some(info) if path.join("fs").is_dir() => out.push((digest, info)),
                _ => {
                    tracing::warn!(layer = %digest, "layer without accounting, removed");
                    self.trash.take(&path)?;
                }
            }
        }
        Ok(out)
    }

    /// Moves a layer to the trash; the caller empties it. A missing one is fine.
    pub(crate) fn discard(&self, diff_id: &Digest) -> Result<()> {
        self.trash.take(&self.dir.join(diff_id.hex()))
    }

    /// Unpacks `blob`, which may be read to its end only when it is good, as layer `diff_id`. On failure nothing of it is left.
    /// Blocking.
    pub(crate) fn unpack(
        &self,
        blob: impl Read,
        diff_id: &Digest,
        limits: &Limits,
        stop: &AtomicBool,
    ) -> Result<LayerInfo> {
        let work = self.scratch();
        let result = self.unpack_in(&work, blob, diff_id, limits, stop);
        if result.is_err() {
            let _ = self.trash.take(&work).and_then(|()| self.trash.empty());
        }
        result
    }

    fn unpack_in(
        &self,
        work: &Path,
        blob: impl Read,
        diff_id: &Digest,
        limits: &Limits,
        stop: &AtomicBool,
    ) -> Result<LayerInfo> {
        let (root, replaced) = (work.join("fs"), work.join("replaced"));
        for dir in [work, &root, &replaced] {
            fs::create_dir(dir).map_err(|e| Error::io("create", dir, e))?;
        }
        set_mode(&root, 0o755)?;
        let open = |p: &Path| File::open(p).map_err(|e| Error::io("open", p, e));
        let (to, gone) = (OwnedFd::from(open(&root)?), OwnedFd::from(open(&replaced)?));
        let applied =
            apply(blob, to, gone, self.form, limits, stop).map_err(|fault| layer_error(fault, diff_id, &root))?;
        if applied.diff_id != *diff_id {
            return Err(Error::Digest {
                what: "uncompressed layer",
                expected: diff_id.to_string(),
                actual: applied.diff_id.to_string(),
            });
        }
        if fs::remove_dir(&replaced).is_err() {
            self.trash.take(&replaced)?;
            self.trash.empty_soon();
        }
        let info = LayerInfo { bytes: applied.bytes, inodes: applied.inodes, plain: self.form == Form::Plain };
        Layers::account(work, info)?;
        let to = self.dir.join(diff_id.hex());
        match fs::rename(work, &to) {
            Ok(()) => {}
            // A pull that was just given up had it complete before it noticed: it is the same.
            Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
                self.trash.take(work)?;
                self.trash.empty_soon();
            }
            Err(e) => return Err(Error::io("rename", &to, e)),
        }
        Ok(info)
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|e| Error::io("set mode of", path, e))
}

/// A full disk is the store's fault, everything else is told with the layer and its entry.
fn layer_error(fault: Fault, diff_id: &Digest, root: &Path) -> Error {
    if is_full(&fault.error) {
        return Error::io("unpack into", root, fault.error);
    }
    Error::Layer { digest: diff_id.to_string(), entry: fault.entry, reason: fault.error.to_string() }
}
