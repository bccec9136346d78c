//! watch: a stream of events, with bookmarks, initial events and selectors that objects move in and out of.

use std::sync::Arc;
use std::time::Duration;

use api_machinery::convert;
use api_machinery::status;
use bytes::Bytes;
use http::{Response, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::http_util::{Answer, Form, Query, negotiate, shape_one};
use crate::read::{Filter, served};
use crate::router::{Api, Call, store_status};
use crate::store::{Entry, Event, EventKind};

const BOOKMARK_EVERY: Duration = Duration::from_secs(50);

struct Encoder {
    resource: &'static api_machinery::resource::Resource,
    form: Form,
    query: Query,
    filter: Filter,
}

fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(object.len() + kind.len() + 24);
    out.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
    out.into()
}

impl Encoder {
    fn object(&self, kind: &str, entry: &Entry) -> Bytes {
        if self.form == Form::Json && !convert::needed(self.resource) {
            return frame(kind, &entry.bytes);
        }
        let value = shape_one(self.resource, self.form, &self.query, &served(self.resource, entry));
        frame(kind, value.to_string().as_bytes())
    }

    fn event(&self, event: &Event) -> Option<Bytes> {
        let before = event.previous.as_ref().is_some_and(|entry| self.filter.matches(&entry.value));
        let after = event.kind != EventKind::Deleted && self.filter.matches(&event.entry.value);
        match (before, after) {
            (false, false) => None,
            (false, true) => Some(self.object("ADDED", &event.entry)),
            (true, true) => Some(self.object("MODIFIED", &event.entry)),
            (true, false) if event.kind == EventKind::Deleted => Some(self.object("DELETED", &event.entry)),
            (true, false) => {
                // It left the selection: the client gets its last selected form with the revision of the change.
                let mut value = event.previous.as_ref()?.value.clone();
                value["metadata"]["resourceVersion"] = event.entry.value["metadata"]["resourceVersion"].clone();
                let bytes = Bytes::from(value.to_string());
                Some(self.object("DELETED", &Entry { revision: event.entry.revision, value, bytes }))
            }
        }
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> Bytes {
        let mut object: Value = json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(),
            "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null}});
        if initial_end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        if self.form == Form::Table {
            object = shape_one(self.resource, self.form, &self.query, &object);
        }
        frame("BOOKMARK", object.to_string().as_bytes())
    }
}

/// Starts a watch.
pub fn start(api: &Arc<Api>, call: &Call) -> Answer {
    let encoder = Encoder {
        resource: call.resource,
        form: negotiate(&call.headers)?,
        query: Query::parse(&format!("includeObject={}", call.query.get("includeObject"))),
        filter: Filter::of(call)?,
    };
    let prefix = call.prefix();
    let text = call.query.get("resourceVersion");
    let asked: u64 = match text {
        "" => 0,
        text => text.parse().map_err(|_| status::bad_request(format!("resourceVersion: Invalid value: {text:?}")))?,
    };
    let initial = call.query.flag("sendInitialEvents");
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let mut head = Vec::new();
    let mut revision = asked;
    if asked == 0 || initial {
        let page = api.store.range(&prefix, "", 0, 0).map_err(|error| store_status(call.resource, "", &error))?;
        revision = page.revision;
        if asked == 0 && call.query.get("sendInitialEvents") != "false" || initial {
            let selected = page.items.iter().filter(|(_, entry)| encoder.filter.matches(&entry.value));
            head.extend(selected.map(|(_, entry)| encoder.object("ADDED", entry)));
        }
        if initial && bookmarks {
            head.push(encoder.bookmark(revision, true));
        }
    }
    let (past, mut live) =
        api.store.watch(&prefix, revision).map_err(|error| store_status(call.resource, "", &error))?;
    head.extend(past.iter().filter_map(|event| encoder.event(event)));
    let seconds = call.query.get("timeoutSeconds").parse().unwrap_or(1800_u64 + rand::random_range(0..1800));
    let (sender, receiver) = mpsc::channel::<Bytes>(64);
    let api = Arc::clone(api);
    tokio::spawn(async move {
        for bytes in head {
            if sender.send(bytes).await.is_err() {
                return;
            }
        }
        let end = tokio::time::sleep(Duration::from_secs(seconds));
        tokio::pin!(end);
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
        loop {
            let bytes = tokio::select! {
                biased;
                () = api.stop.cancelled() => return,
                event = live.recv() => match event {
                    Some(event) => encoder.event(&event),
                    None => return,
                },
                () = sender.closed() => return,
                () = &mut end => return,
                _ = ticks.tick(), if bookmarks => {
                    // Everything that this watch has not sent yet waits in `live`, so only an empty queue allows it.
                    let newest = api.store.revision();
                    live.is_empty().then(|| encoder.bookmark(newest, false))
                }
            };
            if let Some(bytes) = bytes
                && sender.send(bytes).await.is_err()
            {
                return;
            }
        }
    });
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|bytes| (Ok::<_, std::io::Error>(Frame::data(bytes)), receiver))
    });
    let mut out = Response::new(StreamBody::new(stream).boxed_unsync());
    out.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    Ok(out)
}
