//! Mirror pods: how the apiserver shows static pods.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};

use crate::pod::{self, HASH, MIRROR};
use crate::shared::Shared;

const LIMIT: Duration = Duration::from_secs(15);

/// Makes sure that the mirror of a static pod is there and shows this version of it. Tells whether it was made anew.
///
/// # Errors
/// The apiserver refused or did not answer.
pub(crate) async fn ensure(shared: &Shared, of: &Arc<Pod>) -> Result<bool, String> {
    let Some(client) = shared.client.clone() else { return Ok(false) };
    let work = async {
        let api: Api<Pod> = Api::namespaced(client.clone(), pod::namespace(of));
        let hash = pod::annotation(of, HASH).unwrap_or_default();
        if let Some(found) = api.get_opt(pod::name(of)).await? {
            let same = pod::annotation(&found, MIRROR) == Some(hash) && found.metadata.deletion_timestamp.is_none();
            if same {
                return Ok(false);
            }
            delete_object(&api, &found).await?;
        }
        let node: Option<Node> = Api::all(client.clone()).get_opt(&shared.node_name).await?;
        let mut mirror = (**of).clone();
        mirror.metadata.uid = None;
        mirror.metadata.resource_version = None;
        mirror.metadata.annotations.get_or_insert_default().insert(MIRROR.to_owned(), hash.to_owned());
        mirror.metadata.owner_references = node.and_then(|node| {
            Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: shared.node_name.clone(),
                uid: node.metadata.uid?,
                controller: Some(true),
                ..Default::default()
            }])
        });
        api.create(&PostParams::default(), &mirror).await?;
        Ok::<bool, kube::Error>(true)
    };
    match tokio::time::timeout(LIMIT, work).await {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the apiserver gave no answer in time".to_owned()),
    }
}

/// Deletes a mirror pod that shows no static pod of this node any more.
///
/// # Errors
/// The apiserver refused or did not answer.
pub(crate) async fn delete(client: &kube::Client, mirror: &Pod) -> Result<(), String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), pod::namespace(mirror));
    match tokio::time::timeout(LIMIT, delete_object(&api, mirror)).await {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the apiserver gave no answer in time".to_owned()),
    }
}

async fn delete_object(api: &Api<Pod>, mirror: &Pod) -> Result<(), kube::Error> {
    let how = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: mirror.metadata.uid.clone(), resource_version: None }),
        ..Default::default()
    };
    match api.delete(pod::name(mirror), &how).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => Ok(()),
        Err(e) => Err(e),
    }
}
