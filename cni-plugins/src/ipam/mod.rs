//! Addresses: handed out by a plugin of this program, or by another one from `CNI_PATH`.

pub mod delegate;
pub mod ranges;
pub mod store;
