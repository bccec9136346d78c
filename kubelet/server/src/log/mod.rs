//! Container logs in CRI format: found across rotated files, read from the end where few lines are asked for, followed
//! by inotify, never losing a line to a rotation.

mod files;
mod follow;
mod options;
mod record;
mod render;
mod session;
mod tail;

pub use follow::stream;
pub use options::{LogOptions, StreamFilter};
pub use record::{Record, Stream, parse};
