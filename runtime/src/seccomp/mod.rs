//! Seccomp: from the specification's profile to the kernel's classic BPF.
//!
//! The compiler is our own: a binary decision tree over system call numbers, so that the number of rules costs almost
//! nothing at run time, and every action, flag, operator and architecture of the specification.

mod cache;
mod compile;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod interpret;
mod machine;
mod profile;
mod table;

pub(crate) use cache::compiled;
pub use compile::{compile, compile_for};
pub use machine::{AARCH64, Abi, HERE, Machine, RISCV64, X86_64};
pub use profile::{ACTIONS, ALL_ARCHITECTURES, FLAGS, OPERATORS};
pub(crate) use profile::{action, flags};
