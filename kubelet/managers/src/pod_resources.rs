//! The pod resources API: which pod holds which devices, CPUs and memory, for monitoring agents on the node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use proto::podresources::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use proto::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices, ContainerMemory, ContainerResources,
    GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse, NumaNode,
    PodResources, TopologyInfo,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::devices::book::Device;
use crate::manager::{Managers, State};
use crate::memory::Block;
use crate::socket;

/// Upstream's limit on answers.
const MESSAGE_LIMIT: usize = 16 << 20;

/// A pod, as far as the API names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodInfo {
    /// Its uid.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its containers that may run now.
    pub containers: Vec<String>,
}

/// Tells the pods of the node.
pub type Lister = Arc<dyn Fn() -> Vec<PodInfo> + Send + Sync>;

struct Service {
    managers: Managers,
    pods: Lister,
}

fn topology(nodes: impl IntoIterator<Item = u32>) -> Option<TopologyInfo> {
    let nodes: Vec<NumaNode> = nodes.into_iter().map(|n| NumaNode { id: i64::from(n) }).collect();
    (!nodes.is_empty()).then_some(TopologyInfo { nodes })
}

fn memory(blocks: &[Block]) -> Vec<ContainerMemory> {
    let one = |b: &Block| ContainerMemory {
        memory_type: b.name.clone(),
        size: b.size,
        topology: topology(b.nodes.iter().copied()),
    };
    blocks.iter().map(one).collect()
}

/// Devices grouped by where they are.
fn grouped<'a>(
    resource: &str,
    devices: impl Iterator<Item = (&'a String, Option<&'a Device>)>,
) -> Vec<ContainerDevices> {
    let mut groups: BTreeMap<Vec<u32>, Vec<String>> = BTreeMap::new();
    for (id, device) in devices {
        let nodes = device.map(|d| d.nodes.iter().collect()).unwrap_or_default();
        groups.entry(nodes).or_default().push(id.clone());
    }
    let one = |(nodes, device_ids): (Vec<u32>, Vec<String>)| ContainerDevices {
        resource_name: resource.to_owned(),
        device_ids,
        topology: topology(nodes),
    };
    groups.into_iter().map(one).collect()
}

impl Service {
    fn pod(&self, state: &State, pod: PodInfo) -> PodResources {
        let one = |name: &String| {
            let held = state.devices.of(&pod.uid, name).flat_map(|(resource, held)| {
                let known = state.devices.resources.get(resource);
                let devices = held.ids.iter().map(|id| (id, known.and_then(|r| r.devices.get(id))));
                grouped(resource, devices)
            });
            ContainerResources {
                name: name.clone(),
                devices: held.collect(),
                cpu_ids: state.cpus.of(&pod.uid, name).into_iter().flat_map(|s| s.iter().map(i64::from)).collect(),
                memory: state.memory.of(&pod.uid, name).map(memory).unwrap_or_default(),
                ..Default::default()
            }
        };
        PodResources {
            containers: pod.containers.iter().map(one).collect(),
            name: pod.name,
            namespace: pod.namespace,
            ..Default::default()
        }
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Service {
    async fn list(&self, _: Request<ListPodResourcesRequest>) -> Result<Response<ListPodResourcesResponse>, Status> {
        let pods = (self.pods)();
        let state = self.managers.state();
        let pod_resources = pods.into_iter().map(|pod| self.pod(&state, pod)).collect();
        Ok(Response::new(ListPodResourcesResponse { pod_resources }))
    }

    async fn get(&self, request: Request<GetPodResourcesRequest>) -> Result<Response<GetPodResourcesResponse>, Status> {
        let GetPodResourcesRequest { pod_name, pod_namespace } = request.into_inner();
        let found = (self.pods)().into_iter().find(|p| p.name == pod_name && p.namespace == pod_namespace);
        let Some(pod) = found else {
            return Err(Status::not_found(format!("pod {pod_name} in namespace {pod_namespace} not found")));
        };
        let pod_resources = Some(self.pod(&self.managers.state(), pod));
        Ok(Response::new(GetPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        let (state, machine) = (self.managers.state(), self.managers.machine());
        let devices = state.devices.resources.iter().flat_map(|(name, known)| {
            grouped(name, known.devices.iter().filter(|(_, d)| d.healthy).map(|(id, d)| (id, Some(d))))
        });
        // As upstream: nothing is told where no policy hands it out.
        let cpu_ids = if state.cpus.enabled {
            state.cpus.allocatable(machine).iter().map(i64::from).collect()
        } else {
            Vec::new()
        };
        let memory = if state.memory.enabled { memory(&state.memory.offered(machine)) } else { Vec::new() };
        Ok(Response::new(AllocatableResourcesResponse { devices: devices.collect(), cpu_ids, memory }))
    }
}

/// Serves on `kubelet.sock` in `folder` until `stop`.
///
/// # Errors
/// The socket cannot be had.
pub(crate) async fn serve(
    managers: Managers,
    pods: Lister,
    folder: PathBuf,
    stop: CancellationToken,
) -> std::io::Result<()> {
    std::fs::create_dir_all(&folder)?;
    let listener = socket::listen(&folder.join("kubelet.sock"))?;
    let service = PodResourcesListerServer::new(Service { managers, pods }).max_encoding_message_size(MESSAGE_LIMIT);
    socket::serve(listener, tonic::transport::Server::builder().add_service(service), stop);
    Ok(())
}
