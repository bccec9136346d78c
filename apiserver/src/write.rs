//! create, update, patch, delete and the actions on pods.

use std::sync::Arc;

use api_machinery::patch::{self, apply};
use api_machinery::resource::Resource;
use api_machinery::status::{self, Status};
use api_machinery::{convert, defaults, parts, schema, strategy, validate};
use bytes::Bytes;
use http::header;
use serde_json::{Value, json};

use crate::admission;
use crate::http_util::{Answer, json_reply, negotiate, now, shape_one};
use crate::read::{Filter, served};
use crate::router::{Api, Call, key_of, prefix_of, store_status};
use crate::store::{Entry, StoreError};

/// The media type of a request's body, without parameters.
pub(crate) fn media_type(headers: &http::HeaderMap) -> String {
    let text = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// What a body is once the router has read it: protobuf has become JSON by then.
fn content_type(call: &Call) -> String {
    let sent = media_type(&call.headers);
    if sent == crate::protobuf::MEDIA_TYPE { "application/json".to_owned() } else { sent }
}

/// Reads a JSON or YAML body.
pub fn parse(bytes: &Bytes, yaml: bool) -> Result<Value, Status> {
    let bad = |why: String| status::bad_request(format!("the object provided is unrecognized: {why}"));
    if yaml && !bytes.trim_ascii_start().starts_with(b"{") {
        let text = std::str::from_utf8(bytes).map_err(|error| bad(error.to_string()))?;
        return serde_saphyr::from_str(text).map_err(|error| bad(error.to_string()));
    }
    serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))
}

/// Reads an object for a call, with what `fieldValidation` asks for: the object and warnings.
fn object(call: &Call, bytes: &Bytes) -> Result<(Value, Vec<String>), Status> {
    let yaml = match content_type(call).as_str() {
        "" | "application/json" => false,
        "application/yaml" => true,
        _ => return Err(status::unsupported_media_type(&["application/json", "application/yaml"])),
    };
    let mut value = parse(bytes, yaml)?;
    let (group, version, kind) = (call.resource.group, call.resource.version, call.resource.kind);
    parts::check_kind(group, version, kind, &value)?;
    let duplicates = if yaml { Vec::new() } else { schema::duplicate_fields(bytes) };
    let warnings = check(call, &mut value, duplicates)?;
    Ok((value, warnings))
}

fn check(call: &Call, value: &mut Value, mut strict: Vec<String>) -> Result<Vec<String>, Status> {
    let gvk = call.resource.gvk();
    if let Some(why) = schema::too_deep(value) {
        return Err(status::bad_request(why));
    }
    strict.extend(schema::unknown_fields(gvk, value));
    let mode = call.query.get("fieldValidation");
    if mode == "Strict" && !strict.is_empty() {
        return Err(status::bad_request(format!("strict decoding error: {}", strict.join(", "))));
    }
    let wrong = schema::type_errors(gvk, value);
    if !wrong.is_empty() {
        return Err(status::bad_request(wrong.join(", ")));
    }
    schema::prune(gvk, value);
    Ok(if mode == "Ignore" { Vec::new() } else { strict })
}

fn answer(call: &Call, code: u16, value: &Value, warnings: &[String]) -> Answer {
    let form = negotiate(&call.headers)?;
    let mut out = json_reply(code, &shape_one(call.resource, form, &call.query, value));
    for warning in warnings {
        if let Ok(text) = format!("299 - {warning:?}").parse() {
            out.headers_mut().append(header::WARNING, text);
        }
    }
    Ok(out)
}

fn dry(call: &Call) -> Result<bool, Status> {
    match call.query.get("dryRun") {
        "" => Ok(false),
        "All" => Ok(true),
        other => Err(status::bad_request(format!("dryRun: Unsupported value: {other:?}: supported values: \"All\""))),
    }
}

fn valid(resource: &Resource, name: &str, errors: &[validate::FieldError]) -> Result<(), Status> {
    if errors.is_empty() { Ok(()) } else { Err(status::invalid(resource, name, errors)) }
}

/// create.
pub async fn create(api: &Arc<Api>, call: &Call, bytes: &Bytes) -> Answer {
    let (value, warnings) = object(call, bytes)?;
    let created = store_new(api, call, value, None).await?;
    answer(call, 201, &created, &warnings)
}

async fn store_new(api: &Arc<Api>, call: &Call, mut value: Value, applied: Option<Value>) -> Result<Value, Status> {
    let resource = call.resource;
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    let sent = value["metadata"]["namespace"].as_str().unwrap_or_default();
    if resource.namespaced {
        if !sent.is_empty() && sent != call.namespace {
            return Err(status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        value["metadata"]["namespace"] = json!(call.namespace);
    }
    let generated = value["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
    let base = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if !call.name.is_empty() && base.is_empty() {
        value["metadata"]["name"] = json!(call.name);
    } else if base.is_empty() && !generated.is_empty() {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let tail: String = (0..5).map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())])).collect();
        value["metadata"]["name"] = json!(format!("{generated}{tail}"));
    }
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    convert::to_storage(resource, &mut value);
    let mut stored_resource = resource;
    if convert::needed(resource) {
        stored_resource = api_machinery::resource::find("", "v1", resource.plural).unwrap_or(resource);
    }
    strategy::prepare_create(stored_resource, &mut value);
    value["metadata"]["uid"] = json!(uuid::Uuid::new_v4().to_string());
    value["metadata"]["creationTimestamp"] = json!(now());
    admission::create(api, call, &mut value)?;
    defaults::apply(stored_resource.gvk(), &mut value);
    valid(resource, &name, &validate::create(stored_resource, &value))?;
    if applied.is_none() {
        let (manager, now) = (call.manager(), now());
        let writer = apply::Writer { manager: &manager, subresource: &call.part, now: &now };
        apply::track_update(stored_resource.gvk(), None, &mut value, writer);
    }
    if dry(call)? {
        if api.store.get(&call.key(&name)).is_some() {
            return Err(status::already_exists(resource, &name));
        }
        convert::from_storage(resource, &mut value);
        return Ok(value);
    }
    let entry =
        api.store.create(&call.key(&name), value).await.map_err(|error| store_status(resource, &name, &error))?;
    Ok(served(resource, &entry))
}

/// What an update makes of an object: `change` gives the new object from the stored one; tried anew while others write
/// between, unless the writer named a revision.
async fn rewrite<F>(api: &Arc<Api>, call: &Call, track: bool, change: F) -> Result<Value, Status>
where
    F: Fn(&Value) -> Result<Value, Status>,
{
    let (resource, name) = (call.resource, call.name.as_str());
    let key = call.key(name);
    for _ in 0..50 {
        let entry = api.store.get(&key).ok_or_else(|| status::not_found(resource, name))?;
        let old = served(resource, &entry);
        let mut new = change(&old)?;
        let sent = new["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        if !sent.is_empty() && sent != "0" && old["metadata"]["resourceVersion"] != sent.as_str() {
            return Err(status::stale(resource, name));
        }
        match call.part.as_str() {
            "" | "scale" => {
                defaults::apply(resource.gvk(), &mut new);
                admission::complete(resource, &mut new);
                strategy::prepare_update(resource, &old, &mut new)?;
                admission::update(call, &old, &new)?;
                valid(resource, name, &validate::update(resource, &old, &new))?;
            }
            "status" | "approval" => {
                strategy::prepare_status_update(resource, &old, &mut new)?;
                if resource.plural == "certificatesigningrequests" {
                    crate::certificates::may_write_part(api, call, &old)?;
                    api_machinery::csr::prepare_part(&call.part, &old, &mut new, &now());
                }
                if resource.plural == "podcertificaterequests" {
                    crate::certificates::may_write_part(api, call, &old)?;
                }
                admission::update(call, &old, &new)?;
                valid(resource, name, &validate::update_status(resource, &old, &new))?;
            }
            "finalize" => new = parts::with_finalizers(&old, &new),
            "ephemeralcontainers" => {
                defaults::apply(resource.gvk(), &mut new);
                new = parts::with_ephemeral_containers(resource, &old, &new)?;
            }
            "resize" => new = parts::with_resources(resource, &old, &new)?,
            _ => {}
        }
        if track {
            let (manager, now) = (call.manager(), now());
            let writer = apply::Writer { manager: &manager, subresource: &call.part, now: &now };
            apply::track_update(resource.gvk(), Some(&old), &mut new, writer);
        }
        if dry(call)? || new == old {
            return Ok(new);
        }
        convert::to_storage(resource, &mut new);
        // The last finalizer of an object that is being deleted takes the object with it.
        let going = new["metadata"]["deletionTimestamp"].is_string()
            && !has_finalizers(&new)
            && (resource.plural != "pods" || new["metadata"]["deletionGracePeriodSeconds"] == 0);
        let outcome = if going {
            api.store.delete(&key, entry.revision).await
        } else {
            api.store.replace(&key, entry.revision, new).await
        };
        match outcome {
            Ok(entry) => return Ok(served(resource, &entry)),
            Err(StoreError::Changed) if sent.is_empty() => {}
            Err(error) => return Err(store_status(resource, name, &error)),
        }
    }
    Err(status::stale(resource, name))
}

fn has_finalizers(object: &Value) -> bool {
    let some = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    some(&object["metadata"]["finalizers"]) || (object["kind"] == "Namespace" && some(&object["spec"]["finalizers"]))
}

/// update.
pub async fn update(api: &Arc<Api>, call: &Call, bytes: &Bytes) -> Answer {
    if call.part == "scale" {
        let scale = parse(bytes, content_type(call) == "application/yaml")?;
        let new = rewrite(api, call, true, |old| parts::with_scale(call.resource, old, &scale)).await?;
        return Ok(json_reply(200, &parts::scale_of(call.resource, &new)));
    }
    let (value, warnings) = object(call, bytes)?;
    let new = rewrite(api, call, true, |_| Ok(value.clone())).await?;
    answer(call, 200, &new, &warnings)
}

/// patch, in the four ways.
pub async fn patch(api: &Arc<Api>, call: &Call, bytes: &Bytes) -> Answer {
    let kind = content_type(call);
    let gvk = call.resource.gvk();
    let change = parse(bytes, kind == patch::APPLY_PATCH)?;
    if kind == patch::APPLY_PATCH {
        return server_side_apply(api, call, change).await;
    }
    let warnings = std::sync::Mutex::new(Vec::new());
    let new = rewrite(api, call, true, |old| {
        let shown = if call.part == "scale" { parts::scale_of(call.resource, old) } else { old.clone() };
        // Without this the patched object would carry the stored revision, and every patch were conditional.
        let mut base = shown;
        let stored = base["metadata"]["resourceVersion"].take();
        let patched = match kind.as_str() {
            patch::JSON_PATCH => {
                base["metadata"]["resourceVersion"] = stored.clone();
                patch::json(&base, &change)
            }
            patch::MERGE_PATCH => patch::merge(&base, &change),
            patch::STRATEGIC_MERGE_PATCH => patch::strategic(gvk, &base, &change),
            _ => {
                return Err(status::unsupported_media_type(&[
                    patch::JSON_PATCH,
                    patch::MERGE_PATCH,
                    patch::STRATEGIC_MERGE_PATCH,
                    patch::APPLY_PATCH,
                ]));
            }
        };
        let mut new = patched.map_err(|error| error.to_status())?;
        if new["metadata"]["resourceVersion"] == stored && change["metadata"]["resourceVersion"].is_null() {
            new["metadata"]["resourceVersion"] = Value::Null;
        }
        if call.part == "scale" {
            return parts::with_scale(call.resource, old, &new);
        }
        if let Ok(mut kept) = warnings.lock() {
            *kept = check(call, &mut new, Vec::new())?;
        }
        if new["metadata"]["resourceVersion"].is_null()
            && let Some(metadata) = new["metadata"].as_object_mut()
        {
            metadata.shift_remove("resourceVersion");
        }
        Ok(new)
    })
    .await?;
    if call.part == "scale" {
        return Ok(json_reply(200, &parts::scale_of(call.resource, &new)));
    }
    let warnings = warnings.into_inner().unwrap_or_default();
    answer(call, 200, &new, &warnings)
}

async fn server_side_apply(api: &Arc<Api>, call: &Call, mut wish: Value) -> Answer {
    let manager = call.query.get("fieldManager").to_owned();
    if manager.is_empty() {
        return Err(status::bad_request(
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ));
    }
    parts::check_kind(call.resource.group, call.resource.version, call.resource.kind, &wish)?;
    let warnings = check(call, &mut wish, Vec::new())?;
    let (now, gvk) = (now(), call.resource.gvk());
    let writer = apply::Writer { manager: &manager, subresource: &call.part, now: &now };
    let force = call.query.flag("force");
    if api.store.get(&call.key(&call.name)).is_none() && call.part.is_empty() {
        let new = apply::apply(gvk, None, &wish, writer, force).map_err(|error| error.to_status())?;
        let created = store_new(api, call, new, Some(wish)).await?;
        return answer(call, 201, &created, &warnings);
    }
    let new = rewrite(api, call, false, |old| {
        let mut new = apply::apply(gvk, Some(old), &wish, writer, force).map_err(|error| error.to_status())?;
        if wish["metadata"]["resourceVersion"].is_null()
            && let Some(metadata) = new["metadata"].as_object_mut()
        {
            metadata.shift_remove("resourceVersion");
        }
        Ok(new)
    })
    .await?;
    answer(call, 200, &new, &warnings)
}

/// binding and eviction of pods.
pub async fn pod_action(api: &Arc<Api>, call: &Call, bytes: &Bytes) -> Answer {
    let body = parse(bytes, false)?;
    if call.part == "eviction" {
        let options = body["deleteOptions"].clone();
        remove(api, call, &call.name, &options).await?;
        return Ok(json_reply(201, &status::success()));
    }
    bind(api, call, &body).await?;
    Ok(json_reply(201, &status::success()))
}

async fn bind(api: &Arc<Api>, call: &Call, body: &Value) -> Result<Value, Status> {
    let time = now();
    rewrite(api, call, false, |old| {
        let mut new = parts::bind(call.resource, old, body, &time)?;
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        Ok(new)
    })
    .await
}

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
async fn remove(api: &Arc<Api>, call: &Call, name: &str, options: &Value) -> Result<(Value, bool), Status> {
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
