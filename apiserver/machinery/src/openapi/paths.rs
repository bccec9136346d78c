//! The paths of OpenAPI documents: which operations a resource has, and which query parameters they take. kubectl looks
//! here for the kind behind a path and for the support of `dryRun` and `fieldValidation`.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{gvk_value, list_name};
use crate::resource::{Gvk, Resource, Subresource};
use crate::schema::definition_name;

/// Which version of OpenAPI is written.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Dialect {
    V2,
    V3,
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const BODIES: &[&str] = &["application/json", "application/yaml"];
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = ("pretty", "string", "If 'true', then the output is pretty printed.");
const DRY_RUN: Parameter =
    ("dryRun", "string", "When present, indicates that modifications should not be persisted. Valid values are: All.");
const MANAGER: Parameter = ("fieldManager", "string", "The name of the actor or entity that is making these changes.");
const VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "How to handle objects with unknown or duplicate fields. Valid values are: Ignore, Warn, Strict.",
);
const FORCE: Parameter = ("force", "boolean", "Whether to take fields that other managers own. Apply patches only.");
const LIST: &[Parameter] = &[
    ("allowWatchBookmarks", "boolean", "Whether watch events of type BOOKMARK are asked for."),
    ("continue", "string", "Where to go on with a list that was cut by a limit."),
    ("fieldSelector", "string", "A selector to restrict the list of returned objects by their fields."),
    ("labelSelector", "string", "A selector to restrict the list of returned objects by their labels."),
    ("limit", "integer", "The greatest number of objects to return."),
    ("resourceVersion", "string", "The version from which, or not before which, the answer is to be."),
    ("resourceVersionMatch", "string", "How resourceVersion is applied to lists."),
    ("sendInitialEvents", "boolean", "Whether a watch begins with all objects."),
    ("timeoutSeconds", "integer", "How long a list or watch may take."),
    ("watch", "boolean", "Watch for changes instead of listing."),
];
const DELETE: &[Parameter] = &[
    DRY_RUN,
    ("gracePeriodSeconds", "integer", "How long to wait before the object is deleted."),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    ("propagationPolicy", "string", "Whether and how dependents are deleted: Orphan, Background or Foreground."),
];
const WRITE: &[Parameter] = &[DRY_RUN, MANAGER, VALIDATION];
const PATCH: &[Parameter] = &[DRY_RUN, MANAGER, VALIDATION, FORCE];

struct Builder {
    dialect: Dialect,
    roots: BTreeSet<String>,
}

/// What one operation is.
struct Operation<'a> {
    action: &'a str,
    id: String,
    description: String,
    gvk: Gvk<'a>,
    parameters: &'a [Parameter],
    body: Option<(String, &'a [&'a str])>,
    answer: Option<String>,
    success: &'a str,
}

/// The paths of some resources, and the schemas that they mention.
pub(super) fn build<'a>(
    resources: impl Iterator<Item = &'a Resource>,
    dialect: Dialect,
) -> (Map<String, Value>, BTreeSet<String>) {
    let mut builder = Builder { dialect, roots: BTreeSet::new() };
    let mut out = Map::new();
    for resource in resources {
        builder.resource(resource, &mut out);
    }
    (out, builder.roots)
}

impl Builder {
    fn reference(&mut self, name: &str) -> Value {
        let prefix = match self.dialect {
            Dialect::V2 => "#/definitions/",
            Dialect::V3 => "#/components/schemas/",
        };
        self.roots.insert(name.to_owned());
        json!({"$ref": format!("{prefix}{name}")})
    }

    fn parameter(&self, (name, kind, description): Parameter) -> Value {
        match self.dialect {
            Dialect::V2 => {
                json!({"name": name, "in": "query", "description": description, "type": kind, "uniqueItems": true})
            }
            Dialect::V3 => json!({"name": name, "in": "query", "description": description,
                                  "schema": {"type": kind, "uniqueItems": true}}),
        }
    }

    fn path_parameter(&self, name: &str, description: &str) -> Value {
        match self.dialect {
            Dialect::V2 => {
                json!({"name": name, "in": "path", "description": description, "type": "string", "required": true,
                                  "uniqueItems": true})
            }
            Dialect::V3 => json!({"name": name, "in": "path", "description": description, "required": true,
                                  "schema": {"type": "string", "uniqueItems": true}}),
        }
    }

    fn operation(&mut self, operation: Operation<'_>) -> Value {
        let gvk = operation.gvk;
        let mut parameters: Vec<Value> = operation.parameters.iter().map(|p| self.parameter(*p)).collect();
        let group = if gvk.group.is_empty() { "core" } else { gvk.group.split('.').next().unwrap_or_default() };
        let mut out = json!({
            "description": operation.description,
            "operationId": operation.id,
            "tags": [format!("{group}_{}", gvk.version)],
        });
        if let Some((schema, types)) = operation.body {
            let reference = self.reference(&schema);
            match self.dialect {
                Dialect::V2 => {
                    out["consumes"] = json!(types);
                    parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": reference}));
                }
                Dialect::V3 => {
                    let content: Map<String, Value> =
                        types.iter().map(|media| ((*media).to_owned(), json!({"schema": reference}))).collect();
                    out["requestBody"] = json!({"required": true, "content": content});
                }
            }
        }
        let mut answer = json!({"description": "OK"});
        if let Some(schema) = operation.answer {
            let reference = self.reference(&schema);
            match self.dialect {
                Dialect::V2 => answer["schema"] = reference,
                Dialect::V3 => answer["content"] = json!({"application/json": {"schema": reference}}),
            }
        }
        if self.dialect == Dialect::V2 {
            out["produces"] = json!(["application/json"]);
        }
        out["parameters"] = Value::Array(parameters);
        out["responses"] = json!({operation.success: answer, "401": {"description": "Unauthorized"}});
        out["x-kubernetes-action"] = json!(operation.action);
        out["x-kubernetes-group-version-kind"] = gvk_value(gvk.group, gvk.version, gvk.kind);
        out
    }

    fn resource(&mut self, resource: &Resource, out: &mut Map<String, Value>) {
        let base = format!("/{}", super::path_of(resource.group, resource.version));
        let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{base}{scope}/{}", resource.plural);
        let namespace = resource
            .namespaced
            .then(|| self.path_parameter("namespace", "object name and auth scope, such as for teams and projects"));
        let shared =
            |extra: Option<Value>| -> Value { namespace.iter().cloned().chain(extra).collect::<Vec<Value>>().into() };

        let mut item = json!({});
        for (method, verb) in [("get", "list"), ("post", "create"), ("delete", "deletecollection")] {
            if resource.allows(verb) {
                item[method] = self.collection_operation(resource, verb);
            }
        }
        let mut parameters = shared(None);
        push(&mut parameters, self.parameter(PRETTY));
        item["parameters"] = parameters;
        out.insert(collection.clone(), item);
        if resource.namespaced && resource.allows("list") {
            let mut list = self.collection_operation(resource, "list");
            list["operationId"] = json!(format!("list{}{}ForAllNamespaces", id_prefix(resource), resource.kind));
            out.insert(format!("{base}/{}", resource.plural), json!({"get": list}));
        }
        if !resource.allows("get") {
            return;
        }
        let own = definition_name(resource.gvk());
        let name = self.path_parameter("name", &format!("name of the {}", resource.kind));
        let mut item = json!({});
        for (method, verb) in [("get", "get"), ("put", "update"), ("patch", "patch"), ("delete", "delete")] {
            if resource.allows(verb) {
                item[method] = self.item_operation(resource, resource.gvk(), &own, verb, "");
            }
        }
        let mut parameters = shared(Some(name.clone()));
        push(&mut parameters, self.parameter(PRETTY));
        item["parameters"] = parameters;
        out.insert(format!("{collection}/{{name}}"), item);
        for part in resource.subresources {
            let item = self.subresource(resource, part, shared(Some(name.clone())));
            out.insert(format!("{collection}/{{name}}/{}", part.name), item);
        }
    }

    fn collection_operation(&mut self, resource: &Resource, verb: &str) -> Value {
        let gvk = resource.gvk();
        let own = definition_name(gvk);
        let id = format!("{verb}{}{}{}", id_prefix(resource), namespaced(resource), resource.kind);
        let kind = resource.kind;
        let operation = match verb {
            "list" => Operation {
                action: "list",
                id,
                description: format!("list or watch objects of kind {kind}"),
                gvk,
                parameters: LIST,
                body: None,
                answer: Some(list_name(resource)),
                success: "200",
            },
            "create" => Operation {
                action: "post",
                id,
                description: format!("create a {kind}"),
                gvk,
                parameters: WRITE,
                body: Some((own.clone(), BODIES)),
                answer: Some(own),
                success: "201",
            },
            _ => Operation {
                action: "deletecollection",
                id,
                description: format!("delete collection of {kind}"),
                gvk,
                parameters: LIST,
                body: None,
                answer: Some(format!("{META}Status")),
                success: "200",
            },
        };
        self.operation(operation)
    }

    fn item_operation(&mut self, resource: &Resource, gvk: Gvk<'_>, schema: &str, verb: &str, part: &str) -> Value {
        let id = format!("{verb}{}{}{}{part}", id_prefix(resource), namespaced(resource), resource.kind);
        let what = if part.is_empty() {
            resource.kind.to_owned()
        } else {
            format!("{part} of the specified {}", resource.kind)
        };
        let own = schema.to_owned();
        let (action, verb_text, parameters, body, answer): (_, _, &[Parameter], Option<(String, &[&str])>, _) =
            match verb {
                "get" => ("get", "read", &[], None, own),
                "update" => ("put", "replace", WRITE, Some((own.clone(), BODIES)), own),
                "patch" => ("patch", "partially update", PATCH, Some((format!("{META}Patch"), PATCHES)), own),
                "create" => ("post", "create", WRITE, Some((own.clone(), BODIES)), own),
                _ => (
                    "delete",
                    "delete",
                    DELETE,
                    Some((format!("{META}DeleteOptions"), BODIES)),
                    format!("{META}Status"),
                ),
            };
        let description = format!("{verb_text} the {what}");
        self.operation(Operation {
            action,
            id,
            description,
            gvk,
            parameters,
            body,
            answer: Some(answer),
            success: "200",
        })
    }

    fn subresource(&mut self, resource: &Resource, part: &Subresource, parameters: Value) -> Value {
        let (group, version) =
            if part.version.is_empty() { (resource.group, resource.version) } else { (part.group, part.version) };
        let gvk = Gvk::new(group, version, part.kind);
        let connect = part.kind.ends_with("Options") || part.name == "log";
        let schema = definition_name(gvk);
        let mut item = json!({});
        for verb in part.verbs {
            let method = match *verb {
                "create" => "post",
                "update" => "put",
                other => other,
            };
            item[method] = if connect {
                let id = format!("connect{}{}{}{}", method, id_prefix(resource), resource.kind, part.name);
                let description =
                    format!("connect {} requests to {} of {}", method.to_uppercase(), part.name, resource.kind);
                self.operation(Operation {
                    action: "connect",
                    id,
                    description,
                    gvk,
                    parameters: &[],
                    body: None,
                    answer: None,
                    success: "200",
                })
            } else {
                self.item_operation(resource, gvk, &schema, verb, part.name)
            };
        }
        item["parameters"] = parameters;
        item
    }
}

fn push(list: &mut Value, item: Value) {
    if let Value::Array(list) = list {
        list.push(item);
    }
}

fn namespaced(resource: &Resource) -> &'static str {
    if resource.namespaced { "Namespaced" } else { "" }
}

/// `CoreV1`, `AppsV1`.
fn id_prefix(resource: &Resource) -> String {
    let group = if resource.group.is_empty() { "core" } else { resource.group.split('.').next().unwrap_or_default() };
    [group, resource.version].iter().map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}
