//! The node's Lease in kube-node-lease, renewed every quarter of its life.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::shared::Shared;

const NAMESPACE: &str = "kube-node-lease";

/// Renews for ever.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let Some(client) = shared.client.clone() else { return };
    let seconds = shared.config.node_lease_duration_seconds.max(4);
    let every = Duration::from_secs(u64::try_from(seconds / 4).unwrap_or(10));
    loop {
        let wait = match tokio::time::timeout(every, renew(&client, &shared.node_name, seconds)).await {
            Ok(Ok(())) => every,
            Ok(Err(e)) => {
                tracing::warn!(error = %e, "node lease not renewed, will try again");
                Duration::from_secs(1)
            }
            Err(_) => {
                tracing::warn!("node lease not renewed: the apiserver gave no answer in time");
                Duration::from_secs(1)
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn renew(client: &kube::Client, name: &str, seconds: i32) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let now = MicroTime(Timestamp::now());
    let patch = json!({"spec": {"holderIdentity": name, "leaseDurationSeconds": seconds, "renewTime": now}});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => return Ok(()),
        Err(kube::Error::Api(e)) if e.code == 404 => {}
        Err(e) => return Err(e),
    }
    let node: Option<Node> = Api::all(client.clone()).get_opt(name).await?;
    let owner = node.and_then(|node| {
        let uid = node.metadata.uid?;
        Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.into(),
            uid,
            ..Default::default()
        }])
    });
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(NAMESPACE.into()),
            owner_references: owner,
            ..Default::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.into()),
            lease_duration_seconds: Some(seconds),
            renew_time: Some(now),
            ..Default::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(drop)
}
