//! The driver's node plugin.

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proto::csi::node_server::Node;
use proto::csi::node_service_capability::{Rpc, Type, rpc};
use proto::csi::volume_capability::AccessType;
use proto::csi::volume_usage::Unit;
use proto::csi::*;
use tonic::{Request, Response, Status};

use crate::Driver;

fn internal(what: &str, path: &Path, error: impl std::fmt::Display) -> Status {
    Status::internal(format!("{what} {}: {error}", path.display()))
}

fn mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|l| l.split(' ').nth(4).is_some_and(|p| Path::new(p) == path))
}

/// Binds a folder; twice is once.
fn bind(from: &Path, to: &Path, read_only: bool) -> Result<(), Status> {
    if mounted(to) {
        return Ok(());
    }
    let none = None::<&str>;
    mount(Some(from), to, none, MsFlags::MS_BIND, none).map_err(|e| internal("bind", to, e))?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, to, none, flags, none).map_err(|e| internal("remount", to, e))?;
    }
    Ok(())
}

fn unbind(path: &Path) -> Result<(), Status> {
    while mounted(path) {
        umount2(path, MntFlags::UMOUNT_NOFOLLOW).map_err(|e| internal("unmount", path, e))?;
    }
    Ok(())
}

fn is_block(capability: Option<&VolumeCapability>) -> bool {
    capability.is_some_and(|c| matches!(c.access_type, Some(AccessType::Block(_))))
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let r = request.into_inner();
        let secret = r.secrets.get("key").map_or("-", String::as_str);
        self.enter("NodeStageVolume", &[&r.volume_id, secret])?;
        let volume = self.volume(&r.volume_id);
        fs::create_dir_all(&volume).map_err(|e| internal("make", &volume, e))?;
        if !is_block(r.volume_capability.as_ref()) {
            bind(&volume, Path::new(&r.staging_target_path), false)?;
        }
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let r = request.into_inner();
        self.enter("NodeUnstageVolume", &[&r.volume_id])?;
        unbind(Path::new(&r.staging_target_path))?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let r = request.into_inner();
        let pod = r.volume_context.get("csi.storage.k8s.io/pod.name").map_or("-", String::as_str);
        let ephemeral = r.volume_context.get("csi.storage.k8s.io/ephemeral").map_or("-", String::as_str);
        self.enter("NodePublishVolume", &[&r.volume_id, pod, ephemeral])?;
        let target = Path::new(&r.target_path);
        if is_block(r.volume_capability.as_ref()) {
            // A device that every machine has: the memory full of zeros.
            let (kind, mode) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::from_bits_truncate(0o666));
            return match nix::sys::stat::mknod(target, kind, mode, nix::sys::stat::makedev(1, 5)) {
                Ok(()) | Err(nix::Error::EEXIST) => Ok(Response::new(NodePublishVolumeResponse {})),
                Err(e) => Err(internal("make the device", target, e)),
            };
        }
        fs::create_dir_all(target).map_err(|e| internal("make", target, e))?;
        if r.staging_target_path.is_empty() {
            let volume = self.volume(&r.volume_id);
            fs::create_dir_all(&volume).map_err(|e| internal("make", &volume, e))?;
            for (key, value) in r.volume_context.iter().filter(|(k, _)| !k.contains('/')) {
                fs::write(volume.join(key), value).map_err(|e| internal("write into", &volume, e))?;
            }
            bind(&volume, target, r.readonly)?;
        } else {
            bind(Path::new(&r.staging_target_path), target, r.readonly)?;
        }
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let r = request.into_inner();
        self.enter("NodeUnpublishVolume", &[&r.volume_id])?;
        let target = Path::new(&r.target_path);
        unbind(target)?;
        if r.volume_id.starts_with("csi-") {
            let _ = fs::remove_dir_all(self.volume(&r.volume_id));
        }
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let r = request.into_inner();
        self.enter("NodeGetVolumeStats", &[&r.volume_id])?;
        let usage = |unit: Unit, total, used| VolumeUsage { available: total - used, total, used, unit: unit.into() };
        let usage = vec![usage(Unit::Bytes, 1 << 30, 4096), usage(Unit::Inodes, 1000, 7)];
        let told = fs::read_to_string(self.folder.join(format!("condition-{}", r.volume_id))).ok();
        let volume_condition = told.map(|message| VolumeCondition { abnormal: !message.is_empty(), message });
        Ok(Response::new(NodeGetVolumeStatsResponse { usage, volume_condition }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let r = request.into_inner();
        let bytes = r.capacity_range.map_or(0, |c| c.required_bytes);
        self.enter("NodeExpandVolume", &[&r.volume_id, &bytes.to_string()])?;
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        self.enter("NodeGetCapabilities", &[])?;
        let all = [rpc::Type::StageUnstageVolume, rpc::Type::GetVolumeStats, rpc::Type::ExpandVolume];
        let capabilities =
            all.map(|t| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: t.into() })) }).into();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        self.enter("NodeGetInfo", &[])?;
        let segments = [("topology.test.gantry/zone".to_owned(), "z1".to_owned())].into();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: "test-node".into(),
            max_volumes_per_node: 10,
            accessible_topology: Some(Topology { segments }),
        }))
    }
}
