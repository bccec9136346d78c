//! A small synchronous D-Bus client, for systemd's manager, logind and firewalld.
//!
//! [`Connection`] opens a socket, calls methods and hears signals; [`Encoder`], [`Call`] and [`Message`] are the wire
//! format, as much of it as these need.

mod connection;
mod error;
mod wire;

pub use connection::Connection;
pub use error::{Error, Result};
pub use wire::{Call, Encoder, Field, Kind, Message, Property, Value};
