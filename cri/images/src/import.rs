//! Images from files: OCI layout folders, OCI archives, `docker save` archives.
//!
//! Every regular file of the archive goes into the content store under its real digest in one pass; a file that claims
//! a digest by its name must have it. What no image uses is collected when the import's lease ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::{Image, Phase, ProgressSink};
use crate::install::{Finished, Keyed, StopOnDrop, Tracker, blocking, finish, release, unpack_layer};
use crate::manifest::{self, Descriptor, Document, Index, Manifest, Platform};
use crate::reference::Reference;
use crate::store::content::Ingest;
use crate::store::{Lease, Store};
use crate::unpack::decode::{Checked, decoder};
use crate::unpack::name::Name;
use crate::unpack::tarball::{Kind, TarReader};

/// Files in an archive.
const MAX_FILES: usize = 100_000;
/// Index nesting.
const MAX_DEPTH: usize = 4;

/// Names in the archive and the blobs they became.
type Files = BTreeMap<String, (Digest, u64)>;

/// An image found in an archive.
struct Found {
    descriptor: Descriptor,
    parents: Vec<Digest>,
    names: BTreeSet<String>,
}

fn archive_error(reason: impl Into<String>) -> Error {
    Error::Archive { reason: reason.into() }
}

/// Imports every image of `path`.
pub(crate) async fn import(
    store: &Arc<Store>,
    keyed: &Keyed,
    slots: &Arc<tokio::sync::Semaphore>,
    path: &Path,
    name: Option<&str>,
    sink: Option<ProgressSink>,
) -> Result<Vec<Image>> {
    let tracker = Tracker::new(&path.display().to_string(), sink);
    let name = name.map(Reference::parse).transpose()?;
    if name.as_ref().is_some_and(|n| n.tag().is_none()) {
        return Err(Error::Invalid("an imported image is named with a tag, not a digest".into()));
    }
    let mut lease = store.lease();
    let ended = lease.watch();
    let lease = Arc::new(lease);
    let result = import_leased(store, keyed, slots, path, name, &tracker, &lease).await;
    release(lease, ended).await;
    result.map_err(|e| Error::Import { path: path.to_path_buf(), cause: Box::new(e) }.in_store(&store.config.root))
}

async fn import_leased(
    store: &Arc<Store>,
    keyed: &Keyed,
    slots: &Arc<tokio::sync::Semaphore>,
    path: &Path,
    name: Option<Reference>,
    tracker: &Tracker,
    lease: &Arc<Lease>,
) -> Result<Vec<Image>> {
    let stop = Arc::new(AtomicBool::new(false));
    let guard = StopOnDrop(stop.clone());
    let found = {
        let (store, path, lease) = (store.clone(), path.to_path_buf(), lease.clone());
        blocking("import image", move || {
            let files = ingest(&store, &path, &lease, &stop)?;
            find(&store, &files, &lease)
        })
        .await?
    };
    drop(guard);
    if found.is_empty() {
        return Err(archive_error("it holds no image"));
    }
    if name.is_some() && found.len() > 1 {
        return Err(archive_error(format!(
            "it holds {} images, which cannot all have the one name given",
            found.len()
        )));
    }
    let mut images = Vec::new();
    for mut one in found {
        if let Some(name) = &name {
            one.names = BTreeSet::from([name.to_string()]);
        }
        images.push(install(store, keyed, slots, one, tracker, lease).await?);
    }
    tracker.update(true, |p| p.phase = Phase::Done);
    Ok(images)
}

async fn install(
    store: &Arc<Store>,
    keyed: &Keyed,
    slots: &Arc<tokio::sync::Semaphore>,
    found: Found,
    tracker: &Tracker,
    lease: &Arc<Lease>,
) -> Result<Image> {
    let limits = &store.config.limits;
    let digest = found.descriptor.digest.clone();
    let bytes = store.blobs.read(&digest, limits.manifest_bytes)?;
    let Document::Manifest(manifest) = Document::parse(&bytes, &found.descriptor.media_type, &digest)? else {
        return Err(archive_error("an index where an image manifest is expected"));
    };
    let config = store.blobs.read(&manifest.config.digest, limits.config_bytes).map_err(|e| missing(e, "config"))?;
    let (config, diff_ids) = manifest::Config::parse(&config, &manifest)?;
    if diff_ids.len() > limits.layers {
        return Err(Error::Size { what: "layers".into(), actual: diff_ids.len() as u64, limit: limits.layers as u64 });
    }
    tracker.update(true, |p| {
        p.phase = Phase::Layers;
        p.layers_total += manifest.layers.len();
        p.bytes_total += manifest.layers.iter().map(|l| l.size).sum::<u64>();
    });
    for (layer, diff_id) in manifest.layers.iter().zip(&diff_ids) {
        lease.hold(diff_id);
        let _one_at_a_time = keyed.lock(format!("layer {diff_id}")).await;
        if !store.state().layers.contains_key(diff_id) {
            if !store.state().blobs.contains_key(&layer.digest) {
                return Err(archive_error(format!("layer {} is missing", layer.digest)));
            }
            unpack_layer(store, slots, lease, &layer.digest, diff_id).await?;
        }
        tracker.update(true, |p| {
            p.layers_done += 1;
            p.bytes_done += layer.size;
        });
    }
    let mut digests = BTreeSet::new();
    for name in &found.names {
        digests.insert(Reference::parse(name)?.with_digest(&digest));
    }
    let media_type =
        if manifest.media_type.is_empty() { manifest::OCI_MANIFEST.into() } else { manifest.media_type.clone() };
    finish(
        store,
        lease,
        Finished {
            manifest: &manifest,
            manifest_digest: digest,
            manifest_type: media_type,
            extra_blobs: found.parents,
            config,
            diff_ids,
            tags: found.names,
            digests,
        },
        true,
    )
    .await
}

fn missing(e: Error, what: &str) -> Error {
    match e {
        Error::Io { source, path, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            archive_error(format!("{what} {} is missing", path.file_name().unwrap_or_default().to_string_lossy()))
        }
        other => other,
    }
}

/// Puts all files of the folder or archive into the content store. Blocking.
fn ingest(store: &Store, path: &Path, lease: &Lease, stop: &AtomicBool) -> Result<Files> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
    if meta.is_dir() { ingest_folder(store, path, lease, stop) } else { ingest_archive(store, path, lease, stop) }
}

fn ingest_folder(store: &Store, path: &Path, lease: &Lease, stop: &AtomicBool) -> Result<Files> {
    let mut files = Files::new();
    let mut take = |name: String, at: PathBuf| -> Result<()> {
        let mut input = File::open(&at).map_err(|e| Error::io("open", &at, e))?;
        let mut read = |buf: &mut [u8]| {
            if stop.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "given up"));
            }
            input.read(buf)
        };
        let blob = copy(store, lease, &name, &mut read, &at)?;
        files.insert(name, blob);
        Ok(())
    };
    for name in ["oci-layout", "index.json", "manifest.json"] {
        let at = path.join(name);
        if at.is_file() {
            take(name.to_string(), at)?;
        }
    }
    let blobs = path.join("blobs/sha256");
    for entry in std::fs::read_dir(&blobs).map_err(|_| archive_error("the folder is not an OCI image layout"))? {
        let entry = entry.map_err(|e| Error::io("read", &blobs, e))?;
        if let (Some(hex), true) = (entry.file_name().to_str(), entry.path().is_file()) {
            take(format!("blobs/sha256/{hex}"), entry.path())?;
        }
    }
    Ok(files)
}

fn ingest_archive(store: &Store, path: &Path, lease: &Lease, stop: &AtomicBool) -> Result<Files> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let broken = |e: std::io::Error| archive_error(format!("not a readable tar archive: {e}"));
    let plain = decoder(file).map_err(broken)?;
    let mut tar = TarReader::new(Checked::new(plain, u64::MAX, stop));
    let mut files = Files::new();
    let mut links: Vec<(String, String)> = Vec::new();
    let mut count = 0;
    while let Some(entry) = tar.next().map_err(broken)? {
        count += 1;
        if count > MAX_FILES {
            return Err(archive_error(format!("more than {MAX_FILES} files")));
        }
        let bad = |why: &str| archive_error(format!("entry {:?}: {why}", String::from_utf8_lossy(&entry.path)));
        let name = Name::parse(&entry.path).map_err(bad)?;
        let text = |n: &Name| {
            let whole =
                if n.parent.is_empty() { n.base.clone() } else { [n.parent.as_slice(), b"/", &n.base].concat() };
            String::from_utf8(whole).map_err(|_| bad("the name is not text"))
        };
        match entry.kind {
            Kind::File => {
                if entry.size > store.config.limits.layer_bytes {
                    return Err(bad("larger than a layer may be"));
                }
                let name = text(&name)?;
                let blob = copy(store, lease, &name, &mut |buf| tar.read(buf), path)?;
                files.insert(name, blob);
            }
            // Old `docker save` archives link to layers that they hold once.
            Kind::Symlink | Kind::Hardlink => {
                let base =
                    if entry.kind == Kind::Symlink { [name.parent.as_slice(), b"/"].concat() } else { Vec::new() };
                let target = Name::parse(&[base, entry.link.clone()].concat()).map_err(bad)?;
                links.push((text(&name)?, text(&target)?));
            }
            _ => {}
        }
    }
    for (from, to) in links {
        if let Some(blob) = files.get(&to).cloned() {
            files.insert(from, blob);
        }
    }
    Ok(files)
}

/// Copies one file into the content store; a name that says a digest is believed only when it is right.
fn copy(
    store: &Store,
    lease: &Lease,
    name: &str,
    read: &mut dyn FnMut(&mut [u8]) -> std::io::Result<usize>,
    from: &Path,
) -> Result<(Digest, u64)> {
    let claimed = match name.strip_prefix("blobs/sha256/") {
        Some(hex) => Some(Digest::from_hex(hex).ok_or_else(|| archive_error(format!("{name:?} is not a blob name")))?),
        None => None,
    };
    let mut ingest: Ingest = store.blobs.ingest()?;
    let mut buf = vec![0; 128 << 10];
    loop {
        let n = read(&mut buf).map_err(|e| Error::io("read", from, e))?;
        if n == 0 {
            break;
        }
        ingest.write(&buf[..n])?;
    }
    // Held before it is visible, so that nobody collects it in between.
    let digest = claimed.unwrap_or_else(|| ingest.digest());
    lease.hold(&digest);
    let (digest, size) = ingest.commit("blob", Some(&digest))?;
    store.blob_added(&digest, size);
    Ok((digest, size))
}

/// Finds the images described by the archive's own lists.
fn find(store: &Store, files: &Files, lease: &Lease) -> Result<Vec<Found>> {
    let limit = store.config.limits.manifest_bytes;
    if let (Some((digest, _)), true) = (files.get("index.json"), files.contains_key("oci-layout")) {
        let bytes = store.blobs.read(digest, limit)?;
        let index: Index = serde_json::from_slice(&bytes).map_err(|e| archive_error(format!("index.json: {e}")))?;
        let mut found = Vec::new();
        for descriptor in &index.manifests {
            if descriptor.platform.as_ref().is_some_and(|p| !p.os.is_empty() && p.os != Platform::host().os) {
                continue;
            }
            let (descriptor, parents) = resolve(store, descriptor.clone(), limit)?;
            let names = names_of(&index, &parents, &descriptor);
            found.push(Found { descriptor, parents, names });
        }
        let mut merged: Vec<Found> = Vec::new();
        for one in found {
            match merged.iter_mut().find(|f| f.descriptor.digest == one.descriptor.digest) {
                Some(same) => same.names.extend(one.names),
                None => merged.push(one),
            }
        }
        return Ok(merged);
    }
    let Some((digest, _)) = files.get("manifest.json") else {
        return Err(archive_error(
            "neither an OCI layout (oci-layout, index.json) nor a docker archive (manifest.json)",
        ));
    };
    let bytes = store.blobs.read(digest, limit)?;
    docker(store, files, &bytes, lease)
}

/// Follows nested indexes to the manifest for this machine.
fn resolve(store: &Store, mut at: Descriptor, limit: u64) -> Result<(Descriptor, Vec<Digest>)> {
    let mut parents = Vec::new();
    for _ in 0..MAX_DEPTH {
        let bytes = store.blobs.read(&at.digest, limit).map_err(|e| missing(e, "manifest"))?;
        match Document::parse(&bytes, &at.media_type, &at.digest)? {
            Document::Manifest(_) => return Ok((at, parents)),
            Document::Index(index) => {
                parents.push(at.digest.clone());
                at = manifest::choose(&index, &Platform::host())?.clone();
            }
        }
    }
    Err(archive_error(format!("indexes nested deeper than {MAX_DEPTH}")))
}

/// Names from the annotations of the entry (or its index) in index.json.
fn names_of(index: &Index, parents: &[Digest], descriptor: &Descriptor) -> BTreeSet<String> {
    let top = parents.first().unwrap_or(&descriptor.digest);
    let mut names = BTreeSet::new();
    for annotations in index.manifests.iter().filter(|d| d.digest == *top).filter_map(|d| d.annotations.as_ref()) {
        let full = annotations.get("io.containerd.image.name");
        let short = annotations.get("org.opencontainers.image.ref.name").filter(|n| n.contains([':', '/']));
        if let Some(reference) = full.or(short).and_then(|n| Reference::parse(n).ok()).filter(|r| r.tag().is_some()) {
            names.insert(reference.to_string());
        }
    }
    names
}

/// `docker save`: manifest.json lists config and layers by file name; a manifest is made for each.
fn docker(store: &Store, files: &Files, bytes: &[u8], lease: &Lease) -> Result<Vec<Found>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Item {
        config: String,
        #[serde(default)]
        repo_tags: Option<Vec<String>>,
        #[serde(default)]
        layers: Option<Vec<String>>,
    }
    let items: Vec<Item> = serde_json::from_slice(bytes).map_err(|e| archive_error(format!("manifest.json: {e}")))?;
    let mut found = Vec::new();
    for item in items {
        let get = |name: &str, media_type: &str| {
            let (digest, size) = files.get(name).ok_or_else(|| archive_error(format!("{name:?} is missing")))?;
            let (digest, size, media_type) = (digest.clone(), *size, media_type.to_string());
            Ok::<_, Error>(Descriptor { media_type, digest, size, platform: None, annotations: None })
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: manifest::OCI_MANIFEST.into(),
            config: get(&item.config, manifest::OCI_CONFIG)?,
            layers: item
                .layers
                .unwrap_or_default()
                .iter()
                .map(|l| get(l, manifest::OCI_LAYER))
                .collect::<Result<_>>()?,
        };
        let json = serde_json::to_vec(&manifest).map_err(|e| archive_error(e.to_string()))?;
        let digest = Digest::of(&json);
        lease.hold(&digest);
        let mut blob = store.blobs.ingest()?;
        blob.write(&json)?;
        blob.commit("manifest", Some(&digest))?;
        store.blob_added(&digest, json.len() as u64);
        let mut names = BTreeSet::new();
        for tag in item.repo_tags.unwrap_or_default() {
            names.insert(Reference::parse(&tag)?.to_string());
        }
        let descriptor = Descriptor {
            media_type: manifest::OCI_MANIFEST.into(),
            digest,
            size: json.len() as u64,
            platform: None,
            annotations: None,
        };
        found.push(Found { descriptor, parents: Vec::new(), names });
    }
    Ok(found)
}
