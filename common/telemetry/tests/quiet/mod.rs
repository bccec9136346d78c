//! Another source file than the one that is told to say more.

use tracing::Level;

/// Whether warnings, information and details of this file are logged.
pub(crate) fn says() -> [bool; 3] {
    [tracing::enabled!(Level::WARN), tracing::enabled!(Level::INFO), tracing::enabled!(Level::DEBUG)]
}
