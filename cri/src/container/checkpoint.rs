//! CheckpointContainer: the processes as the OCI runtime (with criu) writes them, and what belongs to them, in one archive.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::cri;
use serde_json::{Value, json};

use crate::daemon::{Container, Daemon, now};
use crate::error::{Error, Result};

/// When the request sets no limit.
const SLOW: Duration = Duration::from_secs(120);

/// A folder that is gone with the value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes a checkpoint of a running container, which runs on, to the archive `location`.
///
/// # Errors
/// It does not run, its OCI runtime cannot do it (in its own words), or the archive cannot be written; nothing is left then.
pub async fn checkpoint(daemon: &Arc<Daemon>, id: &str, location: &str, limit: i64) -> Result<()> {
    let container = daemon.container(id)?;
    let location = PathBuf::from(location);
    let name = location.file_name().filter(|_| location.is_absolute());
    let name =
        name.ok_or_else(|| Error::Invalid("the location of a checkpoint is no absolute path of a file".into()))?;
    let _turn = container.turn.lock().await;
    if container.state() != cri::ContainerState::ContainerRunning {
        return Err(Error::State(format!("container {} does not run", container.id)));
    }
    // Beside the archive: there is the room for it.
    let scratch = Scratch(location.with_file_name(format!(".{}.parts", name.to_string_lossy())));
    let images = scratch.0.join("checkpoint");
    fs::create_dir_all(&images).map_err(Error::failed(format!("create {}", images.display())))?;
    fs::set_permissions(&scratch.0, Permissions::from_mode(0o700)).map_err(Error::failed("protect the checkpoint"))?;
    let limit = u64::try_from(limit).ok().filter(|n| *n > 0).map_or(SLOW, Duration::from_secs);
    dump(daemon, &container, &images, &scratch.0, limit).await?;
    let (task_daemon, task_container) = (daemon.clone(), container.clone());
    let packed = tokio::task::spawn_blocking(move || {
        let made = pack(&task_daemon, &task_container, &scratch.0, &location);
        drop(scratch);
        made.map_err(|e| Error::Failed(format!("write checkpoint {}: {e}", location.display())))
    });
    packed.await??;
    tracing::info!(container = %container.id, "checkpoint written");
    Ok(())
}

/// Has the OCI runtime write the processes.
async fn dump(daemon: &Daemon, container: &Container, images: &Path, work: &Path, limit: Duration) -> Result<()> {
    let handler = daemon.sandbox(&container.sandbox)?.record().handler;
    let runtime = daemon
        .settings()
        .handler(&handler)
        .ok_or_else(|| Error::Invalid(format!("runtime handler {handler:?} is unknown")))?;
    let what = format!("checkpoint of container {} by {}", container.id, runtime.display());
    let run = tokio::process::Command::new(&runtime)
        .arg("--root")
        .arg(&daemon.config.runtime_root)
        .arg("checkpoint")
        .arg("--image-path")
        .arg(images)
        .arg("--work-path")
        .arg(work)
        .args(["--leave-running", &container.id])
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(limit, run)
        .await
        .map_err(|_| Error::Timeout(format!("{what}: no end after {} s", limit.as_secs())))?
        .map_err(Error::failed(&what))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
    let why = last.iter().rev().take(3).rev().copied().collect::<Vec<_>>().join("; ");
    let why = if why.is_empty() { output.status.to_string() } else { why };
    Err(Error::Failed(format!("{what}: {why}")))
}

/// What a reader must know beside the processes.
fn describe(container: &Container) -> Value {
    let record = container.record();
    json!({
        "id": record.id,
        "name": record.config.0.metadata.map(|m| m.name),
        "rootfsImage": record.image_id,
        "rootfsImageRef": record.image_ref,
        "rootfsImageName": record.config.0.image.map(|i| i.image),
        "createdTime": record.created_at,
        "checkpointedTime": now(),
    })
}

/// Writes the archive in one go: it is there whole or not at all.
fn pack(daemon: &Daemon, container: &Container, parts: &Path, location: &Path) -> io::Result<()> {
    fs::write(parts.join("config.dump"), describe(container).to_string())?;
    fs::copy(daemon.bundle(&container.id).join("config.json"), parts.join("spec.dump"))?;
    let changes = io::BufWriter::new(File::create(parts.join("rootfs-diff.tar"))?);
    daemon.images.write_changes(&container.id, changes).map_err(io::Error::other)?;
    let log = container.record().log_path;
    if !log.is_empty() && Path::new(&log).is_file() {
        fs::copy(&log, parts.join("container.log"))?;
    }
    let whole = parts.join("archive");
    let mut names: Vec<_> = fs::read_dir(parts)?.collect::<io::Result<Vec<_>>>()?;
    names.sort_by_key(fs::DirEntry::file_name);
    let file = File::options().write(true).create_new(true).open(&whole)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    let mut tar = tar::Builder::new(io::BufWriter::new(file));
    tar.follow_symlinks(false);
    for entry in names {
        if entry.file_type()?.is_dir() {
            tar.append_dir_all(entry.file_name(), entry.path())?;
        } else {
            tar.append_path_with_name(entry.path(), entry.file_name())?;
        }
    }
    let file = tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    fs::rename(&whole, location)
}
