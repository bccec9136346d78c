//! Control groups: version 1, version 2 and hybrid hosts behind one interface.
//!
//! [`Host::detect`] says what the host has; [`Host::cgroup`] names a group by its path, which is the same on every
//! layout. [`Systemd`] makes groups that are units of systemd, named by [`Unit`]. What a limit becomes (which file, which text)
//! is pure and in `plan`; `group`, `limits`, `processes` and `usage` do the system calls.

mod convert;
mod device;
mod entry;
mod error;
mod group;
mod host;
mod limits;
mod oom;
mod plan;
mod pressure;
mod processes;
mod resources;
mod stats;
mod systemd;
mod usage;

pub use convert::{shares_to_weight, weight_to_shares};
pub use device::{Access, DeviceKind, DeviceRule};
pub use entry::Entry;
pub use error::{Error, Result};
pub use group::Cgroup;
pub use host::{Host, Version};
pub use oom::OomWatch;
pub use pressure::{DeviceIo, Devices, Pressure, Waited};
pub use resources::{BlockIo, HugepageLimit, Resources, Throttle};
pub use stats::Stats;
pub use systemd::{Systemd, Unit};
