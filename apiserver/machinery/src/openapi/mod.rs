//! OpenAPI documents: v3 as an index and one document per group version, v2 as JSON and as the protobuf that old kubectl
//! asks for.
//!
//! Each is built when it is first asked for and then kept compressed, which is also how most clients want it.

mod gnostic;
mod model;
mod paths;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Write};
use std::sync::OnceLock;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::resource::{Resource, api_version, groups};

/// The version of the API that the documents tell; also what `/version` should tell.
pub const KUBERNETES_VERSION: &str = "v1.36.0";
/// Content type of v2 as protobuf. Clients ask for it with `@` in place of the dot before `v1.0`, which no parser of media
/// types takes back.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// One document, kept compressed.
#[derive(Debug)]
pub struct Document {
    /// The gzip form.
    pub gzip: Bytes,
    /// Entity tag with its quotes.
    pub etag: String,
}

impl Document {
    fn new(plain: &[u8]) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        // Writing to a vector cannot fail.
        let _ = encoder.write_all(plain);
        let gzip = encoder.finish().unwrap_or_default().into();
        let mut hasher = DefaultHasher::new();
        hasher.write(plain);
        let first = hasher.finish();
        hasher.write_u8(1);
        Self { gzip, etag: format!("\"{first:016X}{:016X}\"", hasher.finish()) }
    }

    /// The plain form, decompressed for this call.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // What this type compressed it can decompress.
        let _ = flate2::read::GzDecoder::new(&self.gzip[..]).read_to_end(&mut out);
        out
    }

    /// The entity tag without quotes, as the index's `hash` parameter carries it.
    pub fn hash(&self) -> &str {
        self.etag.trim_matches('"')
    }
}

fn encode(value: &Value) -> Document {
    Document::new(value.to_string().as_bytes())
}

/// `api/v1` or `apis/apps/v1`.
fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn v3() -> &'static BTreeMap<String, Document> {
    static DOCUMENTS: OnceLock<BTreeMap<String, Document>> = OnceLock::new();
    DOCUMENTS.get_or_init(|| {
        let model = model::Model::build();
        let mut out = BTreeMap::new();
        for (group, versions) in groups() {
            for version in versions {
                out.insert(path_of(group, version), encode(&v3_value(&model, group, version)));
            }
        }
        out
    })
}

fn v3_value(model: &model::Model, group: &str, version: &str) -> Value {
    let resources = Resource::all().iter().filter(|r| r.group == group && r.version == version);
    let (paths, roots) = paths::build(resources, paths::Dialect::V3);
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": KUBERNETES_VERSION},
        "paths": paths,
        "components": {"schemas": model.reachable(&roots)},
    })
}

/// `/openapi/v3`.
pub fn v3_index() -> &'static Document {
    static INDEX: OnceLock<Document> = OnceLock::new();
    INDEX.get_or_init(|| {
        let paths: serde_json::Map<String, Value> = v3()
            .iter()
            .map(|(path, document)| {
                let url = format!("/openapi/v3/{path}?hash={}", document.hash());
                (path.clone(), json!({"serverRelativeURL": url}))
            })
            .collect();
        encode(&json!({"paths": paths}))
    })
}

/// `/openapi/v3/{path}`, such as `api/v1` or `apis/apps/v1`.
pub fn v3_document(path: &str) -> Option<&'static Document> {
    v3().get(path)
}

fn v2_value() -> Value {
    let model = model::Model::build();
    let (paths, _) = paths::build(Resource::all().iter(), paths::Dialect::V2);
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": KUBERNETES_VERSION},
        "paths": paths,
        "definitions": model.into_v2(),
    })
}

/// `/openapi/v2` as JSON.
pub fn v2_json() -> &'static Document {
    static DOCUMENT: OnceLock<Document> = OnceLock::new();
    DOCUMENT.get_or_init(|| encode(&v2_value()))
}

/// `/openapi/v2` as protobuf.
pub fn v2_protobuf() -> &'static Document {
    static DOCUMENT: OnceLock<Document> = OnceLock::new();
    DOCUMENT.get_or_init(|| Document::new(&gnostic::encode(&v2_value())))
}

/// The document for `/openapi/v2` that an `Accept` header asks for, with its content type.
pub fn v2(accept: &str) -> (&'static Document, &'static str) {
    let lower = accept.to_ascii_lowercase();
    let protobuf = lower.find("protobuf");
    let json = lower.find("application/json");
    match (protobuf, json) {
        (Some(protobuf), json) if json.is_none_or(|json| protobuf < json) => (v2_protobuf(), V2_PROTOBUF),
        _ => (v2_json(), "application/json"),
    }
}

/// The schema name of a list of a resource.
fn list_name(resource: &Resource) -> String {
    format!("{}List", crate::schema::definition_name(resource.gvk()))
}

/// Every group version, for kinds such as DeleteOptions that belong to all.
fn all_group_versions() -> Vec<(&'static str, &'static str)> {
    groups()
        .into_iter()
        .flat_map(|(group, versions)| versions.into_iter().map(move |version| (group, version)))
        .collect()
}

fn gvk_value(group: &str, version: &str, kind: &str) -> Value {
    debug_assert!(!api_version(group, version).is_empty());
    json!({"group": group, "kind": kind, "version": version})
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
