//! What the registry tests share: a tiny HTTP client to push with, tar and layer builders, a scripted server.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cri_images::Digest;
use cri_images::build::{BuildConfig, LayerBlob, config_json, layer_gzip, manifest_json};
use tar::{EntryType, Header};

pub fn root() -> bool {
    let is = rustix::process::geteuid().is_root();
    if !is {
        eprintln!("skipped: needs root");
    }
    is
}

pub fn tarball(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut h = Header::new_gnu();
        h.set_entry_type(EntryType::Regular);
        h.set_mode(0o644);
        h.set_size(text.len() as u64);
        tar.append_data(&mut h, name, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

pub fn gzip(files: &[(&str, &str)]) -> LayerBlob {
    layer_gzip(&tarball(files)).unwrap()
}

pub fn zstd_layer(files: &[(&str, &str)]) -> LayerBlob {
    let plain = tarball(files);
    LayerBlob {
        bytes: zstd::encode_all(&plain[..], 3).unwrap(),
        media_type: "application/vnd.oci.image.layer.v1.tar+zstd".into(),
        diff_id: Digest::of(&plain),
    }
}

/// Config and manifest bytes of an image.
pub fn documents(layers: &[LayerBlob], cfg: &BuildConfig) -> (Vec<u8>, Vec<u8>) {
    let config = config_json(layers, cfg).to_string().into_bytes();
    let manifest = manifest_json(&config, layers).to_string().into_bytes();
    (config, manifest)
}

/// Everything in the store that is not an empty folder or bookkeeping.
pub fn leftovers(store: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for sub in ["blobs/sha256", "ingest", "layers", "unpack", "snapshots", "views", "trash", "empty"] {
        out.extend(fs::read_dir(store.join(sub)).unwrap().map(|e| e.unwrap().path()));
    }
    out
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Status, headers (lower case) and body.
pub type Answer = (u16, BTreeMap<String, String>, Vec<u8>);

pub fn http(port: u16, method: &str, path: &str, kind: &str, body: &[u8]) -> std::io::Result<Answer> {
    let mut s = TcpStream::connect(("127.0.0.1", port))?;
    s.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(
        s,
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )?;
    s.write_all(body)?;
    let mut all = Vec::new();
    s.read_to_end(&mut all)?;
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let headers = head
        .lines()
        .skip(1)
        .filter_map(|l| l.split_once(':'))
        .map(|(k, v)| (k.to_lowercase(), v.trim().to_string()))
        .collect();
    Ok((status, headers, all[end + 4..].to_vec()))
}

/// Debian's docker-registry on a free loopback port with its own folder.
pub struct DockerRegistry {
    child: Child,
    pub port: u16,
    pub dir: tempfile::TempDir,
}

impl DockerRegistry {
    pub fn start() -> Option<DockerRegistry> {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            dir.path().join("data").display()
        );
        fs::write(dir.path().join("config.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            eprintln!("skipped: docker-registry is not installed");
            return None;
        };
        let registry = DockerRegistry { child, port, dir };
        let start = Instant::now();
        while http(port, "GET", "/v2/", "", b"").is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "docker-registry does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(registry)
    }

    pub fn push_blob(&self, repo: &str, bytes: &[u8]) {
        let (status, headers, _) = http(self.port, "POST", &format!("/v2/{repo}/blobs/uploads/"), "", b"").unwrap();
        assert_eq!(status, 202);
        let location = &headers["location"];
        let path = location.strip_prefix(&format!("http://127.0.0.1:{}", self.port)).unwrap_or(location);
        let path = format!("{path}&digest={}", Digest::of(bytes));
        let (status, _, body) = http(self.port, "PUT", &path, "application/octet-stream", bytes).unwrap();
        assert_eq!(status, 201, "{}", String::from_utf8_lossy(&body));
    }

    pub fn push_manifest(&self, repo: &str, tag: &str, kind: &str, bytes: &[u8]) {
        let (status, _, body) = http(self.port, "PUT", &format!("/v2/{repo}/manifests/{tag}"), kind, bytes).unwrap();
        assert_eq!(status, 201, "{}", String::from_utf8_lossy(&body));
    }

    /// Pushes an image and returns its manifest.
    pub fn push(&self, repo: &str, tag: &str, layers: &[LayerBlob], cfg: &BuildConfig) -> Vec<u8> {
        let (config, manifest) = documents(layers, cfg);
        for blob in layers.iter().map(|l| &l.bytes).chain([&config]) {
            self.push_blob(repo, blob);
        }
        self.push_manifest(repo, tag, "application/vnd.oci.image.manifest.v1+json", &manifest);
        manifest
    }

    /// The registry's file of a blob.
    pub fn blob_file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.path().join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request as the scripted server saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// What the script does with the connection.
pub type Script = dyn Fn(&Seen, &mut TcpStream) -> std::io::Result<()> + Send + Sync;

/// A server that answers by script and remembers what it was asked.
pub struct Scripted {
    pub port: u16,
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

impl Scripted {
    pub fn start(script: impl Fn(&Seen, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, script): (_, Arc<Script>) = (seen.clone(), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), log, script) = (stream, log.clone(), script.clone()) else { return };
                std::thread::spawn(move || serve(stream, &log, &*script));
            }
        });
        Scripted { port, seen }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Seen>>, script: &Script) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut words = line.split(' ').map(str::to_string);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
            break;
        }
        if let Some((k, v)) = line.split_once(':') {
            headers.insert(k.to_lowercase(), v.trim().to_string());
        }
    }
    let length = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    let _ = reader.read_exact(&mut body);
    let seen = Seen { method, path, headers, body: String::from_utf8_lossy(&body).into_owned() };
    log.lock().unwrap().push(seen.clone());
    let _ = script(&seen, &mut stream);
}

/// Writes a whole answer.
pub fn answer(s: &mut TcpStream, status: &str, headers: &str, body: &[u8]) -> std::io::Result<()> {
    write!(s, "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n", body.len())?;
    s.write_all(body)
}
