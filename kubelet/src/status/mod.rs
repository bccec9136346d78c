//! What the API says of a pod: derived by a pure function, sent by the manager.

mod conditions;
mod container;
pub(crate) mod derive;
pub(crate) mod manager;
pub(crate) mod message;
