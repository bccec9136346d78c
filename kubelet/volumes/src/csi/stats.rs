//! What drivers say of the room in their volumes.

use proto::csi::NodeGetVolumeStatsRequest;
use proto::csi::volume_usage::Unit;

use super::Csi;
use super::driver::{Capability, shown};
use super::places;
use crate::{Health, Usage};

impl Csi {
    /// The room in each of a pod's CSI volumes, under the name of its folder (the persistent volume's name).
    pub(crate) async fn usage(&self, uid: &str) -> Vec<Usage> {
        let mut out = Vec::new();
        for (_, notes) in places::all_of_pod(&self.layout, uid) {
            match self.one(uid, &notes).await {
                Ok(usage) => out.extend(usage),
                Err(error) => tracing::debug!(volume = notes.spec_vol_id, error, "no numbers of the volume"),
            }
        }
        out
    }

    async fn one(&self, uid: &str, notes: &places::Notes) -> Result<Option<Usage>, String> {
        let driver = self.drivers.get(&notes.driver_name)?;
        if !driver.can(Capability::GetVolumeStats).await.map_err(|e| e.to_string())? {
            return Ok(None);
        }
        let request = NodeGetVolumeStatsRequest {
            volume_id: notes.volume_handle.clone(),
            volume_path: shown(&places::target(&self.layout, uid, &notes.spec_vol_id, notes.block())),
            staging_target_path: shown(&places::staging(&self.layout, notes)),
        };
        let told = driver.stats(request).await.map_err(|e| e.to_string())?;
        let health = told.volume_condition.map(|c| Health { abnormal: c.abnormal, message: c.message });
        let mut usage = Usage { volume: notes.spec_vol_id.clone(), health, ..Usage::default() };
        let number = |n: i64| u64::try_from(n).unwrap_or(0);
        for part in told.usage {
            match part.unit() {
                Unit::Bytes => {
                    usage.used_bytes = number(part.used);
                    usage.capacity_bytes = number(part.total);
                    usage.available_bytes = number(part.available);
                }
                Unit::Inodes => {
                    usage.inodes_used = number(part.used);
                    usage.inodes = number(part.total);
                    usage.inodes_free = number(part.available);
                }
                Unit::Unknown => {}
            }
        }
        Ok(Some(usage))
    }
}
