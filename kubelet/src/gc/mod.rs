//! Garbage: images that no container uses, and containers that have ended. Freed before pods have to go for it.

mod containers;
mod images;
mod plan;

pub(crate) use containers::remove_dead;
pub(crate) use images::{Images, run};
