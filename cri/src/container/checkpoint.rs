//! CheckpointContainer: the processes as the OCI runtime (with criu) writes them, and what belongs to them, in one archive.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::cri;
use serde_json::{Value, json};

use super::settle::{is_frozen, settle};
use crate::daemon::{Container, Daemon, now};
use crate::error::{Error, Result};
use crate::ledger::Checkpointing;

/// When the request sets no limit.
const SLOW: Duration = Duration::from_secs(120);

/// For commands that wait for nothing but processes to stop.
pub(super) const QUICK: Duration = Duration::from_secs(30);

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
    let mine = &container.id[..container.id.len().min(13)];
    let parts = location.with_file_name(format!(".{}.{mine}.parts", name.to_string_lossy()));
    let frozen = is_frozen(daemon, &container);
    // What an earlier one could not let go of.
    settle(daemon, &container).await;
    container.change(&daemon.ledger, |r| r.checkpoint = Some(Checkpointing { parts: parts.clone(), frozen }))?;
    daemon.record_synced(&container.id).await??;
    let limit = u64::try_from(limit).ok().filter(|n| *n > 0).map_or(SLOW, Duration::from_secs);
    let written = write(daemon, &container, parts, &location, limit).await;
    settle(daemon, &container).await;
    written?;
    tracing::info!(container = %container.id, "checkpoint written");
    Ok(())
}

/// Writes all parts, and the archive of them.
async fn write(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
    parts: PathBuf,
    location: &Path,
    limit: Duration,
) -> Result<()> {
    let runtime = Runtime::of(daemon, container)?;
    let images = parts.join("checkpoint");
    fs::create_dir_all(&images).map_err(Error::failed(format!("create {}", images.display())))?;
    fs::set_permissions(&parts, Permissions::from_mode(0o700)).map_err(Error::failed("protect the checkpoint"))?;
    // What is written of its files must fit what is written of its processes, which know sizes of files: none may run meanwhile.
    if let Err(error) = runtime.run(daemon, &["pause"], QUICK, |command| command.arg(&container.id)).await {
        tracing::warn!(container = %container.id, %error, "not stopped for its checkpoint");
    }
    runtime
        .run(daemon, &["checkpoint", "--leave-running", "--file-locks"], limit, |command| {
            command.arg("--image-path").arg(&images).arg("--work-path").arg(&parts).arg(&container.id)
        })
        .await?;
    let (daemon, container, location) = (daemon.clone(), container.clone(), location.to_owned());
    let runtime = runtime.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let packed = tokio::task::spawn_blocking(move || {
        pack(&daemon, &container, &runtime, &parts, &location)
            .map_err(|e| Error::Failed(format!("write checkpoint {}: {e}", location.display())))
    });
    packed.await?
}

/// The OCI runtime of a container.
pub(super) struct Runtime {
    program: PathBuf,
}

impl Runtime {
    /// The one that made it.
    pub(super) fn of(daemon: &Daemon, container: &Container) -> Result<Self> {
        let handler = daemon.sandbox(&container.sandbox)?.record().handler;
        let program = daemon.settings().handler(&handler);
        let program = program.ok_or_else(|| Error::Invalid(format!("runtime handler {handler:?} is unknown")))?;
        Ok(Self { program })
    }

    /// Runs one command; what it says at its end is the reason where it fails.
    pub(super) async fn run(
        &self,
        daemon: &Daemon,
        words: &[&str],
        limit: Duration,
        arguments: impl FnOnce(&mut tokio::process::Command) -> &mut tokio::process::Command,
    ) -> Result<()> {
        let what = format!("{} by {}", words[0], self.program.display());
        let mut command = tokio::process::Command::new(&self.program);
        command.arg("--root").arg(&daemon.config.runtime_root).args(words);
        let command = arguments(&mut command).stdin(std::process::Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(limit, command.output())
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
}

/// A time as Go's JSON has it.
fn time(nanoseconds: i64) -> String {
    jiff::Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default().to_string()
}

/// What a reader must know beside the processes, in the words of checkpointctl's library, which other engines use.
fn describe(container: &Container, runtime: &str) -> Value {
    let record = container.record();
    json!({
        "id": record.id,
        "name": record.config.0.metadata.map(|m| m.name),
        "rootfsImage": record.image_id,
        "rootfsImageRef": record.image_ref,
        "rootfsImageName": record.config.0.image.map(|i| if i.user_specified_image.is_empty() { i.image } else { i.user_specified_image }),
        "runtime": runtime,
        "createdTime": time(record.created_at),
        "checkpointedTime": time(now()),
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": false,
    })
}

/// The container's status, in containerd's words.
fn status(container: &Container) -> Value {
    let record = container.record();
    let metadata = record.config.0.metadata.clone().unwrap_or_default();
    json!({
        "id": record.id,
        "metadata": {"name": metadata.name, "attempt": metadata.attempt},
        "state": cri::ContainerState::ContainerRunning as i32,
        "created_at": record.created_at,
        "started_at": record.started_at,
        "image": {"image": record.config.0.image.map(|i| i.image)},
        "image_ref": record.image_ref,
        "labels": record.config.0.labels,
        "annotations": record.config.0.annotations,
        "log_path": record.log_path,
    })
}

/// Writes the archive in one go: it is there whole or not at all.
fn pack(daemon: &Daemon, container: &Container, runtime: &str, parts: &Path, location: &Path) -> io::Result<()> {
    fs::write(parts.join("config.dump"), describe(container, runtime).to_string())?;
    fs::write(parts.join("status.dump"), status(container).to_string())?;
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
