//! The kubelet: pods from their sources to the Container Runtime Interface and back.
//!
//! `sources` say which pods shall be, `kubelet` gives each a worker (`sync`), `status` tells what became of them, `node`
//! tells how the machine is. Containers are known through CRI only.

mod certificates;
mod config;
mod cri;
mod events;
mod eviction;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod gc;
mod images;
mod kubelet;
mod logs;
mod metrics;
mod node;
mod objects;
mod pleg;
mod plugins;
mod pod;
mod probe;
mod resources;
mod run;
mod serve;
mod shared;
mod shutdown;
mod sources;
mod stats;
mod status;
mod sync;
mod throttle;
mod tls;
mod tools;
mod watched;

pub use run::{main, tool};
