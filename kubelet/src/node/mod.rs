//! The node's own object: registration, conditions, and the Lease that says it is alive.

pub(crate) mod facts;
pub(crate) mod labels;
mod lease;
pub(crate) mod limits;
mod register;

pub(crate) use lease::keep as keep_lease;
pub(crate) use register::keep as keep_status;
