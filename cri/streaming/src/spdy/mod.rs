//! SPDY/3.1, the server's side, as far as Kubernetes clients use it: streams opened by the client, data both ways.

mod connection;
mod dictionary;
mod frame;

pub(crate) use connection::{Connection, Stream, Writer};

#[cfg(test)]
pub(crate) use frame::ping;
#[cfg(test)]
pub(crate) use frame::tests::syn_streams;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use frame::{HeaderBlocks, control, data};
