//! Conversion between the two forms of events: `v1` and `events.k8s.io/v1` serve the same stored objects, which are kept in
//! the form of `v1`.

use serde_json::{Map, Value, json};

use crate::resource::Resource;

/// Fields of `v1` and their names in `events.k8s.io/v1`; all others are alike.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Whether a resource's objects are stored in another form than they are served in.
pub fn needed(resource: &Resource) -> bool {
    resource.group == "events.k8s.io" && resource.plural == "events"
}

/// From the form that a resource serves to the stored form.
pub fn to_storage(resource: &Resource, object: &mut Value) {
    if needed(resource) {
        rename(object, "v1", |name| NAMES.iter().find(|(_, new)| *new == name).map(|(core, _)| *core));
    }
}

/// From the stored form to the form that a resource serves.
pub fn from_storage(resource: &Resource, object: &mut Value) {
    if needed(resource) {
        rename(object, "events.k8s.io/v1", |name| NAMES.iter().find(|(core, _)| *core == name).map(|(_, new)| *new));
    }
}

fn rename(object: &mut Value, api_version: &str, new_name: impl Fn(&str) -> Option<&'static str>) {
    let Value::Object(fields) = object else {
        return;
    };
    let renamed: Map<String, Value> = std::mem::take(fields)
        .into_iter()
        .map(|(key, value)| (new_name(&key).map(str::to_owned).unwrap_or(key), value))
        .collect();
    *fields = renamed;
    if fields.contains_key("apiVersion") {
        fields.insert("apiVersion".into(), json!(api_version));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::find;

    #[test]
    fn events_go_to_storage_and_come_back() {
        let new = find("events.k8s.io", "v1", "events").unwrap();
        let sent = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "note": "n",
            "regarding": {"kind": "Pod", "name": "p"}, "reportingController": "kubelet", "eventTime": "2026-01-01T00:00:00.000000Z"});
        let mut stored = sent.clone();
        to_storage(new, &mut stored);
        assert_eq!(stored["involvedObject"]["name"], "p");
        assert_eq!(
            (&stored["message"], &stored["reportingComponent"], &stored["apiVersion"]),
            (&json!("n"), &json!("kubelet"), &json!("v1"))
        );
        let mut back = stored.clone();
        from_storage(new, &mut back);
        assert_eq!(back, sent);
        let mut untouched = stored.clone();
        to_storage(find("", "v1", "events").unwrap(), &mut untouched);
        assert_eq!(untouched, stored);
    }
}
