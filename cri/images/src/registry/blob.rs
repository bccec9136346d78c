//! Downloads a blob into the content store: hashed on the way, resumed after a break, given up when it drips, and unpacked
//! meanwhile.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_RANGE;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::client::{Registry, Server};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::install::{Following, blocking};
use crate::manifest::Descriptor;
use crate::store::content::Ingest;
use crate::store::{Lease, Store};

/// A file being written on a blocking thread; few chunks are in flight, so memory is bounded.
struct Writer {
    chunks: mpsc::Sender<Bytes>,
    task: JoinHandle<Result<Ingest>>,
    /// Bytes handed over.
    offset: u64,
}

/// What becomes of a blob.
pub(crate) struct Wanted<'a> {
    /// For messages.
    pub(crate) what: &'static str,
    pub(crate) blob: &'a Descriptor,
    /// The layer that it is, to be unpacked while it comes where one of the seats is free.
    pub(crate) unpack: Option<(&'a Digest, &'a Arc<Semaphore>)>,
    /// Told of bytes that came, and (negative) of those that were for nothing.
    pub(crate) progress: &'a (dyn Fn(i64) + Sync),
}

impl Writer {
    fn start(mut ingest: Ingest) -> Writer {
        let (chunks, mut inbox) = mpsc::channel::<Bytes>(8);
        let task = tokio::task::spawn_blocking(move || {
            while let Some(chunk) = inbox.blocking_recv() {
                ingest.write(&chunk)?;
            }
            Ok(ingest)
        });
        Writer { chunks, task, offset: 0 }
    }

    /// False when the writer has failed: [`Writer::finish`] says why.
    async fn write(&mut self, chunk: Bytes) -> bool {
        self.offset += chunk.len() as u64;
        self.chunks.send(chunk).await.is_ok()
    }

    async fn finish(self) -> Result<Ingest> {
        drop(self.chunks);
        self.task.await.map_err(|e| Error::Task { doing: "write blob", reason: e.to_string() })?
    }
}

/// Why one attempt ended.
enum Stop {
    /// The registry or network failed.
    Remote(Error),
    /// The disk failed; the writer knows.
    Local,
}

impl Registry {
    /// Downloads a blob (exactly as many bytes as it says) from the first server that has it intact; true when it is unpacked, too.
    pub(crate) async fn blob(&self, store: &Arc<Store>, lease: &Arc<Lease>, wanted: &Wanted<'_>) -> Result<bool> {
        let mut last = None;
        for server in self.servers.iter().filter(|s| s.endpoint.pull) {
            match self.blob_from(server, store, lease, wanted).await {
                Ok(None) => return Ok(false),
                Ok(Some(unpacked)) => return unpacked.map(|()| true),
                Err(e @ (Error::Io { .. } | Error::NoSpace { .. } | Error::Task { .. })) => return Err(e),
                Err(e) => {
                    tracing::debug!(host = %server.endpoint.host(), digest = %wanted.blob.digest, error = %e, "blob not from this host");
                    last = Some(e);
                }
            }
        }
        Err(last.unwrap_or_else(|| Error::Invalid("no host has the capability pull".into())))
    }

    /// `Some`: how the unpacking beside it ended.
    async fn blob_from(
        &self,
        server: &Server,
        store: &Arc<Store>,
        lease: &Arc<Lease>,
        wanted: &Wanted<'_>,
    ) -> Result<Option<Result<()>>> {
        let Wanted { what, blob, progress, .. } = *wanted;
        let (digest, size) = (&blob.digest, blob.size);
        let ingest = store.blobs.ingest()?;
        let following = match wanted.unpack {
            Some((diff_id, seats)) => Following::start(store, seats, lease, ingest.follow()?, diff_id),
            None => None,
        };
        let mut writer = Writer::start(ingest);
        let mut tries = self.tries();
        let result = loop {
            let before = writer.offset;
            match self.attempt(server, digest, size, &mut writer, progress).await {
                Ok(()) | Err(Stop::Local) => break Ok(()),
                Err(Stop::Remote(e)) => {
                    // A try that brought something does not count: a bad line still gets a big layer, piece by piece.
                    if writer.offset > before + (1 << 20) {
                        tries.progressed();
                    }
                    if !tries.again(&e).await {
                        break Err(e);
                    }
                }
            }
        };
        let offset = writer.offset;
        let ingest = writer.finish().await;
        let outcome = match (result, ingest) {
            (_, Err(local)) => Err(local),
            (Err(remote), _) => Err(remote),
            (Ok(()), Ok(ingest)) => {
                let (store, lease, digest) = (store.clone(), lease.clone(), digest.clone());
                blocking("store blob", move || {
                    let (digest, size) = ingest.commit(what, Some(&digest))?;
                    store.blob_added(&digest, size);
                    drop(lease);
                    Ok(())
                })
                .await
            }
        };
        let unpacked = match following {
            Some(following) => Some(following.end().await),
            None => None,
        };
        match outcome {
            // What the unpacking found is the image's fault then, not the server's.
            Ok(()) => Ok(unpacked),
            Err(e) => {
                progress(-i64::try_from(offset).unwrap_or(i64::MAX));
                Err(e)
            }
        }
    }

    async fn attempt(
        &self,
        server: &Server,
        digest: &Digest,
        size: u64,
        writer: &mut Writer,
        progress: &(dyn Fn(i64) + Sync),
    ) -> Result<(), Stop> {
        let host = server.endpoint.host();
        if writer.offset == size && size > 0 {
            return Ok(());
        }
        let url = self.url(server, "blobs", &digest.to_string()).map_err(Stop::Remote)?;
        let resume = (writer.offset > 0).then_some(writer.offset);
        let response = self.get(server, url, None, resume).await.map_err(Stop::Remote)?;
        // A server may ignore the range and send everything again: skip what is here.
        let mut skip = match (response.status(), resume) {
            (StatusCode::PARTIAL_CONTENT, Some(at)) => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or("");
                if !range.starts_with(&format!("bytes {at}-")) {
                    let reason = format!("asked for bytes from {at}, got {range:?}");
                    return Err(Stop::Remote(Error::Network { host, doing: "read from", reason }));
                }
                0
            }
            _ => writer.offset,
        };
        let mut body = response.into_body();
        let (mut window, mut window_bytes) = (Instant::now(), 0u64);
        while let Some(mut chunk) = self.chunk(&mut body, &host).await.map_err(Stop::Remote)? {
            window_bytes += chunk.len() as u64;
            let span = window.elapsed();
            if span >= self.timeouts.rate_window {
                if window_bytes < self.timeouts.min_rate.saturating_mul(span.as_secs()) {
                    let seconds = span.as_secs();
                    return Err(Stop::Remote(Error::Timeout { host, doing: "read at a useful rate from", seconds }));
                }
                (window, window_bytes) = (Instant::now(), 0);
            }
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= skipped as u64;
            let chunk = chunk.split_off(skipped);
            if chunk.is_empty() {
                continue;
            }
            let total = writer.offset + chunk.len() as u64;
            if total > size {
                return Err(Stop::Remote(Error::Size {
                    what: format!("blob {digest} from {host}"),
                    actual: total,
                    limit: size,
                }));
            }
            progress(i64::try_from(chunk.len()).unwrap_or(0));
            if !writer.write(chunk).await {
                return Err(Stop::Local);
            }
        }
        if writer.offset < size {
            let reason = format!("the body ended after {} of {size} bytes", writer.offset);
            return Err(Stop::Remote(Error::Network { host, doing: "read from", reason }));
        }
        Ok(())
    }
}
