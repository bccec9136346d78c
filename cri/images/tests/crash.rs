//! SIGKILL at any moment: a child imports, mounts and removes in a loop, is killed, and the next start finds whole
//! images only and can remove everything.

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use common::{Scripted, answer, documents, gzip, leftovers, root, zstd_layer};
use cri_images::build::{BuildConfig, write_archive};
use cri_images::{Config, Digest, Images, MountOptions, Snapshotter};

const DIR: &str = "GANTRY_IMAGES_CRASH_DIR";
/// What the killed process pulls.
const PULL: &str = "GANTRY_IMAGES_CRASH_PULL";
/// Its containers get copies of the layers.
const COPIES: &str = "GANTRY_IMAGES_CRASH_COPIES";

fn config(store: &Path, copies: bool) -> Config {
    let mut config = Config::new(store);
    if copies {
        config.snapshotter = Snapshotter::Native;
    }
    config
}

/// Not a test by itself: what the killed process does.
#[tokio::test]
async fn child_works_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let images = Images::open(config(&dir.join("store"), std::env::var_os(COPIES).is_some())).unwrap();
    if let Ok(name) = std::env::var(PULL) {
        images.pull(&name, None, None).await.unwrap();
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    for n in 0..10_000 {
        let archive = dir.join(format!("{}.tar", n % 2));
        let image = images.import(&archive, None, None).await.unwrap().remove(0);
        let id = format!("gantry-crash-{}-{}", std::process::id(), n % 3);
        images.prepare_at(&id, &image.id, &dir.join("m").join(&id)).unwrap();
        images.mount(&id, &dir.join("m").join(&id), &MountOptions::default()).unwrap();
        let view = format!("{id}-v");
        images.prepare_view(&view, &image.id).unwrap();
        images.mount(&view, &dir.join("m").join(&view), &MountOptions::default()).unwrap();
        if n % 2 == 0 {
            images.remove_snapshot(&id).unwrap();
            images.remove_snapshot(&view).unwrap();
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
    killed_at_any_moment(12, false).await;
}

#[tokio::test]
async fn so_it_does_while_layers_are_copied() {
    killed_at_any_moment(8, true).await;
}

async fn killed_at_any_moment(rounds: u64, copies: bool) {
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
    for round in 0..rounds {
        let mut command = Command::new(std::env::current_exe().unwrap());
        if copies {
            command.env(COPIES, "1");
        }
        let mut child = command
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

        let images = Images::open(config(&store, copies)).unwrap();
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
            assert!(!mounts.contains(&*t.path().to_string_lossy()), "a mount is left");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_killed_leaves_nothing_and_is_made_up_for() {
    if std::env::var_os(DIR).is_some() || !root() {
        return;
    }
    const PIECES: usize = 6;
    let noise = |seed: u32| -> String {
        let mut at = seed;
        let mut next = || {
            at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(b' ' + (at >> 24) as u8 % 90)
        };
        (0..150_000).map(|_| next()).collect()
    };
    let files: Vec<(String, String)> = (0..4).map(|n| (format!("dir{n}/file"), noise(n + 1))).collect();
    let layers: Vec<_> = files.iter().map(|(name, text)| gzip(&[(name, text), ("same", name)])).collect();
    let (config, manifest) = documents(&layers, &BuildConfig::default());
    let blobs: Vec<Vec<u8>> = layers.into_iter().map(|l| l.bytes).chain([config]).collect();
    // Whoever kills hears of each piece that was sent.
    let (sent, pieces) = mpsc::channel();
    let server = Scripted::start(move |seen, s| {
        if seen.path == "/v2/repo/manifests/1" {
            let _ = sent.send(());
            return answer(s, "200 OK", "", &manifest);
        }
        let Some(blob) = blobs.iter().find(|b| seen.path.ends_with(&Digest::of(b).to_string())) else {
            return answer(s, "404 Not Found", "", b"");
        };
        write!(s, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", blob.len())?;
        for piece in blob.chunks(blob.len() / PIECES + 1) {
            s.write_all(piece)?;
            s.flush()?;
            let _ = sent.send(());
        }
        Ok(())
    });
    let t = tempfile::tempdir().unwrap();
    let store = t.path().join("store");
    let name = format!("127.0.0.1:{}/repo:1", server.port);
    for round in 0..30u64 {
        while pieces.try_recv().is_ok() {}
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_works_until_it_is_killed"])
            .env(DIR, t.path())
            .env(PULL, &name)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..=round {
            pieces.recv_timeout(Duration::from_secs(60)).unwrap();
        }
        std::thread::sleep(Duration::from_micros(round * 797 % 5000));
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ended.is_none(), "the child failed by itself: {ended:?}");

        let images = Images::open(Config::new(&store)).unwrap();
        check(&store);
        assert_eq!(images.check(&HashSet::new()), Vec::<String>::new(), "round {round}");
        if images.list().is_empty() {
            assert_eq!(leftovers(&store), Vec::<PathBuf>::new(), "round {round}");
            assert_eq!(images.fs_usage().bytes, 0, "round {round}");
        } else {
            // The pull was through when it was killed: the next starts from nothing again.
            images.remove(&name).await.unwrap();
        }
    }
    let images = Images::open(Config::new(&store)).unwrap();
    let image = images.pull(&name, None, None).await.unwrap();
    images.prepare("gantry-crash-pull", &image.id).unwrap();
    let m = t.path().join("m/pull");
    images.mount("gantry-crash-pull", &m, &MountOptions::default()).unwrap();
    for (name, text) in &files {
        assert!(fs::read_to_string(m.join(name)).unwrap() == *text, "{name}");
    }
    images.remove_snapshot("gantry-crash-pull").unwrap();
    images.remove(&image.id).await.unwrap();
    assert!(images.settled(Duration::from_secs(60)));
    assert_eq!(leftovers(&store), Vec::<PathBuf>::new());
}
