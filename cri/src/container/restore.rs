//! A container from a checkpoint: CreateContainer with the path of its archive for an image, or with an image that has the archive's
//! files for its layer and says so. Its root is that of the image that was checkpointed with what the container had changed, and
//! starting it makes its processes go on.
//!
//! Such a path comes only from who may use the CRI socket, whom the images are as good as commands of: a kubelet refuses it as
//! the name of an image. Anyone may name an image, and restored processes have the ids and rights that they had: the
//! configuration has to allow it.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use serde::Deserialize;

use crate::daemon::Daemon;
use crate::error::{Error, Result};

/// A description is a few lines.
const LARGEST_DESCRIPTION: u64 = 1 << 20;

/// What the manifest of an image with a checkpoint in it says: podman and CRI-O, and containerd and the kubelet.
const ANNOTATIONS: [&str; 2] =
    ["io.kubernetes.cri-o.annotations.checkpoint.name", "org.criu.checkpoint.container.name"];

/// An archive or the layer of an image, and what it says of itself.
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

/// The archive that `image` is the path of, or the layer of the image that holds a checkpoint; none for an ordinary image.
///
/// # Errors
/// There is none at that path, it holds no checkpoint, or the configuration does not allow it.
pub(super) async fn source(daemon: &Daemon, image: &str) -> Result<Option<Source>> {
    let mut archive = PathBuf::from(image);
    if !archive.is_absolute() {
        let annotations = daemon.images.annotations(image)?;
        if !ANNOTATIONS.iter().any(|name| annotations.contains_key(*name)) {
            return Ok(None);
        }
        if !daemon.settings().checkpoint_images {
            let why = "is a checkpoint, and checkpoint_images in the configuration does not let it be restored";
            return Err(Error::Invalid(format!("image {image:?} {why}")));
        }
        let layer = daemon.images.layers(image).pop();
        archive = layer.ok_or_else(|| Error::Invalid(format!("checkpoint {image:?} has no layer")))?;
    }
    let read = move || {
        let about = describe(&archive).map_err(|e| Error::Invalid(format!("checkpoint {}: {e}", archive.display())))?;
        Ok(Some(Source { archive, about }))
    };
    tokio::task::spawn_blocking(read).await?
}

/// Goes through the parts of a checkpoint in an archive, or in a folder that is not trusted, as long as `take` wants more.
fn each(archive: &Path, mut take: impl FnMut(PathBuf, &mut dyn Read) -> io::Result<bool>) -> io::Result<()> {
    let file = File::open(archive)?;
    if file.metadata()?.is_dir() {
        let open = |name: &Path, kind: OFlags| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | kind;
            let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            openat2(&file, name, flags, Mode::empty(), beneath)
        };
        let mut names: Vec<PathBuf> = ["config.dump", "rootfs-diff.tar"].map(PathBuf::from).into();
        let folder = open(Path::new("checkpoint"), OFlags::DIRECTORY)?;
        for entry in rustix::fs::Dir::read_from(folder.as_fd())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            names.extend(part(&Path::new("checkpoint").join(name)));
        }
        for name in names {
            let mut file = match open(&name, OFlags::empty()) {
                Ok(file) => File::from(file),
                Err(rustix::io::Errno::NOENT) => continue,
                Err(e) => return Err(e.into()),
            };
            if file.metadata()?.is_file() && !take(name, &mut file)? {
                break;
            }
        }
        return Ok(());
    }
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    // Nothing but plain files at places that are named here: an archive is not trusted with more.
    for entry in tar::Archive::new(BufReader::new(file)).entries_with_seek()? {
        let mut entry = entry?;
        let Some(part) = part(&entry.path()?).filter(|_| entry.header().entry_type().is_file()) else { continue };
        if !take(part, &mut entry)? {
            break;
        }
    }
    Ok(())
}

fn describe(archive: &Path) -> io::Result<About> {
    let mut about = None;
    each(archive, |part, content| {
        if part == Path::new("config.dump") {
            about = Some(serde_json::from_reader(content.take(LARGEST_DESCRIPTION))?);
        }
        Ok(about.is_none())
    })?;
    about.ok_or_else(|| io::Error::other("it has no config.dump"))
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
        each(archive, |part, content| {
            let mut file = File::options().write(true).create_new(true).open(folder.join(part))?;
            io::copy(content, &mut file).map(|_| true)
        })
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
