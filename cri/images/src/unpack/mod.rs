//! From a compressed layer to a directory that overlayfs, or a copy of it, can use.

pub(crate) mod apply;
pub(crate) mod decode;
pub(crate) mod marks;
pub(crate) mod merge;
pub(crate) mod name;
pub(crate) mod sparse;
pub(crate) mod tarball;
pub(crate) mod tree;
