//! Builds and writes OCI archives: small images from a directory (demos, tests) and exports from the store.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde_json::json;
use tar::{Builder, EntryType, Header};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST, Platform};
use crate::reference::Reference;

/// What the built image says about running it.
#[derive(Debug, Clone, Default)]
pub struct BuildConfig {
    /// Start of the command line.
    pub entrypoint: Vec<String>,
    /// Rest of the command line.
    pub cmd: Vec<String>,
    /// `NAME=value` lines.
    pub env: Vec<String>,
    /// `user[:group]`.
    pub user: String,
    /// Directory to start in.
    pub working_dir: String,
    /// Signal that ends the program.
    pub stop_signal: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `port/proto` names.
    pub exposed_ports: Vec<String>,
    /// Paths that want a volume.
    pub volumes: Vec<String>,
}

/// A layer as it goes into an archive.
#[derive(Debug, Clone)]
pub struct LayerBlob {
    /// Compressed bytes.
    pub bytes: Vec<u8>,
    /// Media type, which says the compression.
    pub media_type: String,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
}

/// Writes an OCI archive (tar) to `out` with one gzip layer, the tree below `rootfs`, named `name`. Owners and modes
/// are those of the files; times are zero, so the same tree gives the same image.
pub fn archive_from_rootfs(rootfs: &Path, name: &str, cfg: &BuildConfig, out: &Path) -> Result<()> {
    write_archive(out, name, &[layer_from_dir(rootfs)?], cfg)
}

/// Writes an OCI archive (tar) to `path` with these layers, lowest first.
pub fn write_archive(path: &Path, name: &str, layers: &[LayerBlob], cfg: &BuildConfig) -> Result<()> {
    let name = Reference::parse(name)?;
    let config = encode(&config_json(layers, cfg))?;
    let manifest = encode(&manifest_json(&config, layers))?;
    let index = encode(&json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{
            "mediaType": OCI_MANIFEST,
            "digest": Digest::of(&manifest).to_string(),
            "size": manifest.len(),
            "annotations": {
                "io.containerd.image.name": name.to_string(),
                "org.opencontainers.image.ref.name": name.to_string(),
            },
        }],
    }))?;
    let mut archive = Archive::create(path)?;
    archive.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.bytes("index.json", &index)?;
    for blob in layers.iter().map(|l| &l.bytes).chain([&config, &manifest]) {
        archive.bytes(&blob_name(&Digest::of(blob)), blob)?;
    }
    archive.finish()
}

/// The image config that says `cfg` over `layers`.
pub fn config_json(layers: &[LayerBlob], cfg: &BuildConfig) -> serde_json::Value {
    let set = |names: &[String]| names.iter().map(|n| (n.clone(), json!({}))).collect::<BTreeMap<_, _>>();
    let host = Platform::host();
    json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": host.architecture,
        "os": host.os,
        "config": {
            "User": cfg.user,
            "Env": cfg.env,
            "Entrypoint": cfg.entrypoint,
            "Cmd": cfg.cmd,
            "WorkingDir": cfg.working_dir,
            "StopSignal": cfg.stop_signal,
            "Labels": cfg.labels,
            "ExposedPorts": set(&cfg.exposed_ports),
            "Volumes": set(&cfg.volumes),
        },
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| l.diff_id.to_string()).collect::<Vec<_>>()},
    })
}

/// The manifest of an image with these config bytes and layers.
pub fn manifest_json(config: &[u8], layers: &[LayerBlob]) -> serde_json::Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": Digest::of(config).to_string(), "size": config.len()},
        "layers": layers.iter().map(|l| json!({
            "mediaType": l.media_type,
            "digest": Digest::of(&l.bytes).to_string(),
            "size": l.bytes.len(),
        })).collect::<Vec<_>>(),
    })
}

/// Packs the tree below `dir` as a gzip layer.
pub fn layer_from_dir(dir: &Path) -> Result<LayerBlob> {
    let mut tar = Builder::new(Vec::new());
    add_tree(&mut tar, dir, dir, &mut HashMap::new())?;
    let plain = tar.into_inner().map_err(|e| Error::io("pack", dir, e))?;
    layer_gzip(&plain).map_err(|e| Error::io("compress", dir, e))
}

/// A gzip layer from a plain tar.
pub fn layer_gzip(plain: &[u8]) -> std::io::Result<LayerBlob> {
    let mut gz = flate2::GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::fast());
    gz.write_all(plain)?;
    Ok(LayerBlob { bytes: gz.finish()?, media_type: OCI_LAYER_GZIP.into(), diff_id: Digest::of(plain) })
}

fn encode(value: &serde_json::Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::Invalid(format!("encode image document: {e}")))
}

pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn add_tree(
    tar: &mut Builder<Vec<u8>>,
    root: &Path,
    dir: &Path,
    seen: &mut HashMap<(u64, u64), PathBuf>,
) -> Result<()> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .and_then(|d| d.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>())
        .map_err(|e| Error::io("read", dir, e))?;
    names.sort();
    for path in names {
        let failed = |e: std::io::Error| Error::io("pack", &path, e);
        let meta = path.symlink_metadata().map_err(failed)?;
        let inside = path.strip_prefix(root).unwrap_or(&path);
        let mut header = Header::new_gnu();
        header.set_mode(meta.mode() & 0o7777);
        header.set_uid(u64::from(meta.uid()));
        header.set_gid(u64::from(meta.gid()));
        header.set_mtime(0);
        header.set_size(0);
        let kind = meta.file_type();
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = fs::read_link(&path).map_err(failed)?;
            tar.append_link(&mut header, inside, target).map_err(failed)?;
        } else if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            tar.append_data(&mut header, inside, std::io::empty()).map_err(failed)?;
            add_tree(tar, root, &path, seen)?;
        } else if let Some(first) = seen.get(&(meta.dev(), meta.ino())) {
            header.set_entry_type(EntryType::Link);
            tar.append_link(&mut header, inside, first).map_err(failed)?;
        } else if kind.is_file() {
            if meta.nlink() > 1 {
                seen.insert((meta.dev(), meta.ino()), inside.to_path_buf());
            }
            header.set_entry_type(EntryType::Regular);
            header.set_size(meta.len());
            tar.append_data(&mut header, inside, File::open(&path).map_err(failed)?).map_err(failed)?;
        } else if kind.is_fifo() {
            header.set_entry_type(EntryType::Fifo);
            tar.append_data(&mut header, inside, std::io::empty()).map_err(failed)?;
        } else {
            let shown = String::from_utf8_lossy(inside.as_os_str().as_bytes()).into_owned();
            return Err(Error::Archive { reason: format!("{shown}: sockets and devices are not packed") });
        }
    }
    Ok(())
}

/// An archive being written; it appears at its path when it is complete.
pub(crate) struct Archive {
    tar: Builder<BufWriter<File>>,
    tmp: std::path::PathBuf,
    path: std::path::PathBuf,
    done: bool,
}

impl Archive {
    pub(crate) fn create(path: &Path) -> Result<Archive> {
        let mut tmp = path.as_os_str().to_owned();
        tmp.push(".part");
        let tmp = std::path::PathBuf::from(tmp);
        let file = File::create(&tmp).map_err(|e| Error::io("create", &tmp, e))?;
        Ok(Archive { tar: Builder::new(BufWriter::new(file)), tmp, path: path.to_path_buf(), done: false })
    }

    fn header(size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    }

    pub(crate) fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut header = Archive::header(bytes.len() as u64);
        self.tar.append_data(&mut header, name, bytes).map_err(|e| Error::io("write", &self.tmp, e))
    }

    pub(crate) fn file(&mut self, name: &str, from: &Path) -> Result<()> {
        let file = File::open(from).map_err(|e| Error::io("open", from, e))?;
        let size = file.metadata().map_err(|e| Error::io("stat", from, e))?.len();
        let mut header = Archive::header(size);
        self.tar.append_data(&mut header, name, file).map_err(|e| Error::io("write", &self.tmp, e))
    }

    pub(crate) fn finish(mut self) -> Result<()> {
        let written = self.tar.finish().and_then(|()| {
            self.tar.get_mut().flush()?;
            self.tar.get_ref().get_ref().sync_all()?;
            fs::rename(&self.tmp, &self.path)
        });
        written.map_err(|e| Error::io("write", &self.path, e))?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(&self.tmp);
        }
    }
}
