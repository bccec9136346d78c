//! create, update, patch, and the actions on pods.

use std::sync::Arc;

use api_machinery::patch::{self, apply};
use api_machinery::resource::Resource;
use api_machinery::status::{self, Status};
use api_machinery::{convert, defaults, parts, schema, strategy, validate};
use bytes::Bytes;
use http::header;
use serde_json::{Value, json};

use crate::admission;
use crate::delete::{has_finalizers, remove};
use crate::http_util::{Answer, json_reply, negotiate, now, shape_one};
use crate::read::served;
use crate::router::{Api, Call, store_status};
use crate::store::StoreError;

/// The media type of a request's body, without parameters.
pub(crate) fn media_type(headers: &http::HeaderMap) -> String {
    let text = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// What a body is once the router has read it: protobuf has become JSON by then.
pub(crate) fn content_type(call: &Call) -> String {
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

pub(crate) fn answer(call: &Call, code: u16, value: &Value, warnings: &[String]) -> Answer {
    let form = negotiate(&call.headers)?;
    let mut out = json_reply(code, &shape_one(call.resource, form, &call.query, value));
    for warning in warnings {
        if let Ok(text) = format!("299 - {warning:?}").parse() {
            out.headers_mut().append(header::WARNING, text);
        }
    }
    Ok(out)
}

pub(crate) fn dry(call: &Call) -> Result<bool, Status> {
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
