//! A compact typed view of the built-in kinds: which field is a list, a map or an object, and how it merges.
//!
//! Strict decoding, pruning, strategic merge and server-side apply all walk JSON along these types. It is built once, from
//! the schemas of k8s-openapi, and keeps no descriptions.

mod duplicates;
mod keys;
mod roots;
mod walk;

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use serde_json::Value;

pub use duplicates::duplicate_fields;
pub use keys::Merge;
pub(crate) use keys::find as merge_of;
pub(crate) use roots::definitions;
pub use walk::{prune, too_deep, type_errors, unknown_fields};

use crate::resource::Gvk;

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// A string.
    Text,
    /// An RFC 3339 time.
    Time,
    /// An integer.
    Integer,
    /// Any number.
    Number,
    /// A boolean.
    Boolean,
    /// An integer or a string.
    IntOrString,
    /// A quantity: a string, or a number that becomes one.
    Quantity,
    /// Anything.
    Any,
    /// A list.
    List(Box<Shape>),
    /// An object with free keys.
    Map(Box<Shape>),
    /// An object with known fields.
    Object(TypeId),
}

/// The number of an object type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeId(u32);

/// One field of an object type.
#[derive(Clone, Debug)]
pub struct Field {
    /// What it holds.
    pub shape: Shape,
    /// How it merges, where that differs from atomic lists and granular maps.
    pub merge: Option<Merge>,
}

/// An object with known fields.
#[derive(Debug)]
pub struct Type {
    /// Full schema name, such as `io.k8s.api.core.v1.PodSpec`.
    pub name: String,
    /// Fields by JSON name.
    pub fields: BTreeMap<Box<str>, Field>,
    /// Whether the object is one value to server-side apply.
    pub atomic: bool,
    /// The type as a shape.
    pub shape: Shape,
}

struct Registry {
    types: Vec<Type>,
    by_name: HashMap<String, TypeId>,
}

impl TypeId {
    /// The type itself.
    pub fn get(self) -> &'static Type {
        &registry().types[self.0 as usize]
    }
}

/// The shape of a kind; [`Shape::Any`] for kinds that are not built in.
pub fn shape(gvk: Gvk<'_>) -> &'static Shape {
    find(gvk).map_or(&Shape::Any, |id| &id.get().shape)
}

/// The object type of a kind, if it is a built-in one.
pub fn find(gvk: Gvk<'_>) -> Option<TypeId> {
    registry().by_name.get(&definition_name(gvk)).copied()
}

/// The schema name of a kind, such as `io.k8s.api.core.v1.Pod`.
pub fn definition_name(gvk: Gvk<'_>) -> String {
    if matches!(gvk.kind, "DeleteOptions" | "Status" | "ListMeta" | "ObjectMeta") {
        return format!("io.k8s.apimachinery.pkg.apis.meta.v1.{}", gvk.kind);
    }
    let package = match gvk.group.split('.').next() {
        None | Some("") => "core",
        Some(first) => first,
    };
    format!("io.k8s.api.{package}.{}.{}", gvk.version, gvk.kind)
}

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| build(&definitions()))
}

fn build(definitions: &BTreeMap<String, Value>) -> Registry {
    let mut by_name = HashMap::new();
    for (name, definition) in definitions {
        if is_object_type(name, definition) {
            let id = TypeId(by_name.len() as u32);
            by_name.insert(name.clone(), id);
        }
    }
    let mut types: Vec<Option<Type>> = Vec::new();
    types.resize_with(by_name.len(), || None);
    for (name, id) in &by_name {
        let short = name.trim_start_matches("io.k8s.");
        let mut fields = BTreeMap::new();
        if let Some(Value::Object(properties)) = definitions[name].get("properties") {
            for (field, property) in properties {
                let shape = shape_of(property, definitions, &by_name);
                fields.insert(field.as_str().into(), Field { shape, merge: keys::find(short, field) });
            }
        }
        let atomic = keys::find(short, "").is_some_and(|merge| merge.atomic_map);
        types[id.0 as usize] = Some(Type { name: name.clone(), fields, atomic, shape: Shape::Object(*id) });
    }
    Registry { types: types.into_iter().flatten().collect(), by_name }
}

fn is_object_type(name: &str, definition: &Value) -> bool {
    // JSON and the like have no type at all; FieldsV1 and RawExtension are objects without known fields.
    definition.get("properties").is_some_and(Value::is_object)
        || (definition["type"] == "object" && !name.ends_with("FieldsV1") && !name.ends_with("RawExtension"))
}

fn shape_of(property: &Value, definitions: &BTreeMap<String, Value>, ids: &HashMap<String, TypeId>) -> Shape {
    let reference = property.get("$ref").or_else(|| property.get("allOf")?.get(0)?.get("$ref"));
    if let Some(reference) = reference.and_then(Value::as_str) {
        let name = reference.rsplit('/').next().unwrap_or_default();
        if name.ends_with("IntOrString") {
            return Shape::IntOrString;
        }
        if name.ends_with("api.resource.Quantity") {
            return Shape::Quantity;
        }
        if name.ends_with("FieldsV1") || name.ends_with("RawExtension") {
            return Shape::Any;
        }
        return match (ids.get(name), definitions.get(name)) {
            (Some(id), _) => Shape::Object(*id),
            (None, Some(definition)) => shape_of(definition, definitions, ids),
            (None, None) => Shape::Any,
        };
    }
    match property["type"].as_str() {
        Some("string") if property["format"] == "date-time" => Shape::Time,
        Some("string") => Shape::Text,
        Some("integer") => Shape::Integer,
        Some("number") => Shape::Number,
        Some("boolean") => Shape::Boolean,
        Some("array") => {
            Shape::List(Box::new(property.get("items").map_or(Shape::Any, |items| shape_of(items, definitions, ids))))
        }
        Some("object") => match property.get("additionalProperties") {
            Some(values @ Value::Object(_)) => Shape::Map(Box::new(shape_of(values, definitions, ids))),
            _ => Shape::Any,
        },
        _ => Shape::Any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Resource;

    #[test]
    fn every_served_kind_has_a_type() {
        for resource in Resource::all() {
            let id = find(resource.gvk()).unwrap_or_else(|| panic!("{}", resource.gvk()));
            assert!(id.get().fields.contains_key("metadata"), "{}", resource.kind);
        }
    }

    #[test]
    fn pod_spec_has_the_shapes_that_patches_need() {
        let pod = find(Gvk::new("", "v1", "Pod")).unwrap().get();
        let Shape::Object(spec) = pod.fields["spec"].shape else { panic!("spec is an object") };
        let containers = &spec.get().fields["containers"];
        assert_eq!(containers.merge.unwrap().patch_key, "name");
        let Shape::List(item) = &containers.shape else { panic!("containers is a list") };
        let Shape::Object(container) = **item else { panic!("of objects") };
        let container = container.get();
        assert_eq!(container.fields["command"].shape, Shape::List(Box::new(Shape::Text)));
        let Shape::Object(resources) = container.fields["resources"].shape else { panic!("resources") };
        assert_eq!(resources.get().fields["limits"].shape, Shape::Map(Box::new(Shape::Quantity)));
        let Shape::Object(meta) = pod.fields["metadata"].shape else { panic!("metadata") };
        assert_eq!(meta.get().fields["creationTimestamp"].shape, Shape::Time);
        let secret = find(Gvk::new("", "v1", "Secret")).unwrap().get();
        assert_eq!(secret.fields["data"].shape, Shape::Map(Box::new(Shape::Text)));
    }
}
