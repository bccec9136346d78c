//! A pull: name -> manifest for this machine -> config -> layers, several at a time -> entry in the list.
//!
//! Whatever ends it early, the lease gives back what was fetched, and nothing half-made is ever visible.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt as _};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::Semaphore;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::{Auth, Image, Phase, ProgressSink};
use crate::install::{Finished, Keyed, Tracker, blocking, finish, release, unpack_layer};
use crate::manifest::{self, Descriptor, Document, Manifest, Platform};
use crate::reference::Reference;
use crate::registry::blob::Wanted;
use crate::registry::client::{Fetched, Registry};
use crate::store::{Lease, Store};

/// Index nesting.
const MAX_DEPTH: usize = 4;

/// What a pull works with.
pub(crate) struct Pull<'a> {
    pub(crate) store: &'a Arc<Store>,
    pub(crate) keyed: &'a Keyed,
    pub(crate) slots: &'a Arc<Semaphore>,
    /// For layers that are unpacked while they come.
    pub(crate) seats: &'a Arc<Semaphore>,
}

/// The manifest for this machine and what led to it.
struct Resolved {
    manifest: Manifest,
    digest: Digest,
    media_type: String,
    /// Indexes on the way.
    parents: Vec<Digest>,
    /// What the name means: the digest that goes into the repo digests.
    top: Digest,
}

impl Pull<'_> {
    /// Pulls `text`.
    pub(crate) async fn run(&self, text: &str, auth: Option<Auth>, sink: Option<ProgressSink>) -> Result<Image> {
        let reference = Reference::parse(text)?;
        let mut lease = self.store.lease();
        let ended = lease.watch();
        let lease = Arc::new(lease);
        let result = self.leased(&reference, text, auth, sink, &lease).await;
        release(lease, ended).await;
        result.map_err(|e| {
            Error::Pull { reference: text.to_string(), cause: Box::new(e) }.in_store(&self.store.config.root)
        })
    }

    async fn leased(
        &self,
        reference: &Reference,
        text: &str,
        auth: Option<Auth>,
        sink: Option<ProgressSink>,
        lease: &Arc<Lease>,
    ) -> Result<Image> {
        let tracker = Tracker::new(text, sink);
        let limits = &self.store.config.limits;
        let registry = {
            let (store, reference) = (self.store.clone(), reference.clone());
            blocking("read registry configuration", move || Registry::new(&store.current(), &reference, auth.as_ref()))
                .await?
        };
        let resolved = self.resolve(&registry, reference, lease).await?;
        let manifest = &resolved.manifest;
        if manifest.layers.len() > limits.layers {
            let actual = manifest.layers.len() as u64;
            return Err(Error::Size { what: "layers".into(), actual, limit: limits.layers as u64 });
        }
        let (config, diff_ids) = self.config(&registry, manifest, lease).await?;
        tracker.update(true, |p| {
            p.phase = Phase::Layers;
            p.layers_total = manifest.layers.len();
            p.bytes_total = manifest.layers.iter().map(|l| l.size).sum();
        });
        self.check_space(manifest, &diff_ids)?;
        let mut jobs: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&diff_ids) {
            jobs.push(self.layer(&registry, layer, diff_id, &tracker, lease).boxed());
        }
        futures::stream::iter(jobs)
            .buffer_unordered(self.store.config.max_concurrent_layers.max(1))
            .try_collect::<Vec<()>>()
            .await?;
        let mut tags = BTreeSet::new();
        if reference.tag().is_some() {
            tags.insert(reference.to_string());
        }
        let image = finish(
            self.store,
            lease,
            Finished {
                manifest,
                manifest_digest: resolved.digest,
                manifest_type: resolved.media_type,
                extra_blobs: resolved.parents,
                config,
                diff_ids,
                tags,
                digests: BTreeSet::from([reference.with_digest(&resolved.top)]),
            },
            false,
        )
        .await?;
        tracker.update(true, |p| p.phase = Phase::Done);
        Ok(image)
    }

    /// Says at once when not even the compressed layers that are missing fit on the disk.
    fn check_space(&self, manifest: &Manifest, diff_ids: &[Digest]) -> Result<()> {
        let root = &self.store.config.root;
        let Ok(disk) = rustix::fs::statvfs(root) else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let missing: u64 = {
            let state = self.store.state();
            let here = |layer: &Descriptor, diff_id: &Digest| {
                state.layers.contains_key(diff_id) || state.blobs.contains_key(&layer.digest)
            };
            manifest.layers.iter().zip(diff_ids).filter(|(l, d)| !here(l, d)).map(|(l, _)| l.size).sum()
        };
        if missing <= free {
            return Ok(());
        }
        let doing = format!("{missing} bytes of layers are missing, {free} bytes are free");
        Err(Error::NoSpace { store: root.clone(), doing, source: rustix::io::Errno::NOSPC.into() })
    }

    /// Follows indexes to the manifest for this machine; all documents are kept.
    async fn resolve(&self, registry: &Registry, reference: &Reference, lease: &Arc<Lease>) -> Result<Resolved> {
        let limit = self.store.config.limits.manifest_bytes;
        let mut what =
            reference.digest().map(Digest::to_string).or(reference.tag().map(str::to_string)).unwrap_or_default();
        let mut hint = String::new();
        let mut parents = Vec::new();
        let mut top = None;
        for _ in 0..=MAX_DEPTH {
            let fetched = registry.manifest(&what, limit).await?;
            let media_type = if hint.is_empty() { fetched.media_type.clone() } else { hint.clone() };
            let document = Document::parse(&fetched.bytes, &media_type, &fetched.digest)?;
            let digest = fetched.digest.clone();
            self.keep(fetched, lease).await?;
            top.get_or_insert_with(|| digest.clone());
            match document {
                Document::Manifest(manifest) => {
                    let own = if manifest.media_type.is_empty() { media_type } else { manifest.media_type.clone() };
                    let top = top.unwrap_or_else(|| digest.clone());
                    return Ok(Resolved { manifest, digest, media_type: own, parents, top });
                }
                Document::Index(index) => {
                    let chosen = manifest::choose(&index, &Platform::host())?;
                    what = chosen.digest.to_string();
                    hint = chosen.media_type.clone();
                    parents.push(digest);
                }
            }
        }
        let digest = top.map_or(what, |d| d.to_string());
        Err(Error::Malformed { what: "index", digest, reason: format!("nested deeper than {MAX_DEPTH}") })
    }

    /// Stores a small document.
    async fn keep(&self, fetched: Fetched, lease: &Arc<Lease>) -> Result<()> {
        let (store, lease) = (self.store.clone(), lease.clone());
        blocking("store manifest", move || {
            lease.hold(&fetched.digest);
            let mut blob = store.blobs.ingest()?;
            blob.write(&fetched.bytes)?;
            let (digest, size) = blob.commit("manifest", Some(&fetched.digest))?;
            store.blob_added(&digest, size);
            Ok(())
        })
        .await
    }

    async fn config(
        &self,
        registry: &Registry,
        manifest: &Manifest,
        lease: &Arc<Lease>,
    ) -> Result<(manifest::Config, Vec<Digest>)> {
        let limit = self.store.config.limits.config_bytes;
        let descriptor = &manifest.config;
        if descriptor.size > limit {
            let what = format!("image config {}", descriptor.digest);
            return Err(Error::Size { what, actual: descriptor.size, limit });
        }
        let wanted = Wanted { what: "image config", blob: descriptor, unpack: None, progress: &|_| {} };
        self.fetch(registry, lease, &wanted).await?;
        let (store, digest) = (self.store.clone(), descriptor.digest.clone());
        let bytes = blocking("read config", move || store.blobs.read(&digest, limit)).await?;
        manifest::Config::parse(&bytes, manifest)
    }

    /// Makes sure that a blob is here, downloading it once however many ask; true when it is unpacked, too.
    async fn fetch(&self, registry: &Registry, lease: &Arc<Lease>, wanted: &Wanted<'_>) -> Result<bool> {
        let blob = wanted.blob;
        lease.hold(&blob.digest);
        let _one_at_a_time = self.keyed.lock(format!("blob {}", blob.digest)).await;
        if self.store.state().blobs.contains_key(&blob.digest) {
            (wanted.progress)(i64::try_from(blob.size).unwrap_or(0));
            return Ok(false);
        }
        registry.blob(self.store, lease, wanted).await
    }

    async fn layer(
        &self,
        registry: &Registry,
        layer: &Descriptor,
        diff_id: &Digest,
        tracker: &Tracker,
        lease: &Arc<Lease>,
    ) -> Result<()> {
        let limit = self.store.config.limits.layer_blob_bytes;
        if layer.size > limit {
            return Err(Error::Size { what: format!("layer {}", layer.digest), actual: layer.size, limit });
        }
        let progress =
            |n: i64| tracker.update(false, |p| p.bytes_done = p.bytes_done.saturating_add_signed(n).min(p.bytes_total));
        lease.hold(diff_id);
        let _one_at_a_time = self.keyed.lock(format!("layer {diff_id}")).await;
        if self.store.state().layers.contains_key(diff_id) {
            progress(i64::try_from(layer.size).unwrap_or(0));
        } else {
            let unpack = Some((diff_id, self.seats));
            let wanted = Wanted { what: "layer", blob: layer, unpack, progress: &progress };
            if !self.fetch(registry, lease, &wanted).await? {
                unpack_layer(self.store, self.slots, lease, &layer.digest, diff_id).await?;
            }
        }
        tracker.update(true, |p| p.layers_done += 1);
        Ok(())
    }
}
