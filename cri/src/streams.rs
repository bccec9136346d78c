//! Where exec, attach and port-forward sessions are served.

/// Makes URLs for one-time sessions.
#[derive(Debug, Default)]
pub struct Urls;
