//! API machinery as pure functions: resources, defaults, validation, patches, OpenAPI, tables.
//!
//! Nothing here does I/O or knows about stores, sockets or tokio: every function takes JSON values and gives JSON values,
//! so that each rule of the API is testable as a table. The server in `apiserver` strings them together.
//!
//! # A write, step by step
//! 1. Read the body as JSON; `schema::duplicate_fields(bytes)` and `schema::unknown_fields(gvk, &value)` give the texts
//!    for `fieldValidation` (Strict: 400 `strict decoding error: a, b`; Warn: one `Warning` header each).
//! 2. `parts::check_kind`, `schema::type_errors` (400), then `schema::prune` and `convert::to_storage`.
//! 3. Create: `strategy::prepare_create`, `defaults::apply`, `validate::create`. Namespaces need their name before defaults.
//!    Update and patches: apply the patch to the stored object (`patch::json`, `merge`, `strategic`, `apply::apply`), then
//!    `schema::prune`, `defaults::apply`, `strategy::prepare_update`, `validate::update`. Status:
//!    `strategy::prepare_status_update`, `validate::update_status`. Other subresources: [`parts`].
//! 4. `patch::apply::track_update` on the final object, except after server-side apply, which tracks itself.
//! 5. Answer with `convert::from_storage`, as a table ([`table::render`]) or [`parts::partial`] where `Accept` asks so.
//!
//! # What is where
//! - [`resource`]: the table of served resources: `Resource::all()`, `resource::find(group, version, plural)`,
//!   `resource::find_kind(group, version, kind)`; [`resource::Gvk`] names a kind.
//! - [`discovery`]: `aggregated_core()`, `aggregated_groups()`, `api_versions(host)`, `group_list()`, `group(name)`,
//!   `resource_list(group, version)`.
//! - [`status`]: [`status::Status`], the metav1 Status: `status::not_found(resource, name)`, ... with `code` and
//!   `to_value()`.
//! - [`schema`]: strict decoding, type errors, pruning, and the typed view that patches use.
//! - [`openapi`]: `v3_index()`, `v3_document("api/v1")`, `v2(accept)`; each a `&'static Document` with `gzip`, `bytes()`
//!   and `etag`.
//! - [`defaults`], [`strategy`], [`validate`], [`parts`], [`convert`]: the steps above.
//! - [`patch`]: `json`, `merge`, `strategic`, and [`patch::apply`] for server-side apply and managed fields.
//! - [`fieldselector`]: `FieldSelector::parse(resource, text)` and `matches(&value)`.
//! - [`table`]: `table::render(resource, items, now, include_object)`.

pub mod convert;
pub mod csr;
pub mod defaults;
pub mod discovery;
pub mod fieldselector;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod openapi;
pub mod parts;
pub mod patch;
pub mod resource;
pub mod schema;
pub mod status;
pub mod strategy;
pub mod table;
pub mod validate;

#[cfg(test)]
mod flow_tests;
