//! A thin client of the OCI distribution API: what a pull needs and nothing else.
//!
//! `hosts` decides where to ask (pure, but for reading files), `credentials` with what name, `challenge` and `token`
//! answer the registry's questions, `transport` connects, `client` puts a request through all of it, `answer` reads what comes
//! back, `tries` says when to ask again, `blob` downloads.

mod answer;
pub(crate) mod blob;
pub(crate) mod challenge;
pub(crate) mod client;
pub(crate) mod credentials;
pub(crate) mod helper;
pub(crate) mod hosts;
pub(crate) mod proxy;
mod token;
pub(crate) mod transport;
mod tries;
