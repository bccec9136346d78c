//! Snapshots on disk: `snapshots/<id>/{snapshot.json,fs,work}`.
//!
//! `snapshot.json` is written before anything is mounted and names where; a mount of a snapshot without one is found by its source
//! in mountinfo, so neither file nor mount can get lost. None of it is flushed: after a power failure the containers are gone,
//! and what is only half there is thrown away.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::content::write_renamed;
use super::mounts::overlays;
use super::overlay::{Overlay, detach};
use super::trash::Trash;
use super::{Store, state::State};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::snapshot::{MountOptions, Snapshot, Usage};
use crate::unpack::tree::Form;

/// Where snapshots live.
#[derive(Debug, Clone)]
pub(crate) struct Snapshots {
    dir: PathBuf,
    empty: PathBuf,
    trash: Trash,
}

impl Snapshots {
    /// Makes the folder.
    pub(crate) fn open(root: &Path, trash: Trash) -> Result<Snapshots> {
        let snapshots = Snapshots { dir: root.join("snapshots"), empty: root.join("empty"), trash };
        fs::create_dir_all(&snapshots.dir).map_err(|e| Error::io("create", &snapshots.dir, e))?;
        Ok(snapshots)
    }

    /// Reads all; half-made ones (a crash within prepare) are thrown away.
    pub(crate) fn load(&self) -> Result<BTreeMap<String, Snapshot>> {
        let mut out = BTreeMap::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| Error::io("read", &self.dir, e))? {
            let path = entry.map_err(|e| Error::io("read", &self.dir, e))?.path();
            let read = fs::read(path.join("snapshot.json")).ok();
            match read.and_then(|b| serde_json::from_slice::<Snapshot>(&b).ok()) {
                Some(s) if path.file_name().is_some_and(|n| n == s.id.as_str()) => {
                    out.insert(s.id.clone(), s);
                }
                _ => {
                    tracing::warn!(path = %path.display(), "half-made snapshot, removed");
                    if let Some(name) = path.file_name().and_then(|n| n.to_str()) {
                        unmount_all(name)?;
                    }
                    self.trash.take(&path)?;
                }
            }
        }
        Ok(out)
    }

    pub(super) fn path(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    fn save(&self, snapshot: &Snapshot) -> Result<()> {
        let path = self.path(&snapshot.id).join("snapshot.json");
        let bytes = serde_json::to_vec(snapshot).map_err(|e| Error::io("encode", &path, e))?;
        write_renamed(&path, &bytes)
    }
}

impl Store {
    /// Makes a snapshot over an image, or finds the same one again. One whose target is known is written down once.
    pub(crate) fn prepare(
        self: &Arc<Self>,
        id: &str,
        image: &str,
        view: bool,
        target: Option<&Path>,
    ) -> Result<Snapshot> {
        check_id(id)?;
        let target = target.map(place).transpose()?;
        // Outlives the lock, which its end takes.
        let lease = (self.form == Form::Plain).then(|| self.lease());
        let mut state = self.state();
        let (mut snapshot, diff_ids) = match self.plan(&state, id, image, view)? {
            Plan::There(old) => return Ok(old),
            Plan::New(snapshot, diff_ids) => (snapshot, diff_ids),
        };
        snapshot.fresh = target.is_some();
        snapshot.targets.extend(target);
        let mut copy = None;
        if let Some(lease) = &lease
            && !(view && state.views.keys().any(|image| image.to_string() == snapshot.image_id))
        {
            // Nobody waits for a copy of gigabytes; what it is made of stays meanwhile.
            diff_ids.iter().for_each(|diff_id| lease.hold_in(&mut state, diff_id));
            drop(state);
            copy = Some(self.copy(&snapshot)?);
            state = self.state();
            if let Some(old) = same(&state, &snapshot)? {
                return Ok(old);
            }
        }
        let made = self
            .make_dirs(&snapshot, diff_ids.last())
            .and_then(|()| copy.as_ref().map_or(Ok(()), |copy| self.settle(&mut state, &snapshot, copy)))
            .and_then(|()| self.snapshots.save(&snapshot));
        if let Err(e) = made {
            let _ = self.trash.take(&self.snapshots.path(id)).and_then(|()| self.trash.empty());
            return Err(e);
        }
        state.snapshots.insert(id.to_string(), snapshot.clone());
        Ok(snapshot)
    }

    fn plan(&self, state: &State, id: &str, image: &str, view: bool) -> Result<Plan> {
        let not_found = || Error::NotFound { what: "image", name: image.to_string() };
        let record = state.find(image).ok_or_else(not_found)?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs().cast_signed());
        let snapshot = Snapshot {
            id: id.to_string(),
            image_id: record.id.clone(),
            diff_ids: record.diff_ids.iter().map(Digest::to_string).collect(),
            view,
            native: self.form == Form::Plain,
            created,
            targets: Vec::new(),
            fresh: false,
        };
        Ok(match same(state, &snapshot)? {
            Some(old) => Plan::There(old),
            None => Plan::New(snapshot, record.diff_ids.clone()),
        })
    }

    fn make_dirs(&self, snapshot: &Snapshot, top: Option<&Digest>) -> Result<()> {
        let dir = self.snapshots.path(&snapshot.id);
        fs::create_dir(&dir).map_err(|e| Error::io("create", &dir, e))?;
        if !snapshot.view && !snapshot.native {
            let (upper, work) = (dir.join("fs"), dir.join("work"));
            for d in [&upper, &work] {
                fs::create_dir(d).map_err(|e| Error::io("create", d, e))?;
            }
            // The container sees the writable directory's owner and mode on `/`: they are the image's.
            let like = top.map_or_else(|| self.snapshots.empty.clone(), |d| self.layers.fs(d));
            let meta = fs::metadata(&like).map_err(|e| Error::io("stat", &like, e))?;
            chown(&upper, Some(meta.uid()), Some(meta.gid())).map_err(|e| Error::io("change owner of", &upper, e))?;
            fs::set_permissions(&upper, fs::Permissions::from_mode(meta.mode() & 0o7777))
                .map_err(|e| Error::io("set mode of", &upper, e))?;
        }
        Ok(())
    }

    /// Mounts a snapshot at `target`; there already is fine.
    pub(crate) fn mount(&self, id: &str, target: &Path, options: &MountOptions) -> Result<()> {
        let target = place(target)?;
        let (snapshot, known) = {
            let mut state = self.state();
            let snapshot = get_mut(&mut state, id)?;
            let fresh = std::mem::take(&mut snapshot.fresh);
            let known = snapshot.targets.contains(&target);
            if !known {
                let mut next = snapshot.clone();
                next.targets.push(target.clone());
                self.snapshots.save(&next)?;
                *snapshot = next;
            }
            (snapshot.clone(), known && !fresh)
        };
        // The table of mounts is long on a busy node: it is read only where an earlier attempt may have come so far.
        if snapshot.native {
            return if known && self.is_bound(&snapshot, &target)? {
                Ok(())
            } else {
                self.bind(&snapshot, &target, options)
            };
        }
        if known && overlays(id)?.contains(&target) {
            return Ok(());
        }
        let overlay = self.overlay(&snapshot, options)?;
        overlay.mount(&target)
    }

    /// The folders that a snapshot is made of, the topmost first.
    pub(super) fn lower(&self, snapshot: &Snapshot) -> Result<Vec<PathBuf>> {
        let bad = |d: &String| Error::Invalid(format!("snapshot {}: {d:?} is not a digest", snapshot.id));
        let mut lower: Vec<PathBuf> = Vec::new();
        for diff_id in snapshot.diff_ids.iter().rev() {
            let dir = self.layers.fs(&Digest::parse(diff_id).ok_or_else(|| bad(diff_id))?);
            // overlayfs refuses a directory twice; what a repeated layer has below is hidden by its upper copy anyway.
            if !lower.contains(&dir) {
                lower.push(dir);
            }
        }
        if lower.is_empty() || (snapshot.view && lower.len() < 2) {
            lower.push(self.snapshots.empty.clone());
        }
        if lower.len() < 2 && snapshot.view {
            return Err(Error::Invalid(format!("snapshot {}: an image without layers cannot be viewed", snapshot.id)));
        }
        Ok(lower)
    }

    fn overlay(&self, snapshot: &Snapshot, options: &MountOptions) -> Result<Overlay> {
        let dir = self.snapshots.path(&snapshot.id);
        Ok(Overlay {
            source: snapshot.id.clone(),
            lower: self.lower(snapshot)?,
            upper: (!snapshot.view).then(|| (dir.join("fs"), dir.join("work"))),
            read_only: options.read_only || snapshot.view,
            label: options.selinux_label.clone(),
            users: options.user_namespace.clone(),
        })
    }

    /// Unmounts a snapshot wherever it is mounted.
    pub(crate) fn unmount(&self, id: &str) -> Result<()> {
        check_id(id)?;
        self.detach_all(id)?;
        let mut state = self.state();
        if let Some(snapshot) = state.snapshots.get_mut(id)
            && !snapshot.targets.is_empty()
        {
            let mut next = snapshot.clone();
            next.targets.clear();
            self.snapshots.save(&next)?;
            *snapshot = next;
        }
        Ok(())
    }

    /// Unmounts a snapshot and takes it, and what only it used, out of the store for good. Its files are deleted after that, by
    /// the trash's own thread.
    pub(crate) fn remove_snapshot(&self, id: &str) -> Result<()> {
        check_id(id)?;
        self.detach_all(id)?;
        {
            let mut state = self.state();
            self.trash.take(&self.snapshots.path(id))?;
            if let Some(removed) = state.snapshots.remove(id)
                && (removed.native || !state.images.contains_key(&removed.image_id))
            {
                self.collect(&mut state)?;
            }
        }
        self.trash.empty_soon();
        Ok(())
    }

    /// Detaches a snapshot wherever it is mounted: its record says where, as that is written before a mount is made. Mounts of an
    /// unknown one are looked for.
    fn detach_all(&self, id: &str) -> Result<()> {
        let known = self.state().snapshots.get(id).map(|s| s.targets.clone());
        let Some(targets) = known else { return unmount_all(id) };
        for target in &targets {
            let mut stacked = 0;
            while detach(target)? {
                stacked += 1;
                if stacked > MAX_STACKED {
                    return Err(Error::Invalid(format!(
                        "snapshot {id} is mounted again as often as it is unmounted at {}",
                        target.display()
                    )));
                }
            }
        }
        Ok(())
    }

    /// Disk use of the writable directory.
    pub(crate) fn snapshot_usage(&self, id: &str) -> Result<Usage> {
        get_mut(&mut self.state(), id)?;
        let upper = self.snapshots.path(id).join("fs");
        Ok(usage(&upper))
    }
}

/// Disk use of a tree.
pub(super) fn usage(tree: &Path) -> Usage {
    let mut usage = Usage::default();
    let mut links = std::collections::HashSet::new();
    let mut todo = vec![tree.to_path_buf()];
    while let Some(dir) = todo.pop() {
        // The container may delete while we walk: what is gone does not count.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.path().symlink_metadata() else { continue };
            if meta.nlink() > 1 && !meta.is_dir() && !links.insert(meta.ino()) {
                continue;
            }
            usage.bytes += meta.blocks() * 512;
            usage.inodes += 1;
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    usage
}

/// What prepare is to do.
enum Plan {
    There(Snapshot),
    /// With the digests of its layers.
    New(Snapshot, Vec<Digest>),
}

/// A mount point, made when it is missing, by the name that the kernel knows it by.
fn place(target: &Path) -> Result<PathBuf> {
    fs::create_dir_all(target).map_err(|e| Error::io("create", target, e))?;
    fs::canonicalize(target).map_err(|e| Error::io("resolve", target, e))
}

/// The snapshot that has this id already, unless it is another one.
fn same(state: &State, wanted: &Snapshot) -> Result<Option<Snapshot>> {
    match state.snapshots.get(&wanted.id) {
        Some(old) if old.image_id == wanted.image_id && old.view == wanted.view => Ok(Some(old.clone())),
        Some(old) => Err(Error::Exists { name: wanted.id.clone(), image: old.image_id.clone() }),
        None => Ok(None),
    }
}

fn get_mut<'a>(state: &'a mut State, id: &str) -> Result<&'a mut Snapshot> {
    state.snapshots.get_mut(id).ok_or_else(|| Error::NotFound { what: "snapshot", name: id.to_string() })
}

/// Mounts on one place before something must be wrong.
const MAX_STACKED: usize = 16;

/// Ids become folder names and mount sources.
fn check_id(id: &str) -> Result<()> {
    let ok = !id.is_empty()
        && id.len() <= 200
        && !id.starts_with('.')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if ok { Ok(()) } else { Err(Error::Invalid(format!("{id:?} cannot be a snapshot id"))) }
}

/// Detaches every mount with this source, the newest first.
fn unmount_all(id: &str) -> Result<()> {
    for _ in 0..MAX_STACKED {
        let points = overlays(id)?;
        if points.is_empty() {
            return Ok(());
        }
        for point in points.iter().rev() {
            detach(point)?;
        }
    }
    Err(Error::Invalid(format!("snapshot {id} is mounted again as often as it is unmounted")))
}
