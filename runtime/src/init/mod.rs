//! The container's first process, from both sides.
//!
//! `launch` is the runtime's side: it makes the cgroup, clones, places the child and hears how it goes. `child` is what
//! runs in the new process; `rootfs` and `identity` are its two large parts; `channel` is how both talk;
//! `mounts` makes what hangs in the root, and `bare` finds a place to hang it quickly; `devices` moves network devices in.

mod bare;
mod channel;
mod child;
mod devices;
mod exec;
mod identity;
mod launch;
mod mounts;
mod procfs;
mod rootfs;
mod terminal;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use channel::{Channel, Message};
pub(crate) use exec::{Exec, exec};
pub(crate) use launch::{Create, console, create, write_pid_file};
pub(crate) use terminal::hand_over;
