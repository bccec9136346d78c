//! The schemas of all kinds with Kubernetes' extensions: kinds, list types and merge keys.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{all_group_versions, gvk_value, list_name};
use crate::resource::{Gvk, Resource, split_api_version};
use crate::schema::{definition_name, definitions, merge_of};

const V3_PREFIX: &str = "#/components/schemas/";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// Every schema by name, in the form of OpenAPI v3.
pub(super) struct Model {
    schemas: BTreeMap<String, Value>,
}

impl Model {
    pub(super) fn build() -> Self {
        let mut schemas = definitions();
        for (name, schema) in &mut schemas {
            annotate(name, schema);
        }
        for resource in Resource::all() {
            set_kind(&mut schemas, resource.gvk());
            if resource.stored() {
                schemas.insert(list_name(resource), list_schema(resource));
            }
        }
        for (api_version, kind) in [
            ("policy/v1", "Eviction"),
            ("autoscaling/v1", "Scale"),
            ("authentication.k8s.io/v1", "TokenRequest"),
            ("v1", "Status"),
        ] {
            let (group, version) = split_api_version(api_version);
            set_kind(&mut schemas, Gvk::new(group, version, kind));
        }
        if let Some(options) = schemas.get_mut(&format!("{META}DeleteOptions")) {
            let all = all_group_versions();
            options["x-kubernetes-group-version-kind"] =
                all.into_iter().map(|(group, version)| gvk_value(group, version, "DeleteOptions")).collect();
        }
        schemas.insert(
            format!("{META}Patch"),
            json!({"description": "Patch is provided to give a concrete name and type to the Kubernetes PATCH request body.",
                   "type": "object"}),
        );
        Self { schemas }
    }

    /// The schemas that some roots need.
    pub(super) fn reachable(&self, roots: &BTreeSet<String>) -> Map<String, Value> {
        let mut wanted: BTreeSet<&str> = BTreeSet::new();
        let mut queue: Vec<&str> = roots.iter().map(String::as_str).collect();
        while let Some(name) = queue.pop() {
            if let Some((name, schema)) = self.schemas.get_key_value(name)
                && wanted.insert(name)
            {
                references(schema, &mut queue);
            }
        }
        wanted.into_iter().map(|name| (name.to_owned(), self.schemas[name].clone())).collect()
    }

    /// All schemas in the form of OpenAPI v2.
    pub(super) fn into_v2(self) -> Map<String, Value> {
        self.schemas
            .into_iter()
            .map(|(name, mut schema)| {
                downgrade(&mut schema);
                (name, schema)
            })
            .collect()
    }
}

fn set_kind(schemas: &mut BTreeMap<String, Value>, gvk: Gvk<'_>) {
    if let Some(schema) = schemas.get_mut(&definition_name(gvk)) {
        schema["x-kubernetes-group-version-kind"] = json!([gvk_value(gvk.group, gvk.version, gvk.kind)]);
    }
}

fn list_schema(resource: &Resource) -> Value {
    let reference = |name: String| json!({"$ref": format!("{V3_PREFIX}{name}")});
    json!({
        "description": format!("{} is a list of {}.", resource.list_kind, resource.plural),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": "APIVersion defines the versioned schema of this representation of an object."},
            "items": {"type": "array", "description": format!("Items is the list of {}.", resource.plural),
                      "items": reference(definition_name(resource.gvk()))},
            "kind": {"type": "string", "description": "Kind is a string value representing the REST resource this object represents."},
            "metadata": {"description": "Standard list metadata.", "allOf": [reference(format!("{META}ListMeta"))]},
        },
        "x-kubernetes-group-version-kind": [gvk_value(resource.group, resource.version, resource.list_kind)],
    })
}

/// Add what the table of merge rules knows.
fn annotate(name: &str, schema: &mut Value) {
    let short = name.trim_start_matches("io.k8s.");
    if merge_of(short, "").is_some_and(|merge| merge.atomic_map) {
        schema["x-kubernetes-map-type"] = json!("atomic");
    }
    let Some(Value::Object(properties)) = schema.get_mut("properties") else {
        return;
    };
    for (field, property) in properties {
        let Value::Object(property) = property else {
            continue;
        };
        let list = property.get("type").is_some_and(|kind| kind == "array");
        let merge = merge_of(short, field);
        let list_type = match merge {
            Some(merge) if !merge.map_keys.is_empty() => "map",
            Some(merge) if merge.set => "set",
            _ => "atomic",
        };
        if list {
            property.insert("x-kubernetes-list-type".into(), json!(list_type));
        }
        let Some(merge) = merge else {
            continue;
        };
        if !merge.map_keys.is_empty() {
            property.insert("x-kubernetes-list-map-keys".into(), json!(merge.map_keys));
        }
        if merge.atomic_map {
            property.insert("x-kubernetes-map-type".into(), json!("atomic"));
        }
        if !merge.patch_key.is_empty() {
            property.insert("x-kubernetes-patch-merge-key".into(), json!(merge.patch_key));
        }
        let strategy = match (merge.patch_merge, merge.retain_keys) {
            (true, true) => "merge,retainKeys",
            (true, false) => "merge",
            (false, true) => "retainKeys",
            (false, false) => continue,
        };
        property.insert("x-kubernetes-patch-strategy".into(), json!(strategy));
    }
}

fn references<'a>(schema: &'a Value, out: &mut Vec<&'a str>) {
    match schema {
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::String(text) if key == "$ref" => out.push(text.trim_start_matches(V3_PREFIX)),
                    other => references(other, out),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, out)),
        _ => {}
    }
}

/// `allOf` with one reference becomes the reference itself, and references point to `#/definitions/`.
fn downgrade(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Array(all)) = object.get("allOf")
                && let [one] = all.as_slice()
            {
                let reference = one["$ref"].clone();
                object.shift_remove("allOf");
                object.insert("$ref".into(), reference);
            }
            for (key, value) in object {
                match value {
                    Value::String(text) if key == "$ref" => *text = text.replace(V3_PREFIX, "#/definitions/"),
                    other => downgrade(other),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(downgrade),
        _ => {}
    }
}
