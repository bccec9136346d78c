//! One plugin's side of the conversation: its socket, its list of devices, its answers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::deviceplugin::device_plugin_client::DevicePluginClient;
use proto::deviceplugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse, ContainerPreferredAllocationRequest,
    DevicePluginOptions, Empty, PreStartContainerRequest, PreferredAllocationRequest,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};

/// Upstream's limit for a plugin's answers: lists of devices may be long.
const MESSAGE_LIMIT: usize = 16 << 20;
/// For how long a plugin may think about an allocation.
const ALLOCATE: Duration = Duration::from_secs(60);
const PRE_START: Duration = Duration::from_secs(30);
const PREFER: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(10);

/// A connection to a plugin; cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Plugin {
    client: DevicePluginClient<Channel>,
}

fn late(what: &str, limit: Duration) -> Status {
    Status::deadline_exceeded(format!("{what}: the device plugin gave no answer within {} s", limit.as_secs()))
}

async fn bounded<T>(
    what: &str,
    limit: Duration,
    work: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    tokio::time::timeout(limit, work).await.map_err(|_| late(what, limit))?.map(tonic::Response::into_inner)
}

impl Plugin {
    /// Connects to a socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, Status> {
        let path: PathBuf = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost").connect_timeout(CONNECT);
        let failed = |e: &dyn std::fmt::Display| Status::unavailable(format!("connect to {}: {e}", socket.display()));
        let channel = tokio::time::timeout(CONNECT, endpoint.connect_with_connector(connector))
            .await
            .map_err(|e| failed(&e))?
            .map_err(|e| failed(&e))?;
        Ok(Self { client: DevicePluginClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT) })
    }

    /// What the plugin can do.
    ///
    /// # Errors
    /// The plugin refuses.
    pub(crate) async fn options(&self) -> Result<DevicePluginOptions, Status> {
        let mut client = self.client.clone();
        bounded("GetDevicePluginOptions", CONNECT, client.get_device_plugin_options(Empty {})).await
    }

    /// The stream of lists of devices.
    ///
    /// # Errors
    /// The plugin refuses.
    pub(crate) async fn devices(&self) -> Result<Streaming<proto::deviceplugin::ListAndWatchResponse>, Status> {
        let mut client = self.client.clone();
        bounded("ListAndWatch", CONNECT, client.list_and_watch(Empty {})).await
    }

    /// Asks which devices are best together.
    ///
    /// # Errors
    /// The plugin refuses or does not answer.
    pub(crate) async fn prefer(
        &self,
        available: Vec<String>,
        must_include: Vec<String>,
        count: usize,
    ) -> Result<Vec<String>, Status> {
        let mut client = self.client.clone();
        let one = ContainerPreferredAllocationRequest {
            available_device_i_ds: available,
            must_include_device_i_ds: must_include,
            allocation_size: i32::try_from(count).unwrap_or(i32::MAX),
        };
        let request = PreferredAllocationRequest { container_requests: vec![one] };
        let answer = bounded("GetPreferredAllocation", PREFER, client.get_preferred_allocation(request)).await?;
        Ok(answer.container_responses.into_iter().next().map(|r| r.device_i_ds).unwrap_or_default())
    }

    /// Makes devices ready for a container.
    ///
    /// # Errors
    /// The plugin refuses or does not answer.
    pub(crate) async fn allocate(&self, ids: Vec<String>) -> Result<ContainerAllocateResponse, Status> {
        let mut client = self.client.clone();
        let request = AllocateRequest { container_requests: vec![ContainerAllocateRequest { devices_ids: ids }] };
        let answer = bounded("Allocate", ALLOCATE, client.allocate(request)).await?;
        let first = answer.container_responses.into_iter().next();
        first.ok_or_else(|| Status::internal("No container responses in allocation response"))
    }

    /// Tells the plugin that the container is about to start.
    ///
    /// # Errors
    /// The plugin refuses or does not answer.
    pub(crate) async fn pre_start(&self, ids: Vec<String>) -> Result<(), Status> {
        let mut client = self.client.clone();
        let request = PreStartContainerRequest { devices_ids: ids };
        bounded("PreStartContainer", PRE_START, client.pre_start_container(request)).await.map(drop)
    }
}
