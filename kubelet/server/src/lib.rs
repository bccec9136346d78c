//! The kubelet's HTTPS server: logs, exec, attach, port-forward, pods, metrics.
//!
//! The server knows HTTP, TLS, who may do what, and the log format; everything about pods comes from [`Node`].

mod access;
pub mod cert;
mod dial;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod handler;
mod health;
mod local;
pub mod log;
mod log_query;
mod node;
mod proxy;
mod reply;
mod route;
mod server;
mod system_logs;
mod tls;
mod tls_policy;
mod user;

pub use error::NodeError;
pub use local::serve_local;
pub use node::{ContainerRef, ExecOptions, LogFile, Node, PodRef, StreamOptions};
pub use server::{Authorization, ServeError, Server, ServerConfig, serve_healthz};
pub use tls_policy::TlsPolicy;
