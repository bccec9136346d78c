//! Server-side apply and the tracking of field managers in `metadata.managedFields`.
//!
//! [`apply`] merges what a manager says into the live object, tells conflicts with what others own, and removes what the
//! manager no longer says. [`track_update`] records what creates, updates and other patches change.

use serde_json::{Map, Value, json};

use super::PatchError;
use super::fieldset::FieldSet;
pub use super::managers::Writer;
use super::managers::{entries, entry, store_entries};
use super::typed::{Place, View, field_element, interleave, key_element, value_element};
use crate::resource::Gvk;
use crate::schema;

/// Fields that no manager owns, because the server or the object's address sets them.
const UNOWNED: &[&[&str]] = &[
    &["f:apiVersion"],
    &["f:kind"],
    &["f:metadata", "f:name"],
    &["f:metadata", "f:namespace"],
    &["f:metadata", "f:uid"],
    &["f:metadata", "f:resourceVersion"],
    &["f:metadata", "f:generation"],
    &["f:metadata", "f:creationTimestamp"],
    &["f:metadata", "f:selfLink"],
    &["f:metadata", "f:managedFields"],
];

fn strip_unowned(mut set: FieldSet) -> FieldSet {
    for path in UNOWNED {
        set.remove(path);
    }
    set
}

/// Every path that a value sets. With `maps`, maps with free keys are in the set themselves.
fn set_of(place: Place, value: &Value, maps: bool) -> FieldSet {
    let mut out = FieldSet::default();
    match place.view(value) {
        View::Object(object) if !object.is_empty() => {
            out.here = maps && place.is_map();
            for (key, inner) in object {
                out.children.insert(field_element(key), set_of(place.child(key), inner, maps));
            }
        }
        View::MapList(list, keys) if !list.is_empty() => {
            for item in list {
                let mut child = set_of(place.item(), item, maps);
                child.here = true;
                out.children.insert(key_element(item, keys), child);
            }
        }
        View::SetList(list) if !list.is_empty() => {
            out.children = list.iter().map(|item| (value_element(item), FieldSet::leaf())).collect();
        }
        _ => out.here = true,
    }
    out
}

/// What differs: paths that `new` adds or changes, and paths that only `old` has.
fn difference(place: Place, old: &Value, new: &Value, changed: &mut FieldSet, removed: &mut FieldSet) {
    if old == new {
        return;
    }
    match (place.view(old), place.view(new)) {
        (View::Object(before), View::Object(after)) => {
            for (key, inner) in after {
                let (place, element) = (place.child(key), field_element(key));
                match before.get(key) {
                    Some(previous) => descend(place, &element, previous, inner, changed, removed),
                    None => drop(changed.children.insert(element, set_of(place, inner, true))),
                }
            }
            for (key, inner) in before.iter().filter(|(key, _)| !after.contains_key(*key)) {
                let mut gone = set_of(place.child(key), inner, true);
                gone.here = true;
                removed.children.insert(field_element(key), gone);
            }
        }
        (View::MapList(before, keys), View::MapList(after, _)) => {
            let item_place = place.item();
            for inner in after {
                let element = key_element(inner, keys);
                match before.iter().find(|item| key_element(item, keys) == element) {
                    Some(previous) => descend(item_place, &element, previous, inner, changed, removed),
                    None => {
                        let mut set = set_of(item_place, inner, true);
                        set.here = true;
                        changed.children.insert(element, set);
                    }
                }
            }
            for inner in before {
                let element = key_element(inner, keys);
                if !after.iter().any(|item| key_element(item, keys) == element) {
                    removed.children.insert(element, FieldSet::leaf());
                }
            }
        }
        (View::SetList(before), View::SetList(after)) => {
            for inner in after.iter().filter(|inner| !before.contains(inner)) {
                changed.children.insert(value_element(inner), FieldSet::leaf());
            }
            for inner in before.iter().filter(|inner| !after.contains(inner)) {
                removed.children.insert(value_element(inner), FieldSet::leaf());
            }
        }
        _ => changed.union(&set_of(place, new, true)),
    }
}

fn descend(place: Place, element: &str, old: &Value, new: &Value, changed: &mut FieldSet, removed: &mut FieldSet) {
    let (mut inner_changed, mut inner_removed) = (FieldSet::default(), FieldSet::default());
    difference(place, old, new, &mut inner_changed, &mut inner_removed);
    for (set, inner) in [(changed, inner_changed), (removed, inner_removed)] {
        if !inner.is_empty() {
            set.children.insert(element.to_owned(), inner);
        }
    }
}

fn merged(place: Place, live: &Value, applied: &Value) -> Value {
    match (place.view(live), place.view(applied)) {
        (View::Object(before), View::Object(after)) => {
            let mut out = before.clone();
            for (key, inner) in after {
                let value = match before.get(key) {
                    Some(previous) => merged(place.child(key), previous, inner),
                    None => inner.clone(),
                };
                out.insert(key.clone(), value);
            }
            Value::Object(out)
        }
        (View::MapList(before, keys), View::MapList(after, _)) => {
            let element = |item: &Value| key_element(item, keys);
            let rank = |item: &Value| before.iter().position(|old| element(old) == element(item));
            let ordered = after
                .iter()
                .map(|inner| match rank(inner) {
                    Some(index) => merged(place.item(), &before[index], inner),
                    None => inner.clone(),
                })
                .collect();
            let only_live = before.iter().filter(|old| !after.iter().any(|new| element(new) == element(old)));
            Value::Array(interleave(ordered, only_live.cloned().collect(), rank))
        }
        (View::SetList(before), View::SetList(after)) => {
            let rank = |item: &Value| before.iter().position(|old| old == item);
            let only_live = before.iter().filter(|old| !after.contains(old)).cloned().collect();
            Value::Array(interleave(after.to_vec(), only_live, rank))
        }
        _ => applied.clone(),
    }
}

/// Remove the paths of `gone` from a value; true when nothing of the value is left.
fn remove(place: Place, value: &mut Value, gone: &FieldSet, kept: &FieldSet) -> bool {
    let (list_keys, is_set) = match place.view(value) {
        View::Atomic => return gone.here && !kept.here,
        View::Object(_) => (None, false),
        View::MapList(_, keys) => (Some(keys), false),
        View::SetList(_) => (None, true),
    };
    let nothing = FieldSet::default();
    let had_children = match value {
        Value::Object(object) => {
            let had = !object.is_empty();
            object.retain(|key, inner| match gone.children.get(&field_element(key)) {
                Some(child) => {
                    let kept = kept.children.get(&field_element(key)).unwrap_or(&nothing);
                    !remove(place.child(key), inner, child, kept)
                }
                None => true,
            });
            had && !object.is_empty()
        }
        Value::Array(list) => {
            list.retain_mut(|inner| {
                let element = match list_keys {
                    Some(keys) => key_element(inner, keys),
                    None if is_set => value_element(inner),
                    None => return true,
                };
                let Some(child) = gone.children.get(&element) else {
                    return true;
                };
                let theirs = kept.children.get(&element).unwrap_or(&nothing);
                if child.here && theirs.is_empty() {
                    return false;
                }
                remove(place.item(), inner, child, theirs);
                true
            });
            !list.is_empty()
        }
        _ => true,
    };
    !had_children && kept.is_empty()
}

fn bare(applied: &Value) -> Result<Value, PatchError> {
    let mut out = applied.clone();
    let Some(metadata) = out.get_mut("metadata").and_then(Value::as_object_mut) else {
        return Err(PatchError::Malformed("an applied object needs metadata".into()));
    };
    if metadata.get("managedFields").is_some_and(|fields| fields.as_array().is_none_or(|list| !list.is_empty())) {
        return Err(PatchError::Malformed("metadata.managedFields must be nil".into()));
    }
    metadata.shift_remove("managedFields");
    Ok(out)
}

/// Server-side apply of `applied` (with `apiVersion`, `kind` and `metadata.name`) to the live object, or to nothing.
///
/// The result carries its `managedFields`; it equals `live` when the apply changes nothing. `force` takes the fields
/// that others own.
pub fn apply(
    gvk: Gvk<'_>,
    live: Option<&Value>,
    applied: &Value,
    writer: Writer<'_>,
    force: bool,
) -> Result<Value, PatchError> {
    let place = Place::root(schema::shape(gvk));
    let api_version = gvk.api_version();
    let applied = bare(applied)?;
    check_duplicates(place, &applied, &mut String::new())?;
    let new_set = strip_unowned(set_of(place, &applied, false));
    let Some(live) = live else {
        let mut out = applied;
        store_entries(&mut out, vec![entry(writer, "Apply", api_version, new_set)]);
        return Ok(out);
    };
    let mut managers = entries(live);
    if managers.is_empty() {
        let set = strip_unowned(set_of(place, live, true));
        let first = Writer { manager: "before-first-apply", subresource: "", now: writer.now };
        managers.push(entry(first, "Update", api_version.clone(), set));
    }
    let mut out = merged(place, live, &applied);
    let (mut changed, mut removed) = (FieldSet::default(), FieldSet::default());
    difference(place, live, &out, &mut changed, &mut removed);
    let changed = changed.intersect(&new_set);

    let mut conflicts = Vec::new();
    for other in managers.iter_mut().filter(|other| !other.is("Apply", &api_version, writer)) {
        let both = other.fields.intersect(&changed);
        if both.is_empty()
            || (other.manager == writer.manager
                && other.subresource == writer.subresource
                && other.operation == "Apply")
        {
            continue;
        }
        if force {
            other.fields = other.fields.minus(&both);
        } else {
            conflicts.extend(both.paths().into_iter().map(|path| (other.described(), path)));
        }
    }
    if !conflicts.is_empty() {
        return Err(PatchError::Conflict(conflicts));
    }

    let mut own = None;
    let mut kept = new_set.clone();
    for (index, other) in managers.iter().enumerate() {
        if other.is("Apply", &api_version, writer) {
            own = Some(index);
        } else {
            kept.union(&other.fields);
        }
    }
    if let Some(index) = own {
        let gone = managers[index].fields.minus(&kept);
        remove(place, &mut out, &gone, &kept);
    }
    let same_object = without_managers(&out) == without_managers(live);
    match own {
        Some(index) if managers[index].fields == new_set && same_object => return Ok(live.clone()),
        Some(index) => managers[index] = entry(writer, "Apply", api_version, new_set),
        None => managers.push(entry(writer, "Apply", api_version, new_set)),
    }
    store_entries(&mut out, managers);
    Ok(out)
}

fn without_managers(object: &Value) -> Value {
    let mut out = object.clone();
    if let Some(metadata) = out.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
    out
}

fn check_duplicates(place: Place, value: &Value, path: &mut String) -> Result<(), PatchError> {
    let (items, keys): (&[Value], _) = match place.view(value) {
        View::Object(object) => {
            for (key, inner) in object {
                let length = path.len();
                *path += &format!(".{key}");
                check_duplicates(place.child(key), inner, path)?;
                path.truncate(length);
            }
            return Ok(());
        }
        View::MapList(list, keys) => (list, Some(keys)),
        View::SetList(list) => (list, None),
        View::Atomic => return Ok(()),
    };
    let mut seen = std::collections::HashSet::new();
    for item in items {
        let element = keys.map_or_else(|| value_element(item), |keys| key_element(item, keys));
        let length = path.len();
        *path += &format!("[{}]", &element[2..]);
        if !seen.insert(element) {
            return Err(PatchError::Malformed(format!(
                "failed to create typed patch object: errors:\n  {path}: duplicate entries"
            )));
        }
        check_duplicates(place.item(), item, path)?;
        path.truncate(length);
    }
    Ok(())
}

/// Record in `new` what a create, an update or an ordinary patch changed: call it on the final object, before it is
/// stored. `old` is the stored object. A client that sends an empty `managedFields` list clears the record.
pub fn track_update(gvk: Gvk<'_>, old: Option<&Value>, new: &mut Value, writer: Writer<'_>) {
    let place = Place::root(schema::shape(gvk));
    let sent = &new["metadata"]["managedFields"];
    let cleared = old.is_some()
        && sent.as_array().is_some_and(|list| list.is_empty() || (list.len() == 1 && list[0] == json!({})));
    let mut managers = match old {
        Some(_) if cleared => Vec::new(),
        Some(old) => entries(old),
        None => Vec::new(),
    };
    let nothing = Value::Object(Map::new());
    let (mut changed, mut removed) = (FieldSet::default(), FieldSet::default());
    difference(place, old.unwrap_or(&nothing), new, &mut changed, &mut removed);
    let (changed, removed) = (strip_unowned(changed), strip_unowned(removed));
    let same = changed.is_empty() && removed.is_empty();
    if !cleared && !same {
        let api_version = gvk.api_version();
        for other in managers.iter_mut() {
            let own = other.is("Update", &api_version, writer);
            let left = other.fields.minus_below(&removed);
            other.fields = if own { left } else { left.minus(&changed) };
        }
        if !changed.is_empty() {
            match managers.iter_mut().find(|other| other.is("Update", &api_version, writer)) {
                Some(own) => {
                    own.fields.union(&changed);
                    own.time = writer.now.to_owned();
                }
                None => managers.push(entry(writer, "Update", api_version, changed)),
            }
        }
    }
    store_entries(new, managers);
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
