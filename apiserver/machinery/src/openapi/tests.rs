//! What kubectl looks for in the documents.

use super::*;

fn parsed(document: &Document) -> Value {
    serde_json::from_slice(&document.bytes()).unwrap()
}

fn all_references(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(key, inner)| match inner {
            Value::String(text) if key == "$ref" => out.push(text.clone()),
            other => all_references(other, out),
        }),
        Value::Array(list) => list.iter().for_each(|inner| all_references(inner, out)),
        _ => {}
    }
}

#[test]
fn every_v3_document_is_closed_and_indexed() {
    let index = parsed(v3_index());
    for (group, versions) in groups() {
        for version in versions {
            let path = path_of(group, version);
            let url = index["paths"][&path]["serverRelativeURL"].as_str().unwrap();
            assert!(url.starts_with(&format!("/openapi/v3/{path}?hash=")));
            let document = parsed(v3_document(&path).unwrap());
            let mut references = Vec::new();
            all_references(&document, &mut references);
            for reference in references {
                let name = reference.strip_prefix("#/components/schemas/").unwrap();
                assert!(document["components"]["schemas"].get(name).is_some(), "{path}: {name}");
            }
        }
    }
    assert!(v3_document("apis/nothing/v1").is_none());
}

#[test]
fn pods_have_kinds_merge_keys_and_parameters() {
    let core = parsed(v3_document("api/v1").unwrap());
    let schemas = &core["components"]["schemas"];
    let pod = &schemas["io.k8s.api.core.v1.Pod"];
    assert_eq!(pod["x-kubernetes-group-version-kind"], json!([{"group": "", "kind": "Pod", "version": "v1"}]));
    assert!(pod.get("required").is_none());
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-type"], "map");
    let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
    let names: Vec<&str> = patch["parameters"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
    assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun") && names.contains(&"fieldManager"));
    let mut leftovers = Vec::new();
    find_key(&core, "nullable", &mut leftovers);
    assert_eq!(leftovers, Vec::<String>::new());
}

fn find_key(value: &Value, wanted: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (key, inner) in object {
                if key == wanted && !inner.is_object() {
                    out.push(key.clone());
                }
                find_key(inner, wanted, out);
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| find_key(inner, wanted, out)),
        _ => {}
    }
}

#[test]
fn v2_is_closed_and_its_protobuf_names_the_same_definitions() {
    let v2_document = parsed(v2_json());
    let mut references = Vec::new();
    all_references(&v2_document, &mut references);
    for reference in references {
        let name = reference.strip_prefix("#/definitions/").unwrap();
        assert!(v2_document["definitions"].get(name).is_some(), "{name}");
    }
    let bytes = v2_protobuf().bytes();
    let decoded = gnostic::names(&bytes);
    assert_eq!(decoded.len(), v2_document["definitions"].as_object().unwrap().len());
    assert!(decoded.contains(&"io.k8s.api.core.v1.Pod".to_owned()));
    assert_eq!(v2("application/json").1, "application/json");
    assert_eq!(v2("application/com.github.proto-openapi.spec.v2@v1.0+protobuf").1, V2_PROTOBUF);
}
