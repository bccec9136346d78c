//! RuntimeService.

use std::collections::HashMap;

use gantry_monitor::protocol::Request as Ask;
use proto::cri;
use proto::cri::runtime_service_server::RuntimeService;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

use super::{Service, Streaming, once};
use crate::cgroups::Driver;
use crate::container::labels_match;
use crate::error::Error;
use crate::{container, metrics, monitors, sandbox, stats, streams};

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    fn list_sandboxes(&self, filter: Option<cri::PodSandboxFilter>) -> Vec<cri::PodSandbox> {
        let filter = filter.unwrap_or_default();
        let all = self.daemon.all_sandboxes();
        all.iter().filter(|s| sandbox::matches(s, &filter)).map(|s| sandbox::summary(s)).collect()
    }

    fn list(&self, filter: Option<cri::ContainerFilter>) -> Vec<cri::Container> {
        let filter = filter.unwrap_or_default();
        let all = self.daemon.all_containers();
        all.iter().filter(|c| container::matches(c, &filter)).map(|c| container::summary(c)).collect()
    }

    async fn container_stats_list(
        &self,
        filter: Option<cri::ContainerStatsFilter>,
    ) -> Result<Vec<cri::ContainerStats>, Status> {
        let f = filter.unwrap_or_default();
        let daemon = self.daemon.clone();
        let work = move || {
            let all = daemon.all_containers().into_iter().filter(|c| {
                c.id.starts_with(&f.id)
                    && c.sandbox.starts_with(&f.pod_sandbox_id)
                    && c.state() == cri::ContainerState::ContainerRunning
                    && c.with(|r| labels_match(&f.label_selector, &r.config.0.labels))
            });
            all.map(|c| stats::container(&daemon, &c)).collect()
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| Status::internal(e.to_string()))
    }

    async fn metrics(&self) -> Result<Vec<cri::PodSandboxMetrics>, Status> {
        let daemon = self.daemon.clone();
        let work = move || {
            let ready = daemon.all_sandboxes().into_iter().filter(|s| !s.record().stopped);
            ready.map(|s| metrics::of_sandbox(&daemon, &s)).collect()
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| Status::internal(e.to_string()))
    }

    async fn sandbox_stats_list(
        &self,
        filter: Option<cri::PodSandboxStatsFilter>,
    ) -> Result<Vec<cri::PodSandboxStats>, Status> {
        let f = filter.unwrap_or_default();
        let daemon = self.daemon.clone();
        let work = move || {
            let all = daemon.all_sandboxes().into_iter().filter(|s| {
                let record = s.record();
                s.id.starts_with(&f.id) && !record.stopped && labels_match(&f.label_selector, &record.config.0.labels)
            });
            all.map(|s| stats::sandbox(&daemon, &s)).collect()
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| Status::internal(e.to_string()))
    }
}

#[tonic::async_trait]
impl RuntimeService for Service {
    type StreamPodSandboxesStream = Streaming<cri::StreamPodSandboxesResponse>;
    type StreamContainersStream = Streaming<cri::StreamContainersResponse>;
    type StreamContainerStatsStream = Streaming<cri::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Streaming<cri::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Streaming<cri::StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = Streaming<cri::ContainerEventResponse>;

    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        Ok(Response::new(cri::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "gantry-cri".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn status(&self, r: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        let config = self.daemon.settings();
        let network = self.daemon.network_ready().await;
        let conditions = vec![
            cri::RuntimeCondition { r#type: "RuntimeReady".to_owned(), status: true, ..Default::default() },
            cri::RuntimeCondition {
                r#type: "NetworkReady".to_owned(),
                status: network.is_ok(),
                reason: if network.is_ok() { String::new() } else { "NetworkPluginNotReady".to_owned() },
                message: network.err().unwrap_or_default(),
            },
        ];
        let mut info = HashMap::new();
        if r.into_inner().verbose {
            let mut shown = serde_json::to_value(&*config).unwrap_or_default();
            // Where root file systems are, by the name under which tools look for it.
            shown["stateDir"] = serde_json::json!(config.state);
            info.insert("config".to_owned(), shown.to_string());
        }
        let mut runtime_handlers = Vec::new();
        for name in std::iter::once(String::new()).chain(config.runtime_handlers.keys().cloned()) {
            let can = match config.handler(&name) {
                Some(program) => self.daemon.handlers.of(&program).await,
                None => Default::default(),
            };
            let features = cri::RuntimeHandlerFeatures {
                recursive_read_only_mounts: can.recursive_read_only,
                user_namespaces: can.mapped_ids && sandbox::users::supported(),
            };
            runtime_handlers.push(cri::RuntimeHandler { name, features: Some(features) });
        }
        Ok(Response::new(cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions }),
            info,
            runtime_handlers,
            features: Some(cri::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
        }))
    }

    async fn runtime_config(&self, _: Request<cri::RuntimeConfigRequest>) -> Answer<cri::RuntimeConfigResponse> {
        let driver = match self.daemon.config.cgroup_driver {
            Driver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
            Driver::Systemd => cri::CgroupDriver::Systemd,
        };
        let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
        Ok(Response::new(cri::RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_runtime_config(
        &self,
        r: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        let network = r.into_inner().runtime_config.and_then(|c| c.network_config);
        *crate::daemon::lock(&self.daemon.pod_cidr) = network.map(|n| n.pod_cidr).unwrap_or_default();
        Ok(Response::new(cri::UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(&self, r: Request<cri::RunPodSandboxRequest>) -> Answer<cri::RunPodSandboxResponse> {
        let r = r.into_inner();
        let daemon = self.daemon.clone();
        let config = r.config.ok_or_else(|| Status::invalid_argument("the sandbox has no configuration"))?;
        let work = async move { sandbox::run(&daemon, config, r.runtime_handler).await };
        Ok(Response::new(cri::RunPodSandboxResponse { pod_sandbox_id: self.detached(work).await? }))
    }

    async fn stop_pod_sandbox(&self, r: Request<cri::StopPodSandboxRequest>) -> Answer<cri::StopPodSandboxResponse> {
        let (daemon, id) = (self.daemon.clone(), r.into_inner().pod_sandbox_id);
        self.detached(async move { sandbox::stop(&daemon, &id).await }).await?;
        Ok(Response::new(cri::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        r: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        let (daemon, id) = (self.daemon.clone(), r.into_inner().pod_sandbox_id);
        self.detached(async move { sandbox::remove(&daemon, &id).await }).await?;
        Ok(Response::new(cri::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        r: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let r = r.into_inner();
        let found = self.daemon.sandbox(&r.pod_sandbox_id)?;
        let mut info = HashMap::new();
        if r.verbose {
            let record = found.record();
            let fault = crate::daemon::lock(&found.fault).clone();
            let more = serde_json::json!({"cniResult": record.cni_result, "fault": fault, "pidInit": record.pid_init,
                "dir": self.daemon.sandbox_dir(&found.id), "monitor": self.daemon.monitor(&found.id).socket()});
            info.insert("info".to_owned(), more.to_string());
        }
        let containers = self.daemon.containers_of(&found.id);
        Ok(Response::new(cri::PodSandboxStatusResponse {
            status: Some(sandbox::status(&found)),
            info,
            containers_statuses: containers.iter().map(|c| container::status(c)).collect(),
            timestamp: crate::daemon::now(),
        }))
    }

    async fn list_pod_sandbox(&self, r: Request<cri::ListPodSandboxRequest>) -> Answer<cri::ListPodSandboxResponse> {
        Ok(Response::new(cri::ListPodSandboxResponse { items: self.list_sandboxes(r.into_inner().filter) }))
    }

    async fn stream_pod_sandboxes(
        &self,
        r: Request<cri::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        Ok(once(cri::StreamPodSandboxesResponse { pod_sandboxes: self.list_sandboxes(r.into_inner().filter) }))
    }

    async fn create_container(&self, r: Request<cri::CreateContainerRequest>) -> Answer<cri::CreateContainerResponse> {
        let r = r.into_inner();
        let daemon = self.daemon.clone();
        let config = r.config.ok_or_else(|| Status::invalid_argument("the container has no configuration"))?;
        let work = async move { container::create(&daemon, &r.pod_sandbox_id, config).await };
        Ok(Response::new(cri::CreateContainerResponse { container_id: self.detached(work).await? }))
    }

    async fn start_container(&self, r: Request<cri::StartContainerRequest>) -> Answer<cri::StartContainerResponse> {
        let (daemon, id) = (self.daemon.clone(), r.into_inner().container_id);
        self.detached(async move { container::start(&daemon, &id).await }).await?;
        Ok(Response::new(cri::StartContainerResponse {}))
    }

    async fn stop_container(&self, r: Request<cri::StopContainerRequest>) -> Answer<cri::StopContainerResponse> {
        let r = r.into_inner();
        if let Ok(found) = self.daemon.container(&r.container_id) {
            let daemon = self.daemon.clone();
            self.detached(async move { container::stop(&daemon, &found, r.timeout).await }).await?;
        }
        Ok(Response::new(cri::StopContainerResponse {}))
    }

    async fn remove_container(&self, r: Request<cri::RemoveContainerRequest>) -> Answer<cri::RemoveContainerResponse> {
        let (daemon, id) = (self.daemon.clone(), r.into_inner().container_id);
        self.detached(async move { container::remove(&daemon, &id).await }).await?;
        Ok(Response::new(cri::RemoveContainerResponse {}))
    }

    async fn list_containers(&self, r: Request<cri::ListContainersRequest>) -> Answer<cri::ListContainersResponse> {
        Ok(Response::new(cri::ListContainersResponse { containers: self.list(r.into_inner().filter) }))
    }

    async fn stream_containers(
        &self,
        r: Request<cri::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        Ok(once(cri::StreamContainersResponse { containers: self.list(r.into_inner().filter) }))
    }

    async fn container_status(&self, r: Request<cri::ContainerStatusRequest>) -> Answer<cri::ContainerStatusResponse> {
        let r = r.into_inner();
        let found = self.daemon.container(&r.container_id)?;
        let mut info = HashMap::new();
        if r.verbose {
            let bundle = self.daemon.bundle(&found.id);
            let pid = std::fs::read_to_string(bundle.join("pid")).ok().and_then(|p| p.trim().parse::<i32>().ok());
            let spec = std::fs::read(bundle.join("config.json")).ok();
            let spec: serde_json::Value = spec.and_then(|s| serde_json::from_slice(&s).ok()).unwrap_or_default();
            let more = serde_json::json!({"sandboxID": found.sandbox, "pid": pid, "runtimeSpec": spec,
                "fault": *crate::daemon::lock(&found.fault)});
            info.insert("info".to_owned(), more.to_string());
        }
        Ok(Response::new(cri::ContainerStatusResponse { status: Some(container::status(&found)), info }))
    }

    async fn update_container_resources(
        &self,
        r: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        let r = r.into_inner();
        container::update_resources(&self.daemon, &r.container_id, r.linux.unwrap_or_default()).await?;
        Ok(Response::new(cri::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        r: Request<cri::ReopenContainerLogRequest>,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        let found = self.daemon.container(&r.into_inner().container_id)?;
        if found.state() != cri::ContainerState::ContainerRunning {
            return Err(Error::State(format!("container {} is not running", found.id)).into());
        }
        monitors::call(&self.daemon, &found.sandbox, Ask::ReopenLog { id: found.id.clone() }).await?;
        Ok(Response::new(cri::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, r: Request<cri::ExecSyncRequest>) -> Answer<cri::ExecSyncResponse> {
        let r = r.into_inner();
        Ok(Response::new(container::exec_sync(&self.daemon, &r.container_id, r.cmd, r.timeout).await?))
    }

    async fn exec(&self, r: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        let ask = r.into_inner();
        let container = streams::running(&self.daemon, &ask.container_id)?;
        if ask.cmd.is_empty() {
            return Err(Status::invalid_argument("no command"));
        }
        let session = cri_streaming::ExecRequest {
            container_id: container.id.clone(),
            cmd: ask.cmd,
            tty: ask.tty,
            stdin: ask.stdin,
            stdout: ask.stdout,
            stderr: ask.stderr,
        };
        let url = streams::url(&self.daemon, |server| server.exec_url(session))?;
        Ok(Response::new(cri::ExecResponse { url }))
    }

    async fn attach(&self, r: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        let ask = r.into_inner();
        let container = streams::running(&self.daemon, &ask.container_id)?;
        let session = cri_streaming::AttachRequest {
            container_id: container.id.clone(),
            tty: ask.tty,
            stdin: ask.stdin,
            stdout: ask.stdout,
            stderr: ask.stderr,
        };
        let url = streams::url(&self.daemon, |server| server.attach_url(session))?;
        Ok(Response::new(cri::AttachResponse { url }))
    }

    async fn port_forward(&self, r: Request<cri::PortForwardRequest>) -> Answer<cri::PortForwardResponse> {
        let sandbox = self.daemon.sandbox(&r.into_inner().pod_sandbox_id)?;
        let url = streams::url(&self.daemon, |server| server.port_forward_url(&sandbox.id))?;
        Ok(Response::new(cri::PortForwardResponse { url }))
    }

    async fn container_stats(&self, r: Request<cri::ContainerStatsRequest>) -> Answer<cri::ContainerStatsResponse> {
        let found = self.daemon.container(&r.into_inner().container_id)?;
        let daemon = self.daemon.clone();
        let work = tokio::task::spawn_blocking(move || stats::container(&daemon, &found));
        let stats = work.await.map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(cri::ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        r: Request<cri::ListContainerStatsRequest>,
    ) -> Answer<cri::ListContainerStatsResponse> {
        let stats = self.container_stats_list(r.into_inner().filter).await?;
        Ok(Response::new(cri::ListContainerStatsResponse { stats }))
    }

    async fn stream_container_stats(
        &self,
        r: Request<cri::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let container_stats = self.container_stats_list(r.into_inner().filter).await?;
        Ok(once(cri::StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(&self, r: Request<cri::PodSandboxStatsRequest>) -> Answer<cri::PodSandboxStatsResponse> {
        let found = self.daemon.sandbox(&r.into_inner().pod_sandbox_id)?;
        let daemon = self.daemon.clone();
        let work = tokio::task::spawn_blocking(move || stats::sandbox(&daemon, &found));
        let stats = work.await.map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(cri::PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        r: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        let stats = self.sandbox_stats_list(r.into_inner().filter).await?;
        Ok(Response::new(cri::ListPodSandboxStatsResponse { stats }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        r: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let pod_sandbox_stats = self.sandbox_stats_list(r.into_inner().filter).await?;
        Ok(once(cri::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    async fn checkpoint_container(
        &self,
        r: Request<cri::CheckpointContainerRequest>,
    ) -> Answer<cri::CheckpointContainerResponse> {
        let (daemon, r) = (self.daemon.clone(), r.into_inner());
        let work = async move { container::checkpoint(&daemon, &r.container_id, &r.location, r.timeout).await };
        self.detached(work).await?;
        Ok(Response::new(cri::CheckpointContainerResponse {}))
    }

    async fn get_container_events(&self, _: Request<cri::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        let (past, events) = crate::events::listen(&self.daemon);
        // Who is too slow is cut off, so that it lists anew instead of missing events silently.
        let events =
            BroadcastStream::new(events).map(|e| e.map_err(|_| Status::data_loss("events were missed: list again")));
        Ok(Response::new(Box::pin(tokio_stream::iter(past.into_iter().map(Ok)).chain(events))))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        Ok(Response::new(cri::ListMetricDescriptorsResponse { descriptors: metrics::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        Ok(Response::new(cri::ListPodSandboxMetricsResponse { pod_metrics: self.metrics().await? }))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        Ok(once(cri::StreamPodSandboxMetricsResponse { pod_sandbox_metrics: self.metrics().await? }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        r: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<cri::UpdatePodSandboxResourcesResponse> {
        let (daemon, r) = (self.daemon.clone(), r.into_inner());
        let work = async move { sandbox::update_resources(&daemon, &r.pod_sandbox_id, r.overhead, r.resources).await };
        self.detached(work).await?;
        Ok(Response::new(cri::UpdatePodSandboxResourcesResponse {}))
    }
}
