//! What hostile registries and archives try beside the plain cases: each is refused with its reason, in bounded time, and leaves
//! nothing.

mod common;

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Scripted, answer, documents, gzip, leftovers, root};
use cri_images::build::{BuildConfig, LayerBlob, layer_gzip, manifest_json, write_archive};
use cri_images::{Config, Digest, Images, MountOptions};
use serde_json::{Value, json};
use tar::{EntryType, Header};

fn open(dir: &Path) -> Images {
    let mut config = Config::new(dir.join("store"));
    config.config_path = dir.join("certs.d");
    config.timeouts.attempts = 2;
    config.timeouts.backoff = Duration::from_millis(10);
    config.timeouts.headers = Duration::from_secs(2);
    config.timeouts.idle = Duration::from_secs(2);
    config.timeouts.rate_window = Duration::from_secs(3);
    Images::open(config).unwrap()
}

fn nothing_left(dir: &Path, what: &str) {
    assert_eq!(leftovers(&dir.join("store")), Vec::<PathBuf>::new(), "{what}");
}

/// Pulls from a server that has these documents: path below `/v2/repo/`, content type, content.
async fn refused(what: &str, documents: Vec<(String, &'static str, Vec<u8>)>) -> String {
    let server = Scripted::start(move |seen, s| {
        let found = documents.iter().find(|(path, ..)| seen.path == format!("/v2/repo/{path}"));
        match found {
            Some((_, kind, bytes)) => answer(s, "200 OK", &format!("Content-Type: {kind}\r\n"), bytes),
            None => answer(s, "404 Not Found", "", b""),
        }
    });
    let t = tempfile::tempdir().unwrap();
    let images = open(t.path());
    let error = images.pull(&format!("127.0.0.1:{}/repo:1", server.port), None, None).await;
    let error = error.err().unwrap_or_else(|| panic!("{what}: it is pulled")).to_string();
    assert!(images.list().is_empty(), "{what}");
    nothing_left(t.path(), what);
    error
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn blob(bytes: &[u8]) -> String {
    format!("blobs/{}", Digest::of(bytes))
}

fn changed(bytes: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(bytes).unwrap();
    change(&mut value);
    value.to_string().into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_lie_or_never_end_are_refused() {
    if !root() {
        return;
    }
    let layer = gzip(&[("file", "content")]);
    let (config, manifest) = documents(std::slice::from_ref(&layer), &BuildConfig::default());
    let with = |manifest: Vec<u8>, kind: &'static str| {
        vec![
            ("manifests/1".to_owned(), kind, manifest),
            (blob(&config), "application/octet-stream", config.clone()),
            (blob(&layer.bytes), "application/octet-stream", layer.bytes.clone()),
        ]
    };
    let page = with(b"<html>sign in to this network</html>".to_vec(), "text/html");
    assert!(refused("a login page", page).await.contains("not JSON"));
    let odd = with(json!({"schemaVersion": 2, "mediaType": "application/x-thing"}).to_string().into_bytes(), "x/y");
    assert!(refused("an unknown type", odd).await.contains("media type"));

    // Indexes within indexes, each intact.
    let mut inner = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).to_string().into_bytes();
    let mut nested = Vec::new();
    for _ in 0..50 {
        let entry = json!({"mediaType": INDEX, "digest": Digest::of(&inner).to_string(), "size": inner.len()});
        nested.push((format!("manifests/{}", Digest::of(&inner)), INDEX, inner));
        inner = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).to_string().into_bytes();
    }
    nested.push(("manifests/1".to_owned(), INDEX, inner));
    assert!(refused("indexes in indexes", nested).await.contains("nested"));

    let larger = changed(&manifest, |m| m["layers"][0]["size"] = json!(layer.bytes.len() + 100));
    assert!(
        refused("a layer smaller than told", with(larger, MANIFEST)).await.contains(&layer.bytes.len().to_string())
    );
    let smaller = changed(&manifest, |m| m["layers"][0]["size"] = json!(layer.bytes.len() - 10));
    assert!(!refused("a layer larger than told", with(smaller, MANIFEST)).await.is_empty());
    let huge = changed(&manifest, |m| m["layers"][0]["size"] = json!(1u64 << 50));
    assert!(refused("a layer of a pebibyte", with(huge, MANIFEST)).await.contains("bytes"));
    let overflow = changed(&manifest, |m| {
        m["layers"] = json!([m["layers"][0], m["layers"][0]]);
        m["layers"][0]["size"] = json!(u64::MAX);
        m["layers"][1]["size"] = json!(u64::MAX);
    });
    assert!(!refused("sizes that overflow", with(overflow, MANIFEST)).await.is_empty());
    let many = manifest_json(&config, &vec![layer.clone(); 600]).to_string().into_bytes();
    let error = refused("600 layers", with(many, MANIFEST)).await;
    assert!(error.contains("600") || error.contains("diff ids"), "{error}");
    let climbing = changed(&manifest, |m| m["config"]["digest"] = json!("sha256:../../../../../../etc/passwd"));
    assert!(!refused("a digest that is a path", with(climbing, MANIFEST)).await.is_empty());
    let swapped = changed(&manifest, |m| m["config"] = m["layers"][0].clone());
    assert!(!refused("a layer as the config", with(swapped, MANIFEST)).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_drip_or_never_end_cost_bounded_time() {
    if !root() {
        return;
    }
    type Script = fn(&mut TcpStream) -> std::io::Result<()>;
    let cases: [(&str, Script); 5] = [
        ("a header without end", |s| {
            write!(s, "HTTP/1.1 200 OK\r\nx: ")?;
            loop {
                s.write_all(&[b'x'; 65536])?;
            }
        }),
        ("headers that drip", |s| {
            write!(s, "HTTP/1.1 200 OK\r\n")?;
            loop {
                write!(s, "x: y\r\n")?;
                s.flush()?;
                std::thread::sleep(Duration::from_millis(300));
            }
        }),
        ("no HTTP", |s| s.write_all(b"SSH-2.0-OpenSSH_9.9\r\n")),
        ("a redirect to a file", |s| answer(s, "302 Found", "Location: file:///etc/passwd\r\n", b"")),
        ("a length that is none", |s| write!(s, "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nx")),
    ];
    for (what, script) in cases {
        let server = Scripted::start(move |_, s| script(s));
        let t = tempfile::tempdir().unwrap();
        let images = open(t.path());
        let begun = Instant::now();
        let error = images.pull(&format!("127.0.0.1:{}/repo:1", server.port), None, None).await;
        assert!(error.is_err(), "{what}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}: {:?}", begun.elapsed());
        nothing_left(t.path(), what);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_asks_for_a_pause_gets_it_unless_it_is_long() {
    if !root() {
        return;
    }
    let layer = gzip(&[("file", "content")]);
    let (config, manifest) = documents(std::slice::from_ref(&layer), &BuildConfig::default());
    for (pause, comes) in [(1, true), (3600, false)] {
        let (config, manifest, layer) = (config.clone(), manifest.clone(), layer.bytes.clone());
        let asked = AtomicUsize::new(0);
        let server = Scripted::start(move |seen, s| {
            if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                let header = format!("Retry-After: {pause}\r\n");
                return answer(s, "429 Too Many Requests", &header, b"");
            }
            let all = [("manifests/1".to_owned(), &manifest), (blob(&config), &config), (blob(&layer), &layer)];
            match all.iter().find(|(path, _)| seen.path.ends_with(path.as_str())) {
                Some((_, bytes)) => answer(s, "200 OK", &format!("Content-Type: {MANIFEST}\r\n"), bytes),
                None => answer(s, "404 Not Found", "", b""),
            }
        });
        let t = tempfile::tempdir().unwrap();
        let images = open(t.path());
        let begun = Instant::now();
        let pulled = images.pull(&format!("127.0.0.1:{}/repo:1", server.port), None, None).await;
        if comes {
            pulled.unwrap();
            assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
        } else {
            let error = pulled.unwrap_err();
            assert!(error.to_string().contains("(429)") && error.to_string().contains("again in 3600 s"), "{error}");
            assert_eq!(server.seen().len(), 1);
        }
    }
}

fn header(name: &str, kind: EntryType, size: u64) -> Header {
    let mut h = Header::new_gnu();
    h.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    h.set_entry_type(kind);
    h.set_mode(0o755);
    h.set_uid(0);
    h.set_gid(0);
    h.set_mtime(1);
    h.set_size(size);
    h.set_cksum();
    h
}

/// A tar of these entries, as they are.
fn layer(entries: &[(Header, Vec<u8>)]) -> LayerBlob {
    let mut bytes = Vec::new();
    for (header, content) in entries {
        bytes.extend(header.as_bytes());
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    layer_gzip(&bytes).unwrap()
}

#[tokio::test]
async fn deep_long_and_lying_layers_are_refused_and_duplicates_are_what_came_last() {
    if !root() {
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let images = open(t.path());
    let long = |path: String| {
        let bytes = [path.into_bytes(), vec![0]].concat();
        (header("././@LongLink", EntryType::GNULongName, bytes.len() as u64), bytes)
    };
    let record = |text: String| (header("pax", EntryType::XHeader, text.len() as u64), text.into_bytes());
    let file = |name: &str, text: &str| (header(name, EntryType::Regular, text.len() as u64), text.as_bytes().to_vec());
    let cases = [
        ("a name longer than any file system's", layer(&[long("x".repeat(300)), file("x", "1")])),
        ("a path of 400,000 characters", layer(&[long("d/".repeat(200_000)), file("x", "1")])),
        ("a file larger than the archive", layer(&[(header("x", EntryType::Regular, 1 << 40), vec![0; 100])])),
        ("an extended size larger than the archive", layer(&[record("19 size=1099511627\n".into()), file("x", "1")])),
        ("an extension header of gigabytes", layer(&[(header("pax", EntryType::XHeader, 8 << 30), vec![0; 512])])),
        ("a path out by an extended header", layer(&[record("22 path=../../../evil\n".into()), file("x", "1")])),
        ("an unknown type of entry", layer(&[(header("x", EntryType::new(b'Z'), 0), Vec::new())])),
    ];
    for (what, layer) in cases {
        let archive = t.path().join("archive.tar");
        write_archive(&archive, "t/evil:1", &[layer], &BuildConfig::default()).unwrap();
        let begun = Instant::now();
        let error = images.import(&archive, None, None).await.err().unwrap_or_else(|| panic!("{what}: it is taken"));
        assert!(error.is_corrupt(), "{what}: {error:?}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}: {:?}", begun.elapsed());
        nothing_left(t.path(), what);
    }
    assert!(!t.path().join("evil").exists());

    let twice = layer(&[
        file("twice", "first"),
        (header("twice", EntryType::Directory, 0), Vec::new()),
        file("twice/inside", "x"),
        file("twice", "last"),
        (header("d/", EntryType::Directory, 0), Vec::new()),
        (header("d/", EntryType::Directory, 0), Vec::new()),
        file("d/kept", "1"),
    ]);
    let archive = t.path().join("twice.tar");
    write_archive(&archive, "t/twice:1", &[twice], &BuildConfig::default()).unwrap();
    let image = images.import(&archive, None, None).await.unwrap().remove(0);
    images.prepare("c", &image.id).unwrap();
    let mounted = t.path().join("mounted");
    images.mount("c", &mounted, &MountOptions::default()).unwrap();
    let seen = (fs::read_to_string(mounted.join("twice")).ok(), fs::read_to_string(mounted.join("d/kept")).ok());
    images.remove_snapshot("c").unwrap();
    assert_eq!(seen, (Some("last".into()), Some("1".into())));
}
