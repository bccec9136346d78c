//! The rpcs, as thin as can be: decode, call, encode.

mod image;
mod runtime;

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tonic::{Response, Status};

use crate::daemon::{Daemon, lock};

/// Both CRI services over one daemon.
#[derive(Clone)]
pub struct Service {
    daemon: Arc<Daemon>,
}

impl Service {
    /// Serves this daemon.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }

    /// Runs work to its end even when the caller gives up: a retry finds what it made.
    async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = crate::error::Result<T>> + Send + 'static,
    ) -> Result<T, Status> {
        let done = tokio::spawn(work).await.map_err(|e| Status::internal(format!("an operation was cut off: {e}")));
        let failed = !matches!(done, Ok(Ok(_)));
        let mut calls = lock(&self.daemon.calls);
        *calls = (calls.0 + 1, calls.1 + u64::from(failed));
        drop(calls);
        self.daemon.worked.notify_one();
        Ok(done??)
    }
}

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A stream of one list.
fn once<T: Send + 'static>(item: T) -> Response<Streaming<T>> {
    Response::new(Box::pin(futures::stream::once(async { Ok(item) })))
}
