//! SIGKILL at any moment: a child imports, mounts and removes in a loop, is killed, and the next start finds whole
//! images only and can remove everything.

mod common;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{gzip, leftovers, root, zstd_layer};
use cri_images::build::{BuildConfig, write_archive};
use cri_images::{Config, Digest, Images, MountOptions};

const DIR: &str = "GANTRY_IMAGES_CRASH_DIR";

/// Not a test by itself: what the killed process does.
#[tokio::test]
async fn child_works_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let images = Images::open(Config::new(dir.join("store"))).unwrap();
    for n in 0..10_000 {
        let archive = dir.join(format!("{}.tar", n % 2));
        let image = images.import(&archive, None, None).await.unwrap().remove(0);
        let id = format!("gantry-crash-{}-{}", std::process::id(), n % 3);
        images.prepare(&id, &image.id).unwrap();
        images.mount(&id, &dir.join("m").join(&id), &MountOptions::default()).unwrap();
        if n % 2 == 0 {
            images.remove_snapshot(&id).unwrap();
        }
        images.remove(&image.id).await.unwrap();
        if n % 3 == 2 {
            images.fsck(&HashSet::new());
        }
    }
}

fn check(store: &Path) {
    for entry in fs::read_dir(store.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let digest = Digest::of(&fs::read(&path).unwrap());
        assert_eq!(path.file_name().unwrap().to_str(), Some(digest.hex()));
    }
}

#[tokio::test]
async fn a_kill_at_any_moment_leaves_a_sound_store() {
    if std::env::var_os(DIR).is_some() || !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let text = "some text ".repeat(50_000);
    let shared = gzip(&[("shared", &text), ("a/b/c", "1")]);
    for n in 0..2 {
        let layers = [shared.clone(), zstd_layer(&[("own", &n.to_string())])];
        write_archive(&t.path().join(format!("{n}.tar")), &format!("crash:{n}"), &layers, &BuildConfig::default())
            .unwrap();
    }
    let store = t.path().join("store");
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_works_until_it_is_killed"])
            .env(DIR, t.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(60 + round * 17));
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ended.is_none(), "the child failed by itself: {ended:?}");

        let images = Images::open(Config::new(&store)).unwrap();
        check(&store);
        for image in images.list() {
            images.prepare("gantry-crash-check", &image.id).unwrap();
            let m = t.path().join("m/check");
            images.mount("gantry-crash-check", &m, &MountOptions::default()).unwrap();
            assert_eq!(fs::read_to_string(m.join("shared")).unwrap(), text);
            images.remove_snapshot("gantry-crash-check").unwrap();
        }
        if round % 2 == 1 {
            let report = images.fsck(&HashSet::new());
            assert!(report.faults.is_empty() && report.broken_images.is_empty(), "{report:?}");
            for image in images.list() {
                images.remove(&image.id).await.unwrap();
            }
            assert_eq!(leftovers(&store), Vec::<PathBuf>::new());
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!mounts.contains("gantry-crash-"), "a mount is left");
        }
    }
}
