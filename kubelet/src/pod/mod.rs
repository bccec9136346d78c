//! Reading a Pod: the accessors and defaults that a manifest without an apiserver's defaulting needs.

mod admit;
mod affinity;
mod dns;
mod ephemeral;
mod read;
mod requests;
mod spec;
mod sysctls;
mod uses;

pub(crate) use admit::*;
pub(crate) use dns::{NodeDns, NodeResolv, dns_warnings};
pub(crate) use ephemeral::*;
pub(crate) use read::*;
pub(crate) use requests::{Amounts, amounts, requests};
pub(crate) use spec::*;
pub(crate) use uses::{Changed, shows};
