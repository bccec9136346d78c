//! The node's CSINode object, which tells schedulers and attachers the node's drivers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kubelet_volumes::DriverNode;
use serde_json::json;
use tokio::sync::Mutex;

use crate::shared::Shared;

const LIMIT: Duration = Duration::from_secs(20);
const TRIES: u32 = 8;
/// Annotation of the Node: ids of the node by driver.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";

/// One change at a time, so that drivers that start together do not overwrite each other.
static TURN: Mutex<()> = Mutex::const_new(());

/// Makes the object in the background where it is missing, so that the scheduler knows a node without drivers.
pub(super) async fn ensure(shared: &Arc<Shared>) {
    if shared.client.is_none() {
        return;
    }
    let shared = shared.clone();
    tokio::spawn(async move {
        let mut wait = Duration::from_secs(1);
        while let Err(error) = change(&shared, |_| {}).await {
            tracing::debug!(error, "CSINode not made yet");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(60));
        }
    });
}

/// Adds a driver, or says anew what it says of the node.
pub(super) async fn add(shared: &Shared, name: &str, node: &DriverNode) -> Result<(), String> {
    tell_node(shared, name, Some(node)).await?;
    let driver = CSINodeDriver {
        name: name.to_owned(),
        node_id: node.node_id.clone(),
        topology_keys: Some(node.topology.keys().cloned().collect()),
        allocatable: i32::try_from(node.max_volumes)
            .ok()
            .filter(|n| *n > 0)
            .map(|n| VolumeNodeResources { count: Some(n) }),
    };
    change(shared, |drivers| {
        drivers.retain(|d| d.name != driver.name);
        drivers.push(driver.clone());
    })
    .await
}

/// Removes a driver.
pub(super) async fn remove(shared: &Shared, name: &str) -> Result<(), String> {
    change(shared, |drivers| drivers.retain(|d| d.name != name)).await?;
    tell_node(shared, name, None).await
}

async fn change(shared: &Shared, edit: impl Fn(&mut Vec<CSINodeDriver>)) -> Result<(), String> {
    let Some(client) = shared.client.clone() else { return Ok(()) };
    let _turn = TURN.lock().await;
    let work = async {
        let api: Api<CSINode> = Api::all(client.clone());
        let mut last = None;
        for attempt in 0..TRIES {
            let result = match api.get_opt(&shared.node_name).await? {
                Some(mut found) => {
                    let before = found.spec.drivers.clone();
                    edit(&mut found.spec.drivers);
                    if found.spec.drivers == before {
                        return Ok(());
                    }
                    api.replace(&shared.node_name, &PostParams::default(), &found).await
                }
                None => {
                    let mut drivers = Vec::new();
                    edit(&mut drivers);
                    api.create(&PostParams::default(), &fresh(shared, client.clone(), drivers).await?).await
                }
            };
            match result {
                Ok(_) => return Ok(()),
                // Somebody else was faster.
                Err(kube::Error::Api(e)) if e.code == 409 => last = Some(kube::Error::Api(e)),
                Err(e) => return Err(e),
            }
            tokio::time::sleep(Duration::from_millis(50 << attempt)).await;
        }
        last.map_or(Ok(()), Err)
    };
    bounded("CSINode", work).await
}

async fn fresh(shared: &Shared, client: kube::Client, drivers: Vec<CSINodeDriver>) -> Result<CSINode, kube::Error> {
    let node: Node = Api::all(client).get(&shared.node_name).await?;
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: shared.node_name.clone(),
        uid: node.metadata.uid.unwrap_or_default(),
        ..Default::default()
    };
    Ok(CSINode {
        metadata: ObjectMeta {
            name: Some(shared.node_name.clone()),
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: CSINodeSpec { drivers },
    })
}

/// Says on the Node itself what it is called by the driver and where it is.
async fn tell_node(shared: &Shared, name: &str, driver: Option<&DriverNode>) -> Result<(), String> {
    let Some(client) = shared.client.clone() else { return Ok(()) };
    let _turn = TURN.lock().await;
    let work = async {
        let api: Api<Node> = Api::all(client);
        let found = api.get(&shared.node_name).await?;
        let text = found.metadata.annotations.as_ref().and_then(|a| a.get(NODE_IDS));
        let mut ids: BTreeMap<String, String> = text.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default();
        match driver {
            Some(driver) => drop(ids.insert(name.to_owned(), driver.node_id.clone())),
            None => drop(ids.remove(name)),
        }
        let text = (!ids.is_empty()).then(|| serde_json::to_string(&ids).unwrap_or_default());
        let topology = driver.map(|d| d.topology.clone()).unwrap_or_default();
        let patch = json!({"metadata": {"annotations": {NODE_IDS: text}, "labels": topology}});
        api.patch(&shared.node_name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
    };
    bounded("Node", work).await
}

async fn bounded(what: &str, work: impl Future<Output = Result<(), kube::Error>>) -> Result<(), String> {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(result) => result.map_err(|e| format!("update the {what} object: {e}")),
        Err(_) => Err(format!("update the {what} object: the apiserver gave no answer in time")),
    }
}
