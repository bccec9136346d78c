//! What the fuzz targets of this crate run: one function a target, from bytes that a registry, an archive or an operator's file
//! may hold.
//!
//! Compiled for fuzzing and for tests only. The tests run what `fuzz/corpus` holds, so that an input that once found a fault is
//! tried by everyone; `fuzz/README.md` says how to look for new ones.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::config::{Limits, Proxy};
use crate::digest::Digest;
use crate::manifest::{self, Config, Document, Platform};
use crate::reference::Reference;
use crate::registry::{challenge, credentials, hosts, proxy};
use crate::unpack::apply::apply;
use crate::unpack::tree::Form;

/// What people read: text that says something and cannot move their cursor.
fn check_error(error: &impl std::fmt::Display) {
    assert!(!error.to_string().trim().is_empty());
}

/// A folder of this thread's own.
fn scratch(name: &str) -> PathBuf {
    let thread = std::thread::current().id();
    std::env::temp_dir().join(format!("gantry-fuzz-{}-{thread:?}-{name}", std::process::id()))
}

/// A layer as a registry may send it. The first byte says how the rest is meant: as it is, or as an archive whose header
/// sums are made right (nobody guesses them) before it is packed or not.
pub fn layer(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    let dir = scratch("layer");
    let _ = fs::remove_dir_all(&dir);
    let (outer, root, trash) = (dir.join("outer"), dir.join("layers/1/fs"), dir.join("trash"));
    for folder in [&outer.join("secret"), &root, &trash] {
        fs::create_dir_all(folder).expect("make a folder");
    }
    for file in [outer.join("secret/a"), dir.join("layers/secret"), dir.join("a"), dir.join("layers/1/a")] {
        fs::write(file, "untouched").expect("write a file");
    }
    let mut bytes = rest.to_vec();
    if how & 3 != 0 {
        mend(&mut bytes, &outer);
    }
    match how & 3 {
        2 => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            bytes = gzip.write_all(&bytes).and_then(|()| gzip.finish()).expect("pack");
        }
        3 => bytes = zstd::encode_all(&bytes[..], 1).expect("pack"),
        _ => {}
    }
    let before = outside(&dir, &root);
    let limits = Limits { layer_bytes: 1 << 20, layer_entries: 100, ..Limits::default() };
    let (to, gone) = (File::open(&root).expect("open").into(), File::open(&trash).expect("open").into());
    match apply(&bytes[..], to, gone, Form::Overlay, &limits, &AtomicBool::new(false)) {
        Ok(applied) => assert!(applied.bytes <= 1 << 20, "{} bytes", applied.bytes),
        Err(fault) => check_error(&fault.error),
    }
    assert_eq!(outside(&dir, &root), before, "the layer changed something outside its folder");
    fs::remove_dir_all(&dir).expect("what was unpacked can be removed");
}

/// Everything beside the layer and the trash: kind and mode, owner, content.
fn outside(dir: &Path, root: &Path) -> BTreeMap<PathBuf, (u32, u32, u64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder).expect("list a folder").flatten() {
            let (path, meta) = (entry.path(), entry.metadata().expect("look at a file"));
            if path == root || path == dir.join("trash") {
                continue;
            }
            let content = if meta.is_file() { fs::read(&path).expect("read a file") } else { Vec::new() };
            if meta.is_dir() {
                left.push(path.clone());
            }
            let links = if meta.is_file() { meta.nlink() } else { 0 };
            all.insert(path, (meta.mode(), meta.uid(), links, content));
        }
    }
    all
}

/// Makes the header sums of an archive right, and `OUTER` in its names the folder beside the layer.
fn mend(bytes: &mut Vec<u8>, outer: &Path) {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..at + 512) {
        if header.iter().all(|b| *b == 0) {
            at += 512;
            continue;
        }
        for field in [0..100, 157..257] {
            if let Some(after) = header[field.clone()].strip_prefix(b"OUTER") {
                let name = [outer.as_os_str().as_encoded_bytes(), after].concat();
                let length = name.len().min(100);
                header[field][..length].copy_from_slice(&name[..length]);
            }
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = header[124..136].iter().take_while(|b| (b'0'..=b'7').contains(*b));
        let size = digits.fold(0_usize, |n, b| n * 8 + usize::from(b - b'0'));
        at += 512 + size.min(1 << 30).next_multiple_of(512);
    }
}

/// A manifest or index, and behind the first NUL byte an image's configuration.
pub fn manifest(data: &[u8]) {
    let (document, config) = data.split_at(data.iter().position(|b| *b == 0).unwrap_or(data.len()));
    let config = config.get(1..).unwrap_or_default();
    let digest = Digest::of(document);
    for media_type in [manifest::OCI_MANIFEST, manifest::OCI_INDEX, "text/html; charset=utf-8"] {
        match Document::parse(document, media_type, &digest) {
            Err(error) => check_error(&error),
            Ok(Document::Index(index)) => match manifest::choose(&index, &Platform::host()) {
                Ok(chosen) => assert!(index.manifests.iter().any(|m| m == chosen)),
                Err(error) => check_error(&error),
            },
            Ok(Document::Manifest(found)) => match Config::parse(config, &found) {
                Ok((_, ids)) => assert_eq!(ids.len(), found.layers.len()),
                Err(error) => check_error(&error),
            },
        }
    }
}

/// An image reference, as people and pods write it.
pub fn reference(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(parsed) = Reference::parse(&text) else { return };
    let whole = parsed.to_string();
    assert_eq!(Reference::parse(&whole).expect("a reference stays one").to_string(), whole);
    // It becomes a part of paths and URLs.
    let bad = |c: char| c.is_whitespace() || c.is_control() || "?#%\\".contains(c);
    assert!(!whole.split(['/', ':']).any(|p| p == ".." || p == ".") && !whole.contains(bad), "{whole:?}");
    if let Ok(list) = hosts::endpoints(Path::new("/nonexistent"), parsed.domain(), &[]) {
        assert!(!list.is_empty());
    }
}

/// A `hosts.toml`.
pub fn hosts(data: &[u8]) {
    let dir = scratch("hosts");
    let folder = dir.join("reg.example");
    fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join("hosts.toml"), data)).expect("write there");
    match hosts::endpoints(&dir, "reg.example", &[]) {
        Err(error) => check_error(&error),
        Ok(found) => {
            assert!(found.iter().any(|e| e.pull), "nobody to pull from");
            for endpoint in found {
                assert!(matches!(endpoint.base.scheme(), "http" | "https"), "{}", endpoint.base);
                assert!(endpoint.base.path().ends_with('/') && !endpoint.host().is_empty());
            }
        }
    }
    let _ = fs::remove_dir_all(dir);
}

/// A docker `config.json`. Helpers it names are programs: none is found by these names.
pub fn docker_config(data: &[u8]) {
    let dir = scratch("docker");
    let file = dir.join("config.json");
    fs::create_dir_all(&dir).and_then(|()| fs::write(&file, data)).expect("write there");
    for (domain, host) in [("docker.io", "registry-1.docker.io"), ("reg.example:5000", "reg.example:5000")] {
        match credentials::lookup(None, Some(&file), domain, host, false) {
            Err(error) => check_error(&error),
            Ok(found) => {
                let _ = found.basic_header();
                // A secret is not for a log.
                if let Some((_, password)) = found.basic.as_ref().filter(|(user, p)| p.len() > 8 && !user.contains(p)) {
                    assert!(!format!("{found:?}").contains(password));
                }
            }
        }
    }
    let _ = fs::remove_dir_all(dir);
}

/// A registry's `WWW-Authenticate`, then, a line each, the environment's proxy settings.
pub fn headers(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    for found in challenge::parse(lines.next().unwrap_or("")) {
        assert!(!found.scheme.is_empty() && !found.scheme.contains(char::is_whitespace));
    }
    let mut line = || lines.next().unwrap_or("").to_owned();
    let rules = Proxy { http: line(), https: line(), no_proxy: line() };
    for (secure, host) in [(true, "reg.example"), (false, "10.1.2.3"), (true, "fd00::1")] {
        match proxy::choose(&rules, secure, host, 5000) {
            Err(error) => check_error(&error),
            Ok(found) => assert!(found.is_none_or(|url| url.scheme() == "http")),
        }
    }
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
#[test]
fn what_fuzzing_found_and_starts_from() {
    replay::corpus(&[
        ("cri_layer", layer),
        ("cri_manifest", manifest),
        ("cri_reference", reference),
        ("cri_hosts", hosts),
        ("cri_docker_config", docker_config),
        ("cri_headers", headers),
    ]);
}
