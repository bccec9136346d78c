//! Events: what happened to a pod or the node, in upstream's words; repetitions are counted, not repeated.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;

use crate::pod;
use crate::throttle::Throttle;

/// How many events may wait; what comes beyond is logged only.
const QUEUE: usize = 1000;
/// For how long a repetition counts as one.
const FORGET: Duration = Duration::from_secs(600);

struct Item {
    about: ObjectReference,
    warning: bool,
    reason: Cow<'static, str>,
    message: String,
    at: Timestamp,
}

/// Where events are handed in; cloning is cheap, and no call waits.
#[derive(Clone)]
pub(crate) struct Recorder {
    queue: Option<mpsc::Sender<Item>>,
}

impl Recorder {
    /// A recorder that sends by `client`, or only logs without one.
    pub(crate) fn start(client: Option<kube::Client>, node: &str, rate: Throttle) -> Self {
        let queue = client.map(|client| {
            let (queue, items) = mpsc::channel(QUEUE);
            tokio::spawn(send_all(client, node.to_owned(), items, rate));
            queue
        });
        Self { queue }
    }

    /// Something of a pod, or of one of its containers.
    pub(crate) fn pod(
        &self,
        pod: &Pod,
        container: Option<&str>,
        warning: bool,
        reason: impl Into<Cow<'static, str>>,
        message: String,
    ) {
        let reason = reason.into();
        let key = pod::key(pod);
        if warning {
            tracing::warn!(pod = %key, container, reason = &*reason, "{message}");
        } else {
            tracing::info!(pod = %key, container, reason = &*reason, "{message}");
        }
        let field = container.map(|name| {
            let list = if pod::init_containers(pod).iter().any(|c| c.name == name) {
                "initContainers"
            } else if pod::ephemeral_containers(pod).iter().any(|c| c.name == name) {
                "ephemeralContainers"
            } else {
                "containers"
            };
            format!("spec.{list}{{{name}}}")
        });
        self.put(Item {
            about: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: pod.metadata.name.clone(),
                namespace: Some(pod::namespace(pod).to_owned()),
                uid: pod.metadata.uid.clone(),
                field_path: field,
                ..Default::default()
            },
            warning,
            reason,
            message,
            at: Timestamp::now(),
        });
    }

    /// Something of the node.
    pub(crate) fn node(&self, node: &str, warning: bool, reason: &'static str, message: String) {
        if warning {
            tracing::warn!(node, reason, "{message}");
        } else {
            tracing::info!(node, reason, "{message}");
        }
        self.put(Item {
            about: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.to_owned()),
                uid: Some(node.to_owned()),
                ..Default::default()
            },
            warning,
            reason: reason.into(),
            message,
            at: Timestamp::now(),
        });
    }

    fn put(&self, item: Item) {
        if let Some(queue) = &self.queue
            && queue.try_send(item).is_err()
        {
            tracing::warn!("too many events wait for the apiserver; one was dropped");
        }
    }
}

struct Sent {
    namespace: String,
    name: String,
    count: i32,
    last: Instant,
}

async fn send_all(client: kube::Client, node: String, mut items: mpsc::Receiver<Item>, rate: Throttle) {
    let mut sent: HashMap<String, Sent> = HashMap::new();
    while let Some(item) = items.recv().await {
        sent.retain(|_, s| s.last.elapsed() < FORGET);
        for attempt in 0..5u32 {
            rate.turn().await;
            match tokio::time::timeout(Duration::from_secs(10), send(&client, &node, &item, &mut sent)).await {
                Ok(Ok(())) => break,
                Ok(Err(kube::Error::Api(e))) if e.code < 500 && e.code != 429 => {
                    // Such as a namespace that is going away: repeating it would not help.
                    tracing::debug!(error = %e, reason = &*item.reason, "event refused");
                    break;
                }
                _ => tokio::time::sleep(Duration::from_millis(500 << attempt)).await,
            }
        }
    }
}

async fn send(
    client: &kube::Client,
    node: &str,
    item: &Item,
    sent: &mut HashMap<String, Sent>,
) -> Result<(), kube::Error> {
    let about = &item.about;
    let key = format!("{:?}/{:?}/{}/{}", about.uid, about.field_path, item.reason, item.message);
    let at = Time(Timestamp::from_second(item.at.as_second()).unwrap_or(item.at));
    if let Some(known) = sent.get_mut(&key) {
        let api: Api<Event> = Api::namespaced(client.clone(), &known.namespace);
        let patch = json!({"count": known.count + 1, "lastTimestamp": at});
        match api.patch(&known.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => {
                known.count += 1;
                known.last = Instant::now();
                return Ok(());
            }
            Err(kube::Error::Api(e)) if e.code == 404 => {}
            Err(e) => return Err(e),
        }
    }
    let namespace = about.namespace.clone().unwrap_or_else(|| "default".into());
    let subject = about.name.clone().unwrap_or_default();
    let name = format!("{subject}.{:x}", item.at.as_nanosecond());
    let event = Event {
        metadata: ObjectMeta { name: Some(name.clone()), namespace: Some(namespace.clone()), ..Default::default() },
        involved_object: about.clone(),
        type_: Some(if item.warning { "Warning" } else { "Normal" }.into()),
        reason: Some(item.reason.to_string()),
        message: Some(item.message.chars().take(1000).collect()),
        count: Some(1),
        first_timestamp: Some(at.clone()),
        last_timestamp: Some(at),
        source: Some(EventSource { component: Some("kubelet".into()), host: Some(node.to_owned()) }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node.to_owned()),
        ..Default::default()
    };
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    api.create(&PostParams::default(), &event).await?;
    sent.insert(key, Sent { namespace, name, count: 1, last: Instant::now() });
    Ok(())
}
