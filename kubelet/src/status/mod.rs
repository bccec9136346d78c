//! What the API says of a pod: derived by a pure function, sent by the manager.

pub(crate) mod derive;
pub(crate) mod manager;
pub(crate) mod message;
