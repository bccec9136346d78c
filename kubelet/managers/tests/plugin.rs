//! The managers with a real device plugin: a process of its own that registers, lists, allocates, dies and comes back.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kubelet_managers::{Machine, Managers, PodInfo, Refusal, Settings};
use proto::deviceplugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use proto::deviceplugin::registration_client::RegistrationClient;
use proto::deviceplugin::*;
use proto::podresources::pod_resources_lister_client::PodResourcesListerClient;
use proto::podresources::{AllocatableResourcesRequest, GetPodResourcesRequest, ListPodResourcesRequest};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status};

const FOLDER: &str = "GANTRY_TEST_PLUGIN_FOLDER";
const RESOURCE: &str = "example.com/dev";
const LIMIT: Duration = Duration::from_secs(60);

struct Plugin {
    folder: PathBuf,
}

type Stream<T> = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    type ListAndWatchStream = Stream<ListAndWatchResponse>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(options()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let device = |id: &str| Device {
            id: id.into(),
            health: "Healthy".into(),
            topology: Some(TopologyInfo { nodes: vec![NumaNode { id: 0 }] }),
        };
        let first = ListAndWatchResponse { devices: ["d1", "d2", "d3"].map(device).into() };
        let stream = tokio_stream::StreamExt::chain(tokio_stream::iter([Ok(first)]), tokio_stream::pending());
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let one = |r: ContainerPreferredAllocationRequest| {
            let count = usize::try_from(r.allocation_size).unwrap();
            // The last ones first, to tell them from what would be taken without a preference.
            let device_i_ds = r.available_device_i_ds.into_iter().rev().take(count).collect();
            ContainerPreferredAllocationResponse { device_i_ds }
        };
        let container_responses = request.into_inner().container_requests.into_iter().map(one).collect();
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        let one = |r: ContainerAllocateRequest| ContainerAllocateResponse {
            envs: [("DEVICES".to_owned(), r.devices_ids.join(","))].into(),
            mounts: vec![Mount { container_path: "/dev-lib".into(), host_path: "/usr/lib".into(), read_only: true }],
            devices: vec![DeviceSpec {
                container_path: "/dev/mine".into(),
                host_path: "/dev/null".into(),
                permissions: "rw".into(),
            }],
            annotations: [("a/b".to_owned(), "c".to_owned())].into(),
            cdi_devices: vec![CdiDevice { name: "example.com/dev=1".into() }],
        };
        let container_responses = request.into_inner().container_requests.into_iter().map(one).collect();
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        std::fs::write(self.folder.join("pre-started"), request.into_inner().devices_ids.join(",")).unwrap();
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

fn options() -> DevicePluginOptions {
    DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true }
}

async fn channel(socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
}

/// Not a test: what the plugin's process runs.
#[test]
fn plugin_process() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let socket = folder.join("mine.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let service = DevicePluginServer::new(Plugin { folder: folder.clone() });
        let served = tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        let mut client = RegistrationClient::new(channel(folder.join("kubelet.sock")).await);
        let refused = client
            .register(RegisterRequest {
                version: "v1alpha".into(),
                endpoint: "mine.sock".into(),
                resource_name: RESOURCE.into(),
                options: None,
            })
            .await;
        assert!(refused.unwrap_err().message().contains("not supported by kubelet"));
        client
            .register(RegisterRequest {
                version: "v1beta1".into(),
                endpoint: "mine.sock".into(),
                resource_name: RESOURCE.into(),
                options: Some(options()),
            })
            .await
            .unwrap();
        served.await.unwrap().unwrap();
    });
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_plugin(folder: &Path) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "plugin_process", "--nocapture"]).env(FOLDER, folder).stdout(Stdio::null());
    Process(command.spawn().unwrap())
}

async fn until(managers: &Managers, what: &str, mut fine: impl FnMut(&Managers) -> bool) {
    let mut changes = managers.changes();
    let wait = async {
        loop {
            changes.mark_unchanged();
            if fine(managers) {
                return;
            }
            changes.changed().await.unwrap();
        }
    };
    assert!(tokio::time::timeout(LIMIT, wait).await.is_ok(), "{what}: {:?}", managers.totals());
}

fn pod(uid: &str, count: u32) -> Pod {
    let limits = serde_json::json!({"limits": {RESOURCE: count.to_string()}});
    serde_json::from_value(serde_json::json!({"metadata": {"uid": uid, "name": uid, "namespace": "n"},
        "spec": {"containers": [{"name": "c", "resources": limits}]}}))
    .unwrap()
}

fn totals(managers: &Managers) -> (usize, usize) {
    managers.totals().get(RESOURCE).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_gives_its_devices_to_pods_dies_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { root: dir.path().to_owned(), ..Settings::default() };
    let machine = Machine::read(Path::new("/sys"));
    let folder = dir.path().join("device-plugins");
    let lister = || -> kubelet_managers::Lister {
        let info = |uid: &str| PodInfo {
            uid: uid.into(),
            name: uid.into(),
            namespace: "n".into(),
            containers: vec!["c".into()],
        };
        Arc::new(move || vec![info("one"), info("two")])
    };
    let (managers, stop) = (Managers::new(settings.clone(), machine.clone()), CancellationToken::new());
    managers.serve(lister(), stop.clone()).await.unwrap();
    // A resource that no plugin ever offered is not the managers' business.
    assert_eq!(managers.admit(&pod("early", 1)).await, Ok(()));

    let plugin = start_plugin(&folder);
    until(&managers, "the devices are there", |m| totals(m) == (3, 3)).await;
    managers.admit(&pod("one", 2)).await.unwrap();
    let grant = managers.grant("one", "c");
    assert_eq!(grant.envs["DEVICES"], "d2,d3", "as the plugin prefers");
    assert_eq!((grant.devices[0].container_path.as_str(), grant.cdi[0].as_str()), ("/dev/mine", "example.com/dev=1"));
    assert!(grant.mounts[0].read_only && grant.annotations["a/b"] == "c");
    managers.pre_start("one", "c").await.unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("pre-started")).unwrap(), "d2,d3");
    let Err(Refusal::Never(reason, text)) = managers.admit(&pod("two", 2)).await else { panic!() };
    assert_eq!(reason, "UnexpectedAdmissionError");
    assert!(text.contains("Requested: 2, Available: 1"), "{text}");

    let mut client = PodResourcesListerClient::new(channel(dir.path().join("pod-resources/kubelet.sock")).await);
    let list = client.list(ListPodResourcesRequest {}).await.unwrap().into_inner().pod_resources;
    let devices = &list[0].containers[0].devices[0];
    assert_eq!((devices.resource_name.as_str(), devices.device_ids.join(",")), (RESOURCE, "d2,d3".to_owned()));
    assert_eq!(devices.topology.as_ref().unwrap().nodes[0].id, 0);
    assert!(list[1].containers[0].devices.is_empty());
    let all = client.get_allocatable_resources(AllocatableResourcesRequest {}).await.unwrap().into_inner();
    assert_eq!(all.devices[0].device_ids.len(), 3);
    let get = |name: &str| GetPodResourcesRequest { pod_name: name.into(), pod_namespace: "n".into() };
    let one = client.get(get("one")).await.unwrap().into_inner().pod_resources.unwrap();
    assert_eq!(one.containers[0].devices[0].device_ids.len(), 2);
    assert_eq!(client.get(get("none")).await.unwrap_err().code(), tonic::Code::NotFound);

    drop(plugin);
    until(&managers, "the devices are not given any more", |m| totals(m) == (3, 0)).await;
    let plugin = start_plugin(&folder);
    until(&managers, "the devices are back", |m| totals(m) == (3, 3)).await;
    drop(plugin);

    // The kubelet begins anew: who holds what is on disk, and pods wait for the plugin instead of failing.
    stop.cancel();
    let managers = Managers::new(settings, machine);
    managers.serve(lister(), CancellationToken::new()).await.unwrap();
    assert_eq!(managers.grant("one", "c").envs["DEVICES"], "d2,d3");
    assert_eq!(managers.admit(&pod("one", 2)).await, Ok(()));
    assert!(matches!(managers.admit(&pod("two", 1)).await, Err(Refusal::NotYet(_))));
    let _plugin = start_plugin(&folder);
    until(&managers, "the devices are back after a restart", |m| totals(m) == (3, 3)).await;
    managers.admit(&pod("two", 1)).await.unwrap();
    assert_eq!(managers.grant("two", "c").envs["DEVICES"], "d1");
    // A plugin that the plugin watcher found goes when nobody holds it.
    let (other, versions) = ("example.com/other", ["v1beta1".to_owned()]);
    let task = managers.plugin(other, folder.join("mine.sock"), &versions).unwrap();
    until(&managers, "the watcher's plugin is taken", |m| m.totals().get(other) == Some(&(3, 3))).await;
    drop(task);
    until(&managers, "the watcher's plugin is gone", |m| m.totals().get(other) == Some(&(3, 0))).await;
    assert!(managers.plugin("dev", folder.join("mine.sock"), &versions).is_err());
    assert!(managers.plugin(RESOURCE, folder.join("mine.sock"), &["v2".to_owned()]).is_err());
    managers.retain(|uid| uid == "two");
    managers.admit(&pod("three", 2)).await.unwrap();
    assert_eq!(managers.grant("three", "c").envs["DEVICES"], "d2,d3");
}
