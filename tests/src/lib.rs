//! The harness of the node tests: a whole node in namespaces of its own, driven through the public standards only.
//!
//! Nothing here knows a private function of the programs under test: kubectl, crictl, HTTP, signals and the kernel's own
//! files are all it uses, so that the same cases judge any peer.

pub mod command;
pub mod host;
pub mod images;
pub mod node;
pub mod registry;
pub mod runner;
