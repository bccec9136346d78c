//! Certificates on disk: `kubelet-client-<time>.pem` with the certificate and its key in one file, and the link
//! `kubelet-client-current.pem` to the newest. The same for `kubelet-server`.
//!
//! The link changes in one step, so that whoever reads it finds a pair that fits, before and after.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use gantry_kube::pki::{self, Facts};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Old pairs that are kept beside the current one.
const KEPT: usize = 2;

/// The pairs of one purpose.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    prefix: &'static str,
}

/// A certificate in use.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    /// The certificates, PEM.
    pub(crate) cert: String,
    /// The key, PEM.
    pub(crate) key: String,
    /// What the first certificate says.
    pub(crate) facts: Facts,
}

/// One part of a PEM text: the blocks of a kind.
fn blocks(text: &str, wanted: impl Fn(&str) -> bool) -> String {
    let mut out = String::new();
    let mut inside = false;
    for line in text.lines() {
        if let Some(label) = line.strip_prefix("-----BEGIN ") {
            inside = wanted(label.trim_end_matches('-'));
        }
        if inside {
            out.push_str(line);
            out.push('\n');
        }
        if line.starts_with("-----END ") {
            inside = false;
        }
    }
    out
}

impl Pair {
    /// From texts that hold the certificates and the key; both may be the same text.
    ///
    /// # Errors
    /// One of them is missing, or the key is another certificate's.
    pub(crate) fn new(cert: &str, key: &str) -> Result<Self> {
        let cert = blocks(cert, |label| label == "CERTIFICATE");
        let key = blocks(key, |label| label.ends_with("PRIVATE KEY"));
        let facts = pki::inspect(&cert)?;
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<_, _>>().context("read a certificate")?;
        let private = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("read a private key")?;
        let provider = rustls::crypto::ring::default_provider();
        rustls::sign::CertifiedKey::from_der(chain, private, &provider).context("fit a key to its certificate")?;
        Ok(Self { cert, key, facts })
    }

    /// Whether the certificate is valid now.
    pub(crate) fn lives(&self) -> bool {
        let now = SystemTime::now();
        self.facts.not_before <= now && now < self.facts.not_after
    }

    /// When to ask for the next: after 70 to 90 % of its life. `part` (0 to 1) chooses. Pure.
    pub(crate) fn renewal(&self, part: f64) -> SystemTime {
        let life = self.facts.not_after.duration_since(self.facts.not_before).unwrap_or_default();
        self.facts.not_before + life.mul_f64(0.7 + 0.2 * part.clamp(0.0, 1.0))
    }
}

impl Store {
    /// Pairs called `prefix` in a folder.
    pub(crate) fn new(folder: &Path, prefix: &'static str) -> Self {
        Self { folder: folder.to_owned(), prefix }
    }

    /// The link to the newest pair.
    pub(crate) fn current_path(&self) -> PathBuf {
        self.folder.join(format!("{}-current.pem", self.prefix))
    }

    /// The newest pair; none when there is none that can be used.
    pub(crate) fn current(&self) -> Option<Pair> {
        let path = self.current_path();
        let text = fs::read_to_string(&path).ok()?;
        match Pair::new(&text, &text) {
            Ok(pair) => Some(pair),
            Err(e) => {
                tracing::warn!(path = %path.display(), error = format!("{e:#}"), "this certificate cannot be used");
                None
            }
        }
    }

    /// Keeps a new pair and makes it the current one.
    ///
    /// # Errors
    /// The pair does not fit, or the folder does not take it.
    pub(crate) fn put(&self, cert: &str, key: &str) -> Result<Pair> {
        let pair = Pair::new(cert, key)?;
        let what = || format!("store a certificate in {}", self.folder.display());
        fs::create_dir_all(&self.folder).with_context(what)?;
        let stamp = jiff::Timestamp::now().strftime("%Y-%m-%d-%H-%M-%S");
        let path = (0..)
            .map(|n| match n {
                0 => self.folder.join(format!("{}-{stamp}.pem", self.prefix)),
                n => self.folder.join(format!("{}-{stamp}.{n}.pem", self.prefix)),
            })
            .find(|p| !p.exists())
            .with_context(what)?;
        pki::write_private(&path, &format!("{}{}", pair.cert, pair.key)).with_context(what)?;
        self.link(&path).with_context(what)?;
        self.forget_old(&path);
        Ok(pair)
    }

    fn link(&self, target: &Path) -> io::Result<()> {
        let new = self.folder.join(format!("{}-updated.pem", self.prefix));
        gantry_files::remove(&new)?;
        std::os::unix::fs::symlink(target, &new)?;
        fs::rename(&new, self.current_path())?;
        fs::File::open(&self.folder)?.sync_all()
    }

    fn forget_old(&self, current: &Path) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let start = format!("{}-2", self.prefix);
        let named = |p: &PathBuf| {
            p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&start) && n.ends_with(".pem"))
        };
        let mut old: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            .map(|e| e.path())
            .filter(|p| named(p) && p != current)
            .filter_map(|p| Some((fs::metadata(&p).ok()?.modified().ok()?, p)))
            .collect();
        old.sort();
        for (_, path) in old.iter().rev().skip(KEPT) {
            let _ = fs::remove_file(path);
        }
    }
}

/// A private key that outlives a kill: the same request is found again after a restart.
///
/// # Errors
/// The file cannot be read or written.
pub(crate) fn key_at(path: &Path) -> Result<String> {
    if let Ok(text) = fs::read_to_string(path)
        && gantry_kube::csr::public_key(&text).is_ok()
    {
        return Ok(text);
    }
    let Some(folder) = path.parent() else { bail!("{} has no folder", path.display()) };
    let what = || format!("store a key in {}", path.display());
    fs::create_dir_all(folder).with_context(what)?;
    let key = gantry_kube::csr::new_key()?;
    pki::write_private(path, &key).with_context(what)?;
    Ok(key)
}

/// How long until a time; nothing when it has passed.
pub(crate) fn until(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::now()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_kube::pki::{Usage, issue, new_ca};

    #[test]
    fn the_newest_pair_is_the_current_one() {
        let dir = tempfile::tempdir().unwrap();
        let (store, ca) = (Store::new(dir.path(), "kubelet-client"), new_ca("test").unwrap());
        assert!(store.current().is_none());
        let other = Store::new(dir.path(), "kubelet-server");
        for n in 0..5 {
            let pair = issue(&ca, &format!("system:node:n{n}"), &[], &Usage::Client).unwrap();
            store.put(&pair.cert, &pair.key).unwrap();
            let found = store.current().unwrap();
            assert!(found.lives() && found.facts.common_name == format!("system:node:n{n}"));
        }
        assert!(other.current().is_none());
        let files = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, KEPT + 2, "old ones go");
        let alien = issue(&ca, "x", &[], &Usage::Client).unwrap();
        let pair = issue(&ca, "y", &[], &Usage::Client).unwrap();
        assert!(store.put(&pair.cert, &alien.key).is_err(), "another's key");
        assert_eq!(store.current().unwrap().facts.common_name, "system:node:n4");
    }

    #[test]
    fn one_text_may_hold_both() {
        let ca = new_ca("test").unwrap();
        let pair = issue(&ca, "x", &[], &Usage::Client).unwrap();
        let both = format!("{}{}", pair.cert, pair.key);
        let got = Pair::new(&both, &both).unwrap();
        assert_eq!((got.cert.trim(), got.key.trim()), (pair.cert.trim(), pair.key.trim()));
        let day = Duration::from_secs(86400);
        let start = got.facts.not_before;
        assert!(got.renewal(0.0) >= start + day * 255 && got.renewal(1.0) <= start + day * 329);
    }

    #[test]
    fn a_key_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/key");
        let key = key_at(&path).unwrap();
        assert_eq!(key_at(&path).unwrap(), key);
        fs::write(&path, "cut off").unwrap();
        assert_ne!(key_at(&path).unwrap(), key);
    }
}
