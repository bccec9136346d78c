//! A container from a checkpoint's archive: CreateContainer with the archive's path for an image. Its root is that of the
//! image that was checkpointed with what the container had changed, and starting it makes its processes go on.
//!
//! Such a path comes only from who may use the CRI socket, whom the images are as good as commands of: a kubelet refuses it as
//! the name of an image.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::daemon::Daemon;
use crate::error::{Error, Result};

/// A description is a few lines.
const LARGEST_DESCRIPTION: u64 = 1 << 20;

/// An archive, and what it says of itself.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) archive: PathBuf,
    about: About,
}

/// As much of an archive's config.dump as restoring needs.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct About {
    rootfs_image: String,
    rootfs_image_ref: String,
    rootfs_image_name: String,
}

/// The archive that `image` is the path of; none for the name of an image.
///
/// # Errors
/// There is none at that path, or it holds no checkpoint.
pub(super) async fn source(image: &str) -> Result<Option<Source>> {
    let archive = PathBuf::from(image);
    if !archive.is_absolute() {
        return Ok(None);
    }
    let read = move || {
        let about = describe(&archive).map_err(|e| Error::Invalid(format!("checkpoint {}: {e}", archive.display())))?;
        Ok(Some(Source { archive, about }))
    };
    tokio::task::spawn_blocking(read).await?
}

fn open(archive: &Path) -> io::Result<tar::Archive<BufReader<File>>> {
    let file = File::open(archive)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    Ok(tar::Archive::new(BufReader::new(file)))
}

fn describe(archive: &Path) -> io::Result<About> {
    for entry in open(archive)?.entries_with_seek()? {
        let entry = entry?;
        if part(&entry.path()?).as_deref() == Some(Path::new("config.dump")) {
            return Ok(serde_json::from_reader(entry.take(LARGEST_DESCRIPTION))?);
        }
    }
    Err(io::Error::other("it has no config.dump"))
}

/// Which part of a checkpoint an entry is; none for what restoring needs nothing of.
fn part(path: &Path) -> Option<PathBuf> {
    let plain = path.components().filter(|c| !matches!(c, Component::CurDir | Component::RootDir));
    let names: Vec<_> = plain.map(|c| if let Component::Normal(name) = c { name.to_str() } else { None }).collect();
    match names.as_slice() {
        [Some("config.dump")] => Some("config.dump".into()),
        [Some("rootfs-diff.tar")] => Some("rootfs-diff.tar".into()),
        [Some("checkpoint"), Some(name)] => Some(Path::new("checkpoint").join(name)),
        _ => None,
    }
}

impl Source {
    /// The image of the container that was checkpointed, from the store or its registry.
    ///
    /// # Errors
    /// The archive names none, or it is in neither.
    pub(super) async fn image(&self, daemon: &Daemon) -> Result<cri_images::Image> {
        let about = &self.about;
        let names = [&about.rootfs_image_ref, &about.rootfs_image_name, &about.rootfs_image];
        let named: Vec<_> = names.into_iter().filter(|name| !name.is_empty()).collect();
        if let Some(image) = named.iter().find_map(|name| daemon.images.get(name)) {
            return Ok(image);
        }
        let Some(name) = named.first() else {
            return Err(Error::Invalid(format!("checkpoint {} names no image", self.archive.display())));
        };
        daemon.images.pull(name, None, None).await.map_err(|e| {
            Error::NotFound(format!(
                "image {name:?} of checkpoint {}: not in the store, and {e}",
                self.archive.display()
            ))
        })
    }
}

/// Where the images of a container's processes are until it starts.
pub(super) fn folder(daemon: &Daemon, id: &str) -> PathBuf {
    daemon.images.beside(id).join("restore")
}

/// Unpacks an archive for a container whose snapshot is made and not mounted yet.
///
/// # Errors
/// It holds no processes, or the file system's.
pub(super) fn unpack(daemon: &Daemon, id: &str, archive: &Path) -> Result<()> {
    let what = || format!("unpack checkpoint {}", archive.display());
    let folder = folder(daemon, id);
    let unpacked = (|| {
        let _ = fs::remove_dir_all(&folder);
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        fs::DirBuilder::new().mode(0o700).create(folder.join("checkpoint"))?;
        for entry in open(archive)?.entries()? {
            let mut entry = entry?;
            // Nothing but plain files at places that are named here: an archive is not trusted with more.
            let Some(part) = part(&entry.path()?).filter(|_| entry.header().entry_type().is_file()) else { continue };
            let mut file = File::options().write(true).create_new(true).open(folder.join(part))?;
            io::copy(&mut entry, &mut file)?;
        }
        Ok(())
    })();
    unpacked.map_err(Error::failed(what()))?;
    if !folder.join("checkpoint/inventory.img").exists() {
        return Err(Error::Invalid(format!("checkpoint {} holds no processes", archive.display())));
    }
    let changes = folder.join("rootfs-diff.tar");
    if changes.exists() {
        daemon.images.apply_changes(id, &changes)?;
        fs::remove_file(&changes).map_err(Error::failed(what()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parts_of_a_checkpoint_are_taken_from_an_archive() {
        for (path, wanted) in [
            ("config.dump", Some("config.dump")),
            ("./rootfs-diff.tar", Some("rootfs-diff.tar")),
            ("checkpoint/pages-1.img", Some("checkpoint/pages-1.img")),
            ("/checkpoint/core-1.img", Some("checkpoint/core-1.img")),
            ("checkpoint/../../etc/passwd", None),
            ("checkpoint/a/b", None),
            ("checkpoint", None),
            ("dump.log", None),
            ("../config.dump", None),
        ] {
            assert_eq!(part(Path::new(path)).as_deref(), wanted.map(Path::new), "{path}");
        }
    }
}
