//! The four ways to change an object by a patch: JSON patch, merge patch, strategic merge patch and server-side apply.

pub mod apply;
mod fieldset;
mod managers;
mod operations;
mod strategic;
mod typed;

use serde_json::Value;

pub use operations::json;
pub use strategic::strategic;

/// Media type of a JSON patch (RFC 6902).
pub const JSON_PATCH: &str = "application/json-patch+json";
/// Media type of a merge patch (RFC 7396).
pub const MERGE_PATCH: &str = "application/merge-patch+json";
/// Media type of a strategic merge patch.
pub const STRATEGIC_MERGE_PATCH: &str = "application/strategic-merge-patch+json";
/// Media type of server-side apply.
pub const APPLY_PATCH: &str = "application/apply-patch+yaml";

/// Why a patch cannot be used.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum PatchError {
    /// The patch itself is malformed: 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object: 422.
    #[error("the server rejected our request due to an error in our request: {0}")]
    Unprocessable(String),
    /// The patch would make the object too large: 413.
    #[error("{0}")]
    TooLarge(String),
    /// Others own fields that the patch would change: (manager, field path) pairs, 409.
    #[error("apply failed with {} conflicts", .0.len())]
    Conflict(Vec<(String, String)>),
}

impl PatchError {
    /// The answer that this error is.
    pub fn to_status(&self) -> crate::status::Status {
        match self {
            Self::Malformed(text) => crate::status::bad_request(text.clone()),
            Self::Unprocessable(_) => crate::status::Status::new(422, "Invalid", self.to_string()),
            Self::TooLarge(text) => crate::status::Status::new(413, "RequestEntityTooLarge", text.clone()),
            Self::Conflict(conflicts) => crate::status::apply_conflict(conflicts),
        }
    }
}

/// Apply a merge patch.
pub fn merge(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed("a merge patch must be a JSON object".into()));
    }
    let mut out = object.clone();
    merge_into(&mut out, patch);
    Ok(out)
}

fn merge_into(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Default::default());
    }
    if let Value::Object(object) = target {
        for (key, value) in patch {
            if value.is_null() {
                object.shift_remove(key);
            } else {
                merge_into(object.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn merge_patches_follow_the_rfc() {
        let cases = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        ];
        for (object, patch, want) in cases {
            assert_eq!(merge(&object, &patch).unwrap(), want);
        }
    }

    fn any_object() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), (0..9).prop_map(Value::from)];
        let inner = leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::hash_map("[a-c]", inner, 0..3)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        prop::collection::hash_map("[a-c]", inner, 0..3).prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn merging_twice_is_merging_once(object in any_object(), patch in any_object()) {
            let once = merge(&object, &patch).unwrap();
            prop_assert_eq!(merge(&once, &patch).unwrap(), once);
        }

        #[test]
        fn an_empty_patch_changes_nothing(object in any_object()) {
            prop_assert_eq!(merge(&object, &json!({})).unwrap(), object);
        }
    }
}
