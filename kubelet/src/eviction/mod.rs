//! Eviction: when the node runs out of memory, disk or process ids it frees what nobody uses, and then ends pods, those
//! that take more than they asked for first.
//!
//! `threshold` reads the configuration, `state` decides what is under pressure, `rank` who goes first, `message` what is
//! said about it, `limits` which pods exceed their own limits of disk, `preempt` who makes room for a critical pod: all pure. `measure` and `manager` do the rest.

mod admit;
mod kills;
mod limits;
mod manager;
mod measure;
mod message;
mod notify;
pub(crate) mod preempt;
mod pressure;
mod rank;
mod signal;
mod state;
mod threshold;

pub(crate) use admit::{admit, is_critical};
pub(crate) use kills::{Kill, Kills};
pub(crate) use manager::run;
pub(crate) use measure::FileSystems;
pub(crate) use pressure::Pressure;
pub(crate) use signal::Condition;
