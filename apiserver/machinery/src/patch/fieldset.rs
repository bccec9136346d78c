//! Sets of field paths, as `managedFields` writes them (`fieldsV1`).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A set of paths as a tree: path elements are kept as `fieldsV1` spells them (`f:spec`, `k:{"name":"a"}`, `v:1`).
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct FieldSet {
    /// Whether the path to here is itself in the set.
    pub(super) here: bool,
    pub(super) children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    pub(super) fn leaf() -> Self {
        Self { here: true, children: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.here && self.children.values().all(Self::is_empty)
    }

    pub(super) fn parse(value: &Value) -> Self {
        let mut out = Self::default();
        if let Value::Object(object) = value {
            for (key, inner) in object {
                if key == "." {
                    out.here = true;
                    continue;
                }
                let mut child = Self::parse(inner);
                if inner.as_object().is_none_or(Map::is_empty) {
                    child.here = true;
                }
                out.children.insert(key.clone(), child);
            }
        }
        out
    }

    pub(super) fn to_value(&self) -> Value {
        let mut out = Map::new();
        if self.here && !self.children.is_empty() {
            out.insert(".".into(), Value::Object(Map::new()));
        }
        for (key, child) in &self.children {
            if !child.is_empty() {
                out.insert(key.clone(), child.to_value());
            }
        }
        Value::Object(out)
    }

    pub(super) fn remove(&mut self, path: &[&str]) {
        match path.split_first() {
            None => *self = Self::default(),
            Some((first, rest)) => {
                if let Some(child) = self.children.get_mut(*first) {
                    child.remove(rest);
                    if child.is_empty() {
                        self.children.remove(*first);
                    }
                }
            }
        }
    }

    pub(super) fn union(&mut self, other: &Self) {
        self.here |= other.here;
        for (key, child) in &other.children {
            self.children.entry(key.clone()).or_default().union(child);
        }
    }

    /// The paths that are here and not in `other`.
    pub(super) fn minus(&self, other: &Self) -> Self {
        let mut out = Self { here: self.here && !other.here, children: BTreeMap::new() };
        for (key, child) in &self.children {
            let left = match other.children.get(key) {
                Some(theirs) => child.minus(theirs),
                None => child.clone(),
            };
            if !left.is_empty() {
                out.children.insert(key.clone(), left);
            }
        }
        out
    }

    /// The paths that are here and not at or below a path of `other`: what is left when those values go.
    pub(super) fn minus_below(&self, other: &Self) -> Self {
        if other.here {
            return Self::default();
        }
        let mut out = Self { here: self.here, children: BTreeMap::new() };
        for (key, child) in &self.children {
            let left = match other.children.get(key) {
                Some(theirs) => child.minus_below(theirs),
                None => child.clone(),
            };
            if !left.is_empty() {
                out.children.insert(key.clone(), left);
            }
        }
        out
    }

    /// The paths that are in both.
    pub(super) fn intersect(&self, other: &Self) -> Self {
        let mut out = Self { here: self.here && other.here, children: BTreeMap::new() };
        for (key, child) in &self.children {
            if let Some(theirs) = other.children.get(key) {
                let both = child.intersect(theirs);
                if !both.is_empty() {
                    out.children.insert(key.clone(), both);
                }
            }
        }
        out
    }

    /// Every path, as people read it: `.spec.containers[name="a"].image`.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect(&mut String::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut String, out: &mut Vec<String>) {
        if self.here {
            out.push(prefix.clone());
        }
        for (key, child) in &self.children {
            let length = prefix.len();
            prefix.push_str(&readable(key));
            child.collect(prefix, out);
            prefix.truncate(length);
        }
    }
}

fn readable(element: &str) -> String {
    match element.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", keys)) => match serde_json::from_str::<Map<String, Value>>(keys) {
            Ok(keys) => {
                let parts: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
                format!("[{}]", parts.join(","))
            }
            Err(_) => format!("[{keys}]"),
        },
        Some(("v", value)) => format!("[={value}]"),
        _ => format!("[{element}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sets_read_and_write_fields_v1() {
        let text = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}},
                          "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}}}}});
        let set = FieldSet::parse(&text);
        assert_eq!(set.to_value(), text);
        assert_eq!(
            set.paths(),
            [
                ".metadata.labels",
                ".metadata.labels.a",
                ".spec.containers[name=\"c\"]",
                ".spec.containers[name=\"c\"].image"
            ]
        );
    }

    #[test]
    fn sets_obey_the_laws_of_sets() {
        let a = FieldSet::parse(&json!({"f:x": {}, "f:y": {"f:z": {}}}));
        let b = FieldSet::parse(&json!({"f:y": {"f:z": {}}, "f:w": {}}));
        let mut both = a.minus(&b);
        both.union(&a.intersect(&b));
        assert_eq!(both, a);
        assert!(a.minus(&a).is_empty());
    }
}
