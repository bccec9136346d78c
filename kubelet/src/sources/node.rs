//! This node's own object, as the apiserver has it: its labels and taints decide which pods may begin here.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::watcher::{self, Event};
use tokio::sync::watch;

/// The newest version of the object; the outer `None` means that nobody was asked yet.
pub(crate) type NodeObject = watch::Receiver<Option<Option<Arc<Node>>>>;

/// How long pods wait for it at the start: without an apiserver's answer there are no new pods anyway.
const WAIT: Duration = Duration::from_secs(10);

/// A receiver that never learns anything, for a standalone kubelet.
pub(crate) fn nobody() -> NodeObject {
    watch::channel(None).1
}

/// Watches the object for ever.
pub(crate) fn follow(client: kube::Client, name: &str) -> NodeObject {
    let (sender, receiver) = watch::channel(None);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let api: Api<Node> = Api::all(client);
    tokio::spawn(async move {
        let mut wait = Duration::from_millis(500);
        let mut events = std::pin::pin!(watcher::watcher(api, config));
        let mut listed = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed = None,
                Ok(Event::InitApply(node)) => listed = Some(lean(node)),
                Ok(Event::InitDone) => drop(sender.send(Some(listed.take()))),
                Ok(Event::Apply(node)) => drop(sender.send(Some(Some(lean(node))))),
                Ok(Event::Delete(_)) => drop(sender.send(Some(None))),
                Err(e) => {
                    tracing::debug!(error = %e, "watch of the node's object broke, will begin anew");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(10));
                    continue;
                }
            }
            wait = Duration::from_millis(500);
        }
    });
    receiver
}

/// Without what takes much room and is asked for by nobody here.
fn lean(mut node: Node) -> Arc<Node> {
    node.metadata.managed_fields = None;
    if let Some(status) = &mut node.status {
        status.images = None;
    }
    Arc::new(node)
}

/// Waits a while until the node's object is known.
pub(crate) async fn known(mut node: NodeObject) {
    let _ = tokio::time::timeout(WAIT, node.wait_for(|n| matches!(n, Some(Some(_))))).await;
}
