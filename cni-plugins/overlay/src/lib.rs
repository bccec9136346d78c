//! gantry-overlay: pods of all nodes reach each other.
//!
//! `plan` decides from the cluster's nodes what this node's kernel must have; `kernel` and `masquerade` look and change;
//! `agent` does that whenever something changed. Annotations and wire format are flannel's, so that nodes of both can be in
//! one cluster.

pub mod agent;
pub mod api;
pub mod config;
pub mod kernel;
pub mod masquerade;
pub mod node;
pub mod peers;
pub mod plan;
pub mod probe;
pub mod run;
pub mod subnet;
