//! Reading a Pod: the accessors and defaults that a manifest without an apiserver's defaulting needs.

mod dns;
mod ephemeral;
mod read;
mod spec;

pub(crate) use dns::{NodeDns, parse_resolv_conf};
pub(crate) use ephemeral::*;
pub(crate) use read::*;
pub(crate) use spec::*;
