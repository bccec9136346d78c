//! The kubelet's HTTPS server: logs, exec, attach, port-forward, pods, metrics.
//!
//! The server knows HTTP, TLS, who may do what, and the log format; everything about pods comes from [`Node`].

mod error;
pub mod log;
mod node;
mod server;

pub use error::NodeError;
pub use node::{ContainerRef, ExecOptions, LogFile, Node, PodRef, StreamOptions};
pub use server::{Authorization, ServeError, Server, ServerConfig, serve_healthz};
