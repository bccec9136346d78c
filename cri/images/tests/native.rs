//! Snapshots that are copies: the same files as an overlay shows, on file systems where there is no overlay. Needs root.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{leftovers, root};
use cri_images::build::{BuildConfig, LayerBlob, layer_gzip, write_archive};
use cri_images::{Config, Image, Images, MountOptions, Snapshotter};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tar::{Builder, EntryType, Header};

const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const MIB: u64 = 1 << 20;

fn open(dir: &Path, snapshotter: Snapshotter) -> Images {
    let mut config = Config::new(dir.join("store"));
    config.snapshotter = snapshotter;
    Images::open(config).unwrap()
}

/// One entry per line: mode, owner, name and, behind a sign that tells the kind, content or target: `=` file, `>` link,
/// `+` hard link, `|` pipe, `*` device; a folder without.
fn layer(lines: &str) -> LayerBlob {
    let mut tar = Builder::new(Vec::new());
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let parts: Vec<&str> = line.split(' ').collect();
        let (mode, owner, path) = (parts[0], parts[1], parts[2]);
        let (sign, text) = parts.get(3).map_or(("/", ""), |rest| rest.split_at(1));
        let mut h = Header::new_gnu();
        h.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        h.set_entry_type(match sign {
            "/" => EntryType::Directory,
            "=" => EntryType::Regular,
            ">" => EntryType::Symlink,
            "+" => EntryType::Link,
            "|" => EntryType::Fifo,
            _ => EntryType::Char,
        });
        h.set_mode(u32::from_str_radix(mode, 8).unwrap());
        h.set_uid(owner.parse().unwrap());
        h.set_gid(owner.parse().unwrap());
        h.set_mtime(1_000_000_000 + path.len() as u64);
        let mut content = text;
        match sign {
            ">" | "+" => {
                h.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
                content = "";
            }
            "*" => {
                h.set_device_major(text.parse().unwrap()).unwrap();
                h.set_device_minor(if text == "0" { 0 } else { 3 }).unwrap();
                content = "";
            }
            _ => {}
        }
        h.set_size(content.len() as u64);
        h.set_cksum();
        if path == "bin/ping" {
            let more = [("SCHILY.xattr.security.capability", &CAPABILITY[..]), ("SCHILY.xattr.user.note", b"hi")];
            tar.append_pax_extensions(more).unwrap();
        }
        tar.append(&h, content.as_bytes()).unwrap();
    }
    layer_gzip(&tar.into_inner().unwrap()).unwrap()
}

fn layers() -> Vec<LayerBlob> {
    let base = layer(
        "755 0 ./
        750 7 etc
        644 0 etc/keep =1
        644 8 etc/gone =2
        644 0 etc/passwd =3
        755 0 opq
        644 0 opq/old =4
        755 0 opq/sub
        644 0 opq/sub/old =5
        755 0 sub
        755 0 sub/deep
        644 0 sub/deep/x =6
        600 9 a =hard
        600 9 b +a
        600 9 sub/c +a
        600 9 e +a
        755 0 bin
        755 0 bin/ping =ping
        4755 0 bin/su =su
        666 5 null *1
        640 5 pipe |
        777 6 link >etc/keep
        755 0 tofile
        644 0 tofile/in =7
        644 0 todir =8
        755 0 again
        644 0 again/old =9",
    );
    let middle = layer(
        "711 0 ./
        700 3 etc
        644 0 etc/.wh.gone =
        644 0 etc/passwd *0
        644 0 .wh.sub =
        1777 2 opq
        644 0 opq/new =10
        644 0 opq/.wh..wh..opq =
        644 0 b =alone
        644 0 tofile =11
        755 0 todir
        644 0 todir/in =12
        644 0 .wh.again =
        755 0 again
        644 0 again/new =13
        644 0 .wh.never-there =
        644 0 d1 =pair
        644 0 d2 +d1",
    );
    let top = layer(
        "755 0 ./
        755 0 sub
        644 0 sub/y =14
        755 0 opq
        644 0 opq/.wh.new =
        644 0 opq/newest =15
        644 0 .wh.e =",
    );
    vec![base, middle, top]
}

async fn import(images: &Images, dir: &Path) -> Image {
    let archive = dir.join("archive.tar");
    write_archive(&archive, "native/test:1", &layers(), &BuildConfig::default()).unwrap();
    images.import(&archive, None, None).await.unwrap().remove(0)
}

/// All that a container could see, by path; of each file with several names, the first by order stands for the others.
fn seen(root: &Path) -> BTreeMap<PathBuf, String> {
    let (mut out, mut todo, mut firsts) = (BTreeMap::new(), vec![root.to_path_buf()], BTreeMap::new());
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().unwrap();
        // The root's own time is when the container got it.
        let time = if path == root { 0 } else { meta.mtime() };
        let mut text = format!("{:o} {}:{} {time} {}", meta.mode(), meta.uid(), meta.gid(), meta.rdev());
        for key in ["security.capability", "user.note"] {
            let mut value = [0_u8; 64];
            if meta.is_file()
                && let Ok(n) = rustix::fs::getxattr(&path, key, &mut value[..])
            {
                text += &format!(" {key}={:?}", &value[..n]);
            }
        }
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if meta.is_symlink() {
            text += &format!(" > {}", fs::read_link(&path).unwrap().display());
        } else if meta.is_file() {
            let content: String = String::from_utf8_lossy(&fs::read(&path).unwrap()).chars().take(9).collect();
            text += &format!(" {} = {content:?}", meta.len());
            firsts.entry(meta.ino()).or_insert_with(Vec::new).push(path.strip_prefix(root).unwrap().to_path_buf());
        }
        out.insert(path.strip_prefix(root).unwrap().to_path_buf(), text);
    }
    for mut names in firsts.into_values() {
        names.sort();
        for name in &names {
            *out.get_mut(name).unwrap() += &format!(" as {}", names[0].display());
        }
    }
    out
}

/// What a new container of the image sees.
fn shown(images: &Images, dir: &Path, id: &str, image: &Image) -> BTreeMap<PathBuf, String> {
    let m = dir.join("m").join(id);
    images.prepare(id, &image.id).unwrap();
    images.mount(id, &m, &MountOptions::default()).unwrap();
    seen(&m)
}

fn assert_empty(images: &Images, store: &Path) {
    assert!(images.settled(Duration::from_secs(60)));
    assert_eq!(leftovers(store), Vec::<PathBuf>::new());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let left: Vec<&str> =
        mounts.lines().filter(|l| l.contains(&*store.parent().unwrap().join("m").to_string_lossy())).collect();
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn a_copy_is_what_an_overlay_shows_whichever_way_the_layers_were_unpacked() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let store = t.path().join("store");
    let images = open(t.path(), Snapshotter::Overlayfs);
    let image = import(&images, t.path()).await;
    let holes = images.layers(&image.id)[0].join("holes");
    let mut file = fs::File::create(&holes).unwrap();
    file.set_len(64 * MIB).unwrap();
    file.seek(SeekFrom::Start(8 * MIB)).unwrap();
    file.write_all(b"in the middle").unwrap();
    drop(file);
    let want = shown(&images, t.path(), "overlay", &image);
    for (path, is) in [
        ("etc/gone", false),
        ("etc/passwd", false),
        ("sub/deep", false),
        ("sub/y", true),
        ("e", false),
        ("opq/sub", false),
    ] {
        assert_eq!(want.contains_key(Path::new(path)), is, "{path}");
    }
    assert!(want[Path::new("bin/ping")].contains("security.capability"));
    assert!(want[Path::new("d2")].ends_with("as d1") && want[Path::new("b")].ends_with("as b"));
    // What a container changes there can be put into a copy.
    let (over, changes) = (t.path().join("m/overlay"), t.path().join("changes.tar"));
    fs::write(over.join("etc/keep"), "changed").unwrap();
    for gone in ["opq", "bin"] {
        fs::remove_dir_all(over.join(gone)).unwrap();
    }
    fs::create_dir_all(over.join("bin/other")).unwrap();
    fs::remove_file(over.join("link")).unwrap();
    images.write_changes("overlay", fs::File::create(&changes).unwrap()).unwrap();
    let changed = seen(&over);
    images.remove_snapshot("overlay").unwrap();
    drop(images);

    // Layers in the form of overlayfs, copied.
    let images = open(t.path(), Snapshotter::Native);
    images.prepare("changed", &image.id).unwrap();
    images.apply_changes("changed", &changes).unwrap();
    images.mount("changed", &t.path().join("m/changed"), &MountOptions::default()).unwrap();
    assert_eq!(seen(&t.path().join("m/changed")), changed);
    images.remove_snapshot("changed").unwrap();
    assert_eq!(shown(&images, t.path(), "c", &image), want);
    images.mount("c", &t.path().join("m/c"), &MountOptions::default()).unwrap();
    let copy = t.path().join("m/c/holes");
    let bytes = fs::read(&copy).unwrap();
    assert_eq!((bytes.len() as u64, &bytes[8 << 20..][..13]), (64 * MIB, &b"in the middle"[..]));
    assert!(fs::metadata(&copy).unwrap().blocks() * 512 <= MIB, "the copy's holes are filled");
    // It is the container's own.
    let before = images.snapshot_usage("c").unwrap();
    fs::write(t.path().join("m/c/etc/keep"), vec![b'x'; 3 << 20]).unwrap();
    fs::remove_file(t.path().join("m/c/a")).unwrap();
    let after = images.snapshot_usage("c").unwrap();
    assert!(before.inodes > 20 && after.bytes > before.bytes + 2 * MIB, "{before:?} {after:?}");
    assert_eq!(shown(&images, t.path(), "c2", &image), want);
    // It goes on after a start, whatever the configuration says by then.
    images.unmount("c").unwrap();
    drop(images);
    let images = open(t.path(), Snapshotter::Overlayfs);
    images.mount("c", &t.path().join("m/c"), &MountOptions { read_only: true, ..Default::default() }).unwrap();
    assert_eq!(fs::metadata(t.path().join("m/c/etc/keep")).unwrap().len(), 3 * MIB);
    assert!(fs::write(t.path().join("m/c/new"), "").is_err(), "read-only");
    for id in ["c", "c2"] {
        images.remove_snapshot(id).unwrap();
        images.remove_snapshot(id).unwrap();
    }
    images.remove(&image.id).await.unwrap();
    assert_empty(&images, &store);
    drop(images);

    // Unpacked for copies; then for overlays, while a container with a copy is there.
    let images = open(t.path(), Snapshotter::Native);
    let image = import(&images, t.path()).await;
    let without_holes = |mut all: BTreeMap<PathBuf, String>| {
        all.remove(Path::new("holes"));
        all
    };
    let want = without_holes(want);
    assert_eq!(shown(&images, t.path(), "plain", &image), want);
    drop(images);
    let images = open(t.path(), Snapshotter::Overlayfs);
    assert_eq!(shown(&images, t.path(), "over", &image), want);
    assert_eq!(seen(&t.path().join("m/plain")), want);
    for id in ["plain", "over"] {
        images.remove_snapshot(id).unwrap();
    }
    images.remove(&image.id).await.unwrap();
    assert_empty(&images, &store);
}

/// The names of what a container has changed.
fn changes(images: &Images, id: &str) -> Vec<String> {
    let mut tar = Vec::new();
    images.write_changes(id, &mut tar).unwrap();
    let mut archive = tar::Archive::new(tar.as_slice());
    let names = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string());
    names.map(|n| n.trim_end_matches('/').to_owned()).collect()
}

#[tokio::test]
async fn what_was_changed_in_a_copy_is_told_and_can_be_put_into_another_root() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    // Marks of removed files in both forms are understood.
    for unpacked in [Snapshotter::Overlayfs, Snapshotter::Native] {
        let dir = t.path().join(format!("{unpacked:?}"));
        fs::create_dir(&dir).unwrap();
        let images = open(&dir, unpacked);
        let image = import(&images, &dir).await;
        drop(images);
        let images = open(&dir, Snapshotter::Native);
        shown(&images, &dir, "c", &image);
        assert_eq!(changes(&images, "c"), [""; 0], "nothing is changed yet");
        let c = dir.join("m/c");
        // As long and as old as it was.
        let before = fs::metadata(c.join("etc/keep")).unwrap();
        fs::write(c.join("etc/keep"), "9").unwrap();
        let times = fs::FileTimes::new().set_modified(before.modified().unwrap());
        fs::File::open(c.join("etc/keep")).unwrap().set_times(times).unwrap();
        let set = |key: &str, value: &[u8]| {
            rustix::fs::setxattr(c.join("d1"), key, value, rustix::fs::XattrFlags::empty()).unwrap();
        };
        set("user.note", b"new");
        set("security.capability", &CAPABILITY);
        fs::remove_dir_all(c.join("sub")).unwrap();
        fs::write(c.join("sub"), "a file now").unwrap();
        fs::remove_file(c.join("tofile")).unwrap();
        fs::create_dir(c.join("tofile")).unwrap();
        fs::write(c.join("tofile/in"), "again").unwrap();
        fs::remove_file(c.join("link")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", c.join("link")).unwrap();
        fs::remove_file(c.join("null")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(c.join("null")).unwrap());
        fs::remove_file(c.join("pipe")).unwrap();
        let told = changes(&images, "c");
        let wanted = [".wh.null", ".wh.pipe", "d1", "d2", "etc", "etc/keep", "link", "sub", "tofile", "tofile/in"]
            .map(String::from);
        let mut sorted = told.clone();
        sorted.sort();
        assert_eq!(sorted, wanted, "{unpacked:?}");
        let tar = dir.join("changes.tar");
        images.write_changes("c", fs::File::create(&tar).unwrap()).unwrap();
        fs::remove_file(c.join("null")).unwrap();
        // A file of two names becomes two.
        let alone = |mut all: BTreeMap<PathBuf, String>| {
            for text in all.values_mut() {
                *text = text.split(" as ").next().unwrap().to_owned();
            }
            all
        };
        let changed = alone(seen(&c));
        assert!(changed[Path::new("d1")].contains("security.capability"));
        drop(images);
        for form in [Snapshotter::Native, Snapshotter::Overlayfs] {
            let id = format!("other-{form:?}");
            let images = open(&dir, form);
            images.prepare(&id, &image.id).unwrap();
            images.apply_changes(&id, &tar).unwrap();
            let m = dir.join("m").join(&id);
            images.mount(&id, &m, &MountOptions::default()).unwrap();
            assert_eq!(alone(seen(&m)), changed, "{unpacked:?} {form:?}");
            images.remove_snapshot(&id).unwrap();
        }
        let images = open(&dir, Snapshotter::Native);
        // The image can be gone by then.
        images.remove(&image.id).await.unwrap();
        assert_eq!(changes(&images, "c"), told);
        images.remove_snapshot("c").unwrap();
        assert_empty(&images, &dir.join("store"));
    }
}

#[tokio::test]
async fn views_of_an_image_share_one_copy_that_goes_with_the_last() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let images = open(t.path(), Snapshotter::Native);
    let image = import(&images, t.path()).await;
    let alone = images.fs_usage();
    let view = |images: &Images, id: &str| {
        let m = t.path().join("m").join(id);
        images.prepare_view(id, &image.id).unwrap();
        images.mount(id, &m, &MountOptions::default()).unwrap();
        assert!(fs::write(m.join("new"), "").is_err(), "read-only");
        fs::metadata(m.join("etc/keep")).unwrap().ino()
    };
    let first = view(&images, "v1");
    assert_eq!(view(&images, "v2"), first);
    assert!(images.fs_usage().inodes > alone.inodes + 20, "the copy is counted once");
    let with = images.fs_usage().inodes;
    images.remove_snapshot("v1").unwrap();
    // A kill leaves this: the next start knows the copy, and throws away what was only being made.
    drop(images);
    for left in ["unpack/999/fs/etc", "snapshots/half/fs/etc", &format!("views/{}/fs", "ab".repeat(32))] {
        fs::create_dir_all(t.path().join("store").join(left)).unwrap();
    }
    let images = open(t.path(), Snapshotter::Native);
    assert_eq!(view(&images, "v3"), first);
    assert_eq!(images.fs_usage().inodes, with);
    assert_eq!(images.check(&["v2".to_owned(), "v3".to_owned()].into()), [""; 0]);
    images.remove(&image.id).await.unwrap();
    assert_eq!(fs::read_to_string(t.path().join("m/v3/etc/keep")).unwrap(), "1");
    let report = images.fsck(&Default::default());
    assert_eq!((report.removed_snapshots.len(), report.faults.len()), (2, 0), "{report:?}");
    assert_empty(&images, &t.path().join("store"));
}

/// An overlay to put a store on; unmounted in the end.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn a_store_on_overlayfs_keeps_copies_by_itself() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let dir = |name: &str| {
        fs::create_dir(t.path().join(name)).unwrap();
        t.path().join(name)
    };
    let all = dir("all");
    let data = format!(
        "lowerdir={},upperdir={},workdir={}",
        dir("lower").display(),
        dir("upper").display(),
        dir("work").display()
    );
    let data = std::ffi::CString::new(data).unwrap();
    if let Err(e) = mount("native-test", &all, "overlay", MountFlags::empty(), Some(data.as_c_str())) {
        eprintln!("skipped: cannot mount overlayfs in {}: {e}", all.display());
        return;
    }
    let mounted = Mounted(all.clone());
    let host = tempfile::tempdir().unwrap();
    let reference = open(host.path(), Snapshotter::Auto);
    let image = import(&reference, host.path()).await;
    let want = shown(&reference, host.path(), "c", &image);
    let on_host = reference.snapshots().remove(0);
    reference.remove_snapshot("c").unwrap();

    let images = open(&all, Snapshotter::Auto);
    let image = import(&images, &all).await;
    assert_eq!(shown(&images, &all, "c", &image), want);
    assert!(images.snapshots()[0].native);
    assert!(!on_host.native, "this machine's disk takes overlays, or the first mount would have failed");
    assert!(!all.join("store/probe").exists());
    fs::write(all.join("m/c/etc/keep"), "mine").unwrap();
    assert_eq!(changes(&images, "c"), ["etc", "etc/keep"]);

    // overlayfs maps no ids: that is said, and no root with wrong owners is given out.
    let mut child = Command::new("unshare").args(["--user", "--map-root-user", "sleep", "100"]).spawn().unwrap();
    let users = PathBuf::from(format!("/proc/{}/ns/user", child.id()));
    let own = fs::read_link("/proc/self/ns/user").unwrap();
    let (begun, ids) = (Instant::now(), format!("/proc/{}/uid_map", child.id()));
    let ready =
        || fs::read_link(&users).is_ok_and(|l| l != own) && fs::read_to_string(&ids).is_ok_and(|m| !m.is_empty());
    while !ready() && begun.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(5));
    }
    images.prepare("u", &image.id).unwrap();
    let refused =
        images.mount("u", &all.join("m/u"), &MountOptions { user_namespace: Some(users), ..Default::default() });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(refused.unwrap_err().to_string().contains("cannot map the ids"));
    for id in ["c", "u"] {
        images.remove_snapshot(id).unwrap();
    }
    images.remove(&image.id).await.unwrap();
    assert_empty(&images, &all.join("store"));
    drop(images);
    // Killed while it tried.
    let left = all.join("store/probe/all");
    fs::create_dir_all(&left).unwrap();
    mount("left", &left, "tmpfs", MountFlags::empty(), None).unwrap();
    let images = open(&all, Snapshotter::Auto);
    assert!(!all.join("store/probe").exists());
    assert_empty(&images, &all.join("store"));
    drop(images);
    drop(mounted);
}
