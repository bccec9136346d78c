//! Staging and publishing a volume for a pod.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::CSIDriver;
use proto::csi::{CapacityRange, NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest};
use tonic::Code;

use super::driver::{CallError, Capability, Driver, shown};
use super::places::{self, Notes};
use super::request::{capability, gives_group, needs_attachment, secrets, wrong_life};
use super::{Csi, Wanted};

/// Why a volume did not grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) why: String,
    /// Asking again is no use.
    pub(crate) infeasible: bool,
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Self { why, infeasible: false }
    }
}

impl From<CallError> for Refused {
    fn from(error: CallError) -> Self {
        // The codes by which CSI says that a request is wrong in itself.
        let infeasible = matches!(error.code, Code::InvalidArgument | Code::OutOfRange | Code::NotFound);
        Self { why: error.to_string(), infeasible }
    }
}

/// A volume that a driver has published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    /// Its files (or its device) on the host.
    pub(crate) path: PathBuf,
    /// Whether the kubelet shall give them to the pod's fsGroup.
    pub(crate) give_group: bool,
}

impl Csi {
    /// Stages and publishes the volume; safe to repeat. `group` is the pod's fsGroup, `grow` the size that the volume
    /// has but its file system may not have yet.
    pub(crate) async fn mount(
        &self,
        pod: &Pod,
        wanted: &Wanted,
        node: &str,
        group: Option<u32>,
        grow: Option<i64>,
    ) -> Result<Published, String> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let driver = self.drivers.get(&wanted.driver)?;
        let info = self.objects.csi_driver(&wanted.driver).await.map_err(|e| format!("read CSIDriver: {e}"))?;
        if let Some(why) = wrong_life(wanted, info.as_ref()) {
            return Err(why);
        }
        let (attachment, publish_context) = self.attached(wanted, node, info.as_ref()).await?;
        let can = |e: super::driver::CallError| e.to_string();
        let many = driver.can(Capability::SingleNodeMultiWriter).await.map_err(can)?;
        let grouping = group.is_some() && driver.can(Capability::VolumeMountGroup).await.map_err(can)?;
        let capability = capability(wanted, many, group.filter(|_| grouping));
        let stages = !wanted.ephemeral && driver.can(Capability::StageUnstageVolume).await.map_err(can)?;
        let notes = Notes {
            spec_vol_id: wanted.spec_name.clone(),
            volume_handle: wanted.handle.clone(),
            driver_name: wanted.driver.clone(),
            node_name: node.to_owned(),
            attachment_id: attachment,
            volume_lifecycle_mode: if wanted.ephemeral { "Ephemeral" } else { "Persistent" }.to_owned(),
            volume_mode: if wanted.block { "Block".to_owned() } else { String::new() },
        };
        let _turn = self.turn(&wanted.driver, &wanted.handle).await;
        let dir = places::of_pod(&self.layout, &uid, &wanted.spec_name);
        notes.write(&dir).map_err(|e| format!("write the notes of the volume in {}: {e}", dir.display()))?;
        let staging = places::staging(&self.layout, &notes);
        if stages {
            let secrets = secrets(wanted.stage_secret.as_ref(), &*self.objects).await?;
            let dir = places::staged(&self.layout, &wanted.driver, &wanted.handle);
            let prepared = notes.write(&dir).and_then(|()| make(&staging));
            prepared.map_err(|e| format!("prepare {}: {e}", staging.display()))?;
            let request = NodeStageVolumeRequest {
                volume_id: wanted.handle.clone(),
                publish_context: publish_context.clone(),
                staging_target_path: shown(&staging),
                volume_capability: Some(capability.clone()),
                secrets,
                volume_context: wanted.attributes.clone().into_iter().collect(),
            };
            driver.stage(request).await.map_err(|e| e.to_string())?;
        }
        let target = places::target(&self.layout, &uid, &wanted.spec_name, wanted.block);
        let request = NodePublishVolumeRequest {
            volume_id: wanted.handle.clone(),
            publish_context,
            staging_target_path: if stages { shown(&staging) } else { String::new() },
            target_path: shown(&target),
            volume_capability: Some(capability),
            readonly: wanted.read_only,
            secrets: secrets(wanted.publish_secret.as_ref(), &*self.objects).await?,
            volume_context: self.volume_context(pod, wanted, info.as_ref()).await?,
        };
        let parent = target.parent().unwrap_or(&target);
        make(parent).map_err(|e| format!("prepare {}: {e}", parent.display()))?;
        driver.publish(request).await.map_err(|e| e.to_string())?;
        if let Some(bytes) = grow {
            self.grow_now(&driver, wanted, &uid, stages, bytes).await.map_err(|refused| refused.why)?;
        }
        Ok(Published { path: target, give_group: !grouping && gives_group(wanted, info.as_ref()) })
    }

    /// Publishes again what the driver wants to see again and again (its object says `requiresRepublish`), with fresh
    /// tokens.
    pub(crate) async fn republish(
        &self,
        pod: &Pod,
        wanted: &Wanted,
        node: &str,
        group: Option<u32>,
    ) -> Result<(), String> {
        let info = self.objects.csi_driver(&wanted.driver).await.map_err(|e| format!("read CSIDriver: {e}"))?;
        if info.and_then(|d| d.spec.requires_republish) != Some(true) {
            return Ok(());
        }
        self.mount(pod, wanted, node, group, None).await.map(drop)
    }

    /// Lets the file system of a published volume grow to the volume's size.
    pub(crate) async fn grow(&self, pod: &Pod, wanted: &Wanted, bytes: i64) -> Result<(), Refused> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let driver = self.drivers.get(&wanted.driver)?;
        let stages = driver.can(Capability::StageUnstageVolume).await.map_err(|e| e.to_string())?;
        let _turn = self.turn(&wanted.driver, &wanted.handle).await;
        self.grow_now(&driver, wanted, &uid, stages, bytes).await
    }

    async fn grow_now(
        &self,
        driver: &Driver,
        wanted: &Wanted,
        uid: &str,
        staged: bool,
        bytes: i64,
    ) -> Result<(), Refused> {
        let fail = Refused::from;
        if !driver.can(Capability::ExpandVolume).await.map_err(fail)? {
            return Ok(());
        }
        let many = driver.can(Capability::SingleNodeMultiWriter).await.map_err(fail)?;
        let dir = places::of_pod(&self.layout, uid, &wanted.spec_name);
        let staging = Notes::read(&dir).filter(|_| staged).map(|n| shown(&places::staging(&self.layout, &n)));
        let request = NodeExpandVolumeRequest {
            volume_id: wanted.handle.clone(),
            volume_path: shown(&places::target(&self.layout, uid, &wanted.spec_name, wanted.block)),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            staging_target_path: staging.unwrap_or_default(),
            volume_capability: Some(capability(wanted, many, None)),
            secrets: secrets(wanted.expand_secret.as_ref(), &*self.objects).await?,
        };
        let size = driver.expand(request).await.map_err(fail)?;
        tracing::info!(volume = wanted.spec_name, driver = wanted.driver, size, "NodeExpandVolume succeeded");
        Ok(())
    }

    /// The attachment's name and what the controller's side of the driver says about it.
    async fn attached(
        &self,
        wanted: &Wanted,
        node: &str,
        info: Option<&CSIDriver>,
    ) -> Result<(String, HashMap<String, String>), String> {
        if wanted.ephemeral {
            return Ok(Default::default());
        }
        let name = format!("csi-{}", places::hex(&format!("{}{}{node}", wanted.handle, wanted.driver)));
        if !needs_attachment(wanted, info) {
            return Ok((name, HashMap::new()));
        }
        let found = self.objects.volume_attachment(&name).await;
        let found = found.map_err(|e| format!("read VolumeAttachment {name}: {e}"))?;
        let status = found.and_then(|a| a.status);
        match status {
            Some(status) if status.attached => {
                Ok((name, status.attachment_metadata.unwrap_or_default().into_iter().collect()))
            }
            Some(status) => {
                let why = status.attach_error.and_then(|e| e.message).map(|m| format!(": {m}")).unwrap_or_default();
                Err(format!("volume {} is not yet attached to node {node}{why}", wanted.spec_name))
            }
            None => Err(format!(
                "volume {} is not yet attached to node {node}: there is no VolumeAttachment {name} (if the driver needs \
                 none, its CSIDriver object has attachRequired false)",
                wanted.spec_name
            )),
        }
    }
}

fn make(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)
}
