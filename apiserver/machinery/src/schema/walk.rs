//! Walks of a value along its type: unknown fields, wrong types, and pruning.

use gantry_kube::quantity::Quantity;
use serde_json::Value;

use super::{Shape, TypeId, find};
use crate::resource::Gvk;

/// Paths of fields that the kind does not have, as upstream writes them: `unknown field "spec.foo"`.
pub fn unknown_fields(gvk: Gvk<'_>, value: &Value) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(id) = find(gvk) {
        unknown(&Shape::Object(id), value, &mut String::new(), &mut out);
    }
    out
}

/// Levels of lists and objects that an object may have.
const LEVELS: usize = 100;

/// Why an object nests too deep to be kept: what is stored is read again by a parser that ends at 128 levels, and carries
/// its managers' fields, which are some levels deeper.
pub fn too_deep(value: &Value) -> Option<String> {
    fn deeper(value: &Value, left: usize) -> bool {
        match value {
            Value::Array(_) | Value::Object(_) if left == 0 => true,
            Value::Array(list) => list.iter().any(|v| deeper(v, left - 1)),
            Value::Object(map) => map.values().any(|v| deeper(v, left - 1)),
            _ => false,
        }
    }
    deeper(value, LEVELS).then(|| format!("the object is nested more than {LEVELS} levels deep"))
}

fn scoped(path: &mut String, step: &str, then: impl FnOnce(&mut String)) {
    let length = path.len();
    if !step.starts_with('[') && !path.is_empty() {
        path.push('.');
    }
    path.push_str(step);
    then(path);
    path.truncate(length);
}

fn unknown(shape: &Shape, value: &Value, path: &mut String, out: &mut Vec<String>) {
    match (shape, value) {
        (Shape::Object(id), Value::Object(object)) => {
            for (key, inner) in object {
                match id.get().fields.get(key.as_str()) {
                    Some(field) => scoped(path, key, |path| unknown(&field.shape, inner, path, out)),
                    None => scoped(path, key, |path| out.push(format!("unknown field \"{path}\""))),
                }
            }
        }
        (Shape::List(item), Value::Array(list)) => {
            for (index, inner) in list.iter().enumerate() {
                scoped(path, &format!("[{index}]"), |path| unknown(item, inner, path, out));
            }
        }
        (Shape::Map(item), Value::Object(object)) => {
            for (key, inner) in object {
                scoped(path, key, |path| unknown(item, inner, path, out));
            }
        }
        _ => {}
    }
}

/// The first values of a wrong JSON type, in upstream's words; empty when the value can be decoded.
pub fn type_errors(gvk: Gvk<'_>, value: &Value) -> Vec<String> {
    let mut out = Vec::new();
    match find(gvk) {
        Some(id) => wrong(&Shape::Object(id), value, gvk.kind, &mut String::new(), &mut out),
        None if !value.is_object() => out.push(format!("json: cannot unmarshal {} into an object", name_of(value))),
        None => {}
    }
    out
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn go_type(shape: &Shape) -> String {
    match shape {
        Shape::Text => "string".into(),
        Shape::Time => "v1.Time".into(),
        Shape::Integer => "int32".into(),
        Shape::Number => "float64".into(),
        Shape::Boolean => "bool".into(),
        Shape::IntOrString => "intstr.IntOrString".into(),
        Shape::Quantity => "resource.Quantity".into(),
        Shape::Any => "interface {}".into(),
        Shape::List(item) => format!("[]{}", go_type(item)),
        Shape::Map(item) => format!("map[string]{}", go_type(item)),
        Shape::Object(id) => go_name(*id),
    }
}

fn go_name(id: TypeId) -> String {
    let mut parts = id.get().name.rsplit('.');
    let (kind, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    format!("{version}.{kind}")
}

fn wrong(shape: &Shape, value: &Value, kind: &str, path: &mut String, out: &mut Vec<String>) {
    let fits = match (shape, value) {
        (_, Value::Null) | (Shape::Any, _) => true,
        (Shape::Text, Value::String(_)) | (Shape::Boolean, Value::Bool(_)) | (Shape::Number, Value::Number(_)) => true,
        (Shape::Integer, Value::Number(number)) => number.is_i64() || number.is_u64(),
        (Shape::IntOrString, Value::String(_)) => true,
        (Shape::IntOrString, Value::Number(number)) => number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
        (Shape::Time, Value::String(text)) => {
            if text.parse::<jiff::Timestamp>().is_err() {
                out.push(format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {path}"));
            }
            true
        }
        (Shape::Quantity, Value::String(text)) => {
            if Quantity::parse(text).is_err() {
                out.push(format!(
                    "{path}: quantities must match the regular expression \
                     '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$', not {text:?}"
                ));
            }
            true
        }
        (Shape::Quantity, Value::Number(_)) => true,
        (Shape::Object(id), Value::Object(object)) => {
            for (key, inner) in object {
                if let Some(field) = id.get().fields.get(key.as_str()) {
                    scoped(path, key, |path| wrong(&field.shape, inner, kind, path, out));
                }
            }
            true
        }
        (Shape::Map(item), Value::Object(object)) => {
            for (key, inner) in object {
                scoped(path, key, |path| wrong(item, inner, kind, path, out));
            }
            true
        }
        (Shape::List(item), Value::Array(list)) => {
            for (index, inner) in list.iter().enumerate() {
                scoped(path, &format!("[{index}]"), |path| wrong(item, inner, kind, path, out));
            }
            true
        }
        _ => false,
    };
    if !fits {
        let dot = if path.is_empty() { "" } else { "." };
        out.push(format!(
            "json: cannot unmarshal {} into Go struct field {kind}{dot}{path} of type {}",
            name_of(value),
            go_type(shape)
        ));
    }
}

/// Drop unknown fields and nulls, and write quantities in canonical form: what decoding and encoding does upstream.
/// Kinds that are not built in are left as they are.
pub fn prune(gvk: Gvk<'_>, value: &mut Value) {
    if let Some(id) = find(gvk) {
        tidy(&Shape::Object(id), value);
    }
}

fn tidy(shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Object(id), Value::Object(object)) => {
            let fields = &id.get().fields;
            object.retain(|key, inner| !inner.is_null() && fields.contains_key(key.as_str()));
            for (key, inner) in object.iter_mut() {
                if let Some(field) = fields.get(key.as_str()) {
                    tidy(&field.shape, inner);
                }
            }
        }
        (Shape::List(item), Value::Array(list)) => list.iter_mut().for_each(|inner| tidy(item, inner)),
        (Shape::Map(item), Value::Object(object)) => {
            object.retain(|_, inner| !inner.is_null());
            object.values_mut().for_each(|inner| tidy(item, inner));
        }
        (Shape::Quantity, value) => {
            let text = match &*value {
                Value::Number(number) => number.to_string(),
                Value::String(text) => text.clone(),
                _ => return,
            };
            if let Ok(quantity) = Quantity::parse(&text) {
                *value = Value::String(quantity.to_string());
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const POD: Gvk<'static> = Gvk { group: "", version: "v1", kind: "Pod" };

    #[test]
    fn unknown_fields_are_named_by_path() {
        let pod = json!({"metadata": {"labels": {"any": "x"}, "nope": 1}, "spec": {"containers": [{"name": "a", "imag": "b"}], "foo": 1}});
        assert_eq!(
            unknown_fields(POD, &pod),
            [
                "unknown field \"metadata.nope\"",
                "unknown field \"spec.containers[0].imag\"",
                "unknown field \"spec.foo\""
            ]
        );
    }

    #[test]
    fn wrong_types_are_told_as_upstream_does() {
        let pod = json!({"spec": {"containers": "x", "terminationGracePeriodSeconds": "30", "hostNetwork": null}});
        assert_eq!(
            type_errors(POD, &pod),
            [
                "json: cannot unmarshal string into Go struct field Pod.spec.containers of type []v1.Container",
                "json: cannot unmarshal string into Go struct field Pod.spec.terminationGracePeriodSeconds of type int32"
            ]
        );
        let bad = json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "1 core"}}}]}});
        assert!(type_errors(POD, &bad)[0].contains("quantities must match"));
    }

    #[test]
    fn pruning_drops_unknown_fields_and_nulls_and_writes_quantities() {
        let mut pod = json!({"metadata": {"creationTimestamp": null, "name": "a"}, "bad": 1,
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}]}});
        prune(POD, &mut pod);
        assert_eq!(
            pod,
            json!({"metadata": {"name": "a"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}]}})
        );
    }
}
