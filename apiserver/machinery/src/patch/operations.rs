//! JSON patches (RFC 6902), with bounds: an operation may copy a part into itself, and a few dozen of these would fill any memory.

use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use super::PatchError;

/// Operations of one patch, as upstream has it.
const MOST: usize = 10_000;
/// Bytes that the copies of one patch may add up to (upstream's `AccumulatedCopySizeLimit`).
const COPIED: usize = 3 << 20;
/// Levels that moves, copies and additions may put an object's parts below each other. What is stored is held to less
/// ([`crate::schema::too_deep`]); this bounds what is built before that is looked at.
const LEVELS: usize = 1000;
/// Levels that a text can have which the parser takes.
const PARSED: usize = 128;

/// Apply a JSON patch; `object` is not changed when it fails.
///
/// # Errors
/// The patch is malformed, does not fit the object, or copies or nests too much.
pub fn json(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations: Patch = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::Malformed(format!("error decoding patch: {error}")))?;
    if operations.0.len() > MOST {
        let count = operations.0.len();
        return Err(PatchError::Malformed(format!(
            "The allowed maximum operations in a JSON patch is {MOST}, got {count}"
        )));
    }
    let mut out = object.clone();
    // At most so deep is the object now.
    let (mut copied, mut levels) = (0_usize, PARSED);
    for (index, operation) in operations.0.iter().enumerate() {
        if let PatchOperation::Copy(copy) = operation {
            copied += out.pointer(copy.from.as_str()).map_or(0, size);
            if copied > COPIED {
                return Err(PatchError::TooLarge(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {COPIED}"
                )));
            }
        }
        levels = match operation {
            PatchOperation::Add(add) => levels.max(add.path.count() + PARSED),
            PatchOperation::Replace(replace) => levels.max(replace.path.count() + PARSED),
            PatchOperation::Copy(copy) => levels + copy.path.count().saturating_sub(copy.from.count()),
            PatchOperation::Move(there) => levels + there.path.count().saturating_sub(there.from.count()),
            PatchOperation::Remove(_) | PatchOperation::Test(_) => levels,
        };
        if levels > LEVELS {
            return Err(PatchError::Unprocessable(format!(
                "the patch nests the object more than {LEVELS} levels deep"
            )));
        }
        json_patch::patch_unsafe(&mut out, std::slice::from_ref(operation)).map_err(|mut error| {
            error.operation = index;
            PatchError::Unprocessable(error.to_string())
        })?;
    }
    if out.is_object() { Ok(out) } else { Err(PatchError::Unprocessable("the patched object is no object".into())) }
}

/// About as many bytes as a value has as text.
fn size(value: &Value) -> usize {
    match value {
        Value::Array(list) => 2 + list.iter().map(|v| 1 + size(v)).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(key, v)| key.len() + 4 + size(v)).sum::<usize>(),
        Value::String(text) => text.len() + 2,
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn patches_apply_or_fail_whole() {
        let object = json!({"a": {"b": [1, 2]}});
        let patch = json!([{"op": "test", "path": "/a/b/0", "value": 1}, {"op": "add", "path": "/a/b/-", "value": 3}]);
        assert_eq!(json(&object, &patch).unwrap(), json!({"a": {"b": [1, 2, 3]}}));
        let missing = json!([{"op": "test", "path": "/a/b/0", "value": 1}, {"op": "remove", "path": "/nothing"}]);
        let error = json(&object, &missing).unwrap_err();
        assert!(matches!(&error, PatchError::Unprocessable(why) if why.contains("/1")), "{error}");
        assert!(matches!(json(&object, &json!({"op": "add"})), Err(PatchError::Malformed(_))));
    }

    #[test]
    fn a_patch_that_doubles_itself_is_refused_before_it_fills_the_memory() {
        let object = json!({"a": {"x": "0123456789"}});
        let copies: Vec<Value> =
            (0..64).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/a/k{i}")})).collect();
        let error = json(&object, &json!(copies)).unwrap_err();
        assert!(error.to_string().starts_with("Unable to complete the copy"), "{error}");
        assert_eq!(error.to_status().code, 413);
    }

    #[test]
    fn what_the_store_could_not_read_again_is_too_deep() {
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(crate::schema::too_deep(&nested(100)), None);
        let why = crate::schema::too_deep(&nested(101)).unwrap();
        assert!(why.contains("more than 100 levels"), "{why}");
        // Seven copies put an object of two levels 256 levels deep.
        let copies: Vec<Value> =
            (0..7).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/a{}", "/x".repeat(1 << i))})).collect();
        let deep = json(&json!({"a": {}}), &json!(copies)).unwrap();
        assert!(crate::schema::too_deep(&deep).is_some());
    }

    #[test]
    fn a_patch_that_buries_the_object_is_refused() {
        let mut operations = vec![json!({"op": "add", "path": "/k0", "value": {}})];
        for i in 1..5000 {
            operations.push(json!({"op": "add", "path": format!("/k{i}"), "value": {}}));
            operations.push(json!({"op": "move", "from": format!("/k{}", i - 1), "path": format!("/k{i}/x")}));
        }
        let error = json(&json!({}), &json!(operations)).unwrap_err();
        assert!(error.to_string().contains("levels deep"), "{error}");
    }
}
