//! Single Kubernetes ideas that several programs share.
//!
//! Pure values and parsers only: no client, no I/O beyond what a function's name says.

pub mod csr;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod pki;
pub mod quantity;
pub mod selector;
