//! Devices that programs beside the kubelet offer: GPUs, network functions, whatever a plugin registers.
//!
//! `book` knows devices and who holds them (pure), `checkpoint` keeps that on disk, `plugin` talks to one plugin,
//! `server` is where plugins register.

pub(crate) mod book;
pub(crate) mod checkpoint;
pub(crate) mod plugin;
pub(crate) mod server;
