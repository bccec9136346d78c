//! gantry-cri: the Container Runtime Interface daemon.
//!
//! `service` is a thin layer of rpcs; `sandbox` and `container` do the work; `ledger` keeps what was decided on disk
//! before it is done; `monitors` talks to the small process that holds each pod's containers.

pub mod admin;
pub mod cgroups;
pub mod client;
pub mod cni;
pub mod config;
pub mod container;
pub mod daemon;
pub mod error;
pub mod events;
pub mod fsck;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod handlers;
pub mod hangup;
pub mod kept;
pub mod ledger;
pub mod metrics;
pub mod monitors;
pub mod nri;
pub mod oci;
pub mod prometheus;
pub mod pulls;
pub mod reaper;
pub mod reconcile;
pub mod sandbox;
pub mod service;
pub mod stats;
pub mod streams;
