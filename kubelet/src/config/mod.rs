//! What the kubelet is told: the configuration file and the flags.

mod file;
mod flags;

pub(crate) use file::{KubeletConfiguration, yaml};
pub(crate) use flags::Flags;
