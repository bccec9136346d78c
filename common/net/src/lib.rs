//! Synchronous netlink: links, addresses, routes, neighbours, nf_tables and conntrack.
//!
//! A request is built by a function of [`link`], [`ip`] or [`nft`] and sent by a [`Socket`]; several go in one system call.
//! A socket speaks to the network namespace in which its thread was when it was opened, and keeps to it.

pub mod conntrack;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod ip;
pub mod link;
pub mod message;
pub mod neighbour;
pub mod nft;
mod prefix;
pub mod qdisc;
pub mod socket;

pub use ip::Route;
pub use link::Link;
pub use neighbour::Neighbour;
pub use prefix::Prefix;
pub use socket::Socket;
