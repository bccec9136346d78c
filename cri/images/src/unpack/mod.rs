//! From a compressed layer to a directory that overlayfs can use.

pub(crate) mod apply;
pub(crate) mod decode;
pub(crate) mod name;
pub(crate) mod sparse;
pub(crate) mod tarball;
pub(crate) mod tree;
