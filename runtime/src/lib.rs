//! gantry-run: an OCI runtime with runc's command line.
//!
//! `cli` has one file a verb; `spec` is the configuration as data; `plan` decides (pure) what the container's parts become;
//! `init` is the child's side and carries plans out; `criu` writes processes to files and makes them again; `state` is what stays on disk between two commands.
//!
//! The program is synchronous and single-threaded: the container's first process is a copy of it made by one clone3.

mod cgroups;
pub mod cli;
mod criu;
mod error;
#[cfg(test)]
mod fuzz;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod hooks;
mod init;
mod plan;
mod protect;
mod rdt;
pub mod seccomp;
pub mod spec;
mod state;

pub use error::{Context, Error, Result};
