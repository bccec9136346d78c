//! gantry-apiserver: the Kubernetes API over an embedded store.
//!
//! `store` keeps objects and their history; `server` speaks TLS and HTTP; `router` finds what a path means; `read`,
//! `write`, `delete` and `watch` are the verbs; `api-machinery` holds the rules of the objects themselves.

pub mod admission;
pub mod auth;
pub mod binder;
pub mod bootstrap_tokens;
pub mod certificates;
pub mod controllers;
pub mod delete;
pub mod event_ttl;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod health;
pub mod http_util;
mod jumps;
pub mod limits;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod pki;
pub mod pods;
pub mod protobuf;
pub mod read;
pub mod reviews;
pub mod router;
pub mod server;
pub mod store;
pub mod watch;
pub mod write;
