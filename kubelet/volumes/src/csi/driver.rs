//! One CSI driver: its node plugin behind a socket. Every call has a limit and an error that names the driver and the
//! call.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::csi::node_client::NodeClient;
use proto::csi::node_service_capability::{Type, rpc};
use proto::csi::*;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status};

/// As upstream; a driver may have to wait for a disk.
const LIMIT: Duration = Duration::from_secs(120);

/// A failed call.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{call} of driver {driver}: {message}")]
pub(crate) struct CallError {
    driver: String,
    call: &'static str,
    /// What kind of failure.
    pub(crate) code: Code,
    message: String,
}

/// What a driver can do with volumes on a node.
pub(crate) type Capability = rpc::Type;

/// A registered driver; cloning is cheap.
#[derive(Clone)]
pub(crate) struct Driver {
    pub(crate) name: Arc<str>,
    socket: PathBuf,
    node: NodeClient<Channel>,
    capabilities: Arc<OnceLock<BTreeSet<i32>>>,
}

impl Driver {
    /// A driver that listens on `socket`; connects when first used, and again after the driver was restarted.
    pub(crate) fn new(name: &str, socket: &Path) -> Self {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost")
            .connect_timeout(Duration::from_secs(10))
            .connect_with_connector_lazy(connector);
        Self {
            name: name.into(),
            socket: socket.to_owned(),
            node: NodeClient::new(channel),
            capabilities: Arc::default(),
        }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    async fn bounded<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        let error = |code, message: String| CallError { driver: self.name.to_string(), call, code, message };
        match tokio::time::timeout(LIMIT, work).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => {
                let cause = std::error::Error::source(&status).map(|e| format!(" ({e})")).unwrap_or_default();
                Err(error(status.code(), format!("{}{cause}", status.message())))
            }
            Err(_) => Err(error(Code::DeadlineExceeded, format!("no answer within {} s", LIMIT.as_secs()))),
        }
    }

    /// Whether the driver can do this. Asked once.
    pub(crate) async fn can(&self, what: Capability) -> Result<bool, CallError> {
        if let Some(known) = self.capabilities.get() {
            return Ok(known.contains(&(what as i32)));
        }
        let mut client = self.node.clone();
        let told =
            self.bounded("NodeGetCapabilities", client.node_get_capabilities(NodeGetCapabilitiesRequest {})).await?;
        let all: BTreeSet<i32> =
            told.capabilities.into_iter().filter_map(|c| c.r#type.map(|Type::Rpc(rpc)| rpc.r#type)).collect();
        Ok(self.capabilities.get_or_init(|| all).contains(&(what as i32)))
    }

    pub(crate) async fn info(&self) -> Result<NodeGetInfoResponse, CallError> {
        let mut client = self.node.clone();
        self.bounded("NodeGetInfo", client.node_get_info(NodeGetInfoRequest {})).await
    }

    pub(crate) async fn stage(&self, request: NodeStageVolumeRequest) -> Result<(), CallError> {
        let mut client = self.node.clone();
        self.bounded("NodeStageVolume", client.node_stage_volume(request)).await.map(drop)
    }

    pub(crate) async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), CallError> {
        let mut client = self.node.clone();
        self.bounded("NodePublishVolume", client.node_publish_volume(request)).await.map(drop)
    }

    /// A volume that the driver does not know is not published either.
    pub(crate) async fn unpublish(&self, handle: &str, target: &Path) -> Result<(), CallError> {
        let mut client = self.node.clone();
        let request = NodeUnpublishVolumeRequest { volume_id: handle.to_owned(), target_path: shown(target) };
        gone_is_fine(self.bounded("NodeUnpublishVolume", client.node_unpublish_volume(request)).await.map(drop))
    }

    /// A volume that the driver does not know is not staged either.
    pub(crate) async fn unstage(&self, handle: &str, staging: &Path) -> Result<(), CallError> {
        let mut client = self.node.clone();
        let request = NodeUnstageVolumeRequest { volume_id: handle.to_owned(), staging_target_path: shown(staging) };
        gone_is_fine(self.bounded("NodeUnstageVolume", client.node_unstage_volume(request)).await.map(drop))
    }

    pub(crate) async fn expand(&self, request: NodeExpandVolumeRequest) -> Result<i64, CallError> {
        let mut client = self.node.clone();
        self.bounded("NodeExpandVolume", client.node_expand_volume(request)).await.map(|r| r.capacity_bytes)
    }

    pub(crate) async fn stats(
        &self,
        request: NodeGetVolumeStatsRequest,
    ) -> Result<NodeGetVolumeStatsResponse, CallError> {
        let mut client = self.node.clone();
        self.bounded("NodeGetVolumeStats", client.node_get_volume_stats(request)).await
    }
}

fn gone_is_fine(result: Result<(), CallError>) -> Result<(), CallError> {
    result.or_else(|e| if e.code == Code::NotFound { Ok(()) } else { Err(e) })
}

pub(crate) fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
