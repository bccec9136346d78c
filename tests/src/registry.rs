//! A real image registry (Debian's docker-registry) on a loopback port inside the node's network namespace.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::{eventually, run};

/// A running registry; ends with the value.
pub struct Registry {
    child: Child,
    netns: String,
    /// `127.0.0.1:PORT`, as image references start.
    pub address: String,
    folder: PathBuf,
    /// `user:password`, where the registry wants one.
    login: Option<&'static str>,
}

/// The login of [`Registry::start_private`].
pub const LOGIN: &str = "user:secret";

impl Registry {
    /// Starts a registry that keeps its files below `folder`.
    ///
    /// # Errors
    /// docker-registry is not installed or does not answer.
    pub fn start(netns: &str, folder: &Path, port: u16) -> Result<Self> {
        Self::begin(netns, folder, port, None)
    }

    /// As [`Registry::start`], for those who have [`LOGIN`].
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn start_private(netns: &str, folder: &Path, port: u16) -> Result<Self> {
        Self::begin(netns, folder, port, Some(LOGIN))
    }

    fn begin(netns: &str, folder: &Path, port: u16, login: Option<&'static str>) -> Result<Self> {
        let address = format!("127.0.0.1:{port}");
        fs::create_dir_all(folder)?;
        let config = folder.join("registry.yml");
        let storage = folder.join("data");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: {address}}}\n",
                storage.display()
            ),
        )?;
        if login.is_some() {
            let users = folder.join("users");
            // The bcrypt hash of LOGIN's password.
            fs::write(&users, "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n")?;
            let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", users.display());
            OpenOptions::new().append(true).open(&config)?.write_all(auth.as_bytes())?;
        }
        let log = File::create(folder.join("registry.log"))?;
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{netns}"))
            .args(["docker-registry", "serve"])
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start docker-registry")?;
        let registry = Self { child, netns: netns.to_owned(), address, folder: storage, login };
        eventually("docker-registry answers", Duration::from_secs(10), || registry.curl(&["/v2/"]))?;
        Ok(registry)
    }

    /// Pushes the image of an unpacked OCI layout under `name:tag`.
    ///
    /// # Errors
    /// The layout is incomplete or the registry refuses it.
    pub fn push(&self, layout: &Path, name: &str, tag: &str) -> Result<()> {
        let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
        let descriptor = &index["manifests"][0];
        let digest = descriptor["digest"].as_str().context("manifest digest")?;
        let manifest: Value = serde_json::from_slice(&fs::read(blob(digest))?)?;
        for part in manifest["layers"].as_array().into_iter().flatten().chain([&manifest["config"]]) {
            let digest = part["digest"].as_str().context("blob digest")?;
            let headers = self.curl(&["-i", "-X", "POST", &format!("/v2/{name}/blobs/uploads/")])?;
            let location = headers
                .lines()
                .find_map(|l| l.to_ascii_lowercase().starts_with("location:").then(|| l[9..].trim().to_owned()))
                .context("no upload location")?;
            let path = location.split_once("/v2/").map(|(_, p)| format!("/v2/{p}")).context("upload location")?;
            let joint = if path.contains('?') { '&' } else { '?' };
            let from = format!("@{}", blob(digest).display());
            self.curl(&[
                "-X",
                "PUT",
                "-H",
                "Content-Type: application/octet-stream",
                "--data-binary",
                &from,
                &format!("{path}{joint}digest={digest}"),
            ])?;
        }
        let media = manifest["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json");
        let from = format!("@{}", blob(digest).display());
        let header = format!("Content-Type: {media}");
        self.curl(&["-X", "PUT", "-H", &header, "--data-binary", &from, &format!("/v2/{name}/manifests/{tag}")])?;
        Ok(())
    }

    /// Damages every stored blob that `matches` picks (by its bytes), keeping its length, as a bad disk would.
    ///
    /// # Errors
    /// No blob was picked or its file cannot be written.
    pub fn corrupt(&self, matches: impl Fn(&[u8]) -> bool) -> Result<()> {
        let blobs = self.folder.join("docker/registry/v2/blobs/sha256");
        let mut hit = 0;
        for shard in fs::read_dir(&blobs)? {
            for entry in fs::read_dir(shard?.path())? {
                let file = entry?.path().join("data");
                let mut bytes = fs::read(&file)?;
                if matches(&bytes) {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 0xff;
                    fs::write(&file, bytes)?;
                    hit += 1;
                }
            }
        }
        if hit == 0 {
            bail!("no blob to damage below {}", blobs.display());
        }
        Ok(())
    }

    /// Calls the registry with curl; the last word is the path.
    ///
    /// # Errors
    /// The answer is no success.
    pub fn curl(&self, words: &[&str]) -> Result<String> {
        let (path, options) = words.split_last().context("a path")?;
        let mut curl = Command::new("nsenter");
        curl.arg(format!("--net=/run/netns/{}", self.netns)).args(["curl", "-fsS", "--max-time", "20"]);
        if let Some(login) = self.login {
            curl.args(["-u", login]);
        }
        curl.args(options).arg(format!("http://{}{path}", self.address));
        run(&mut curl, "", Duration::from_secs(30))?.ok()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
