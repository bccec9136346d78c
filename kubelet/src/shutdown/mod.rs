//! Graceful shutdown of the node: when the machine is about to go down, pods end in the order of their priority, each with
//! its time, and their statuses arrive before the power goes.
//!
//! `plan` decides who ends when (pure), `logind` holds the shutdown up and hears of it, `manager` does it.

mod logind;
mod manager;
mod plan;

pub(crate) use manager::{Shutdown, run};
