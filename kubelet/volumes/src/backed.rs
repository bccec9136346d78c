//! Volumes whose files are not the kubelet's: those of claims and of CSI drivers. What was found is noted on disk, for
//! the mounts of containers now and after a restart.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_files::{Access, Outlives};
use gantry_kube::quantity::Quantity;
use k8s_openapi::api::core::v1::{Pod, Volume};
use serde::{Deserialize, Serialize};

use crate::claim::{self, Bound};
use crate::contents::group_of;
use crate::kind::Kind;
use crate::resize::{self, Resize};
use crate::volumes::blocking;
use crate::{Layout, PodContext, Usage, VolumeError, Volumes, fs_group, host_path};

/// Between looks whether a claim's volume has grown; each asks the apiserver.
const LOOK: Duration = Duration::from_secs(60);

/// What backs one volume of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Backing {
    /// Its files (or its device) on the host.
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
    /// The persistent volume, or the volume itself where it is inline.
    pub(crate) spec_name: String,
    /// The claim, if there is one.
    pub(crate) claim: Option<String>,
}

impl Backing {
    fn file(layout: &Layout, uid: &str, volume: &str) -> PathBuf {
        layout.volume_state(uid, "claim", volume).join("backing.json")
    }

    pub(crate) fn read(layout: &Layout, uid: &str, volume: &str) -> Result<Self, String> {
        let file = Self::file(layout, uid, volume);
        let text = fs::read(&file).map_err(|e| format!("the volume is not set up ({}: {e})", file.display()))?;
        serde_json::from_slice(&text).map_err(|e| format!("read {}: {e}", file.display()))
    }

    fn write(&self, layout: &Layout, uid: &str, volume: &str) -> Result<(), String> {
        let file = Self::file(layout, uid, volume);
        let text = serde_json::to_vec(self).map_err(|e| e.to_string())?;
        let parent = file.parent().unwrap_or(&file);
        fs::create_dir_all(parent)
            .and_then(|()| gantry_files::replace(&file, &text, Access::Umask, Outlives::Program))
            .map_err(|e| format!("write {}: {e}", file.display()))
    }
}

/// When claims were looked at last, by pod and volume.
#[derive(Default)]
pub(crate) struct Looked(Mutex<HashMap<(String, String), Instant>>);

impl Looked {
    /// Whether it is time to look again; then the time starts anew.
    fn due(&self, uid: &str, volume: &str) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = all.entry((uid.to_owned(), volume.to_owned()));
        match last {
            std::collections::hash_map::Entry::Occupied(last) if last.get().elapsed() < LOOK => false,
            last => {
                last.insert_entry(Instant::now());
                true
            }
        }
    }

    /// The next look is not waited for.
    fn again(&self, uid: &str, volume: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(uid.to_owned(), volume.to_owned()));
    }

    pub(crate) fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _), _| of != uid);
    }
}

impl Bound {
    /// The volume's size in bytes and in the words of its spec, where the claim's status does not have it yet.
    fn growth(&self) -> Option<(i64, String)> {
        let size = self.volume.spec.as_ref()?.capacity.as_ref()?.get("storage")?;
        let known = self.claim.status.as_ref()?.capacity.as_ref()?.get("storage")?;
        let (new, old) = (Quantity::parse(&size.0).ok()?.value(), Quantity::parse(&known.0).ok()?.value());
        (new > old && !resize::is_given_up(&self.claim)).then(|| (new, size.0.clone()))
    }
}

impl Volumes {
    /// Sets up a volume that a claim or a driver backs.
    pub(crate) async fn back(
        &self,
        pod: &Pod,
        volume: &Volume,
        kind: &Kind<'_>,
        ctx: &PodContext,
    ) -> Result<(), String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let Some((backing, bound)) = claim::resolve(pod, volume, kind, &*self.objects).await? else { return Ok(()) };
        let group = group_of(pod);
        let (path, read_only, spec_name, give) = match backing {
            claim::Backing::Csi(wanted) => {
                let growth = bound.as_ref().and_then(Bound::growth);
                let bytes = growth.as_ref().map(|(bytes, _)| *bytes);
                let gid = group.map(|g| g.gid);
                let published = self.csi.mount(pod, &wanted, &ctx.node_name, gid, bytes).await?;
                if let Some((bound, (_, size))) = bound.as_ref().zip(growth) {
                    self.tell(bound, &Resize::Done(size)).await;
                    self.grew(uid, &wanted.spec_name);
                }
                (published.path, wanted.read_only, wanted.spec_name.clone(), published.give_group)
            }
            claim::Backing::Host { path, kind, read_only, local } => {
                let path = PathBuf::from(path);
                let (checked, kind) = (path.clone(), kind.clone());
                blocking(move || host_path::check(&checked, &kind)).await.map_err(|e| e.to_string())??;
                let name = bound.as_ref().and_then(|b| b.volume.metadata.name.clone()).unwrap_or_default();
                (path, read_only, name, local && !read_only)
            }
        };
        if let Some(group) = group.filter(|_| give) {
            let of = path.clone();
            let given = blocking(move || fs_group::apply(&of, group.gid, group.on_root_mismatch)).await;
            given
                .map_err(|e| e.to_string())?
                .map_err(|e| format!("applyFSGroup failed for {}: {e}", path.display()))?;
        }
        let claim = bound.and_then(|b| b.claim.metadata.name);
        Backing { path, read_only, spec_name, claim }.write(self.layout(), uid, &volume.name)
    }

    /// Sees after a volume that is set up: its size, and what its driver wants again and again.
    pub(crate) async fn tend(
        &self,
        pod: &Pod,
        volume: &Volume,
        kind: &Kind<'_>,
        ctx: &PodContext,
    ) -> Result<(), VolumeError> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let fail = |reason| VolumeError::SetUp { volume: volume.name.clone(), reason };
        if Backing::read(self.layout(), uid, &volume.name).is_err() || !self.looked.due(uid, &volume.name) {
            return Ok(());
        }
        let found = claim::resolve(pod, volume, kind, &*self.objects).await.map_err(fail)?;
        let Some((claim::Backing::Csi(wanted), bound)) = found else {
            return Ok(());
        };
        let gid = group_of(pod).map(|g| g.gid);
        self.csi.republish(pod, &wanted, &ctx.node_name, gid).await.map_err(fail)?;
        if let Some((bound, (bytes, size))) = bound.as_ref().and_then(|b| Some((b, b.growth()?))) {
            self.tell(bound, &Resize::Begun).await;
            let ended = match self.csi.grow(pod, &wanted, bytes).await {
                Ok(()) => Resize::Done(size),
                Err(refused) if refused.infeasible => Resize::Infeasible(refused.why),
                Err(refused) => Resize::Failed(refused.why),
            };
            self.tell(bound, &ended).await;
            if let Resize::Failed(why) | Resize::Infeasible(why) = ended {
                self.looked.again(uid, &volume.name);
                return Err(VolumeError::Resize { volume: wanted.spec_name.clone(), reason: why });
            }
            self.grew(uid, &wanted.spec_name);
        }
        Ok(())
    }

    async fn tell(&self, bound: &Bound, what: &Resize) {
        if let Err(e) = self.objects.claim_resize(&bound.claim, what).await {
            let claim = bound.claim.metadata.name.as_deref();
            tracing::warn!(claim, error = %e, "the claim's status does not tell how it grows, will try again");
        }
    }

    /// The file system of a persistent volume has grown.
    fn grew(&self, uid: &str, volume: &str) {
        let text = format!("MountVolume.NodeExpandVolume succeeded for volume {volume:?}");
        self.notes.put(uid, false, "FileSystemResizeSuccessful", text);
    }

    /// The room in the pod's volumes that drivers back, with the claim's name where there is one. Asks the drivers: call
    /// it about once a minute.
    pub async fn backed_usage(&self, uid: &str) -> Vec<(Usage, Option<String>)> {
        let named: HashMap<String, (String, Option<String>)> = self
            .backings(uid)
            .into_iter()
            .map(|(volume, backing)| (backing.spec_name, (volume, backing.claim)))
            .collect();
        let known = |usage: Usage| {
            let (volume, claim) = named.get(&usage.volume)?.clone();
            Some((Usage { volume, ..usage }, claim))
        };
        self.csi.usage(uid).await.into_iter().filter_map(known).collect()
    }

    fn backings(&self, uid: &str) -> Vec<(String, Backing)> {
        let dir = self.layout().volume_state(uid, "claim", "x");
        let entries = fs::read_dir(dir.parent().unwrap_or(Path::new(""))).into_iter().flatten().flatten();
        let names = entries.filter_map(|e| e.file_name().into_string().ok());
        names.filter_map(|name| Some((name.clone(), Backing::read(self.layout(), uid, &name).ok()?))).collect()
    }
}
