//! Server-side apply as a table: who owns what after which writes.

use super::*;
use proptest::prelude::*;

const DEPLOYMENT: Gvk<'static> = Gvk { group: "apps", version: "v1", kind: "Deployment" };
const POD: Gvk<'static> = Gvk { group: "", version: "v1", kind: "Pod" };

fn writer(manager: &str) -> Writer<'_> {
    Writer { manager, subresource: "", now: "2026-01-01T00:00:00Z" }
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "default"}, "spec": spec})
}

fn owners(object: &Value) -> Vec<(String, Vec<String>)> {
    entries(object).into_iter().map(|entry| (entry.manager, entry.fields.paths())).collect()
}

#[test]
fn creating_by_apply_owns_what_was_said() {
    let out = apply(DEPLOYMENT, None, &deployment(json!({"replicas": 2})), writer("a"), false).unwrap();
    assert_eq!(owners(&out), [("a".to_owned(), vec![".spec.replicas".to_owned()])]);
    assert_eq!(out["metadata"]["managedFields"][0]["fieldsType"], "FieldsV1");
}

#[test]
fn a_changed_field_of_another_manager_conflicts_unless_forced() {
    let live =
        apply(DEPLOYMENT, None, &deployment(json!({"replicas": 2, "paused": true})), writer("a"), false).unwrap();
    let same = apply(DEPLOYMENT, Some(&live), &deployment(json!({"replicas": 2})), writer("b"), false).unwrap();
    assert_eq!(owners(&same).len(), 2, "the same value is shared");
    let wish = deployment(json!({"replicas": 3}));
    let refused = apply(DEPLOYMENT, Some(&live), &wish, writer("b"), false).unwrap_err();
    assert_eq!(refused, PatchError::Conflict(vec![("\"a\" using apps/v1".to_owned(), ".spec.replicas".to_owned())]));
    let forced = apply(DEPLOYMENT, Some(&live), &wish, writer("b"), true).unwrap();
    assert_eq!(forced["spec"], json!({"replicas": 3, "paused": true}));
    assert_eq!(
        owners(&forced),
        [("a".to_owned(), vec![".spec.paused".to_owned()]), ("b".to_owned(), vec![".spec.replicas".to_owned()])]
    );
}

#[test]
fn what_is_no_longer_applied_goes_unless_another_owns_it() {
    let labels =
        |labels: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": labels}});
    let live = apply(POD, None, &labels(json!({"x": "1", "y": "2"})), writer("a"), false).unwrap();
    let live = apply(POD, Some(&live), &labels(json!({"y": "2", "z": "3"})), writer("b"), false).unwrap();
    let live = apply(
        POD,
        Some(&live),
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}),
        writer("a"),
        false,
    )
    .unwrap();
    assert_eq!(live["metadata"]["labels"], json!({"y": "2", "z": "3"}));
    let live = apply(
        POD,
        Some(&live),
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}),
        writer("b"),
        false,
    )
    .unwrap();
    assert!(live["metadata"].get("labels").is_none());
    assert!(live["metadata"].get("managedFields").is_none());
}

#[test]
fn list_items_are_owned_by_their_keys() {
    let pod = |containers: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}});
    let live = apply(POD, None, &pod(json!([{"name": "a", "image": "1"}])), writer("x"), false).unwrap();
    let live = apply(
        POD,
        Some(&live),
        &pod(json!([{"name": "b", "image": "2", "ports": [{"containerPort": 80}]}])),
        writer("y"),
        false,
    )
    .unwrap();
    assert_eq!(live["spec"]["containers"].as_array().unwrap().len(), 2);
    let live = apply(POD, Some(&live), &pod(json!([{"name": "b", "image": "2"}])), writer("y"), false).unwrap();
    let b = live["spec"]["containers"].as_array().unwrap().iter().find(|c| c["name"] == "b").unwrap();
    assert_eq!(b, &json!({"name": "b", "image": "2"}));
    let live = apply(POD, Some(&live), &pod(json!([{"name": "c"}])), writer("y"), false).unwrap();
    let names: Vec<&str> =
        live["spec"]["containers"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(names.len(), 2);
    assert!(names.contains(&"a") && names.contains(&"c"));
    let twice = pod(json!([{"name": "a"}, {"name": "a"}]));
    assert!(matches!(apply(POD, None, &twice, writer("x"), false), Err(PatchError::Malformed(_))));
}

#[test]
fn updates_take_the_fields_that_they_change() {
    let mut live = deployment(json!({"replicas": 1, "paused": true}));
    track_update(DEPLOYMENT, None, &mut live, writer("u"));
    assert_eq!(owners(&live), [("u".to_owned(), vec![".spec.paused".to_owned(), ".spec.replicas".to_owned()])]);
    let mut next = live.clone();
    next["spec"]["replicas"] = json!(2);
    track_update(DEPLOYMENT, Some(&live), &mut next, Writer { subresource: "scale", ..writer("hpa") });
    assert_eq!(
        owners(&next),
        [("hpa".to_owned(), vec![".spec.replicas".to_owned()]), ("u".to_owned(), vec![".spec.paused".to_owned()])]
    );
    let mut unchanged = next.clone();
    track_update(DEPLOYMENT, Some(&next), &mut unchanged, writer("nobody"));
    assert_eq!(unchanged, next);
    let mut cleared = next.clone();
    cleared["metadata"]["managedFields"] = json!([{}]);
    track_update(DEPLOYMENT, Some(&next), &mut cleared, writer("u"));
    assert!(cleared["metadata"].get("managedFields").is_none());
}

proptest! {
    #[test]
    fn applying_twice_is_applying_once(replicas in 0..5i64, paused: bool, labels in prop::collection::hash_map("[a-d]", "[a-d]", 0..3),
                                       before in prop::collection::hash_map("[a-d]", "[a-d]", 0..3)) {
        let mut live = deployment(json!({"replicas": 1}));
        live["metadata"]["labels"] = json!(before);
        track_update(DEPLOYMENT, None, &mut live, writer("u"));
        let mut wish = deployment(json!({"replicas": replicas, "paused": paused}));
        wish["metadata"]["labels"] = json!(labels);
        let once = apply(DEPLOYMENT, Some(&live), &wish, writer("a"), true).unwrap();
        let twice = apply(DEPLOYMENT, Some(&once), &wish, writer("a"), false).unwrap();
        prop_assert_eq!(once, twice);
    }
}
