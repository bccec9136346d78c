//! What the fuzz targets of this crate run: one function a target, from bytes that a client of the API may send.
//!
//! Compiled for fuzzing and for tests only. The tests run what `fuzz/corpus` holds, so that an input that once found a fault is
//! tried by everyone; `fuzz/README.md` says how to look for new ones.

use serde_json::Value;

use crate::fieldselector::FieldSelector;
use crate::patch::{self, apply};
use crate::resource::{self, Resource};
use crate::{convert, defaults, parts, schema, strategy, validate};

/// The parts of an input, divided by NUL bytes.
fn parts_of(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.split(|b| *b == 0)
}

/// A resource by a byte.
fn chosen(byte: u8) -> &'static Resource {
    let common =
        [("", "pods"), ("apps", "deployments"), ("", "services"), ("", "nodes"), ("batch", "jobs"), ("", "configmaps")];
    let known = common.get(usize::from(byte)).and_then(|(group, plural)| resource::find(group, "v1", plural));
    let all = Resource::all();
    known.unwrap_or_else(|| &all[usize::from(byte) % all.len()])
}

/// As the server reads an object: nothing that is refused goes on.
fn readable(resource: &Resource, object: &mut Value) -> bool {
    let gvk = resource.gvk();
    if schema::too_deep(object).is_some() {
        return false;
    }
    let _ = schema::unknown_fields(gvk, object);
    if !schema::type_errors(gvk, object).is_empty() || !object.is_object() {
        return false;
    }
    schema::prune(gvk, object);
    true
}

/// What the server makes of a new object; none where it is refused.
fn created(resource: &'static Resource, mut object: Value) -> Option<Value> {
    if !readable(resource, &mut object) {
        return None;
    }
    if !object["metadata"].is_object() {
        object["metadata"] = serde_json::json!({});
    }
    convert::to_storage(resource, &mut object);
    let stored = if convert::needed(resource) { resource::find("", "v1", resource.plural)? } else { resource };
    strategy::prepare_create(stored, &mut object);
    defaults::apply(stored.gvk(), &mut object);
    let wrong = validate::create(stored, &object);
    for error in &wrong {
        assert!(!error.body().is_empty());
    }
    let writer = apply::Writer { manager: "fuzz", subresource: "", now: "2026-01-01T00:00:00Z" };
    apply::track_update(stored.gvk(), None, &mut object, writer);
    kept(&object);
    wrong.is_empty().then_some(object)
}

/// What is stored is read again after a start.
fn kept(object: &Value) {
    let text = object.to_string();
    let again: Value = serde_json::from_str(&text).expect("what is stored is read again");
    assert_eq!(again.to_string(), text);
}

/// A resource (a byte), a new object, and behind a NUL byte an update of it.
pub fn object(data: &[u8]) {
    let Some((resource, data)) = data.split_first() else { return };
    let resource = chosen(*resource);
    let mut documents = parts_of(data);
    let text = documents.next().unwrap_or_default();
    let _ = schema::duplicate_fields(text);
    let Some(old) = serde_json::from_slice(text).ok().and_then(|object| created(resource, object)) else { return };
    let mut shown = old.clone();
    convert::from_storage(resource, &mut shown);
    parts::partial(&old);
    let Some(mut new) = documents.next().and_then(|text| serde_json::from_slice::<Value>(text).ok()) else { return };
    if readable(resource, &mut new) && new["metadata"].is_object() {
        if strategy::prepare_update(resource, &old, &mut new).is_ok() {
            defaults::apply(resource.gvk(), &mut new);
            validate::update(resource, &old, &new);
        }
        if strategy::prepare_status_update(resource, &old, &mut new).is_ok() {
            validate::update_status(resource, &old, &new);
        }
    }
}

/// A resource and the kind of patch (two bytes), an object and, behind a NUL byte, the patch.
pub fn patch(data: &[u8]) {
    let [resource, kind, data @ ..] = data else { return };
    let resource = chosen(*resource);
    let gvk = resource.gvk();
    let mut documents = parts_of(data).map(serde_json::from_slice::<Value>);
    let (Some(Ok(mut object)), Some(Ok(change))) = (documents.next(), documents.next()) else { return };
    if !readable(resource, &mut object) || !object["metadata"].is_object() {
        return;
    }
    let writer = apply::Writer { manager: "fuzz", subresource: "", now: "2026-01-01T00:00:00Z" };
    let patched = match kind % 4 {
        0 => patch::json(&object, &change),
        1 => patch::merge(&object, &change),
        2 => patch::strategic(gvk, &object, &change),
        _ => {
            // As an apply is read: with its kind, its types right.
            let mut wish = change;
            if parts::check_kind(resource.group, resource.version, resource.kind, &wish).is_err()
                || !readable(resource, &mut wish)
            {
                return;
            }
            apply::apply(gvk, None, &wish, writer, false).and_then(|first| {
                let second = apply::apply(gvk, Some(&first), &wish, writer, false)?;
                // The same wish again changes nothing.
                assert_eq!(second, first);
                apply::apply(gvk, Some(&object), &wish, writer, kind & 4 != 0)
            })
        }
    };
    match patched {
        Err(error) => assert!(error.to_status().code >= 400 && !error.to_string().is_empty()),
        Ok(mut new) => {
            assert!(new.is_object());
            if readable(resource, &mut new) {
                apply::track_update(gvk, Some(&object), &mut new, writer);
                kept(&new);
            }
        }
    }
}

/// A resource (a byte), a field selector, and behind a NUL byte an object that it may select.
pub fn selector(data: &[u8]) {
    let Some((resource, data)) = data.split_first() else { return };
    let mut parts = parts_of(data);
    let text = String::from_utf8_lossy(parts.next().unwrap_or_default());
    match FieldSelector::parse(chosen(*resource), &text) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(selector) => {
            let _ = (selector.is_empty(), selector.name());
            if let Some(Ok(object)) = parts.next().map(serde_json::from_slice::<Value>) {
                selector.matches(&object);
            }
        }
    }
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
#[test]
fn what_fuzzing_found_and_starts_from() {
    replay::corpus(&[("api_object", object), ("api_patch", patch), ("api_field_selector", selector)]);
}
