//! Images that other programs wrote, and ours in their hands: tar's ways with holes, many layers, podman, containerd.

mod common;

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{gzip, leftovers, root, tarball};
use cri_images::build::{BuildConfig, LayerBlob, layer_gzip, write_archive};
use cri_images::{Config, Images, MountOptions};

fn open(dir: &Path) -> Images {
    Images::open(Config::new(dir.join("store"))).unwrap()
}

/// Runs a program to its end; its output when it succeeds.
fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[tokio::test]
async fn holes_stay_holes_however_tar_writes_them() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let from = t.path().join("from");
    fs::create_dir(&from).unwrap();
    // More pieces than fit into a header and the block after it; data at the beginning of one file and the end of the other.
    for (name, first) in [("with-a-name-that-says-something", 0u64), ("other", 1)] {
        let mut file = fs::File::create(from.join(name)).unwrap();
        for n in 0..40u64 {
            file.seek(SeekFrom::Start((n + first) << 17)).unwrap();
            file.write_all(format!("piece {n} of {name}").repeat(100).as_bytes()).unwrap();
        }
        if first == 0 {
            file.set_len(48 << 17).unwrap();
        }
    }
    fs::write(from.join("plain"), "no holes").unwrap();
    let images = open(t.path());
    let ways = [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ];
    for (n, way) in ways.iter().enumerate() {
        let archive = t.path().join("layer.tar");
        let ends = [&["-S", "-C", from.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."][..], *way].concat();
        run("tar", &ends).unwrap();
        let plain = fs::read(&archive).unwrap();
        assert!(plain.len() < 2 << 20, "tar left the holes out: {}", plain.len());
        let layer = layer_gzip(&plain).unwrap();
        write_archive(&archive, &format!("t/sparse:{n}"), &[layer], &BuildConfig::default()).unwrap();
        let image = images.import(&archive, None, None).await.unwrap().remove(0);
        let fs_dir = t.path().join("store/layers").join(&image.diff_ids[0]["sha256:".len()..]).join("fs");
        for entry in fs::read_dir(&from).unwrap() {
            let (before, after) = (entry.unwrap().path(), fs_dir.join("x"));
            let after = after.with_file_name(before.file_name().unwrap());
            assert!(fs::read(&before).unwrap() == fs::read(&after).unwrap(), "{way:?}: {}", after.display());
            let meta = fs::metadata(&after).unwrap();
            assert!(meta.blocks() * 512 < 2 << 20, "{way:?}: {} has its holes filled", after.display());
            assert_eq!(meta.mtime(), fs::metadata(&before).unwrap().mtime(), "{way:?}");
        }
        images.remove(&image.id).await.unwrap();
    }
}

#[tokio::test]
async fn five_hundred_layers_are_a_containers_root_and_more_are_refused() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let images = open(t.path());
    let layers: Vec<LayerBlob> = (0..500)
        .map(|n| {
            let (own, text) = (format!("dir/{n}"), n.to_string());
            let mut files = vec![(own.as_str(), text.as_str()), ("last", text.as_str())];
            // Layer 100 hides what layer 50 has.
            if n == 100 {
                files.push(("dir/.wh.50", ""));
            }
            gzip(&files)
        })
        .collect();
    let archive = t.path().join("a.tar");
    write_archive(&archive, "t/many:1", &layers, &BuildConfig::default()).unwrap();
    let image = images.import(&archive, None, None).await.unwrap().remove(0);
    let m = t.path().join("m");
    images.prepare("gantry-many", &image.id).unwrap();
    images.mount("gantry-many", &m, &MountOptions::default()).unwrap();
    assert_eq!(fs::read_dir(m.join("dir")).unwrap().count(), 499);
    assert_eq!(fs::read_to_string(m.join("last")).unwrap(), "499");
    assert_eq!(fs::read_to_string(m.join("dir/0")).unwrap(), "0");
    assert!(!m.join("dir/50").exists());
    fs::write(m.join("dir/0"), "changed").unwrap();
    images.remove_snapshot("gantry-many").unwrap();
    images.remove(&image.id).await.unwrap();

    let more: Vec<LayerBlob> = layers.into_iter().chain([gzip(&[("one", "more")])]).collect();
    write_archive(&archive, "t/many:2", &more, &BuildConfig::default()).unwrap();
    let error = images.import(&archive, None, None).await.unwrap_err().to_string();
    assert!(error.contains("501") && error.contains("500"), "{error}");
    assert!(images.settled(Duration::from_secs(60)));
    assert_eq!(leftovers(&t.path().join("store")), Vec::<std::path::PathBuf>::new());
}

/// An image of two layers in an archive that `image export` wrote, and its id.
async fn exported(images: &Images, dir: &Path) -> (String, std::path::PathBuf) {
    let zstd = LayerBlob { media_type: "application/vnd.oci.image.layer.v1.tar".into(), ..plain_layer(&[("b", "2")]) };
    let layers = [gzip(&[("a", "1"), ("d/e", "deep")]), zstd];
    let archive = dir.join("made.tar");
    let cfg = BuildConfig { cmd: vec!["/a".into()], ..BuildConfig::default() };
    write_archive(&archive, "localhost/t/exchange:1", &layers, &cfg).unwrap();
    let image = images.import(&archive, None, None).await.unwrap().remove(0);
    let out = dir.join("exported.tar");
    images.export("localhost/t/exchange:1", &out).await.unwrap();
    images.remove(&image.id).await.unwrap();
    (image.id, out)
}

fn plain_layer(files: &[(&str, &str)]) -> LayerBlob {
    let bytes = tarball(files);
    LayerBlob { diff_id: cri_images::Digest::of(&bytes), bytes, media_type: String::new() }
}

#[tokio::test]
async fn podman_takes_our_archives_and_we_its() {
    if !root() || run("podman", &["--version"]).map_err(|_| eprintln!("skipped: no podman")).is_err() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let images = open(t.path());
    let (id, ours) = exported(&images, t.path()).await;
    // Its folder for what runs has a short limit.
    let run_root = tempfile::Builder::new().prefix("gp").tempdir_in("/run").unwrap();
    let (root, run_root) = (t.path().join("podman"), run_root.path());
    let podman = |args: &[&str]| {
        let store =
            ["--root", root.to_str().unwrap(), "--runroot", run_root.to_str().unwrap(), "--storage-driver", "vfs"];
        run("podman", &[&store[..], args].concat())
    };
    podman(&["load", "-q", "-i", ours.to_str().unwrap()]).unwrap();
    let listed = podman(&["images", "-a", "--no-trunc", "--format", "{{.ID}}"]).unwrap();
    assert!(listed.contains(&id), "{id} is not in {listed}");
    for format in ["oci-archive", "docker-archive"] {
        let theirs = t.path().join(format);
        podman(&["save", "-q", "--format", format, "-o", theirs.to_str().unwrap(), &id[7..]]).unwrap();
        let image = images.import(&theirs, Some("localhost/back:1"), None).await.unwrap().remove(0);
        // The layers are the same, whatever it made of their compression.
        assert_eq!((image.id.as_str(), image.diff_ids.len()), (id.as_str(), 2), "{format}");
        images.remove(&image.id).await.unwrap();
    }
    podman(&["rmi", "-f", &id[7..]]).unwrap();
}

/// A daemon that ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn containerd_takes_our_archives_and_we_its() {
    if !root() || run("containerd", &["--version"]).map_err(|_| eprintln!("skipped: no containerd")).is_err() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let images = open(t.path());
    let (id, ours) = exported(&images, t.path()).await;
    let (config, socket) = (t.path().join("c.toml"), t.path().join("c.sock"));
    let text = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {socket:?}\n",
        t.path().join("root"),
        t.path().join("state")
    );
    fs::write(&config, text).unwrap();
    let daemon = Command::new("containerd")
        .arg("-c")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _daemon = Daemon(daemon.unwrap());
    let ctr = |args: &[&str]| run("ctr", &[&["-a", socket.to_str().unwrap(), "-n", "t"][..], args].concat());
    let start = Instant::now();
    while let Err(error) = ctr(&["version"]) {
        assert!(start.elapsed() < Duration::from_secs(90), "containerd does not answer: {error}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let snapshots = ["--snapshotter", "native"];
    let import = [&["images", "import"][..], &snapshots, &["--all-platforms", ours.to_str().unwrap()]].concat();
    ctr(&import).unwrap();
    assert!(ctr(&["images", "ls", "-q"]).unwrap().contains("localhost/t/exchange:1"));
    let theirs = t.path().join("theirs.tar");
    ctr(&["images", "export", theirs.to_str().unwrap(), "localhost/t/exchange:1"]).unwrap();
    let image = images.import(&theirs, None, None).await.unwrap().remove(0);
    assert_eq!((image.id.as_str(), &image.repo_tags[..]), (id.as_str(), &["localhost/t/exchange:1".to_owned()][..]));
}
