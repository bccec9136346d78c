//! How a value is taken apart along its type, which strategic merge and server-side apply share.

use serde_json::{Map, Value, json};

use crate::schema::{Merge, Shape};

/// The type and merge rules of one field.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) shape: &'static Shape,
    pub(super) merge: Option<Merge>,
}

/// How server-side apply sees a value.
pub(super) enum View<'a> {
    /// One value as a whole.
    Atomic,
    /// Fields or free keys.
    Object(&'a Map<String, Value>),
    /// A list of objects that their keys name.
    MapList(&'a [Value], &'static [&'static str]),
    /// A list of different scalars.
    SetList(&'a [Value]),
}

impl Place {
    pub(super) fn root(shape: &'static Shape) -> Self {
        Self { shape, merge: None }
    }

    /// The place of a key in an object.
    pub(super) fn child(self, key: &str) -> Self {
        match self.shape {
            Shape::Object(id) => match id.get().fields.get(key) {
                Some(field) => Self { shape: &field.shape, merge: field.merge },
                None => Self::root(&Shape::Any),
            },
            Shape::Map(item) => Self::root(item),
            _ => Self::root(&Shape::Any),
        }
    }

    /// The place of a list's items.
    pub(super) fn item(self) -> Self {
        match self.shape {
            Shape::List(item) => Self::root(item),
            _ => Self::root(&Shape::Any),
        }
    }

    /// Whether the place is a map with free keys.
    pub(super) fn is_map(self) -> bool {
        matches!(self.shape, Shape::Map(_))
    }

    pub(super) fn view(self, value: &Value) -> View<'_> {
        let merge = self.merge;
        let atomic =
            merge.is_some_and(|merge| merge.atomic_map) || matches!(self.shape, Shape::Object(id) if id.get().atomic);
        match value {
            Value::Object(object) if !atomic => View::Object(object),
            Value::Array(list) => match merge {
                Some(merge) if !merge.map_keys.is_empty() && list.iter().all(Value::is_object) => {
                    View::MapList(list, merge.map_keys)
                }
                Some(merge) if merge.set => View::SetList(list),
                _ => View::Atomic,
            },
            _ => View::Atomic,
        }
    }
}

/// `f:name` of a field.
pub(super) fn field_element(name: &str) -> String {
    format!("f:{name}")
}

/// `k:{"name":"a"}` of an item in a map list. A missing protocol is TCP, which is its default.
pub(super) fn key_element(item: &Value, keys: &[&str]) -> String {
    let mut object = Map::new();
    let mut sorted = keys.to_vec();
    sorted.sort_unstable();
    for key in sorted {
        match item.get(key) {
            Some(value) => object.insert(key.to_owned(), value.clone()),
            None if key == "protocol" => object.insert(key.to_owned(), json!("TCP")),
            None => None,
        };
    }
    format!("k:{}", Value::Object(object))
}

/// `v:"x"` of an item in a set.
pub(super) fn value_element(item: &Value) -> String {
    format!("v:{item}")
}

/// Interleave the items that a patch orders with those that only the object has, keeping the object's order where the
/// two meet. `rank` is an item's place in the object before the patch.
pub(super) fn interleave(ordered: Vec<Value>, rest: Vec<Value>, rank: impl Fn(&Value) -> Option<usize>) -> Vec<Value> {
    let mut out = Vec::with_capacity(ordered.len() + rest.len());
    let mut rest = rest.into_iter().peekable();
    for item in ordered {
        if let Some(place) = rank(&item) {
            while let Some(next) = rest.next_if(|next| rank(next).is_some_and(|other| other < place)) {
                out.push(next);
            }
        }
        out.push(item);
    }
    out.extend(rest);
    out
}
