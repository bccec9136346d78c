//! A thin client of the OCI distribution API: what a pull needs and nothing else.
//!
//! `hosts` decides where to ask (pure, but for reading files), `credentials` with what name, `challenge` and `token`
//! answer the registry's questions, `transport` connects, `client` puts a request through all of it, `blob` downloads.

pub(crate) mod blob;
pub(crate) mod challenge;
pub(crate) mod client;
pub(crate) mod credentials;
pub(crate) mod helper;
pub(crate) mod hosts;
pub(crate) mod proxy;
pub(crate) mod transport;
