//! The CNI plugins as one program that acts by the name it was called under.
//!
//! `spec` is the specification's side: requests, results, errors. `plugins` has one file per plugin, `ipam` hands out
//! addresses, `table` owns the nf_tables table that the plugins share. Everything is synchronous: a plugin lives for
//! milliseconds.

pub mod afterwards;
pub mod attach;
pub mod dispatch;
pub mod firewalld;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod install;
pub mod ipam;
pub mod netns;
pub mod plugins;
pub mod spec;
pub mod table;
