//! Pods that the apiserver binds to this node: list, then watch.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::watcher::{self, Event};
use tokio::sync::mpsc;

use super::node::NodeObject;
use super::{Source, Update};
use crate::pod::{self, MIRROR, SOURCE};

/// Watches for ever; a broken watch is begun anew after a growing wait.
pub(crate) async fn run(client: kube::Client, node: String, object: NodeObject, updates: mpsc::Sender<Update>) {
    super::node::known(object).await;
    let api: Api<Pod> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let mut wait = std::time::Duration::from_millis(500);
    loop {
        let mut events = std::pin::pin!(watcher::watcher(api.clone(), config.clone()));
        let mut listed = Vec::new();
        while let Some(event) = events.next().await {
            let update = match event {
                Ok(Event::Init) => {
                    listed.clear();
                    continue;
                }
                Ok(Event::InitApply(pod)) => {
                    listed.push(Arc::new(of_the_api(pod)));
                    continue;
                }
                Ok(Event::InitDone) => Update::All(Source::Api, std::mem::take(&mut listed)),
                Ok(Event::Apply(pod)) => Update::Set(Arc::new(of_the_api(pod))),
                Ok(Event::Delete(pod)) => Update::Gone(Arc::new(of_the_api(pod))),
                Err(e) => {
                    tracing::warn!(error = %e, "watch of pods broke, will begin anew");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(std::time::Duration::from_secs(10));
                    continue;
                }
            };
            wait = std::time::Duration::from_millis(500);
            if updates.send(update).await.is_err() {
                return;
            }
        }
    }
}

/// A pod of the apiserver is not a static one, whatever its annotations say; mirrors keep theirs.
fn of_the_api(mut pod: Pod) -> Pod {
    // Who wrote which field is more than all the rest of the object, and no business of a node.
    pod.metadata.managed_fields = None;
    if pod::annotation(&pod, MIRROR).is_none()
        && let Some(source) = pod.metadata.annotations.as_mut().and_then(|a| a.get_mut(SOURCE))
    {
        *source = "api".to_owned();
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_makes_a_static_pod_through_the_apiserver() {
        let pod = |annotations: serde_json::Value| -> Pod {
            let value = serde_json::json!({"metadata": {"name": "p", "annotations": annotations}});
            of_the_api(serde_json::from_value(value).unwrap())
        };
        assert!(!pod::is_static(&pod(serde_json::json!({SOURCE: "file"}))));
        let mirror = pod(serde_json::json!({SOURCE: "file", MIRROR: "x"}));
        assert_eq!(pod::annotation(&mirror, SOURCE), Some("file"));
    }
}
