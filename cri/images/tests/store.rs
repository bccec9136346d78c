//! The store from outside: import, mount, remove, crash leftovers, hostile layers. Needs root for most.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cri_images::build::{BuildConfig, LayerBlob, archive_from_rootfs, layer_gzip, write_archive};
use cri_images::{Config, Digest, Error, Images, MountOptions};
use tar::{EntryType, Header};

fn root() -> bool {
    let is = rustix::process::geteuid().is_root();
    if !is {
        eprintln!("skipped: needs root");
    }
    is
}

fn open(dir: &Path) -> Images {
    Images::open(Config::new(dir.join("store"))).unwrap()
}

/// (name, kind, content or link target)
fn tarball(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, text) in entries {
        let mut h = Header::new_gnu();
        // Written by hand: the tar crate refuses the names that we want to test.
        let bytes = name.as_bytes();
        h.as_old_mut().name[..bytes.len()].copy_from_slice(bytes);
        h.set_entry_type(*kind);
        h.set_mode(if *kind == EntryType::Directory { 0o755 } else { 0o644 });
        h.set_uid(0);
        h.set_gid(0);
        h.set_mtime(1_000_000_000);
        let link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if link {
            h.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        let content = if link { "" } else { text };
        h.set_size(content.len() as u64);
        h.set_cksum();
        tar.append(&h, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn layer(entries: &[(&str, EntryType, &str)]) -> LayerBlob {
    layer_gzip(&tarball(entries)).unwrap()
}

fn zstd_layer(entries: &[(&str, EntryType, &str)]) -> LayerBlob {
    let plain = tarball(entries);
    LayerBlob {
        bytes: zstd::encode_all(&plain[..], 3).unwrap(),
        media_type: "application/vnd.oci.image.layer.v1.tar+zstd".into(),
        diff_id: Digest::of(&plain),
    }
}

const F: EntryType = EntryType::Regular;
const D: EntryType = EntryType::Directory;
const S: EntryType = EntryType::Symlink;
const L: EntryType = EntryType::Link;

async fn import_layers(
    images: &Images,
    dir: &Path,
    name: &str,
    layers: &[LayerBlob],
) -> Result<cri_images::Image, Error> {
    let archive = dir.join("archive.tar");
    write_archive(&archive, name, layers, &BuildConfig::default()).unwrap();
    images.import(&archive, None, None).await.map(|mut v| v.remove(0))
}

/// Everything in the store that is not an empty folder or bookkeeping.
fn leftovers(store: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for sub in ["blobs/sha256", "ingest", "layers", "unpack", "snapshots", "views", "trash", "empty"] {
        out.extend(fs::read_dir(store.join(sub)).unwrap().map(|e| e.unwrap().path()));
    }
    out
}

#[tokio::test]
async fn a_built_image_is_imported_mounted_and_removed() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let rootfs = t.path().join("rootfs");
    fs::create_dir_all(rootfs.join("bin")).unwrap();
    fs::write(rootfs.join("bin/app"), "program").unwrap();
    fs::set_permissions(rootfs.join("bin/app"), fs::Permissions::from_mode(0o4755)).unwrap();
    std::os::unix::fs::symlink("app", rootfs.join("bin/link")).unwrap();
    let cfg = BuildConfig {
        entrypoint: vec!["/bin/app".into()],
        env: vec!["A=b".into()],
        user: "1000:1000".into(),
        labels: BTreeMap::from([("k".into(), "v".into())]),
        ..BuildConfig::default()
    };
    let archive = t.path().join("demo.tar");
    archive_from_rootfs(&rootfs, "gantry.local/demo:1", &cfg, &archive).unwrap();
    let again = t.path().join("again.tar");
    archive_from_rootfs(&rootfs, "gantry.local/demo:1", &cfg, &again).unwrap();
    assert_eq!(fs::read(&archive).unwrap(), fs::read(&again).unwrap(), "builds are reproducible");

    let images = open(t.path());
    let image = images.import(&archive, None, None).await.unwrap().remove(0);
    assert_eq!(image.repo_tags, ["gantry.local/demo:1"]);
    assert_eq!(image.config.entrypoint, ["/bin/app"]);
    assert_eq!(image.config.labels["k"], "v");
    assert_eq!(image.repo_digests.len(), 1);
    for name in ["gantry.local/demo:1", &image.id, &image.id[7..19], &image.repo_digests[0]] {
        assert_eq!(images.get(name).as_ref(), Some(&image), "{name}");
    }
    assert!(images.fs_usage().bytes > 7);

    let target = t.path().join("mnt/rootfs");
    images.prepare("c1", &image.id).unwrap();
    images.prepare("c1", &image.id).unwrap();
    images.mount("c1", &target, &MountOptions::default()).unwrap();
    images.mount("c1", &target, &MountOptions::default()).unwrap();
    assert_eq!(fs::read_to_string(target.join("bin/link")).unwrap(), "program");
    assert_eq!(fs::metadata(target.join("bin/app")).unwrap().mode() & 0o7777, 0o4755);
    fs::write(target.join("new"), vec![1; 10_000]).unwrap();
    assert!(images.snapshot_usage("c1").unwrap().bytes >= 10_000);

    // The image goes while the container runs: its layers stay until the snapshot is gone.
    assert!(images.remove("gantry.local/demo:1").await.unwrap());
    assert!(!images.remove("gantry.local/demo:1").await.unwrap());
    assert!(images.list().is_empty());
    assert_eq!(fs::read_to_string(target.join("bin/app")).unwrap(), "program");

    // A restart finds it all again.
    drop(images);
    let images = open(t.path());
    assert_eq!(images.snapshots().len(), 1);
    assert_eq!(fs::read_to_string(target.join("bin/app")).unwrap(), "program");
    images.remove_snapshot("c1").unwrap();
    images.remove_snapshot("c1").unwrap();
    assert!(!target.join("bin").exists(), "unmounted");
    assert!(images.settled(Duration::from_secs(60)));
    assert_eq!(leftovers(&t.path().join("store")), Vec::<PathBuf>::new());
    assert_eq!((images.fs_usage().bytes, images.fs_usage().inodes), (0, 0));
}

#[tokio::test]
async fn whiteouts_and_opaque_directories_hide_lower_layers() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let images = open(t.path());
    let base = layer(&[
        ("gone", F, "1"),
        ("keep", F, "1"),
        ("dir", D, ""),
        ("dir/old", F, "1"),
        ("repl", D, ""),
        ("repl/old", F, "1"),
        ("late", D, ""),
        ("late/old", F, "1"),
        ("tofile", D, ""),
        ("tofile/x", F, "1"),
    ]);
    let top = zstd_layer(&[
        (".wh.gone", F, ""),
        ("dir/.wh..wh..opq", F, ""),
        ("dir/new", F, "2"),
        (".wh.repl", F, ""),
        ("repl", D, ""),
        ("repl/new", F, "2"),
        ("late", D, ""),
        ("late/new", F, "2"),
        (".wh.late", F, ""),
        ("tofile", F, "now a file"),
        ("twice", F, "first"),
        ("twice", F, "last wins"),
        ("./dot/../flat", F, "3"),
        ("/abs/path", F, "4"),
        ("usr/lib", D, ""),
        ("lib", S, "usr/lib"),
        ("lib/so", F, "5"),
        ("abslink", S, "/usr/lib"),
        ("abslink/so2", F, "6"),
        ("hard", L, "usr/lib/so"),
        ("esc", S, "../../../../../../tmp"),
        ("esc/inside", F, "7"),
    ]);
    // The same layer twice: overlayfs would refuse the directory twice.
    let image = import_layers(&images, t.path(), "t/w:1", &[base.clone(), top.clone(), top]).await.unwrap();
    let m = t.path().join("m");
    images.prepare("w", &image.id).unwrap();
    images.mount("w", &m, &MountOptions { read_only: true, ..Default::default() }).unwrap();
    let read = |p: &str| fs::read_to_string(m.join(p)).ok();
    assert_eq!(read("gone"), None);
    assert_eq!(read("keep").as_deref(), Some("1"));
    for dir in ["dir", "repl", "late"] {
        assert_eq!(read(&format!("{dir}/old")), None, "{dir}");
        assert_eq!(read(&format!("{dir}/new")).as_deref(), Some("2"), "{dir}");
    }
    assert_eq!(read("tofile").as_deref(), Some("now a file"));
    assert_eq!(read("twice").as_deref(), Some("last wins"));
    assert_eq!(read("flat").as_deref(), Some("3"));
    assert_eq!(read("abs/path").as_deref(), Some("4"));
    assert_eq!(read("usr/lib/so").as_deref(), Some("5"));
    assert_eq!(read("usr/lib/so2").as_deref(), Some("6"));
    assert_eq!(read("hard").as_deref(), Some("5"));
    assert_eq!(read("tmp/inside").as_deref(), Some("7"), "an escaping link stays below the layer's root");
    assert!(!Path::new("/tmp/inside").exists());
    assert_eq!(fs::metadata(m.join("keep")).unwrap().mtime(), 1_000_000_000);
    assert!(fs::write(m.join("keep"), "x").is_err(), "read-only");
    // A view of one layer works too.
    images.prepare_view("v", &image.id).unwrap();
    images.mount("v", &t.path().join("v"), &MountOptions::default()).unwrap();
    assert_eq!(fs::read_to_string(t.path().join("v/keep")).unwrap(), "1");
    // Nobody wants them any more.
    let report = images.fsck(&HashSet::from(["v".to_string(), "missing".to_string()]));
    assert_eq!(report.removed_snapshots, ["w"]);
    assert_eq!(report.missing_snapshots, ["missing"]);
    assert!(report.faults.is_empty(), "{report:?}");
    assert!(!m.join("keep").exists());
    images.remove_snapshot("v").unwrap();
    images.remove(&image.id).await.unwrap();
    assert!(images.settled(Duration::from_secs(60)));
    assert_eq!(leftovers(&t.path().join("store")), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn hostile_layers_are_refused_and_leave_nothing() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let mut config = Config::new(t.path().join("store"));
    config.limits.layer_bytes = 4 << 20;
    config.limits.layer_entries = 1000;
    let images = Images::open(config).unwrap();
    let many: Vec<String> = (0..1001).map(|n| format!("f{n}")).collect();
    let many: Vec<_> = many.iter().map(|n| (n.as_str(), F, "")).collect();
    let big = "x".repeat(5 << 20);
    let mut lying = layer(&[("a", F, "1")]);
    lying.diff_id = Digest::of(b"something else");
    let mut cut = layer(&[("a", F, "some text that is long enough")]);
    cut.bytes.truncate(cut.bytes.len() - 12);
    let noise = LayerBlob { bytes: b"not a tar at all, but long enough".repeat(40), ..layer(&[]) };
    let cases: Vec<(&str, LayerBlob, &str)> = vec![
        ("dotdot", layer(&[("../evil", F, "1")]), ".."),
        ("deep dotdot", layer(&[("a/../../evil", F, "1")]), ".."),
        ("hard link out", layer(&[("h", L, "../../etc/passwd")]), ".."),
        ("hard link to the host", layer(&[("h", L, "/etc/passwd")]), "not in this layer"),
        ("hard link through a link", layer(&[("s", S, "/etc"), ("h", L, "s/passwd")]), "not in this layer"),
        ("hard link to a directory", layer(&[("d", D, ""), ("h", L, "d")]), "directory"),
        ("link loop as parent", layer(&[("a", S, "b"), ("b", S, "a"), ("a/x", F, "1")]), ""),
        ("file as parent", layer(&[("f", F, "1"), ("f/x", F, "1")]), ""),
        ("whiteout of dotdot", layer(&[(".wh...", F, "")]), "whiteout"),
        ("too many entries", layer(&many), "entries"),
        ("too many bytes", layer(&[("big", F, &big)]), "limit"),
        ("wrong diff id", lying, "digest mismatch"),
        ("cut", cut, ""),
        ("noise", noise, ""),
    ];
    for (what, layer, text) in cases {
        let error =
            import_layers(&images, t.path(), "t/evil:1", &[layer]).await.err().unwrap_or_else(|| panic!("{what}"));
        assert!(error.to_string().contains(text), "{what}: {error}");
        assert!(error.is_corrupt(), "{what}: {error:?}");
        assert_eq!(leftovers(&t.path().join("store")), Vec::<PathBuf>::new(), "{what}");
    }
    assert!(images.list().is_empty());
    assert!(!t.path().join("evil").exists() && !t.path().join("store/evil").exists());
}

#[tokio::test]
async fn devices_fifos_and_nested_directories_unpack_and_vanish() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let images = open(t.path());
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, major, minor) in [("null", EntryType::Char, 1, 3), ("pipe", EntryType::Fifo, 0, 0)] {
        let mut h = Header::new_gnu();
        h.set_entry_type(kind);
        h.set_mode(0o666);
        h.set_size(0);
        h.set_uid(5);
        h.set_gid(6);
        h.set_device_major(major).unwrap();
        h.set_device_minor(minor).unwrap();
        tar.append_data(&mut h, name, std::io::empty()).unwrap();
    }
    let deep = "d/".repeat(1500);
    let mut h = Header::new_gnu();
    h.set_mode(0o600);
    h.set_size(1);
    h.set_mtime(0);
    tar.append_data(&mut h, format!("{deep}file"), &b"x"[..]).unwrap();
    let mut cap = Header::new_ustar();
    cap.set_mode(0o755);
    cap.set_size(0);
    let value = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    tar.append_pax_extensions([
        ("SCHILY.xattr.security.capability", &value[..]),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
    ])
    .unwrap();
    cap.set_path("ping").unwrap();
    cap.set_cksum();
    tar.append(&cap, std::io::empty()).unwrap();
    let image =
        import_layers(&images, t.path(), "t/d:1", &[layer_gzip(&tar.into_inner().unwrap()).unwrap()]).await.unwrap();
    let m = t.path().join("m");
    images.prepare("d", &image.id).unwrap();
    images.mount("d", &m, &MountOptions::default()).unwrap();
    let null = fs::metadata(m.join("null")).unwrap();
    assert!(
        null.file_type().is_char_device() && null.rdev() == 0x103 && null.uid() == 5 && null.mode() & 0o777 == 0o666
    );
    assert!(fs::metadata(m.join("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(fs::read_to_string(m.join(&deep).join("file")).unwrap(), "x");
    let mut buf = [0u8; 64];
    let n = rustix::fs::getxattr(m.join("ping"), "security.capability", &mut buf[..]).unwrap();
    assert_eq!(n, value.len());
    images.remove_snapshot("d").unwrap();
    images.remove(&image.id).await.unwrap();
    assert!(images.settled(Duration::from_secs(60)));
    assert_eq!(leftovers(&t.path().join("store")), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn docker_save_archives_are_imported_compressed_or_not() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let images = open(t.path());
    let plain = tarball(&[("hello", F, "docker")]);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/hello"],"Env":null}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        Digest::of(&plain)
    );
    let manifest = r#"[{"Config":"abc.json","RepoTags":["my/app:2"],"Layers":["l1/layer.tar"]}]"#;
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in
        [("abc.json", config.as_bytes()), ("l1/layer.tar", &plain[..]), ("manifest.json", manifest.as_bytes())]
    {
        let mut h = Header::new_gnu();
        h.set_mode(0o644);
        h.set_size(bytes.len() as u64);
        tar.append_data(&mut h, name, bytes).unwrap();
    }
    let bytes = tar.into_inner().unwrap();
    let path = t.path().join("save.tar.zst");
    fs::write(&path, zstd::encode_all(&bytes[..], 3).unwrap()).unwrap();
    let image = images.import(&path, None, None).await.unwrap().remove(0);
    assert_eq!(image.repo_tags, ["docker.io/my/app:2"]);
    assert_eq!(image.config.cmd, ["/hello"]);
    assert_eq!(image.id, Digest::of(config.as_bytes()).to_string());

    // Out as an OCI archive and in again under another name, in a fresh store.
    let out = t.path().join("out.tar");
    images.export("my/app:2", &out).await.unwrap();
    let other = Images::open(Config::new(t.path().join("other"))).unwrap();
    let same = other.import(&out, Some("renamed:1"), None).await.unwrap().remove(0);
    assert_eq!(same.id, image.id);
    assert_eq!(same.repo_tags, ["docker.io/library/renamed:1"]);

    // The archive itself as a folder.
    let layout = t.path().join("layout");
    tar::Archive::new(fs::File::open(&out).unwrap()).unpack(&layout).unwrap();
    other.remove("renamed:1").await.unwrap();
    assert_eq!(other.import(&layout, None, None).await.unwrap()[0].repo_tags, ["docker.io/my/app:2"]);

    // A blob that is not what its name says.
    let hex = image.id.strip_prefix("sha256:").unwrap();
    fs::write(layout.join("blobs/sha256").join(hex), "{}").unwrap();
    other.remove("my/app:2").await.unwrap();
    let error = other.import(&layout, None, None).await.unwrap_err();
    assert!(error.to_string().contains("digest mismatch"), "{error}");
    assert_eq!(leftovers(&t.path().join("other")), Vec::<PathBuf>::new());
    for bad in ["empty", "text"] {
        let path = t.path().join(bad);
        fs::write(&path, if bad == "empty" { "" } else { "hello, this is no archive" }).unwrap();
        assert!(other.import(&path, None, None).await.unwrap_err().is_invalid());
    }
}

#[tokio::test]
async fn a_start_removes_what_a_crash_left() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let store = t.path().join("store");
    let images = open(t.path());
    let image = import_layers(&images, t.path(), "t/a:1", &[layer(&[("a", F, "1")])]).await.unwrap();
    let other = import_layers(&images, t.path(), "t/b:1", &[layer(&[("b", F, "1")])]).await.unwrap();
    assert!(matches!(Images::open(Config::new(&store)), Err(Error::Locked { .. })));
    drop(images);
    fs::write(store.join("ingest/7"), "half").unwrap();
    fs::create_dir_all(store.join("unpack/3/fs/x")).unwrap();
    fs::create_dir_all(store.join("snapshots/half/fs")).unwrap();
    fs::create_dir_all(store.join("trash/t1/x/y")).unwrap();
    let orphan = Digest::of(b"orphan");
    fs::write(store.join("blobs/sha256").join(orphan.hex()), "orphan").unwrap();
    fs::create_dir_all(store.join("layers").join(orphan.hex()).join("fs")).unwrap();
    let gone = other.diff_ids[0].strip_prefix("sha256:").unwrap();
    fs::remove_dir_all(store.join("layers").join(gone)).unwrap();
    let images = open(t.path());
    assert_eq!(images.list().iter().map(|i| i.id.clone()).collect::<Vec<_>>(), std::slice::from_ref(&image.id));
    assert!(images.snapshots().is_empty());
    images.remove(&image.id).await.unwrap();
    assert_eq!(leftovers(&store), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_snapshot_whose_target_is_known_is_written_down_once() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let images = open(t.path());
    let image = import_layers(&images, t.path(), "t/a:1", &[layer(&[("a", F, "1")])]).await.unwrap();
    let m = t.path().join("m");
    images.prepare_at("gantry-once", &image.id, &m).unwrap();
    // Each writing gives the file another inode.
    let written = || {
        std::os::unix::fs::MetadataExt::ino(
            &t.path().join("store/snapshots/gantry-once/snapshot.json").metadata().unwrap(),
        )
    };
    let once = written();
    images.mount("gantry-once", &m, &MountOptions::default()).unwrap();
    assert_eq!(fs::read_to_string(m.join("a")).unwrap(), "1");
    assert_eq!(written(), once);
    // Whoever opens the store next knows where it is, and mounts it no second time.
    drop(images);
    let images = open(t.path());
    assert_eq!(images.snapshots()[0].targets, [m.canonicalize().unwrap()]);
    images.mount("gantry-once", &m, &MountOptions::default()).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(mounts.lines().filter(|l| l.contains("gantry-once")).count(), 1);
    images.remove_snapshot("gantry-once").unwrap();
    assert!(!m.join("a").exists());
    images.remove(&image.id).await.unwrap();
    assert!(images.settled(std::time::Duration::from_secs(60)));
    assert_eq!(leftovers(&t.path().join("store")), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_nothing() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let disk = t.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "none"])
        .arg(&disk)
        .status()
        .is_ok_and(|s| s.success());
    if !mounted {
        eprintln!("skipped: cannot mount a tmpfs");
        return;
    }
    let images = Images::open(Config::new(disk.join("store"))).unwrap();
    // Compresses well: the blob fits, the unpacked layer does not.
    let error = import_layers(&images, t.path(), "t/full:1", &[layer(&[("big", F, &"x".repeat(3 << 20))])]).await;
    let error = error.err().map(|e| (e.is_no_space(), e.to_string()));
    let left = leftovers(&disk.join("store"));
    drop(images);
    let _ = std::process::Command::new("umount").arg(&disk).status();
    let (no_space, text) = error.unwrap();
    assert!(no_space && text.contains("is full") && text.contains("disk/store"), "{text}");
    assert_eq!(left, Vec::<PathBuf>::new());
}

/// Path -> (mode, owner, size or target, mtime, links) of everything below `dir`.
fn walk(dir: &Path) -> BTreeMap<PathBuf, (u32, u32, u32, String, i64, u64)> {
    let mut out = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            let m = path.symlink_metadata().unwrap();
            let (text, links) = if m.is_symlink() {
                (fs::read_link(&path).unwrap().display().to_string(), 1)
            } else if m.is_dir() {
                todo.push(path.clone());
                (String::new(), 1)
            } else {
                (Digest::of(&fs::read(&path).unwrap()).to_string(), m.nlink())
            };
            let name = path.strip_prefix(dir).unwrap().to_path_buf();
            out.insert(name, (m.mode(), m.uid(), m.gid(), text, m.mtime(), links));
        }
    }
    out
}

#[tokio::test]
async fn a_real_tree_comes_out_as_it_went_in() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let tree = t.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let copied = std::process::Command::new("cp").args(["-a", "/etc", "/usr/share/zoneinfo"]).arg(&tree).status();
    if !copied.is_ok_and(|s| s.success()) {
        eprintln!("skipped: nothing to copy");
        return;
    }
    fs::hard_link(tree.join("etc/passwd"), tree.join("linked")).unwrap();
    let images = open(t.path());
    let want = walk(&tree);
    for (n, format) in ["gnu", "pax", "ustar"].into_iter().enumerate() {
        let out = std::process::Command::new("tar")
            .args(["--format", format, "--xattrs", "--numeric-owner", "-C"])
            .arg(&tree)
            .args(["-cf", "-", "."])
            .output();
        let Some(plain) = out.ok().filter(|o| o.status.success()).map(|o| o.stdout) else {
            eprintln!("skipped: no GNU tar");
            return;
        };
        let image =
            import_layers(&images, t.path(), &format!("t/tree:{n}"), &[layer_gzip(&plain).unwrap()]).await.unwrap();
        let (id, m) = (format!("tree{n}"), t.path().join(format!("m{n}")));
        images.prepare(&id, &image.id).unwrap();
        images.mount(&id, &m, &MountOptions::default()).unwrap();
        let got = walk(&m);
        let same = got == want;
        images.remove_snapshot(&id).unwrap();
        assert!(same, "{format}: {:?}", got.iter().zip(&want).find(|(a, b)| a != b));
        assert!(image.size > 0);
    }
}

#[tokio::test]
async fn pinned_images_are_told_by_name_and_id_until_the_configuration_changes() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let mut config = Config::new(t.path().join("store"));
    config.pinned = vec!["t/pinned:1".into()];
    let images = Images::open(config).unwrap();
    let pinned = import_layers(&images, t.path(), "t/pinned:1", &[layer(&[("a", F, "1")])]).await.unwrap();
    let other = import_layers(&images, t.path(), "t/other:1", &[layer(&[("a", F, "2")])]).await.unwrap();
    let told = || images.list().into_iter().filter(|i| i.pinned).map(|i| i.id).collect::<Vec<_>>();
    assert_eq!(told(), std::slice::from_ref(&pinned.id));
    images.reload(t.path().join("certs.d"), None, vec![other.id.clone()]);
    assert_eq!(told(), std::slice::from_ref(&other.id));
    // Who collects images leaves pinned ones alone; who asks for the removal gets it.
    assert!(images.remove(&other.id).await.unwrap());
    assert_eq!(told(), Vec::<String>::new());
}
