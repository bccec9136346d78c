//! Seccomp: from the specification's profile to the kernel's classic BPF.
//!
//! The compiler is our own: a binary decision tree over system call numbers, so that the number of rules costs almost
//! nothing at run time, and every action, flag, operator and architecture of the specification.

mod compile;
mod profile;
mod table;

pub use compile::compile;
pub use profile::{ACTIONS, ALL_ARCHITECTURES, ARCHITECTURES, FLAGS, OPERATORS};
pub(crate) use profile::{action, flags};
