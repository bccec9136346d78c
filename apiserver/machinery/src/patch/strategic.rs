//! Strategic merge patch: a merge patch that knows which lists merge by key, and that understands directives.

use serde_json::{Map, Value};

use super::PatchError;
use super::typed::{Place, interleave};
use crate::resource::Gvk;
use crate::schema;

const ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Apply a strategic merge patch to an object of a built-in kind.
pub fn strategic(gvk: Gvk<'_>, object: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Some(id) = schema::find(gvk) else {
        let text = format!("strategic merge patch is not supported for {gvk}");
        return Err(PatchError::Malformed(text));
    };
    let (Value::Object(object), Value::Object(patch)) = (object, patch) else {
        return Err(PatchError::Malformed("a strategic merge patch must be a JSON object".into()));
    };
    merge_object(Place::root(&id.get().shape), object.clone(), patch).map(Value::Object)
}

fn merge_object(
    place: Place,
    mut object: Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Map<String, Value>, PatchError> {
    match patch.get("$patch").map(|directive| directive.as_str()) {
        None => {}
        Some(Some("replace")) => {
            let mut bare = patch.clone();
            bare.shift_remove("$patch");
            return Ok(bare);
        }
        Some(Some("delete")) => return Ok(Map::new()),
        Some(Some("merge")) => {}
        Some(other) => {
            return Err(PatchError::Malformed(format!("unknown patch type: {}", other.unwrap_or("not a string"))));
        }
    }
    if let Some(retain) = patch.get("$retainKeys") {
        let Value::Array(retain) = retain else {
            return Err(PatchError::Malformed("invalid patch format: $retainKeys is no list".into()));
        };
        object.retain(|key, _| retain.iter().any(|kept| kept == key));
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_PRIMITIVES) {
            if let (Some(Value::Array(list)), Value::Array(gone)) = (object.get_mut(field), value) {
                list.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if key.starts_with(ORDER) || key == "$patch" || key == "$retainKeys" {
            continue;
        }
        let inner = place.child(key);
        match value {
            Value::Null => {
                object.shift_remove(key);
            }
            Value::Object(patch) => {
                let before = match object.get_mut(key) {
                    Some(Value::Object(before)) => std::mem::take(before),
                    _ => Map::new(),
                };
                let deleted = patch.get("$patch").is_some_and(|directive| directive == "delete");
                let merged = merge_object(inner, before, patch)?;
                if deleted {
                    object.shift_remove(key);
                } else {
                    object.insert(key.clone(), Value::Object(merged));
                }
            }
            Value::Array(patch) => {
                let before = match object.get_mut(key) {
                    Some(Value::Array(before)) => std::mem::take(before),
                    _ => Vec::new(),
                };
                let merged = merge_list(inner, key, before, patch)?;
                object.insert(key.clone(), Value::Array(merged));
            }
            scalar => {
                object.insert(key.clone(), scalar.clone());
            }
        }
    }
    for (key, order) in patch {
        if let (Some(field), Value::Array(order)) = (key.strip_prefix(ORDER), order)
            && let Some(Value::Array(list)) = object.get_mut(field)
        {
            let sorted = sort_list(place.child(field), std::mem::take(list), order);
            *list = sorted;
        }
    }
    Ok(object)
}

fn merge_list(place: Place, field: &str, mut list: Vec<Value>, patch: &[Value]) -> Result<Vec<Value>, PatchError> {
    let replace = patch.iter().any(|item| item["$patch"] == "replace");
    let Some(merge) = place.merge.filter(|merge| merge.patch_merge && !replace) else {
        let plain = patch.iter().filter(|item| item["$patch"] != "replace" && item["$patch"] != "delete");
        return plain.map(|item| stripped(place.item(), item)).collect();
    };
    if merge.patch_key.is_empty() {
        for item in patch {
            if !list.contains(item) {
                list.push(item.clone());
            }
        }
        return Ok(list);
    }
    for item in patch {
        let Some(key) = item.get(merge.patch_key) else {
            let text = format!("map: {item} does not contain declared merge key: {} (in {field})", merge.patch_key);
            return Err(PatchError::Malformed(text));
        };
        if item["$patch"] == "delete" {
            list.retain(|old| old.get(merge.patch_key) != Some(key));
            continue;
        }
        let fresh = stripped_patch(item);
        let found = list.iter_mut().find(|old| old.get(merge.patch_key) == Some(key));
        match (found, fresh) {
            (Some(Value::Object(old)), Value::Object(fresh)) => {
                *old = merge_object(place.item(), std::mem::take(old), &fresh)?;
            }
            (_, fresh) => list.push(stripped(place.item(), &fresh)?),
        }
    }
    Ok(list)
}

fn stripped_patch(item: &Value) -> Value {
    let mut item = item.clone();
    if let Some(object) = item.as_object_mut()
        && object.get("$patch").is_some_and(|directive| directive == "merge")
    {
        object.shift_remove("$patch");
    }
    item
}

/// A new item: what the patch leaves when it is merged into nothing.
fn stripped(place: Place, item: &Value) -> Result<Value, PatchError> {
    match item {
        Value::Object(patch) => merge_object(place, Map::new(), patch).map(Value::Object),
        other => Ok(other.clone()),
    }
}

/// Put the items that `order` names in that order, among those that it does not name.
fn sort_list(place: Place, list: Vec<Value>, order: &[Value]) -> Vec<Value> {
    let key = place.merge.filter(|merge| merge.patch_merge).map_or("", |merge| merge.patch_key);
    let same = |item: &Value, other: &Value| {
        if key.is_empty() { item == other } else { item.get(key).is_some() && item.get(key) == other.get(key) }
    };
    let before = list.clone();
    let rank = |item: &Value| before.iter().position(|old| same(old, item));
    let mut rest = list;
    let mut ordered = Vec::new();
    for wanted in order {
        if let Some(index) = rest.iter().position(|item| same(item, wanted)) {
            ordered.push(rest.remove(index));
        }
    }
    interleave(ordered, rest, rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const POD: Gvk<'static> = Gvk { group: "", version: "v1", kind: "Pod" };

    fn check(before: Value, patch: Value, after: Value) {
        assert_eq!(strategic(POD, &before, &patch).unwrap(), after, "{patch}");
    }

    #[test]
    fn lists_merge_by_key() {
        check(
            json!({"spec": {"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b"}]}}),
            json!({"spec": {"containers": [{"name": "a", "image": "2", "args": ["y"]}, {"name": "c"}]}}),
            json!({"spec": {"containers": [{"name": "a", "image": "2", "args": ["y"]}, {"name": "b"}, {"name": "c"}]}}),
        );
        check(
            json!({"metadata": {"finalizers": ["a", "b"]}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}),
            json!({"metadata": {"finalizers": ["b", "c"]}}),
        );
        check(
            json!({"spec": {"tolerations": [{"key": "a"}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}]}}),
        );
    }

    #[test]
    fn directives_delete_replace_retain_and_order() {
        check(
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
            json!({"spec": {"containers": [{"name": "b"}]}}),
        );
        check(
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "c"}]}}),
            json!({"spec": {"containers": [{"name": "c"}]}}),
        );
        check(
            json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
            json!({"metadata": {"labels": {"$patch": "replace", "c": "3"}}}),
            json!({"metadata": {"labels": {"c": "3"}}}),
        );
        check(
            json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
            json!({"spec": {"volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}}),
        );
        check(
            json!({"spec": {"containers": [{"name": "a"}, {"name": "s"}, {"name": "b"}]}}),
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a", "image": "2"}]}}),
            json!({"spec": {"containers": [{"name": "s"}, {"name": "b"}, {"name": "a", "image": "2"}]}}),
        );
    }

    #[test]
    fn malformed_patches_are_refused() {
        let missing = strategic(POD, &json!({}), &json!({"spec": {"containers": [{"image": "x"}]}}));
        assert!(missing.unwrap_err().to_string().contains("does not contain declared merge key: name"));
        assert!(strategic(POD, &json!({}), &json!({"$patch": "burn"})).is_err());
        assert!(strategic(Gvk::new("example.com", "v1", "Foo"), &json!({}), &json!({})).is_err());
    }
}
