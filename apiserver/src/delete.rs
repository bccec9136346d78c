//! delete and deletecollection: what goes at once, what is marked and has a time to end, and what goes with a namespace.

use std::sync::Arc;

use api_machinery::resource::Resource;
use api_machinery::status::{self, Status};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::admission;
use crate::http_util::{Answer, json_reply};
use crate::read::{Filter, served};
use crate::router::{Api, Call, key_of, prefix_of, store_status};
use crate::store::{Entry, StoreError};
use crate::write::{answer, content_type, dry, parse};

fn options(call: &Call, bytes: &Bytes) -> Result<Value, Status> {
    let mut out = if bytes.is_empty() { json!({}) } else { parse(bytes, content_type(call) == "application/yaml")? };
    if let Ok(seconds) = call.query.get("gracePeriodSeconds").parse::<i64>() {
        out["gracePeriodSeconds"] = json!(seconds);
    }
    Ok(out)
}

/// delete.
pub async fn delete(api: &Arc<Api>, call: &Call, bytes: &Bytes) -> Answer {
    let options = options(call, bytes)?;
    let (object, gone) = remove(api, call, &call.name, &options).await?;
    if gone && call.resource.plural != "pods" {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        return Ok(json_reply(200, &status::deleted(call.resource, &call.name, uid)));
    }
    answer(call, 200, &object, &[])
}

/// deletecollection.
pub async fn delete_collection(api: &Arc<Api>, call: &Call, bytes: &Bytes) -> Answer {
    let options = options(call, bytes)?;
    let filter = Filter::of(call)?;
    let page = api.store.range(&call.prefix(), "", 0, 0).map_err(|error| store_status(call.resource, "", &error))?;
    let mut items = Vec::new();
    for (_, entry) in page.items.iter().filter(|(_, entry)| filter.matches(&entry.value)) {
        let name = entry.value["metadata"]["name"].as_str().unwrap_or_default();
        match remove(api, call, name, &options).await {
            Ok((object, _)) => items.push(object),
            Err(status) if status.code == 404 => {}
            Err(status) => return Err(status),
        }
    }
    Ok(json_reply(
        200,
        &json!({"kind": call.resource.list_kind, "apiVersion": call.resource.api_version(),
        "metadata": {"resourceVersion": api.store.revision().to_string()}, "items": items}),
    ))
}

/// Deletes an object or marks it as going: the object and whether it is gone.
pub(crate) async fn remove(api: &Arc<Api>, call: &Call, name: &str, options: &Value) -> Result<(Value, bool), Status> {
    let resource = call.resource;
    let key = call.key(name);
    let dry = dry(call)? || options["dryRun"][0] == "All";
    for _ in 0..50 {
        let entry = api.store.get(&key).ok_or_else(|| status::not_found(resource, name))?;
        let (object, metadata) = (&entry.value, &entry.value["metadata"]);
        for (field, label) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
            if let Some(wanted) = options["preconditions"][field].as_str().filter(|wanted| metadata[field] != *wanted) {
                let own = metadata[field].as_str().unwrap_or_default();
                let why =
                    format!("Precondition failed: {label} in precondition: {wanted}, {label} in object meta: {own}");
                return Err(status::conflict(resource, name, &why));
            }
        }
        admission::delete(call, object)?;
        let grace = grace(object, options);
        let mut new = object.clone();
        if grace == 0 && !has_finalizers(object) {
            if dry {
                return Ok((served(resource, &entry), true));
            }
            match api.store.delete(&key, entry.revision).await {
                Ok(entry) => return Ok((served(resource, &entry), true)),
                Err(StoreError::Changed) => continue,
                Err(error) => return Err(store_status(resource, name, &error)),
            }
        }
        let marked = metadata["deletionTimestamp"].is_string();
        let earlier = metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        if marked && grace >= earlier {
            return Ok((served(resource, &entry), false));
        }
        let at = after(jiff::Timestamp::now(), grace);
        new["metadata"]["deletionTimestamp"] = json!(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        new["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        if let Some(generation) = metadata["generation"].as_i64().filter(|_| !marked) {
            new["metadata"]["generation"] = json!(generation + 1);
        }
        if resource.plural == "namespaces" {
            new["status"]["phase"] = json!("Terminating");
        }
        if dry {
            return Ok((new, false));
        }
        match api.store.replace(&key, entry.revision, new).await {
            Ok(entry) => return Ok((served(resource, &entry), false)),
            Err(StoreError::Changed) => {}
            Err(error) => return Err(store_status(resource, name, &error)),
        }
    }
    Err(status::stale(resource, name))
}

/// Whether somebody still has to agree before an object that is being deleted is gone.
pub(crate) fn has_finalizers(object: &Value) -> bool {
    let some = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    some(&object["metadata"]["finalizers"]) || (object["kind"] == "Namespace" && some(&object["spec"]["finalizers"]))
}

/// Seconds that an object has to end: pods that run on a node, as they or the deleter say; everything else none.
fn grace(object: &Value, options: &Value) -> i64 {
    let bound = object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if object["kind"] != "Pod" || !bound || (ended && options["gracePeriodSeconds"].is_null()) {
        return 0;
    }
    options["gracePeriodSeconds"]
        .as_i64()
        .or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(30)
        .max(0)
}

/// So many seconds later; the last time that can be written where that is beyond it.
fn after(now: jiff::Timestamp, seconds: i64) -> jiff::Timestamp {
    now.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(jiff::Timestamp::MAX)
}

/// Marks an object as going, with the time that it has by itself.
pub(crate) fn mark_deleted(object: &mut Value) {
    let grace = grace(object, &Value::Null);
    let at = after(jiff::Timestamp::now(), grace);
    object["metadata"]["deletionTimestamp"] = json!(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
}

/// Removes what a namespace holds, then the namespace; runs until nothing is left or something waits for a finalizer.
pub async fn empty_namespace(api: &Arc<Api>, namespace: &Entry) -> Result<(), StoreError> {
    let name = namespace.value["metadata"]["name"].as_str().unwrap_or_default();
    let mut left = 0;
    for resource in Resource::all().iter().filter(|r| r.namespaced && r.stored() && r.group == r.storage_group) {
        for (key, entry) in api.store.range(&prefix_of(resource, name), "", 0, 0)?.items {
            let mut new = entry.value.clone();
            let pod_runs = resource.plural == "pods" && new["spec"]["nodeName"].is_string();
            let outcome = if !pod_runs && !has_finalizers(&new) {
                api.store.delete(&key, entry.revision).await
            } else {
                left += 1;
                if new["metadata"]["deletionTimestamp"].is_string() {
                    continue;
                }
                mark_deleted(&mut new);
                api.store.replace(&key, entry.revision, new).await
            };
            match outcome {
                Err(StoreError::Changed) => left += 1,
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
    }
    let metadata_finalizers = namespace.value["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
    if left == 0 && !metadata_finalizers {
        let resource = api_machinery::resource::find("", "v1", "namespaces");
        if let Some(resource) = resource {
            api.store.delete(&key_of(resource, "", name), namespace.revision).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_period_without_end_is_one() {
        for seconds in [0, 30, i64::MAX] {
            let mut pod = json!({"kind": "Pod", "metadata": {},
                "spec": {"nodeName": "n", "terminationGracePeriodSeconds": seconds}});
            mark_deleted(&mut pod);
            assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], seconds);
            let at: jiff::Timestamp = pod["metadata"]["deletionTimestamp"].as_str().unwrap().parse().unwrap();
            assert!(at > jiff::Timestamp::UNIX_EPOCH, "{seconds}");
        }
    }
}
