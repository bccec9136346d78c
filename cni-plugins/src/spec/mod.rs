//! The CNI specification: versions, requests, results and errors.

mod error;
mod request;
mod result;
mod version;

pub use error::{Code, Context, Error};
pub use request::{Command, Environment, NetConfig, Request};
pub use result::{CniResult, Dns, Interface, IpConfig, RouteConfig};
pub use version::{LATEST, SUPPORTED, Version};

/// A result or a CNI error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
