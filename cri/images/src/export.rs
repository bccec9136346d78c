//! Writing an image of the store as an OCI archive.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use crate::build::{Archive, blob_name};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Document, OCI_INDEX};
use crate::store::Store;

/// Writes the image named `name` to `path`. Blocking.
pub(crate) fn export(store: &Arc<Store>, name: &str, path: &Path) -> Result<()> {
    let record =
        store.state().find(name).cloned().ok_or_else(|| Error::NotFound { what: "image", name: name.to_string() })?;
    // Who removes the image meanwhile does not take its blobs away under the archive.
    let lease = store.lease();
    record.blobs.iter().for_each(|digest| lease.hold(digest));
    let bytes = store.blobs.read(&record.manifest, store.config.limits.manifest_bytes)?;
    let Document::Manifest(manifest) = Document::parse(&bytes, &record.manifest_type, &record.manifest)? else {
        return Err(Error::Malformed {
            what: "manifest",
            digest: record.manifest.to_string(),
            reason: "it is an index".into(),
        });
    };
    let blobs: Vec<&Digest> =
        manifest.layers.iter().map(|l| &l.digest).chain([&manifest.config.digest, &record.manifest]).collect();
    for digest in &blobs {
        if !store.blobs.path(digest).exists() {
            return Err(Error::NotFound { what: "blob", name: digest.to_string() });
        }
    }
    let entry = |tag: Option<&String>| {
        let mut entry = json!({
            "mediaType": record.manifest_type,
            "digest": record.manifest.to_string(),
            "size": bytes.len(),
        });
        if let Some(tag) = tag {
            entry["annotations"] = json!({"io.containerd.image.name": tag, "org.opencontainers.image.ref.name": tag});
        }
        entry
    };
    let entries: Vec<_> =
        if record.tags.is_empty() { vec![entry(None)] } else { record.tags.iter().map(|t| entry(Some(t))).collect() };
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string();
    let mut archive = Archive::create(path)?;
    archive.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.bytes("index.json", index.as_bytes())?;
    let mut done: Vec<&Digest> = Vec::new();
    for digest in blobs {
        if !done.contains(&digest) {
            archive.file(&blob_name(digest), &store.blobs.path(digest))?;
            done.push(digest);
        }
    }
    archive.finish()
}
