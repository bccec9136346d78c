//! Validation as a table: an object, and the texts that it must give.

use super::*;
use crate::defaults;
use crate::resource::find;
use serde_json::json;

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "a", "namespace": "default"}, "spec": spec})
}

fn texts(plural: &str, mut object: Value) -> Vec<String> {
    let resource = find("", "v1", plural).unwrap();
    defaults::apply(resource.gvk(), &mut object);
    create(resource, &object).iter().map(ToString::to_string).collect()
}

#[test]
fn a_good_pod_passes() {
    let good =
        pod(json!({"containers": [{"name": "c", "image": "b:1", "ports": [{"name": "http", "containerPort": 80}],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}], "livenessProbe": {"tcpSocket": {"port": "http"}},
        "env": [{"name": "A", "value": "b"}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}}}],
        "volumes": [{"name": "v"}], "tolerations": [{"operator": "Exists"}]}));
    assert_eq!(texts("pods", good), Vec::<String>::new());
}

#[test]
fn bad_pods_say_what_is_bad() {
    let cases = [
        (json!({}), "spec.containers: Required value"),
        (json!({"containers": [{"name": "c"}]}), "spec.containers[0].image: Required value"),
        (json!({"containers": [{"image": "i"}]}), "spec.containers[0].name: Required value"),
        (
            json!({"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]}),
            "spec.containers[1].name: Duplicate value: \"c\"",
        ),
        (
            json!({"containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}]}),
            "spec.containers[0].volumeMounts[0].name: Not found: \"x\"",
        ),
        (
            json!({"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Often"}),
            "spec.restartPolicy: Unsupported value: \"Often\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ),
        (
            json!({"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}]}),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            json!({"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 70000}]}]}),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"containers": [{"name": "c", "image": "i", "livenessProbe": {}}]}),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            json!({"containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "v", "configMap": {}}]}),
            "spec.volumes[0].configMap.name: Required value",
        ),
    ];
    for (spec, want) in cases {
        assert_eq!(texts("pods", pod(spec)), [want]);
    }
}

#[test]
fn names_labels_and_keys_are_checked() {
    let bad = texts(
        "pods",
        json!({"metadata": {"name": "A_b", "namespace": "default"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
    );
    assert!(
        bad[0].starts_with("metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain must consist of"),
        "{bad:?}"
    );
    let unnamed = texts("configmaps", json!({"metadata": {"namespace": "default"}}));
    assert_eq!(unnamed, ["metadata.name: Required value: name or generateName is required"]);
    let label = texts("configmaps", json!({"metadata": {"name": "a", "namespace": "d", "labels": {"a b": "c"}}}));
    assert!(label[0].starts_with("metadata.labels: Invalid value: \"a b\": name part must consist of"), "{label:?}");
    let key = texts("configmaps", json!({"metadata": {"name": "a", "namespace": "d"}, "data": {"a/b": ""}}));
    assert!(key[0].starts_with("data[a/b]: Invalid value"), "{key:?}");
    assert_eq!(texts("secrets", json!({"metadata": {"name": "a", "namespace": "d"}, "data": {"a": "!"}})).len(), 1);
    assert!(texts("configmaps", json!({"metadata": {"generateName": "a-", "namespace": "d"}})).is_empty());
}

#[test]
fn a_pods_spec_is_nearly_immutable() {
    let pods = find("", "v1", "pods").unwrap();
    let mut old = pod(json!({"containers": [{"name": "c", "image": "i:1"}]}));
    defaults::apply(pods.gvk(), &mut old);
    let mut image = old.clone();
    image["spec"]["containers"][0]["image"] = json!("i:2");
    assert_eq!(update(pods, &old, &image), []);
    let mut command = old.clone();
    command["spec"]["containers"][0]["command"] = json!(["x"]);
    let errors = update(pods, &old, &command);
    assert!(
        errors[0].to_string().starts_with("spec: Forbidden: pod updates may not change fields other than"),
        "{errors:?}"
    );
    assert!(errors[0].detail.contains("spec.containers[0].command"));
    let mut labelled = old.clone();
    labelled["metadata"]["labels"] = json!({"a": "b"});
    assert_eq!(update(pods, &old, &labelled), []);
}

#[test]
fn immutable_data_stays() {
    let maps = find("", "v1", "configmaps").unwrap();
    let old = json!({"metadata": {"name": "a", "namespace": "d"}, "immutable": true, "data": {"a": "b"}});
    let mut new = old.clone();
    new["data"]["a"] = json!("c");
    assert_eq!(update(maps, &old, &new)[0].to_string(), "data: Forbidden: field is immutable when `immutable` is set");
}

#[test]
fn workloads_check_their_template() {
    let resource = find("apps", "v1", "deployments").unwrap();
    let mut object = json!({"metadata": {"name": "d", "namespace": "n"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "c"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    defaults::apply(resource.gvk(), &mut object);
    let errors = create(resource, &object);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].to_string().contains("`selector` does not match template `labels`"));
}
