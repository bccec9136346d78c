//! From desired pods to running ones: one worker per pod, which asks one pure function what to do next.

pub(crate) mod actions;
pub(crate) mod admission;
pub(crate) mod backoff;
pub(crate) mod observe;
pub(crate) mod resize;
pub(crate) mod results;
pub(crate) mod start;
pub(crate) mod stop;
pub(crate) mod worker;
