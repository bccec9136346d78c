//! Single Kubernetes ideas that several programs share.
//!
//! Pure values and parsers only: no client, no I/O beyond what a function's name says.

pub mod csr;
pub mod pki;
pub mod quantity;
pub mod selector;
