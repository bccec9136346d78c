//! Wire formats of the standards that Gantry's programs speak.
//!
//! Each module is generated from one .proto file in `proto/`; this crate knows nothing else.

/// The Container Runtime Interface, version 1, as of Kubernetes 1.36 (package `runtime.v1`).
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}
