//! A client's whole way through the pure functions: create, read back, apply again, patch, apply server-side.

use serde_json::{Value, json};

use crate::patch::apply::{Writer, apply, track_update};
use crate::resource::find;
use crate::{defaults, patch, schema, strategy, validate};

const WRITER: Writer<'static> = Writer { manager: "kubectl", subresource: "", now: "2026-01-01T00:00:00Z" };

fn created(plural: &str, mut object: Value) -> Value {
    let resource = find("", "v1", plural).unwrap();
    assert_eq!(schema::unknown_fields(resource.gvk(), &object), Vec::<String>::new());
    assert_eq!(schema::type_errors(resource.gvk(), &object), Vec::<String>::new());
    schema::prune(resource.gvk(), &mut object);
    strategy::prepare_create(resource, &mut object);
    defaults::apply(resource.gvk(), &mut object);
    assert_eq!(validate::create(resource, &object), []);
    track_update(resource.gvk(), None, &mut object, WRITER);
    object
}

fn patched(plural: &str, old: &Value, change: Value) -> Value {
    let resource = find("", "v1", plural).unwrap();
    let mut new = patch::strategic(resource.gvk(), old, &change).unwrap();
    schema::prune(resource.gvk(), &mut new);
    defaults::apply(resource.gvk(), &mut new);
    strategy::prepare_update(resource, old, &mut new).unwrap();
    assert_eq!(validate::update(resource, old, &new), []);
    track_update(resource.gvk(), Some(old), &mut new, WRITER);
    new
}

fn manifest() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"}, "spec": {
        "containers": [{"name": "web", "image": "demo:1", "ports": [{"containerPort": 80}],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            "resources": {"limits": {"memory": "65536Ki", "cpu": 0.5}}}],
        "volumes": [{"name": "data"}]}})
}

#[test]
fn a_pod_is_created_and_an_equal_patch_changes_nothing() {
    let pod = created("pods", manifest());
    assert_eq!(pod["spec"]["containers"][0]["resources"]["requests"], json!({"memory": "64Mi", "cpu": "500m"}));
    assert_eq!(pod["status"]["qosClass"], "Guaranteed");
    assert_eq!(patched("pods", &pod, json!({})), pod);
    assert_eq!(patched("pods", &pod, json!({"spec": {"containers": [{"name": "web", "image": "demo:1"}]}})), pod);
}

#[test]
fn a_labelled_pod_keeps_its_generation_and_a_new_image_counts_up() {
    let pod = created("pods", manifest());
    let labelled = patched("pods", &pod, json!({"metadata": {"labels": {"a": "b"}}}));
    assert_eq!(labelled["metadata"]["generation"], 1);
    let image = patched("pods", &labelled, json!({"spec": {"containers": [{"name": "web", "image": "demo:2"}]}}));
    assert_eq!(image["metadata"]["generation"], 2);
    assert_eq!(image["spec"]["containers"][0]["volumeMounts"][0]["mountPath"], "/data");
}

#[test]
fn a_kubelets_status_patch_merges_conditions() {
    let resource = find("", "v1", "pods").unwrap();
    let mut pod = created("pods", manifest());
    pod["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "True"}]);
    let change = json!({"metadata": {"uid": null}, "status": {"$setElementOrder/conditions": [{"type": "Ready"}, {"type": "PodScheduled"}],
        "conditions": [{"type": "Ready", "status": "False"}], "phase": "Running"}});
    let mut new = patch::strategic(resource.gvk(), &pod, &change).unwrap();
    strategy::prepare_status_update(resource, &pod, &mut new).unwrap();
    let kinds: Vec<&str> =
        new["status"]["conditions"].as_array().unwrap().iter().filter_map(|c| c["type"].as_str()).collect();
    assert_eq!(kinds, ["Ready", "PodScheduled"]);
    assert_eq!((&new["status"]["phase"], &new["spec"]), (&json!("Running"), &pod["spec"]));
}

#[test]
fn server_side_apply_of_the_same_manifest_changes_nothing_the_second_time() {
    let resource = find("", "v1", "pods").unwrap();
    let mut wish = manifest();
    schema::prune(resource.gvk(), &mut wish);
    let mut pod = apply(resource.gvk(), None, &wish, WRITER, false).unwrap();
    strategy::prepare_create(resource, &mut pod);
    defaults::apply(resource.gvk(), &mut pod);
    let again =
        apply(resource.gvk(), Some(&pod), &wish, Writer { now: "2026-02-02T00:00:00Z", ..WRITER }, false).unwrap();
    assert_eq!(again, pod);
}
