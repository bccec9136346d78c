//! Pulls from a real registry: Debian's docker-registry on loopback.

mod common;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::{DockerRegistry, documents, gzip, leftovers, root, zstd_layer};
use cri_images::build::BuildConfig;
use cri_images::{Config, Digest, Images, MountOptions, Phase};
use serde_json::json;

fn config(store: &std::path::Path) -> Config {
    let mut config = Config::new(store);
    config.config_path = store.join("no-certs.d");
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_mounted_read_and_removed() {
    let (true, Some(registry)) = (root(), DockerRegistry::start()) else { return };
    let t = tempfile::tempdir().unwrap();
    let store = t.path().join("store");
    let images = Images::open(config(&store)).unwrap();
    let busybox = fs::read("/usr/bin/busybox").or_else(|_| fs::read("/bin/busybox")).unwrap_or_default();
    let busybox: String = busybox.iter().take(300_000).map(|b| char::from(b & 0x7f)).collect();
    let layers =
        [gzip(&[("bin/busybox", &busybox), ("etc/a", "1")]), zstd_layer(&[("etc/b", "2")]), gzip(&[("etc/a", "3")])];
    let cfg = BuildConfig { cmd: vec!["/bin/busybox".into()], env: vec!["X=y".into()], ..Default::default() };
    let manifest = registry.push("test/app", "1", &layers, &cfg);

    let name = format!("127.0.0.1:{}/test/app:1", registry.port);
    let steps = Arc::new(Mutex::new(Vec::new()));
    let sink = steps.clone();
    let image = images.pull(&name, None, Some(Arc::new(move |p| sink.lock().unwrap().push(p.clone())))).await.unwrap();
    assert_eq!(image.repo_tags, std::slice::from_ref(&name));
    let digest = format!("127.0.0.1:{}/test/app@{}", registry.port, Digest::of(&manifest));
    assert_eq!(image.repo_digests, std::slice::from_ref(&digest));
    assert_eq!(image.config.cmd, ["/bin/busybox"]);
    assert_eq!(image.size, busybox.len() as u64 + 3);
    let last = steps.lock().unwrap().last().cloned().unwrap();
    assert_eq!((last.phase, last.layers_done, last.layers_total), (Phase::Done, 3, 3));
    assert_eq!(last.bytes_done, last.bytes_total);

    images.prepare("c", &digest).unwrap();
    images.mount("c", &t.path().join("m"), &MountOptions::default()).unwrap();
    assert_eq!(fs::read_to_string(t.path().join("m/etc/a")).unwrap(), "3");
    assert_eq!(fs::read_to_string(t.path().join("m/etc/b")).unwrap(), "2");
    assert_eq!(fs::read_to_string(t.path().join("m/bin/busybox")).unwrap(), busybox);

    // By digest the same image comes again, at once, and the tag stays.
    let same = images.pull(&digest, None, None).await.unwrap();
    assert_eq!(same.id, image.id);
    assert_eq!(same.repo_tags, image.repo_tags);
    images.remove_snapshot("c").unwrap();
    assert!(images.remove(&image.id).await.unwrap());
    assert_eq!(leftovers(&store), Vec::<std::path::PathBuf>::new());
    assert_eq!(images.fs_usage().bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_of_this_machine_is_chosen_from_an_index() {
    let (true, Some(registry)) = (root(), DockerRegistry::start()) else { return };
    let t = tempfile::tempdir().unwrap();
    let images = Images::open(config(&t.path().join("store"))).unwrap();
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let right = registry.push("multi", "right", &[gzip(&[("arch", "right")])], &BuildConfig::default());
    let wrong = registry.push("multi", "wrong", &[gzip(&[("arch", "wrong")])], &BuildConfig::default());
    let entry = |m: &[u8], arch: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::of(m).to_string(),
            "size": m.len(),
            "platform": {"os": "linux", "architecture": arch},
        })
    };
    for (tag, kind) in [
        ("oci", "application/vnd.oci.image.index.v1+json"),
        ("docker", "application/vnd.docker.distribution.manifest.list.v2+json"),
    ] {
        let index =
            json!({"schemaVersion": 2, "mediaType": kind, "manifests": [entry(&wrong, "s390x"), entry(&right, arch)]});
        registry.push_manifest("multi", tag, kind, index.to_string().as_bytes());
        let image = images.pull(&format!("127.0.0.1:{}/multi:{tag}", registry.port), None, None).await.unwrap();
        // The repo digest is the index's: that is what the tag means.
        assert!(image.repo_digests.iter().any(|d| d.ends_with(&Digest::of(index.to_string().as_bytes()).to_string())));
        images.prepare(tag, &image.id).unwrap();
        let m = t.path().join(tag);
        images.mount(tag, &m, &MountOptions::default()).unwrap();
        assert_eq!(fs::read_to_string(m.join("arch")).unwrap(), "right");
        images.remove_snapshot(tag).unwrap();
    }
    let index = json!({"schemaVersion": 2, "manifests": [entry(&wrong, "s390x")]});
    registry.push_manifest("multi", "none", "application/vnd.oci.image.index.v1+json", index.to_string().as_bytes());
    let error = images.pull(&format!("127.0.0.1:{}/multi:none", registry.port), None, None).await.unwrap_err();
    assert!(error.to_string().contains("linux/s390x"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_pulled_says_why_and_leaves_nothing() {
    let (true, Some(registry)) = (root(), DockerRegistry::start()) else { return };
    let t = tempfile::tempdir().unwrap();
    let store = t.path().join("store");
    let images = Images::open(config(&store)).unwrap();
    let host = format!("127.0.0.1:{}", registry.port);
    registry.push("app", "1", &[gzip(&[("a", "1")])], &BuildConfig::default());

    let error = images.pull(&format!("{host}/app:nope"), None, None).await.unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
    assert!(error.to_string().starts_with(&format!("pull {host}/app:nope: manifest unknown (404)")), "{error}");
    let error = images.pull(&format!("{host}/nope:1"), None, None).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let absent = Digest::of(b"absent");
    assert!(images.pull(&format!("{host}/app@{absent}"), None, None).await.unwrap_err().is_not_found());
    assert!(images.pull("Bad//Name", None, None).await.unwrap_err().is_invalid());

    // A blob that rotted in the registry.
    let good = gzip(&[("good", "1")]);
    let rotten = gzip(&[("rotten", "this one changes")]);
    registry.push("rot", "1", &[good, rotten.clone()], &BuildConfig::default());
    let file = registry.blob_file(&Digest::of(&rotten.bytes));
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&file, &bytes).unwrap();
    let error = images.pull(&format!("{host}/rot:1"), None, None).await.unwrap_err();
    assert!(error.is_corrupt() && error.to_string().contains("digest mismatch"), "{error}");
    assert!(error.to_string().contains(&Digest::of(&rotten.bytes).to_string()), "{error}");

    // A layer that is not what the config says.
    let mut lying = gzip(&[("x", "1")]);
    lying.diff_id = Digest::of(b"other");
    registry.push("lie", "1", &[lying], &BuildConfig::default());
    let error = images.pull(&format!("{host}/lie:1"), None, None).await.unwrap_err();
    assert!(error.to_string().contains("uncompressed layer"), "{error}");

    // A config that names another number of layers.
    let (config, _) = documents(&[], &BuildConfig::default());
    let layer = gzip(&[("y", "1")]);
    let manifest = cri_images::build::manifest_json(&config, std::slice::from_ref(&layer)).to_string();
    registry.push_blob("count", &config);
    registry.push_blob("count", &layer.bytes);
    registry.push_manifest("count", "1", "application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
    let error = images.pull(&format!("{host}/count:1"), None, None).await.unwrap_err();
    assert!(error.to_string().contains("0 diff ids for 1 layers"), "{error}");

    assert!(images.list().is_empty());
    assert_eq!(leftovers(&store), Vec::<std::path::PathBuf>::new());
    let port = common::free_port();
    let mut quick = self::config(&t.path().join("quick"));
    quick.timeouts.attempts = 1;
    let quick = Images::open(quick).unwrap();
    let error = quick.pull(&format!("127.0.0.1:{port}/x:1"), None, None).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_at_the_same_time_share_the_work() {
    let (true, Some(registry)) = (root(), DockerRegistry::start()) else { return };
    let t = tempfile::tempdir().unwrap();
    let store = t.path().join("store");
    let images = Images::open(config(&store)).unwrap();
    let shared = gzip(&[("shared", &"s".repeat(500_000))]);
    for n in 0..6 {
        let own = gzip(&[("own", &n.to_string())]);
        registry.push("many", &n.to_string(), &[shared.clone(), own], &BuildConfig::default());
    }
    let done = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..12)
        .map(|n| {
            let (images, done) = (images.clone(), done.clone());
            let name = format!("127.0.0.1:{}/many:{}", registry.port, n % 6);
            tokio::spawn(async move {
                images.pull(&name, None, None).await.unwrap();
                done.fetch_add(1, Ordering::Relaxed);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(done.load(Ordering::Relaxed), 12);
    assert_eq!(images.list().len(), 6);
    assert_eq!(fs::read_dir(store.join("layers")).unwrap().count(), 7);
    // Pulls and removals of images that share a layer, at random: at the end nothing is left.
    let tasks: Vec<_> = (0..12)
        .map(|n| {
            let images = images.clone();
            let name = format!("127.0.0.1:{}/many:{}", registry.port, n % 6);
            tokio::spawn(async move {
                for _ in 0..3 {
                    images.pull(&name, None, None).await.unwrap();
                    images.remove(&name).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for image in images.list() {
        images.remove(&image.id).await.unwrap();
    }
    assert_eq!(leftovers(&store), Vec::<std::path::PathBuf>::new());
    assert_eq!((images.fs_usage().bytes, images.fs_usage().inodes), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn layer_blobs_can_be_dropped_after_unpacking() {
    let (true, Some(registry)) = (root(), DockerRegistry::start()) else { return };
    let t = tempfile::tempdir().unwrap();
    let mut config = config(&t.path().join("store"));
    config.keep_layer_blobs = false;
    let images = Images::open(config).unwrap();
    registry.push("thin", "1", &[gzip(&[("a", "1")])], &BuildConfig::default());
    let name = format!("127.0.0.1:{}/thin:1", registry.port);
    images.pull(&name, None, None).await.unwrap();
    assert_eq!(fs::read_dir(t.path().join("store/blobs/sha256")).unwrap().count(), 2, "manifest and config");
    let error = images.export(&name, &t.path().join("out.tar")).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(!t.path().join("out.tar.part").exists());
}
