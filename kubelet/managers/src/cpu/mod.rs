//! Whole CPUs for containers that ask for them: the static policy.
//!
//! `take` chooses CPUs, `book` knows whose they are: both pure.

pub(crate) mod book;
pub(crate) mod take;

pub use take::Options;
