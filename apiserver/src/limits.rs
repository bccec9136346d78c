//! How many requests are at work at once: what is beyond is told to come back, so that a storm of clients slows itself
//! down instead of the server.

use api_machinery::status::{self, Status};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Places for requests that read and for those that write. Watches and streams take none.
#[derive(Debug)]
pub struct Limits {
    read: Semaphore,
    write: Semaphore,
}

impl Limits {
    /// Upstream's flags `--max-requests-inflight` and `--max-mutating-requests-inflight`; 0 is no limit.
    pub fn new(read: usize, write: usize) -> Self {
        let places = |n: usize| Semaphore::new(if n == 0 { Semaphore::MAX_PERMITS } else { n });
        Self { read: places(read), write: places(write) }
    }

    /// A place for one request, held until it is dropped. Administrators are never turned away.
    ///
    /// # Errors
    /// 429: all places are taken.
    pub fn enter(&self, writes: bool, administrator: bool) -> Result<Option<SemaphorePermit<'_>>, Status> {
        let places = if writes { &self.write } else { &self.read };
        match places.try_acquire() {
            Ok(place) => Ok(Some(place)),
            Err(_) if administrator => Ok(None),
            Err(_) => Err(status::too_many_requests("Too many requests, please try again later.")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_comes_back_later() {
        let limits = Limits::new(2, 1);
        let first = limits.enter(true, false).unwrap();
        let refused = limits.enter(true, false).unwrap_err();
        assert_eq!((refused.code, refused.details.unwrap()["retryAfterSeconds"].as_u64()), (429, Some(1)));
        assert!(limits.enter(true, true).unwrap().is_none(), "administrators get in");
        assert!(limits.enter(false, false).unwrap().is_some(), "who reads has places of his own");
        drop(first);
        assert!(limits.enter(true, false).unwrap().is_some());
        let free = Limits::new(0, 0);
        let many: Vec<_> = (0..1000).map(|_| free.enter(true, false).unwrap()).collect();
        assert!(many.iter().all(Option::is_some));
    }
}
