//! gantry-monitor: the parent of one pod's containers.
//!
//! One small process per pod runs the OCI runtime, owns the containers' standard streams and log files, reaps exit
//! codes and writes them to disk, and outlives gantry-cri. This crate is the program, its wire protocol and the client
//! that gantry-cri uses. It knows nothing of CRI, images or networks.

pub mod client;
pub mod daemon;
pub mod frame;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod log;
pub mod namespaces;
pub mod protocol;
pub mod record;
