//! Starting monitors, asking them, and following what they tell.

mod unit;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use gantry_monitor::client::Connection;
use gantry_monitor::protocol::{Answer, Request};
use gantry_monitor::record::ExitRecord;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::cgroups::Driver;
use crate::daemon::{Daemon, Sandbox, now};
use crate::error::{Error, Result};

pub(crate) use unit::tidy;

/// A monitor that says nothing for so long is held up by something.
const SILENT: Duration = Duration::from_secs(5);
/// Pause before a monitor is listened to again.
const AGAIN: Duration = Duration::from_secs(1);

/// Starts the monitor of a sandbox; its socket is bound here, so it can be asked at once.
///
/// # Errors
/// The socket cannot be bound or the program not started.
pub async fn spawn(daemon: &Daemon, sandbox: &Sandbox) -> Result<()> {
    let client = daemon.monitor(&sandbox.id);
    let socket = client.socket().to_path_buf();
    let what = format!("start the monitor of sandbox {}", sandbox.id);
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder).map_err(Error::failed(&what))?;
    }
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(Error::failed(format!("bind {}", socket.display())))?;
    let handler = sandbox.record().handler;
    let runtime = daemon
        .settings()
        .handler(&handler)
        .ok_or_else(|| Error::Invalid(format!("runtime handler {handler:?} is unknown")))?;
    let mut child = tokio::process::Command::new(daemon.settings().monitor_program())
        .arg("--socket")
        .arg(&socket)
        .arg("--runtime")
        .arg(runtime)
        .arg("--root")
        .arg(&daemon.config.runtime_root)
        .args((daemon.config.cgroup_driver == Driver::Systemd).then_some("--systemd-cgroup"))
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .process_group(0)
        .spawn()
        .map_err(Error::failed(format!("{what}: {}", daemon.settings().monitor_program().display())))?;
    if let Some(pid) = child.id() {
        tokio::task::spawn_blocking(move || unit::leave(pid)).await?;
    }
    tokio::spawn(async move { child.wait().await });
    call(daemon, &sandbox.id, Request::Ping).await?;
    Ok(())
}

/// Asks a sandbox's monitor.
///
/// # Errors
/// It is gone or refuses.
pub async fn call(daemon: &Daemon, sandbox: &str, request: Request) -> Result<Answer> {
    let client = daemon.monitor(sandbox);
    Ok(tokio::task::spawn_blocking(move || client.call(&request)).await??)
}

/// Whether a sandbox's monitor is gone for good; one that is too slow to answer is not.
pub async fn gone(daemon: &Daemon, sandbox: &str) -> bool {
    let client = daemon.monitor(sandbox);
    tokio::task::spawn_blocking(move || client.is_gone(SILENT)).await.unwrap_or(false)
}

/// Whether a sandbox's monitor answers, which takes one that is not held up no time.
pub async fn answers(daemon: &Daemon, sandbox: &str) -> bool {
    let client = daemon.monitor(sandbox);
    tokio::task::spawn_blocking(move || client.answers(SILENT)).await.unwrap_or(false)
}

/// Follows a sandbox's monitor until it goes away: exits become records and events.
pub fn follow(daemon: &Arc<Daemon>, sandbox: &str) {
    let (daemon, sandbox) = (daemon.clone(), sandbox.to_owned());
    tokio::spawn(async move {
        loop {
            if let Err(error) = listen(&daemon, &sandbox).await {
                tracing::debug!(%sandbox, %error, "monitor went away");
            }
            if daemon.sandbox(&sandbox).is_err() {
                return;
            }
            if gone(&daemon, &sandbox).await {
                return lost(&daemon, &sandbox).await;
            }
            // It dropped a listener that was too slow, and tells all ends again to a new one.
            tokio::time::sleep(AGAIN).await;
        }
    });
}

async fn listen(daemon: &Arc<Daemon>, sandbox: &str) -> anyhow::Result<()> {
    let client = daemon.monitor(sandbox);
    let connection = tokio::task::spawn_blocking(move || client.send(&Request::Subscribe, &[])).await??;
    let mut stream = listening(connection)?;
    loop {
        if let Answer::Exit { id, record } = next(&mut stream).await? {
            crate::container::end_told(daemon, id, record);
        }
    }
}

/// A connection whose further answers are waited for without a thread of its own: hundreds of them may be open for hours.
///
/// # Errors
/// The kernel's.
pub(crate) fn listening(connection: Connection) -> std::io::Result<UnixStream> {
    let stream = connection.into_stream();
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// The next answer of a monitor.
///
/// # Errors
/// It hung up, or says what no monitor says.
pub(crate) async fn next(stream: &mut UnixStream) -> std::io::Result<Answer> {
    let length = stream.read_u32_le().await? as usize;
    if length >= 1 << 20 {
        return Err(std::io::Error::other(format!("a frame of {length} bytes")));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}

/// The monitor is gone though its sandbox is not: what ran in it cannot be followed any more, so it is ended.
pub async fn lost(daemon: &Arc<Daemon>, sandbox: &str) {
    for container in daemon.containers_of(sandbox) {
        let record = container.record();
        if record.exit.is_some() || !record.complete {
            continue;
        }
        crate::container::abandon(daemon, &container).await;
        match ExitRecord::read(&daemon.ledger.exit_file(&record.id)) {
            Some(exit) => crate::container::ended(daemon, &record.id, exit, "", ""),
            None => {
                let exit = ExitRecord { code: 255, finished_at: now(), oom_killed: false };
                let why = "the pod's monitor or the machine went away while it ran";
                crate::container::ended(daemon, &record.id, exit, "Unknown", why);
            }
        }
    }
    if let Ok(sandbox) = daemon.sandbox(sandbox) {
        sandbox.change_anyway(&daemon.ledger, |r| r.stopped = true);
    }
}
