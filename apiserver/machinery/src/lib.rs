//! API machinery as pure functions: resources, defaults, validation, patches, OpenAPI, tables.
//!
//! Nothing here does I/O or knows about stores, sockets or tokio: every function takes JSON values and gives JSON values,
//! so that each rule of the API is testable as a table. The server in `apiserver` strings them together.
//!
//! # What is where
//! - [`resource`]: the table of served resources: `Resource::all()`, `resource::find(group, version, plural)`,
//!   `resource::find_kind(group, version, kind)`; [`resource::Gvk`] names a kind.
//! - [`discovery`]: `aggregated_core()`, `aggregated_groups()`, `api_versions(host)`, `group_list()`, `group(name)`,
//!   `resource_list(group, version)`.
//! - [`status`]: [`status::Status`], the metav1 Status: `status::not_found(resource, name)`, ... with `code` and
//!   `to_value()`.
//! - [`schema`]: `unknown_fields(gvk, &value)`, `type_errors(gvk, &value)`, `prune(gvk, &mut value)`,
//!   `duplicate_fields(json_text)`.
//! - [`openapi`]: `v3_index()`, `v3_document("api/v1")`, `v2_json()`, `v2_protobuf()`; each a `&'static Document` with
//!   `bytes` and `etag`.
//! - [`defaults`]: `defaults::apply(gvk, &mut value)`.
//! - [`strategy`]: `prepare_create(resource, &mut value)`, `prepare_update(resource, old, &mut new)`,
//!   `prepare_status_update(resource, old, &mut new)`.
//! - [`validate`]: `create(resource, &value)`, `update(resource, old, new)` giving [`validate::FieldError`]s, which
//!   `status::invalid` takes.
//! - [`patch`]: `json`, `merge`, `strategic`, and [`patch::apply`] for server-side apply and managed fields.
//! - [`fieldselector`]: `FieldSelector::parse(resource, text)` and `matches(&value)`.
//! - [`table`]: `table::render(resource, items, now, include_object)`.

pub mod defaults;
pub mod discovery;
pub mod fieldselector;
pub mod openapi;
pub mod patch;
pub mod resource;
pub mod schema;
pub mod status;
pub mod strategy;
pub mod table;
pub mod validate;
