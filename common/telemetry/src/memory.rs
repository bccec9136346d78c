//! Gives memory back after work: starting a pod or pulling an image allocates far more than what a daemon keeps of it.

use std::sync::Weak;
use std::time::Duration;

pub use gantry_sys::memory::one_arena;
use tokio::sync::Notify;

/// No work for so long means that memory is not needed again at once.
const QUIET: Duration = Duration::from_secs(3);

/// Follows a daemon's work, each piece of which notifies `worked`, for as long as that lives: whenever it has been quiet for
/// 3 s, and first after the start, what was freed goes back to the kernel, and the code that only the work needed is unmapped.
pub async fn give_back_when_quiet(worked: Weak<Notify>) {
    while let Some(worked) = worked.upgrade() {
        while tokio::time::timeout(QUIET, worked.notified()).await.is_ok() {}
        let _ = tokio::task::spawn_blocking(|| {
            gantry_sys::memory::give_back();
            gantry_sys::memory::give_back_code();
        })
        .await;
        worked.notified().await;
    }
}
