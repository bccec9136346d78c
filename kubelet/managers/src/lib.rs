//! Who gets which devices, CPUs and memory of the node.
//!
//! [`Managers`] is asked when a pod begins ([`Managers::admit`]), when a container starts ([`Managers::grant`]) and when a
//! pod is gone ([`Managers::release`]). What it decides is on disk before anybody hears of it. Decisions are pure:
//! `cpu`, `memory` and `devices::book` know what is whose, `hint` aligns them. Device plugins register at a socket of
//! their own; the pod resources API tells monitoring agents the result.

mod cpu;
mod cpuset;
mod devices;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod hint;
mod holdings;
mod machine;
mod manager;
mod memory;
mod pod_resources;
mod request;
mod socket;
mod state_file;

pub use cpu::Options as CpuOptions;
pub use cpuset::{CpuSet, ParseError};
pub use hint::{Hint, Hints, Nodes, Policy};
pub use machine::{Cpu, Machine, NodeMemory};
pub use manager::{Grant, Managers, PluginTask, Refusal, Settings};
pub use pod_resources::{Lister, PodInfo};
