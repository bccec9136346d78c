//! The client of the Container Runtime Interface: every call has a limit, and an error that says which call failed.

mod node;

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::cri::image_service_client::ImageServiceClient;
use proto::cri::runtime_service_client::RuntimeServiceClient;
use proto::cri::*;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status, Streaming};

use crate::resources::cgroups::Driver;

/// The label that names a pod's uid on its sandboxes and containers.
pub(crate) const UID_LABEL: &str = "io.kubernetes.pod.uid";
/// The label of a pod's name.
pub(crate) const NAME_LABEL: &str = "io.kubernetes.pod.name";
/// The label of a pod's namespace.
pub(crate) const NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
/// The label of a container's name.
pub(crate) const CONTAINER_LABEL: &str = "io.kubernetes.container.name";

const MESSAGE_LIMIT: usize = 64 << 20;
/// How long a pull may take; registries are slow, but nothing may hang for ever.
const PULL_LIMIT: Duration = Duration::from_secs(30 * 60);
/// Added to the time that the runtime itself was given for a stop or an exec.
const MARGIN: Duration = Duration::from_secs(15);

/// A failed call.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CriError {
    /// The rpc.
    pub(crate) call: &'static str,
    /// What kind of failure.
    pub(crate) code: Code,
    /// The runtime's words.
    pub(crate) message: String,
}

impl CriError {
    /// Whether the object of the call does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }
}

/// The runtime's two services; cloning is cheap.
#[derive(Clone)]
pub(crate) struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    limit: Duration,
}

impl Cri {
    /// A client of the sockets (`unix:///run/gantry/cri.sock` or a path). Connects when first used, and again after the
    /// runtime was restarted.
    pub(crate) fn new(runtime: &str, images: &str, limit: Duration) -> Self {
        let images = if images.is_empty() { runtime } else { images };
        Self {
            runtime: RuntimeServiceClient::new(channel(runtime)).max_decoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel(images)).max_decoding_message_size(MESSAGE_LIMIT),
            limit,
        }
    }

    pub(crate) async fn version(&self) -> Result<VersionResponse, CriError> {
        let mut c = self.runtime.clone();
        bounded("Version", self.limit, c.version(VersionRequest { version: "v1".into() })).await
    }

    /// Who makes control groups at the runtime; nothing where it does not say.
    pub(crate) async fn cgroup_driver(&self) -> Result<Option<Driver>, CriError> {
        let mut c = self.runtime.clone();
        let told = bounded("RuntimeConfig", self.limit, c.runtime_config(RuntimeConfigRequest {})).await?;
        Ok(told.linux.and_then(|linux| match CgroupDriver::try_from(linux.cgroup_driver) {
            Ok(CgroupDriver::Systemd) => Some(Driver::Systemd),
            Ok(CgroupDriver::Cgroupfs) => Some(Driver::Cgroupfs),
            Err(_) => None,
        }))
    }

    /// The runtime's condition and handlers.
    pub(crate) async fn status(&self) -> Result<StatusResponse, CriError> {
        let mut c = self.runtime.clone();
        bounded("Status", self.limit, c.status(StatusRequest { verbose: false })).await
    }

    pub(crate) async fn run_sandbox(&self, config: PodSandboxConfig, handler: &str) -> Result<String, CriError> {
        let mut c = self.runtime.clone();
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        bounded("RunPodSandbox", self.limit * 2, c.run_pod_sandbox(request)).await.map(|r| r.pod_sandbox_id)
    }

    pub(crate) async fn stop_sandbox(&self, id: &str) -> Result<(), CriError> {
        let mut c = self.runtime.clone();
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(bounded("StopPodSandbox", self.limit, c.stop_pod_sandbox(request)).await)
    }

    pub(crate) async fn remove_sandbox(&self, id: &str) -> Result<(), CriError> {
        let mut c = self.runtime.clone();
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(bounded("RemovePodSandbox", self.limit, c.remove_pod_sandbox(request)).await)
    }

    pub(crate) async fn sandbox_status(&self, id: &str) -> Result<PodSandboxStatusResponse, CriError> {
        let mut c = self.runtime.clone();
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        bounded("PodSandboxStatus", self.limit, c.pod_sandbox_status(request)).await
    }

    /// Sandboxes of one pod, or of all.
    pub(crate) async fn sandboxes(&self, uid: Option<&str>) -> Result<Vec<PodSandbox>, CriError> {
        let mut c = self.runtime.clone();
        let filter = PodSandboxFilter { label_selector: selector(uid), ..Default::default() };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        bounded("ListPodSandbox", self.limit, c.list_pod_sandbox(request)).await.map(|r| r.items)
    }

    pub(crate) async fn create_container(&self, request: CreateContainerRequest) -> Result<String, CriError> {
        let mut c = self.runtime.clone();
        bounded("CreateContainer", self.limit, c.create_container(request)).await.map(|r| r.container_id)
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<(), CriError> {
        let mut c = self.runtime.clone();
        let request = StartContainerRequest { container_id: id.to_owned() };
        bounded("StartContainer", self.limit, c.start_container(request)).await.map(drop)
    }

    /// SIGTERM, and SIGKILL after `grace`.
    pub(crate) async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), CriError> {
        let mut c = self.runtime.clone();
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = StopContainerRequest { container_id: id.to_owned(), timeout };
        gone_is_fine(bounded("StopContainer", grace + self.limit, c.stop_container(request)).await)
    }

    pub(crate) async fn remove_container(&self, id: &str) -> Result<(), CriError> {
        let mut c = self.runtime.clone();
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        gone_is_fine(bounded("RemoveContainer", self.limit, c.remove_container(request)).await)
    }

    /// Containers of one pod, or of all.
    pub(crate) async fn containers(&self, uid: Option<&str>) -> Result<Vec<Container>, CriError> {
        let mut c = self.runtime.clone();
        let filter = ContainerFilter { label_selector: selector(uid), ..Default::default() };
        let request = ListContainersRequest { filter: Some(filter) };
        bounded("ListContainers", self.limit, c.list_containers(request)).await.map(|r| r.containers)
    }

    pub(crate) async fn container_status(&self, id: &str) -> Result<ContainerStatus, CriError> {
        let mut c = self.runtime.clone();
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let response = bounded("ContainerStatus", self.limit, c.container_status(request)).await?;
        response.status.ok_or_else(|| CriError {
            call: "ContainerStatus",
            code: Code::Internal,
            message: format!("the runtime gave no status of container {id}"),
        })
    }

    /// Runs a command in a container; the runtime kills it after `limit`.
    pub(crate) async fn exec_sync(
        &self,
        id: &str,
        cmd: &[String],
        limit: Duration,
    ) -> Result<ExecSyncResponse, CriError> {
        let mut c = self.runtime.clone();
        let timeout = i64::try_from(limit.as_secs().max(1)).unwrap_or(i64::MAX);
        let request = ExecSyncRequest { container_id: id.to_owned(), cmd: cmd.to_vec(), timeout };
        bounded("ExecSync", limit + MARGIN, c.exec_sync(request)).await
    }

    pub(crate) async fn exec(&self, request: ExecRequest) -> Result<String, CriError> {
        let mut c = self.runtime.clone();
        bounded("Exec", self.limit, c.exec(request)).await.map(|r| r.url)
    }

    pub(crate) async fn attach(&self, request: AttachRequest) -> Result<String, CriError> {
        let mut c = self.runtime.clone();
        bounded("Attach", self.limit, c.attach(request)).await.map(|r| r.url)
    }

    pub(crate) async fn port_forward(&self, request: PortForwardRequest) -> Result<String, CriError> {
        let mut c = self.runtime.clone();
        bounded("PortForward", self.limit, c.port_forward(request)).await.map(|r| r.url)
    }

    pub(crate) async fn reopen_log(&self, id: &str) -> Result<(), CriError> {
        let mut c = self.runtime.clone();
        let request = ReopenContainerLogRequest { container_id: id.to_owned() };
        bounded("ReopenContainerLog", self.limit, c.reopen_container_log(request)).await.map(drop)
    }

    pub(crate) async fn container_stats(&self) -> Result<Vec<ContainerStats>, CriError> {
        let mut c = self.runtime.clone();
        let request = ListContainerStatsRequest { filter: None };
        bounded("ListContainerStats", self.limit, c.list_container_stats(request)).await.map(|r| r.stats)
    }

    pub(crate) async fn sandbox_stats(&self) -> Result<Vec<PodSandboxStats>, CriError> {
        let mut c = self.runtime.clone();
        let request = ListPodSandboxStatsRequest { filter: None };
        bounded("ListPodSandboxStats", self.limit, c.list_pod_sandbox_stats(request)).await.map(|r| r.stats)
    }

    /// Metrics under cAdvisor's names; not every runtime has them.
    pub(crate) async fn pod_metrics(&self) -> Result<Vec<PodSandboxMetrics>, CriError> {
        let mut c = self.runtime.clone();
        let request = ListPodSandboxMetricsRequest {};
        bounded("ListPodSandboxMetrics", self.limit, c.list_pod_sandbox_metrics(request)).await.map(|r| r.pod_metrics)
    }

    /// What the metrics mean.
    pub(crate) async fn metric_descriptors(&self) -> Result<Vec<MetricDescriptor>, CriError> {
        let mut c = self.runtime.clone();
        let request = ListMetricDescriptorsRequest {};
        bounded("ListMetricDescriptors", self.limit, c.list_metric_descriptors(request)).await.map(|r| r.descriptors)
    }

    /// Writes a container's state to a file.
    pub(crate) async fn checkpoint(&self, id: &str, location: &str, timeout: i64) -> Result<(), CriError> {
        let mut c = self.runtime.clone();
        let request =
            CheckpointContainerRequest { container_id: id.to_owned(), location: location.to_owned(), timeout };
        let limit = u64::try_from(timeout).map_or(self.limit, |s| self.limit + Duration::from_secs(s));
        bounded("CheckpointContainer", limit, c.checkpoint_container(request)).await.map(drop)
    }

    /// What images and containers use of their file systems.
    pub(crate) async fn image_fs_info(&self) -> Result<ImageFsInfoResponse, CriError> {
        let mut c = self.images.clone();
        bounded("ImageFsInfo", self.limit, c.image_fs_info(ImageFsInfoRequest {})).await
    }

    /// The stream of container events; it lasts until the runtime ends it.
    pub(crate) async fn events(&self) -> Result<Streaming<ContainerEventResponse>, CriError> {
        let mut c = self.runtime.clone();
        bounded("GetContainerEvents", self.limit, c.get_container_events(GetEventsRequest {})).await
    }

    pub(crate) async fn update_pod_cidr(&self, pod_cidr: &str) -> Result<(), CriError> {
        let mut c = self.runtime.clone();
        let network_config = Some(NetworkConfig { pod_cidr: pod_cidr.to_owned() });
        let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
        bounded("UpdateRuntimeConfig", self.limit, c.update_runtime_config(request)).await.map(drop)
    }

    /// The image, if it is on this node.
    pub(crate) async fn image(&self, image: &str) -> Result<Option<Image>, CriError> {
        let mut c = self.images.clone();
        let request = ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        match bounded("ImageStatus", self.limit, c.image_status(request)).await {
            Ok(response) => Ok(response.image),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) async fn pull(
        &self,
        image: &str,
        auth: Option<AuthConfig>,
        sandbox: PodSandboxConfig,
    ) -> Result<String, CriError> {
        let mut c = self.images.clone();
        let uid = sandbox.metadata.as_ref().map_or_else(String::new, |m| m.uid.clone());
        let request = PullImageRequest { image: Some(image_spec(image)), auth, sandbox_config: Some(sandbox) };
        let start = std::time::Instant::now();
        let pulled = bounded("PullImage", PULL_LIMIT, c.pull_image(request)).await?;
        crate::metrics::own::pulled(&uid, start.elapsed());
        Ok(pulled.image_ref)
    }

    pub(crate) async fn image_list(&self) -> Result<Vec<Image>, CriError> {
        let mut c = self.images.clone();
        bounded("ListImages", self.limit, c.list_images(ListImagesRequest { filter: None })).await.map(|r| r.images)
    }
}

/// How CRI names an image.
pub(crate) fn image_spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), user_specified_image: image.to_owned(), ..Default::default() }
}

fn selector(uid: Option<&str>) -> std::collections::HashMap<String, String> {
    uid.map(|u| (UID_LABEL.to_owned(), u.to_owned())).into_iter().collect()
}

fn channel(endpoint: &str) -> Channel {
    let path = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .connect_timeout(Duration::from_secs(5))
        .connect_with_connector_lazy(connector)
}

async fn bounded<T>(
    call: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CriError> {
    let start = std::time::Instant::now();
    let ended = tokio::time::timeout(limit, work).await;
    crate::metrics::own::runtime_called(call, start.elapsed(), matches!(ended, Ok(Ok(_))));
    match ended {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => {
            Err(CriError { call, code: status.code(), message: format!("{call}: {}", status.message()) })
        }
        Err(_) => Err(CriError {
            call,
            code: Code::DeadlineExceeded,
            message: format!("{call}: the runtime gave no answer within {} s", limit.as_secs()),
        }),
    }
}

fn gone_is_fine<T>(result: Result<T, CriError>) -> Result<(), CriError> {
    match result {
        Ok(_) => Ok(()),
        Err(e) if e.is_not_found() => Ok(()),
        Err(e) => Err(e),
    }
}
