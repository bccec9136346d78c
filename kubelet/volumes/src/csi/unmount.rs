//! Unpublishing a pod's volumes, and unstaging what no pod of the node uses any more.

use std::io;
use std::path::Path;

use super::places::{self, Notes, gone};
use super::{Csi, driver::CallError};
use crate::{VolumeError, mount_table};

impl Csi {
    /// Takes all CSI volumes of a pod away; what could not be is told, and calling again goes on with it.
    pub(crate) async fn unmount_all(&self, uid: &str) -> Vec<VolumeError> {
        let mut faults = Vec::new();
        for (dir, notes) in places::all_of_pod(&self.layout, uid) {
            if let Err(reason) = self.unmount(uid, &dir, &notes).await {
                faults.push(VolumeError::TearDown { volume: notes.spec_vol_id.clone(), reason });
            }
        }
        faults
    }

    async fn unmount(&self, uid: &str, dir: &Path, notes: &Notes) -> Result<(), String> {
        let driver = self.drivers.get(&notes.driver_name)?;
        let _turn = self.turn(&notes.driver_name, &notes.volume_handle).await;
        let target = places::target(&self.layout, uid, &notes.spec_vol_id, notes.block());
        driver.unpublish(&notes.volume_handle, &target).await.map_err(|e: CallError| e.to_string())?;
        remove_empty(&target).map_err(|e| format!("remove {}: {e}", target.display()))?;
        if notes.block() {
            // The folder of the volume's publications goes with the last of them.
            let _ = target.parent().map(std::fs::remove_dir);
        }
        Notes::remove(dir).map_err(|e| format!("remove {}: {e}", dir.display()))?;
        if notes.persistent() && !places::used(&self.layout, &notes.driver_name, &notes.volume_handle) {
            self.unstage(&driver, notes).await?;
        }
        Ok(())
    }

    async fn unstage(&self, driver: &super::driver::Driver, notes: &Notes) -> Result<(), String> {
        let dir = places::staged(&self.layout, &notes.driver_name, &notes.volume_handle);
        let Some(notes) = Notes::read(&dir) else { return Ok(()) };
        let staging = places::staging(&self.layout, &notes);
        driver.unstage(&notes.volume_handle, &staging).await.map_err(|e| e.to_string())?;
        remove_empty(&staging).map_err(|e| format!("remove {}: {e}", staging.display()))?;
        Notes::remove(&dir).map_err(|e| format!("remove {}: {e}", dir.display()))
    }

    /// Unstages what a kubelet that died left staged and no pod uses. Drivers that have not registered are waited for.
    pub(crate) async fn sweep(&self) {
        // A driver that hangs holds up its own volumes only, not one task more every time.
        let Ok(_alone) = self.sweeping.try_lock() else { return };
        for (_, notes) in places::all_staged(&self.layout) {
            let Ok(driver) = self.drivers.get(&notes.driver_name) else { continue };
            let _turn = self.turn(&notes.driver_name, &notes.volume_handle).await;
            if places::used(&self.layout, &notes.driver_name, &notes.volume_handle) {
                continue;
            }
            let volume = notes.spec_vol_id.clone();
            match self.unstage(&driver, &notes).await {
                Ok(()) => tracing::info!(volume, driver = notes.driver_name, "unstaged what no pod uses"),
                Err(error) => {
                    tracing::warn!(volume, driver = notes.driver_name, error, "volume not unstaged, will try again")
                }
            }
        }
    }
}

/// Removes what a driver may leave of its target: an empty folder or file, never what is mounted there.
fn remove_empty(path: &Path) -> io::Result<()> {
    if mount_table::is_mount_point(path)? {
        return Err(io::Error::other("the driver left it mounted"));
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => gone(std::fs::remove_dir(path)),
        Ok(_) => gone(std::fs::remove_file(path)),
        Err(e) => gone(Err(e)),
    }
}
