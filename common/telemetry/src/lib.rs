//! What every daemon says about itself: logs, readiness to systemd, build information; and how it keeps its memory small.
//!
//! One log format for all programs, so that one journal query reads a pod's whole story. Knows nothing of the programs.

pub mod build;
pub mod log;
pub mod memory;
pub mod notify;
