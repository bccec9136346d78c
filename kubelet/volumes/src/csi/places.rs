//! Where a CSI volume is on disk, as upstream has it, and the notes beside it: a kubelet that begins anew reads from them
//! what is staged and published.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use gantry_files::{Access, Outlives};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Layout;

const NOTES: &str = "vol_data.json";

/// What the kubelet notes of a published or staged volume; names are upstream's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Notes {
    #[serde(rename = "specVolID", skip_serializing_if = "String::is_empty")]
    pub(crate) spec_vol_id: String,
    pub(crate) volume_handle: String,
    pub(crate) driver_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) node_name: String,
    #[serde(rename = "attachmentID", skip_serializing_if = "String::is_empty")]
    pub(crate) attachment_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) volume_lifecycle_mode: String,
    /// Ours: `Block` for a raw device instead of a file system.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) volume_mode: String,
}

impl Notes {
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(dir.join(NOTES)).ok()?;
        serde_json::from_str(&text).map_err(|e| tracing::warn!(dir = %dir.display(), error = %e, "notes not read")).ok()
    }

    /// Written whole, or not at all.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
        gantry_files::replace(&dir.join(NOTES), &serde_json::to_vec(self)?, Access::Umask, Outlives::Crash)
    }

    pub(crate) fn remove(dir: &Path) -> io::Result<()> {
        let notes = dir.join(NOTES);
        gantry_files::remove(&notes)?;
        gantry_files::remove(&gantry_files::temporary(&notes))?;
        gone(fs::remove_dir(dir))
    }

    pub(crate) fn block(&self) -> bool {
        self.volume_mode == "Block"
    }

    pub(crate) fn persistent(&self) -> bool {
        self.volume_lifecycle_mode != "Ephemeral"
    }
}

/// What is not there need not be removed.
pub(crate) fn gone(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

pub(crate) fn hex(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

/// The folder of a pod's volume: `pods/<uid>/volumes/kubernetes.io~csi/<name>`, with the notes.
pub(crate) fn of_pod(layout: &Layout, uid: &str, spec_name: &str) -> PathBuf {
    layout.volume(uid, "csi", spec_name)
}

fn plugin(layout: &Layout) -> PathBuf {
    layout.root().join("plugins/kubernetes.io/csi")
}

/// Where the driver publishes the volume for a pod.
pub(crate) fn target(layout: &Layout, uid: &str, spec_name: &str, block: bool) -> PathBuf {
    if block {
        return plugin(layout).join("volumeDevices/publish").join(spec_name).join(uid);
    }
    of_pod(layout, uid, spec_name).join("mount")
}

/// The folder of a staged volume, with the notes.
pub(crate) fn staged(layout: &Layout, driver: &str, handle: &str) -> PathBuf {
    plugin(layout).join(driver).join(hex(handle))
}

/// Where the driver stages the volume for all pods of the node.
pub(crate) fn staging(layout: &Layout, notes: &Notes) -> PathBuf {
    if notes.block() {
        return plugin(layout).join("volumeDevices/staging").join(&notes.spec_vol_id);
    }
    staged(layout, &notes.driver_name, &notes.volume_handle).join("globalmount")
}

fn folders(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path())
}

/// The volumes of one pod: their folders and notes.
pub(crate) fn all_of_pod(layout: &Layout, uid: &str) -> Vec<(PathBuf, Notes)> {
    folders(&layout.volumes(uid).join("kubernetes.io~csi"))
        .filter_map(|dir| Some((dir.clone(), Notes::read(&dir)?)))
        .collect()
}

/// The staged volumes of the node: their folders and notes.
pub(crate) fn all_staged(layout: &Layout) -> Vec<(PathBuf, Notes)> {
    let drivers = folders(&plugin(layout)).filter(|d| d.file_name().is_some_and(|n| n != "volumeDevices"));
    let volumes = drivers.flat_map(|d| folders(&d));
    volumes.filter_map(|dir| Some((dir.clone(), Notes::read(&dir)?))).collect()
}

/// Whether any pod of the node still has this volume.
pub(crate) fn used(layout: &Layout, driver: &str, handle: &str) -> bool {
    folders(&layout.pods()).any(|pod| {
        let uid = pod.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        all_of_pod(layout, &uid)
            .iter()
            .any(|(_, n)| n.persistent() && n.driver_name == driver && n.volume_handle == handle)
    })
}

/// Persistent volumes that are staged or that one of the pods has, by their names in a node's status.
pub(crate) fn in_use(layout: &Layout, pods: &[String]) -> Vec<String> {
    let of_pods = pods.iter().flat_map(|uid| all_of_pod(layout, uid));
    let notes = of_pods.chain(all_staged(layout)).map(|(_, notes)| notes).filter(Notes::persistent);
    let mut out: Vec<String> =
        notes.map(|n| format!("kubernetes.io/csi/{}^{}", n.driver_name, n.volume_handle)).collect();
    out.sort();
    out.dedup();
    out
}
