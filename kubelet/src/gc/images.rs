//! Image garbage collection: when the disk of images is filled too far, and by age.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::cri::Image;
use tokio::sync::Mutex;

use super::plan::{Record, Records, expired, removable, to_free};
use crate::eviction::FileSystems;
use crate::images::name::full as full_name;
use crate::kubelet::Pods;
use crate::pod;
use crate::shared::Shared;

/// Between looks at the disk.
const EVERY: Duration = Duration::from_secs(300);

/// What is remembered of images. One collection runs at a time.
pub(crate) struct Images {
    records: Mutex<Records>,
    start: Instant,
}

/// Collects images for ever, where the configuration wants it.
pub(crate) async fn run(shared: Arc<Shared>, pods: Pods, images: Arc<Images>) {
    let mut failed = false;
    images.look(&shared, &pods, true).await;
    // A kubelet that starts on a full disk makes room at once, but not before it knows which images its pods need.
    let _ = tokio::time::timeout(EVERY, pods.completed()).await;
    loop {
        match images.collect(&shared, &pods).await {
            Ok(()) => failed = false,
            Err(why) => {
                // Once is no news: a container may still be ending.
                if failed {
                    shared.events.node(&shared.node_name, true, "ImageGCFailed", why);
                } else {
                    tracing::warn!(error = %why, "images not collected");
                }
                failed = true;
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Whether an image is one of `names` (ids or full names).
fn named(image: &Image, names: &HashSet<String>) -> bool {
    names.contains(&image.id) || image.repo_tags.iter().chain(&image.repo_digests).any(|n| names.contains(n))
}

impl Images {
    /// Nothing is known yet.
    pub(crate) fn new() -> Self {
        Self { records: Mutex::default(), start: Instant::now() }
    }

    /// Brings the records up to date; tells whether the runtime answered.
    async fn look(&self, shared: &Shared, pods: &Pods, first: bool) -> bool {
        let mut records = self.records.lock().await;
        refresh(&mut records, shared, pods, first).await
    }

    /// Removes what no container uses, young images aside.
    pub(crate) async fn remove_unused(&self, shared: &Shared, pods: &Pods) -> u64 {
        let mut records = self.records.lock().await;
        if !refresh(&mut records, shared, pods, false).await {
            return 0;
        }
        let least = shared.config.image_minimum_gc_age.0;
        let list: Vec<String> = removable(&records, least, Instant::now()).into_iter().map(str::to_owned).collect();
        remove(&mut records, shared, list, u64::MAX).await
    }

    /// One regular collection.
    async fn collect(&self, shared: &Shared, pods: &Pods) -> Result<(), String> {
        let mut records = self.records.lock().await;
        if !refresh(&mut records, shared, pods, false).await {
            return Err("the runtime does not tell its images".to_owned());
        }
        let config = &shared.config;
        let least = config.image_minimum_gc_age.0;
        let now = Instant::now();
        let old: Vec<String> = expired(&records, least, config.image_maximum_gc_age.0, self.start, now)
            .into_iter()
            .map(str::to_owned)
            .collect();
        remove(&mut records, shared, old, u64::MAX).await;
        let path = FileSystems::ask(shared).await.images;
        let stat = tokio::task::spawn_blocking(move || nix::sys::statvfs::statvfs(path.as_path()));
        let stat = stat.await.map_err(|e| e.to_string())?.map_err(|e| format!("measure the disk of images: {e}"))?;
        let (capacity, available) =
            (stat.blocks() * stat.fragment_size(), stat.blocks_available() * stat.fragment_size());
        if capacity == 0 {
            let text = "invalid capacity 0 on image filesystem".to_owned();
            shared.events.node(&shared.node_name, true, "InvalidDiskCapacity", text.clone());
            return Err(text);
        }
        let (high, low) = (config.image_gc_high_threshold_percent, config.image_gc_low_threshold_percent);
        let Some(goal) = to_free(capacity, available, high, low) else { return Ok(()) };
        tracing::info!(capacity, available, high, low, goal, "the disk of images is filled too far");
        let list: Vec<String> = removable(&records, least, now).into_iter().map(str::to_owned).collect();
        let freed = remove(&mut records, shared, list, goal).await;
        if freed < goal {
            let used = (capacity - available.min(capacity)) * 100 / capacity;
            let text = format!(
                "Insufficient free disk space on the node's image filesystem ({used}% of {}). Failed to free sufficient \
                 space by deleting unused images (freed {freed} bytes). Investigate disk usage, as it could be used by \
                 active images, logs, volumes, or other data.",
                gantry_kube::quantity::Quantity::from_value(
                    i64::try_from(capacity).unwrap_or(i64::MAX),
                    gantry_kube::quantity::Format::BinarySi
                )
            );
            shared.events.node(&shared.node_name, true, "FreeDiskSpaceFailed", text.clone());
            return Err(text);
        }
        Ok(())
    }
}

async fn refresh(records: &mut Records, shared: &Shared, pods: &Pods, first: bool) -> bool {
    let looked = std::time::SystemTime::now();
    let (images, containers) = match tokio::try_join!(shared.cri.image_list(), shared.cri.containers(None)) {
        Ok(both) => both,
        Err(e) => {
            tracing::warn!(error = %e, "images and containers not listed");
            return false;
        }
    };
    let mut names = HashSet::new();
    for container in containers {
        let spec = container.image.unwrap_or_default();
        for name in [container.image_ref, container.image_id, spec.image, spec.user_specified_image] {
            names.insert(full_name(&name));
            names.insert(name);
        }
    }
    // A pod's images are needed although their containers have not been made yet, and those that are volumes always.
    for pod in pods.list() {
        let phase = shared.statuses.get(pod::uid(&pod)).and_then(|s| s.phase).unwrap_or_default();
        if phase == "Succeeded" || phase == "Failed" {
            continue;
        }
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        let volumes = volumes.filter_map(|v| v.image.as_ref()?.reference.as_deref());
        let own = pod::all_containers(&pod).filter_map(|c| c.image.as_deref());
        names.extend(own.chain(volumes).map(full_name));
    }
    shared.pulls.records.keep(&images.iter().map(|i| i.id.clone()).collect(), looked);
    let now = Instant::now();
    records.retain(|id, _| images.iter().any(|i| &i.id == id));
    for image in images {
        let in_use = named(&image, &names);
        let record = records.entry(image.id).or_insert(Record {
            found: (!first).then_some(now),
            used: None,
            size: image.size,
            in_use,
            pinned: image.pinned,
        });
        record.in_use = in_use;
        record.pinned = image.pinned;
        record.size = image.size;
        if in_use {
            record.used = Some(now);
        }
    }
    true
}

/// Removes images of the list until `goal` bytes are free.
async fn remove(records: &mut Records, shared: &Shared, list: Vec<String>, goal: u64) -> u64 {
    let mut freed = 0;
    for id in list {
        if freed >= goal {
            break;
        }
        let size = records.get(&id).map_or(0, |r| r.size);
        match shared.cri.remove_image(&id).await {
            Ok(()) => {
                tracing::info!(image = %id, size, "image removed");
                records.remove(&id);
                freed += size;
                let reason = if goal == u64::MAX { "age" } else { "space" };
                crate::metrics::own::IMAGE_GC.count(&[("reason", reason)]);
            }
            Err(e) => tracing::warn!(image = %id, error = %e, "image not removed"),
        }
    }
    freed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_in_full() {
        for (name, want) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("a/b:1", "docker.io/a/b:1"),
            ("localhost/b", "localhost/b:latest"),
            ("reg:5000/b", "reg:5000/b:latest"),
            ("quay.io/a/b@sha256:00", "quay.io/a/b@sha256:00"),
        ] {
            assert_eq!(full_name(name), want);
        }
    }

    #[test]
    fn an_image_is_known_by_id_tag_or_digest() {
        let image = Image {
            id: "sha256:1".into(),
            repo_tags: vec!["docker.io/library/busybox:latest".into()],
            repo_digests: vec!["docker.io/library/busybox@sha256:2".into()],
            ..Default::default()
        };
        for (name, want) in
            [("sha256:1", true), ("docker.io/library/busybox@sha256:2", true), ("docker.io/library/busybox:1", false)]
        {
            assert_eq!(named(&image, &HashSet::from([name.to_owned()])), want, "{name}");
        }
        assert!(named(&image, &HashSet::from([full_name("busybox")])));
    }
}
