//! The ledger in memory: images, snapshots, what is on disk, and what is therefore garbage. Pure data and decisions.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::DigestSet;
use super::layers::LayerInfo;
use crate::digest::Digest;
use crate::image::{Image, ImageConfig};
use crate::reference::Reference;
use crate::snapshot::Snapshot;

/// One image as stored in `images.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) tags: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
    /// The manifest for this machine.
    pub(crate) manifest: Digest,
    /// Its media type.
    pub(crate) manifest_type: String,
    /// Blobs of this image that are kept: indexes, manifest, config, compressed layers.
    pub(crate) blobs: DigestSet,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) created: Option<String>,
    pub(crate) pulled_at: i64,
    pub(crate) os: String,
    pub(crate) architecture: String,
    pub(crate) config: ImageConfig,
    /// The boot in which it came, until it would outlive a power failure; empty from then on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) unsynced: String,
}

/// Everything the store knows.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) images: BTreeMap<String, Record>,
    pub(crate) snapshots: BTreeMap<String, Snapshot>,
    pub(crate) blobs: HashMap<Digest, u64>,
    pub(crate) layers: HashMap<Digest, LayerInfo>,
    /// Copies of whole images, by image, that read-only views share.
    pub(crate) views: HashMap<Digest, LayerInfo>,
    /// Digests that a pull in progress holds, with the number of holders.
    pub(crate) leases: HashMap<Digest, usize>,
}

/// What nothing refers to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Garbage {
    pub(crate) blobs: Vec<Digest>,
    pub(crate) layers: Vec<Digest>,
    pub(crate) views: Vec<Digest>,
}

impl State {
    /// Everything that is unpacked.
    pub(crate) fn unpacked(&self) -> impl Iterator<Item = &LayerInfo> {
        self.layers.values().chain(self.views.values())
    }

    /// What neither an image, a snapshot nor a lease refers to, in order.
    pub(crate) fn garbage(&self) -> Garbage {
        let mut blobs: BTreeSet<&Digest> = self.leases.keys().collect();
        let mut layers = blobs.clone();
        for record in self.images.values() {
            blobs.extend(&record.blobs);
            layers.extend(&record.diff_ids);
        }
        let held: BTreeSet<&str> =
            self.snapshots.values().flat_map(|s| s.diff_ids.iter().map(String::as_str)).collect();
        let viewed: BTreeSet<&str> =
            self.snapshots.values().filter(|s| s.native && s.view).map(|s| s.image_id.as_str()).collect();
        let mut out = Garbage {
            blobs: self.blobs.keys().filter(|d| !blobs.contains(d)).cloned().collect(),
            layers: self
                .layers
                .keys()
                .filter(|d| !layers.contains(d) && !held.contains(d.to_string().as_str()))
                .cloned()
                .collect(),
            views: self.views.keys().filter(|d| !viewed.contains(d.to_string().as_str())).cloned().collect(),
        };
        out.views.sort();
        out.blobs.sort();
        out.layers.sort();
        out
    }

    /// Images that came in an earlier boot and whose files may not have reached the disk before that ended. Their layers and blobs
    /// are other images' only if those are whole on disk.
    pub(crate) fn lost(&self, boot: &str) -> Vec<String> {
        let lost = |r: &&Record| !r.unsynced.is_empty() && r.unsynced != boot;
        self.images.values().filter(lost).map(|r| r.id.clone()).collect()
    }

    /// Images that miss a layer or a blob.
    pub(crate) fn broken(&self) -> Vec<String> {
        let whole = |r: &Record| {
            r.blobs.iter().all(|d| self.blobs.contains_key(d)) && r.diff_ids.iter().all(|d| self.layers.contains_key(d))
        };
        self.images.values().filter(|r| !whole(r)).map(|r| r.id.clone()).collect()
    }

    /// Adds an image or merges it with the same one; its tags leave every other image.
    pub(crate) fn insert(&mut self, mut record: Record) -> Record {
        for other in self.images.values_mut().filter(|r| r.id != record.id) {
            other.tags.retain(|t| !record.tags.contains(t));
        }
        if let Some(old) = self.images.remove(&record.id) {
            // Nothing new that could get lost.
            if old.unsynced.is_empty() && record.blobs.is_subset(&old.blobs) {
                record.unsynced.clear();
            }
            record.tags.extend(old.tags);
            record.digests.extend(old.digests);
            record.blobs.extend(old.blobs);
        }
        self.images.insert(record.id.clone(), record.clone());
        record
    }

    /// Finds by id, unambiguous id prefix (12 or more hex digits), reference or repo digest.
    pub(crate) fn find(&self, name: &str) -> Option<&Record> {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if hex.len() >= 12 && hex.len() <= 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            let prefix = format!("sha256:{hex}");
            let mut hits = self.images.range(prefix.clone()..).take_while(|(id, _)| id.starts_with(&prefix));
            if let (Some((_, record)), None) = (hits.next(), hits.next()) {
                return Some(record);
            }
            if let Some(record) = self.images.values().find(|r| r.manifest.hex() == hex) {
                return Some(record);
            }
        }
        let reference = Reference::parse(name).ok()?;
        let full = reference.to_string();
        self.images
            .values()
            .find(|r| if reference.digest().is_some() { r.digests.contains(&full) } else { r.tags.contains(&full) })
    }

    /// What callers see of `record`.
    pub(crate) fn image(&self, record: &Record, pinned: &[String]) -> Image {
        let mut sized: BTreeSet<&Digest> = BTreeSet::new();
        sized.extend(&record.diff_ids);
        let is_pinned = |p: &String| {
            *p == record.id
                || Reference::parse(p).is_ok_and(|r| {
                    let full = r.to_string();
                    record.tags.contains(&full) || record.digests.contains(&full)
                })
        };
        Image {
            id: record.id.clone(),
            repo_tags: record.tags.iter().cloned().collect(),
            repo_digests: record.digests.iter().cloned().collect(),
            size: sized.iter().filter_map(|d| self.layers.get(*d)).map(|l| l.bytes).sum(),
            config: record.config.clone(),
            pinned: pinned.iter().any(is_pinned),
            created: record.created.clone(),
            pulled_at: record.pulled_at,
            os: record.os.clone(),
            architecture: record.architecture.clone(),
            diff_ids: record.diff_ids.iter().map(Digest::to_string).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn d(n: u8) -> Digest {
        Digest::of(&[n])
    }

    fn record(id: u8, tags: &[&str], blobs: &[u8], layers: &[u8]) -> Record {
        Record {
            id: d(id).to_string(),
            tags: tags.iter().map(|t| Reference::parse(t).unwrap().to_string()).collect(),
            digests: BTreeSet::new(),
            manifest: d(id + 100),
            manifest_type: String::new(),
            blobs: blobs.iter().map(|n| d(*n)).collect(),
            diff_ids: layers.iter().map(|n| d(*n)).collect(),
            created: None,
            pulled_at: 0,
            os: "linux".into(),
            architecture: "amd64".into(),
            config: ImageConfig::default(),
            unsynced: String::new(),
        }
    }

    fn sorted(ns: &[u8]) -> Vec<Digest> {
        let mut v: Vec<Digest> = ns.iter().map(|n| d(*n)).collect();
        v.sort();
        v
    }

    #[test]
    fn shared_leased_and_mounted_things_are_not_garbage() {
        let mut s = State::default();
        for n in 10..16 {
            s.blobs.insert(d(n), 1);
            s.layers.insert(d(n + 10), LayerInfo { bytes: 1, inodes: 1, plain: false });
        }
        s.insert(record(1, &["a:1"], &[10, 11], &[20, 21]));
        s.insert(record(2, &["b:1"], &[11, 12], &[21, 22]));
        s.leases.insert(d(13), 1);
        s.leases.insert(d(23), 1);
        let snapshot = Snapshot {
            id: "c".into(),
            image_id: d(9).to_string(),
            diff_ids: vec![d(24).to_string()],
            view: false,
            native: false,
            created: 0,
            targets: vec![],
            fresh: false,
        };
        s.snapshots.insert("c".into(), snapshot);
        assert_eq!(s.garbage(), Garbage { blobs: sorted(&[14, 15]), layers: sorted(&[25]), views: vec![] });
        s.images.remove(&d(1).to_string());
        assert_eq!(s.garbage(), Garbage { blobs: sorted(&[10, 14, 15]), layers: sorted(&[20, 25]), views: vec![] });
        s.views.insert(d(9), LayerInfo { bytes: 1, inodes: 1, plain: true });
        let shared = Snapshot { id: "v".into(), view: true, native: true, ..s.snapshots["c"].clone() };
        s.snapshots.insert("v".into(), shared);
        assert_eq!(s.garbage().views, []);
        s.snapshots.remove("v");
        assert_eq!(s.garbage().views, [d(9)]);
    }

    #[test]
    fn what_a_power_failure_may_have_cut_is_lost_and_nothing_else() {
        let mut s = State::default();
        let fresh = |r: Record| Record { unsynced: "boot1".into(), ..r };
        s.insert(record(1, &["a:1"], &[10], &[20]));
        s.insert(fresh(record(2, &["b:1"], &[11], &[20, 21])));
        assert!(s.lost("boot1").is_empty());
        assert_eq!(s.lost("boot2"), [d(2).to_string()]);
        // The same image by another name, with nothing new in it.
        s.insert(fresh(record(1, &["a:2"], &[10], &[20])));
        assert_eq!(s.lost("boot2"), [d(2).to_string()]);
        s.insert(fresh(record(1, &["a:3"], &[10, 12], &[20])));
        assert_eq!(s.lost("boot2").len(), 2);
    }

    #[test]
    fn a_tag_belongs_to_one_image() {
        let mut s = State::default();
        s.insert(record(1, &["a:1", "a:2"], &[], &[]));
        s.insert(record(2, &["a:1"], &[], &[]));
        assert_eq!(s.find("a:1").map(|r| r.id.clone()), Some(d(2).to_string()));
        assert_eq!(s.find("docker.io/library/a:2").map(|r| r.id.clone()), Some(d(1).to_string()));
        s.insert(record(1, &["a:1"], &[], &[]));
        assert_eq!(s.find("a:1").map(|r| r.tags.len()), Some(2));
        assert!(s.images[&d(2).to_string()].tags.is_empty());
    }

    #[test]
    fn ids_are_found_whole_and_shortened() {
        let mut s = State::default();
        s.insert(record(1, &["a:1"], &[], &[]));
        let id = d(1).to_string();
        for name in [id.as_str(), &id[7..], &id[7..19]] {
            assert!(s.find(name).is_some(), "{name}");
        }
        assert!(s.find(&id[7..18]).is_none());
        assert!(s.find("nope").is_none());
    }
}
