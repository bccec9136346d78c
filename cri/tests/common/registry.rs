//! A registry with one image, on the loopback device of a daemon's network namespace.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use cri_images::Digest;
use cri_images::build::{BuildConfig, config_json, layer_gzip, manifest_json};

/// Files by path: content type and bytes.
type Files = Vec<(String, &'static str, Vec<u8>)>;

pub struct Registry {
    /// Name of its image.
    pub image: String,
    /// Paths asked for.
    seen: Arc<Mutex<Vec<String>>>,
}

/// Layers that do not compress, so that a pull takes its time.
fn files(layers: usize, size: usize) -> Files {
    let layers: Vec<_> = (0..layers)
        .map(|n| {
            let mut tar = tar::Builder::new(Vec::new());
            let bytes: Vec<u8> = (0..size).map(|_| rand::random()).collect();
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, format!("file-{n}"), &bytes[..]).unwrap();
            layer_gzip(&tar.into_inner().unwrap()).unwrap()
        })
        .collect();
    let config = config_json(&layers, &BuildConfig::default()).to_string().into_bytes();
    let manifest = manifest_json(&config, &layers).to_string().into_bytes();
    let blob = |bytes: Vec<u8>| (format!("/v2/image/blobs/{}", Digest::of(&bytes)), "application/octet-stream", bytes);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let mut files: Files = layers.into_iter().map(|l| blob(l.bytes)).collect();
    files.push(blob(config));
    files.push((format!("/v2/image/manifests/{}", Digest::of(&manifest)), kind, manifest.clone()));
    files.push(("/v2/image/manifests/1".to_owned(), kind, manifest));
    files.push(("/v2/".to_owned(), "application/json", b"{}".to_vec()));
    files
}

impl Registry {
    /// Starts one in the network namespace of this pid. As long as a file `gate` is there, blobs wait.
    pub fn start(init: u32, layers: usize, size: usize, gate: PathBuf) -> Self {
        Self::start_private(init, layers, size, gate, "")
    }

    /// As [`Registry::start`], for those who log in as `user:password` only.
    pub fn start_private(init: u32, layers: usize, size: usize, gate: PathBuf, login: &str) -> Self {
        let login =
            (!login.is_empty()).then(|| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login)));
        let listener = std::thread::spawn(move || {
            let space = std::fs::File::open(format!("/proc/{init}/ns/net")).unwrap();
            nix::sched::setns(space, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            TcpListener::bind("127.0.0.1:0").unwrap()
        });
        let listener = listener.join().unwrap();
        let image = format!("{}/image:1", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, files) = (seen.clone(), Arc::new(files(layers, size)));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, files, gate, login) = (log.clone(), files.clone(), gate.clone(), login.clone());
                std::thread::spawn(move || serve(stream, &log, &files, &gate, login.as_deref()));
            }
        });
        Self { image, seen }
    }

    /// How often paths with this in them were asked for.
    pub fn asked(&self, part: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|p| p.contains(part)).count()
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<String>>, files: &Files, gate: &std::path::Path, login: Option<&str>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines.by_ref().take_while(|l| !l.is_empty()).collect();
    let given =
        headers.iter().find_map(|h| h.split_once(": ").filter(|(k, _)| k.eq_ignore_ascii_case("authorization")));
    if login.is_some() && given.map(|(_, value)| value) != login {
        let _ = stream.write_all(
            b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"test\"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        );
        return;
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if method == "GET" {
        log.lock().unwrap().push(path.to_owned());
    }
    let Some((_, kind, bytes)) = files.iter().find(|f| f.0 == path) else {
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        return;
    };
    let length = bytes.len();
    let head =
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
    if method == "HEAD" {
        return;
    }
    let blob = path.contains("/blobs/");
    for piece in bytes.chunks(64 << 10) {
        while blob && gate.exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        if stream.write_all(piece).is_err() {
            return;
        }
    }
}
