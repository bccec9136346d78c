//! The content store: `blobs/sha256/<hex>`, each file complete and verified or not there at all.
//!
//! Bytes go to a temporary file, are hashed on the way and renamed; whoever sees a name may trust the content. That they outlive a
//! power failure is seen to once per image, see [`super::Store::add`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use gantry_files::{Access, Outlives};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::error::{Error, Result};

/// Where blobs live and where half-made ones are written.
#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    dir: PathBuf,
    ingest: PathBuf,
}

static SERIAL: AtomicU64 = AtomicU64::new(0);

impl Blobs {
    /// Makes the folders below `root` and drops what a crash left half-made.
    pub(crate) fn open(root: &Path) -> Result<Blobs> {
        let blobs = Blobs { dir: root.join("blobs/sha256"), ingest: root.join("ingest") };
        for dir in [&blobs.dir, &blobs.ingest] {
            fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        }
        for entry in fs::read_dir(&blobs.ingest).map_err(|e| Error::io("read", &blobs.ingest, e))? {
            let path = entry.map_err(|e| Error::io("read", &blobs.ingest, e))?.path();
            fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
        Ok(blobs)
    }

    /// Path of a blob, whether it exists or not.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// All blobs with their sizes; files with other names are not ours to judge and skipped.
    pub(crate) fn list(&self) -> Result<Vec<(Digest, u64)>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| Error::io("read", &self.dir, e))? {
            let entry = entry.map_err(|e| Error::io("read", &self.dir, e))?;
            if let Some(digest) = entry.file_name().to_str().and_then(Digest::from_hex) {
                let meta = entry.metadata().map_err(|e| Error::io("stat", &entry.path(), e))?;
                out.push((digest, meta.len()));
            }
        }
        Ok(out)
    }

    /// Reads a small blob (manifest, config) and checks it against its name again.
    pub(crate) fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let path = self.path(digest);
        let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", &path, e))?;
        if bytes.len() as u64 > limit {
            return Err(Error::Size { what: format!("blob {digest}"), actual: bytes.len() as u64, limit });
        }
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(Error::Digest { what: "blob", expected: digest.to_string(), actual: actual.to_string() });
        }
        Ok(bytes)
    }

    /// Starts a new blob.
    pub(crate) fn ingest(&self) -> Result<Ingest> {
        let path = self.ingest.join(SERIAL.fetch_add(1, Ordering::Relaxed).to_string());
        let file =
            OpenOptions::new().write(true).create_new(true).open(&path).map_err(|e| Error::io("create", &path, e))?;
        let growth = Arc::default();
        Ok(Ingest { path, file: Some(file), hasher: Sha256::new(), written: 0, dir: self.dir.clone(), growth })
    }
}

/// How far a blob has come, for those who read it meanwhile.
#[derive(Debug, Default)]
struct Growth {
    now: Mutex<(u64, Verdict)>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    #[default]
    Open,
    /// All is there and it is what was asked for.
    Good,
    Bad,
}

impl Growth {
    fn set(&self, written: u64, verdict: Verdict) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = (written, verdict);
        self.changed.notify_all();
    }

    /// Waits until there is more than `at` or no more to come; whoever writes says so when it ends, however it does.
    fn wait(&self, at: u64) -> (u64, Verdict) {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |now: &mut (u64, Verdict)| now.0 <= at && now.1 == Verdict::Open;
        *self.changed.wait_while(now, waiting).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a blob while it is written. Its end is reached only when the whole has turned out to be what was asked for; else, and
/// when the writer gives up, reading fails.
#[derive(Debug)]
pub(crate) struct Follow {
    file: File,
    at: u64,
    growth: Arc<Growth>,
}

impl Read for Follow {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (written, verdict) = self.growth.wait(self.at);
        if verdict == Verdict::Bad {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the download was given up"));
        }
        let most = usize::try_from(written - self.at).unwrap_or(usize::MAX).min(buf.len());
        let n = self.file.read(&mut buf[..most])?;
        self.at += n as u64;
        Ok(n)
    }
}

/// A blob being written. Dropped without [`Ingest::commit`] it leaves nothing.
pub(crate) struct Ingest {
    path: PathBuf,
    file: Option<File>,
    hasher: Sha256,
    written: u64,
    dir: PathBuf,
    growth: Arc<Growth>,
}

impl Ingest {
    /// Appends.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))?;
        }
        self.written += bytes.len() as u64;
        self.growth.set(self.written, Verdict::Open);
        self.hasher.update(bytes);
        Ok(())
    }

    /// Someone to read it from its beginning while it is written.
    pub(crate) fn follow(&self) -> Result<Follow> {
        let file = File::open(&self.path).map_err(|e| Error::io("open", &self.path, e))?;
        Ok(Follow { file, at: 0, growth: self.growth.clone() })
    }

    /// The digest of what was written so far.
    pub(crate) fn digest(&self) -> Digest {
        Digest::finish(self.hasher.clone())
    }

    /// Makes the blob visible when it is what was `expected` (any content when `None`). Returns its digest and size.
    pub(crate) fn commit(mut self, what: &'static str, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        let actual = Digest::finish(std::mem::take(&mut self.hasher));
        if let Some(expected) = expected
            && *expected != actual
        {
            return Err(Error::Digest { what, expected: expected.to_string(), actual: actual.to_string() });
        }
        drop(self.file.take());
        let to = self.dir.join(actual.hex());
        fs::rename(&self.path, &to).map_err(|e| Error::io("rename", &to, e))?;
        self.path = PathBuf::new();
        self.growth.set(self.written, Verdict::Good);
        Ok((actual, self.written))
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            self.growth.set(self.written, Verdict::Bad);
            // Nothing to do about a failure here: the next start removes the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes `bytes` to `path` so that a reader sees the old or the new content; a power failure may lose both.
pub(crate) fn write_renamed(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, bytes, Outlives::Program)
}

/// Writes `bytes` to `path` so that a reader sees the old or the new content and a crash loses neither.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, bytes, Outlives::CrashAtOnce)
}

fn replace(path: &Path, bytes: &[u8], outlives: Outlives) -> Result<()> {
    gantry_files::replace(path, bytes, Access::Umask, outlives).map_err(|e| Error::io("write", path, e))
}
