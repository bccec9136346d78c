//! Random and mutated input for everything that comes from registries, archives and files of other programs: it ends, in a
//! result or an error, and touches nothing outside its folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::config::Limits;
use crate::digest::Digest;
use crate::manifest::{self, Config, Document, Platform};
use crate::reference::Reference;
use crate::registry::hosts::endpoints;
use crate::unpack::apply::apply;
use crate::unpack::tree::Form;

/// A header and the content after it; both may lie.
#[derive(Debug, Clone)]
struct Written {
    name: String,
    kind: u8,
    link: String,
    content: Vec<u8>,
    /// Place and value of bytes of the header that are replaced before its checksum is made.
    replaced: Vec<(usize, u8)>,
}

fn name() -> impl Strategy<Value = String> {
    let part = select(vec![
        "a",
        "b",
        "c",
        "..",
        ".",
        "",
        "/",
        ".wh.a",
        ".wh.b",
        ".wh..wh..opq",
        ".wh...",
        ".wh.",
        "etc",
        "secret",
        "OUTER",
        "a\u{0}b",
        "\u{1b}[2J",
        "very-long-very-long-very-long-very-long",
    ]);
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/").chars().take(99).collect())
}

fn written() -> impl Strategy<Value = Written> {
    let kind = select(b"0012345566L K x g S 7".to_vec());
    let content = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        Just(b"30 path=../../../secret/taken\n".to_vec()),
        Just(b"22 linkpath=/etc/passwd\n".to_vec()),
        Just(b"18446744073709551615 size=1\n".to_vec()),
        Just(b"27 size=9223372036854775807\n".to_vec()),
    ];
    (name(), kind, name(), content, prop::collection::vec((0usize..512, any::<u8>()), 0..3))
        .prop_map(|(name, kind, link, content, replaced)| Written { name, kind, link, content, replaced })
}

fn archive(entries: &[Written], outer: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for e in entries {
        let mut h = Header::new_gnu();
        let real = |text: &str| text.replace("OUTER", &outer.to_string_lossy()).into_bytes();
        for (field, text) in [(true, real(&e.name)), (false, real(&e.link))] {
            let old = h.as_old_mut();
            let field = if field { &mut old.name } else { &mut old.linkname };
            let length = text.len().min(field.len());
            field[..length].copy_from_slice(&text[..length]);
        }
        h.set_entry_type(EntryType::new(e.kind));
        h.set_mode(0o4755);
        h.set_uid(0);
        h.set_gid(0);
        h.set_mtime(1);
        h.set_size(e.content.len() as u64);
        for (at, byte) in &e.replaced {
            h.as_mut_bytes()[*at] = *byte;
        }
        h.set_cksum();
        bytes.extend(h.as_bytes());
        bytes.extend(&e.content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Everything below a folder: mode, owner, size, content of files.
fn listing(dir: &Path, all: &mut BTreeMap<PathBuf, (u32, u32, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let meta = entry.metadata().unwrap();
        let content = if meta.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
        all.insert(entry.path(), (meta.mode(), meta.uid(), content));
        if meta.is_dir() {
            listing(&entry.path(), all);
        }
    }
}

/// Unpacks in a folder beside things that must stay as they are.
fn unpack(make: impl FnOnce(&Path) -> Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let (outer, root, trash) = (dir.path().join("outer"), dir.path().join("layers/1/fs"), dir.path().join("trash"));
    for folder in [&outer.join("secret"), &root, &trash] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(outer.join("secret/a"), "untouched").unwrap();
    fs::write(dir.path().join("layers/secret"), "untouched").unwrap();
    let seen = || {
        let mut all = BTreeMap::new();
        listing(&outer, &mut all);
        for folder in ["", "layers", "layers/1"] {
            for entry in fs::read_dir(dir.path().join(folder)).unwrap().flatten() {
                all.insert(entry.path(), (entry.metadata().unwrap().mode(), 0, Vec::new()));
            }
        }
        all.remove(&root);
        all
    };
    let before = seen();
    let limits = Limits { layer_bytes: 1 << 20, layer_entries: 100, ..Limits::default() };
    let bytes = make(&outer);
    let (to, gone) = (File::open(&root).unwrap().into(), File::open(&trash).unwrap().into());
    let _ = apply(&bytes[..], to, gone, Form::Overlay, &limits, &AtomicBool::new(false));
    assert_eq!(seen(), before);
    let mut inside = BTreeMap::new();
    listing(&root, &mut inside);
    let used: usize = inside.values().map(|(_, _, content)| content.len()).sum();
    assert!(used <= 1 << 20, "{used} bytes");
}

fn cut_and_changed(mut bytes: Vec<u8>, changes: &[(Index, u8)], end: Index) -> Vec<u8> {
    for (at, byte) in changes {
        let at = at.index(bytes.len());
        bytes[at] ^= byte;
    }
    let end = end.index(bytes.len() + 1);
    bytes.truncate(end);
    bytes
}

/// Replaces one part of a document.
fn replace(document: &mut Value, path: &[Index], by: Value) {
    let mut at = document;
    for step in path {
        let length = at.as_object().map(|o| o.len()).or(at.as_array().map(Vec::len)).unwrap_or(0);
        if length == 0 {
            break;
        }
        let index = step.index(length);
        let key = at.as_object().and_then(|o| o.keys().nth(index).cloned());
        at = match key {
            Some(key) => &mut at[key],
            None => &mut at[index],
        };
    }
    *at = by;
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        Just(json!(u64::MAX)),
        Just(json!(1e300)),
        any::<String>().prop_map(Value::from),
        Just(json!("sha256:../../../../etc/passwd")),
        Just(json!(format!("sha256:{}", "A".repeat(64)))),
        Just(json!([])),
        Just(json!({})),
        Just(json!([[[[[[]]]]]])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn no_layer_gets_out_of_its_folder(entries in prop::collection::vec(written(), 0..10)) {
        unpack(|outer| archive(&entries, outer));
    }

    #[test]
    fn no_broken_compression_hangs_or_gets_out(
        entries in prop::collection::vec(written(), 0..4),
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
        end in any::<Index>(),
        zstd in any::<bool>(),
    ) {
        unpack(|outer| {
            let plain = archive(&entries, outer);
            let packed = if zstd {
                zstd::encode_all(&plain[..], 1).unwrap()
            } else {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(&plain).unwrap();
                gzip.finish().unwrap()
            };
            cut_and_changed(packed, &changes, end)
        });
    }

    #[test]
    fn no_manifest_panics(
        path in prop::collection::vec(any::<Index>(), 0..5),
        by in value(),
        index in any::<bool>(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..2),
        end in any::<Index>(),
    ) {
        let digest = Digest::of(b"x");
        let descriptor = json!({"mediaType": manifest::OCI_LAYER_GZIP, "digest": digest, "size": 7,
            "platform": {"os": "linux", "architecture": "amd64", "variant": "v8"}, "annotations": {"a": "b"}});
        let mut document = if index {
            json!({"schemaVersion": 2, "mediaType": manifest::OCI_INDEX, "manifests": [descriptor, descriptor]})
        } else {
            json!({"schemaVersion": 2, "config": descriptor, "layers": [descriptor, descriptor]})
        };
        let mut config = json!({"created": "now", "os": "linux", "architecture": "amd64", "config": {"Env": ["A=b"],
            "Cmd": ["x"], "Labels": {"a": "b"}, "Volumes": {"/x": {}}, "ExposedPorts": {"80/tcp": {}}},
            "rootfs": {"type": "layers", "diff_ids": [digest, digest]}, "history": [{}]});
        replace(&mut document, &path, by.clone());
        replace(&mut config, &path, by);
        let text = document.to_string().into_bytes();
        for bytes in [text.clone(), cut_and_changed(text, &changes, end)] {
            match Document::parse(&bytes, manifest::OCI_MANIFEST, &digest) {
                Ok(Document::Index(index)) => _ = manifest::choose(&index, &Platform::host()),
                Ok(Document::Manifest(found)) => {
                    if let Ok((_, ids)) = Config::parse(config.to_string().as_bytes(), &found) {
                        prop_assert_eq!(ids.len(), found.layers.len());
                    }
                }
                Err(_) => {}
            }
        }
    }

    #[test]
    fn a_reference_is_refused_or_stays_what_it_is(text in prop_oneof![
        "[a-z0-9./:@_-]{0,40}",
        "([a-zA-Z0-9.-]{1,8}(:[0-9]{0,6})?/)?[a-z0-9._/-]{1,20}(:[a-zA-Z0-9._-]{0,8})?(@sha256:[0-9a-f]{62,65})?",
        any::<String>(),
    ]) {
        if let Ok(parsed) = Reference::parse(&text) {
            let whole = parsed.to_string();
            prop_assert_eq!(Reference::parse(&whole).unwrap().to_string(), whole.clone());
            // It becomes a part of paths and URLs.
            let bad = |c: char| c.is_whitespace() || c.is_control() || "?#%\\".contains(c);
            prop_assert!(!whole.split(['/', ':']).any(|p| p == ".." || p == ".") && !whole.contains(bad), "{whole:?}");
        }
    }

    #[test]
    fn no_hosts_file_panics(
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..6),
        end in any::<Index>(),
        noise in any::<String>(),
    ) {
        let good = "server = \"https://reg.example\"\nca = \"ca.crt\"\n[host.\"http://10.0.0.1:5000/v2/x\"]\n\
            capabilities = [\"pull\", \"resolve\"]\nskip_verify = true\noverride_path = true\nclient = [[\"a\", \"b\"]]\n\
            [host.\"http://10.0.0.1:5000/v2/x\".header]\nx-a = [\"1\", \"2\"]\n";
        let changed = cut_and_changed(good.as_bytes().to_vec(), &changes, end);
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("reg.example");
        fs::create_dir(&folder).unwrap();
        for bytes in [changed, noise.into_bytes()] {
            fs::write(folder.join("hosts.toml"), bytes).unwrap();
            for found in endpoints(dir.path(), "reg.example", &[]).unwrap_or_default() {
                prop_assert!(matches!(found.base.scheme(), "http" | "https"), "{}", found.base);
            }
        }
    }
}
