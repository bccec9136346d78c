//! Discovery documents, all derived from the resource table: plain (v1) and aggregated (apidiscovery.k8s.io v2).

use serde_json::{Value, json};

use crate::resource::{Resource, Subresource, api_version, groups};

/// Media type of the aggregated documents.
pub const AGGREGATED_V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Aggregated `/api`.
pub fn aggregated_core() -> Value {
    aggregated("apidiscovery.k8s.io/v2", |group| group.is_empty())
}

/// Aggregated `/apis`.
pub fn aggregated_groups() -> Value {
    aggregated("apidiscovery.k8s.io/v2", |group| !group.is_empty())
}

fn aggregated(list_version: &str, wanted: impl Fn(&str) -> bool) -> Value {
    let items: Vec<Value> = groups()
        .into_iter()
        .filter(|(group, _)| wanted(group))
        .map(|(group, versions)| {
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            let versions: Vec<Value> = versions.iter().map(|version| aggregated_version(group, version)).collect();
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": list_version, "metadata": {}, "items": items})
}

fn of_version<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Resource> + use<'a> {
    Resource::all().iter().filter(move |r| r.group == group && r.version == version)
}

fn response_kind(resource: &Resource, part: Option<&Subresource>) -> Value {
    match part {
        None => json!({"group": resource.group, "version": resource.version, "kind": resource.kind}),
        Some(part) if part.version.is_empty() => {
            json!({"group": resource.group, "version": resource.version, "kind": part.kind})
        }
        Some(part) => json!({"group": part.group, "version": part.version, "kind": part.kind}),
    }
}

fn aggregated_version(group: &str, version: &str) -> Value {
    let resources: Vec<Value> = of_version(group, version)
        .map(|resource| {
            let mut out = json!({
                "resource": resource.plural,
                "responseKind": response_kind(resource, None),
                "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
                "singularResource": resource.singular,
                "verbs": resource.verbs,
            });
            if !resource.short_names.is_empty() {
                out["shortNames"] = json!(resource.short_names);
            }
            if !resource.categories.is_empty() {
                out["categories"] = json!(resource.categories);
            }
            let parts: Vec<Value> = resource
                .subresources
                .iter()
                .map(|part| {
                    json!({"subresource": part.name, "responseKind": response_kind(resource, Some(part)),
                           "verbs": part.verbs})
                })
                .collect();
            if !parts.is_empty() {
                out["subresources"] = Value::Array(parts);
            }
            out
        })
        .collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

/// Plain `/api`; `host` is the address that clients reach the server at, as `host:port`.
pub fn api_versions(host: &str) -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"],
           "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": host}]})
}

fn group_body(group: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": api_version(group, version), "version": version}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions[0]})
}

/// Plain `/apis`.
pub fn group_list() -> Value {
    let list: Vec<Value> = groups()
        .iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| group_body(group, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
}

/// Plain `/apis/{group}`.
pub fn group(name: &str) -> Option<Value> {
    let (group, versions) = groups().into_iter().find(|(group, _)| *group == name && !group.is_empty())?;
    let mut out = json!({"kind": "APIGroup", "apiVersion": "v1"});
    if let (Some(out), Value::Object(body)) = (out.as_object_mut(), group_body(group, &versions)) {
        out.extend(body);
    }
    Some(out)
}

/// Plain `/api/v1` and `/apis/{group}/{version}`.
pub fn resource_list(group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for resource in of_version(group, version) {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": resource.verbs,
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        list.push(entry);
        for part in resource.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, part.name), "singularName": "",
                "namespaced": resource.namespaced,
            });
            if !part.version.is_empty() {
                entry["group"] = json!(part.group);
                entry["version"] = json!(part.version);
            }
            entry["kind"] = json!(part.kind);
            entry["verbs"] = json!(part.verbs);
            list.push(entry);
        }
    }
    if list.is_empty() {
        return None;
    }
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(group, version),
                "resources": list}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_agree_on_pods() {
        let core = aggregated_core();
        let resources = core["items"][0]["versions"][0]["resources"].as_array().unwrap();
        let pods = resources.iter().find(|r| r["resource"] == "pods").unwrap();
        assert_eq!(pods["scope"], "Namespaced");
        assert!(pods["subresources"].as_array().unwrap().iter().any(|p| p["responseKind"]["group"] == "policy"));
        let plain = resource_list("", "v1").unwrap();
        let names: Vec<&str> =
            plain["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
        assert!(names.contains(&"pods") && names.contains(&"pods/log"));
        assert_eq!(plain["groupVersion"], "v1");
    }

    #[test]
    fn groups_are_listed_and_unknown_ones_are_not_found() {
        let list = group_list();
        assert!(list["groups"].as_array().unwrap().iter().any(|g| g["name"] == "apps"));
        assert_eq!(group("apps").unwrap()["preferredVersion"]["groupVersion"], "apps/v1");
        assert!(group("").is_none() && group("nothing.example").is_none() && resource_list("apps", "v9").is_none());
    }
}
