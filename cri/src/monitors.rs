//! Starting monitors, asking them, and following what they tell.

mod unit;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::sync::Arc;

use gantry_monitor::protocol::{Answer, Request};
use gantry_monitor::record::ExitRecord;
use tokio::io::AsyncReadExt;

use crate::cgroups::Driver;
use crate::daemon::{Daemon, Sandbox, now};
use crate::error::{Error, Result};

pub(crate) use unit::tidy;

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

/// Follows a sandbox's monitor until it goes away: exits become records and events.
pub fn follow(daemon: &Arc<Daemon>, sandbox: &str) {
    let (daemon, sandbox) = (daemon.clone(), sandbox.to_owned());
    tokio::spawn(async move {
        if let Err(error) = listen(&daemon, &sandbox).await {
            tracing::debug!(%sandbox, %error, "monitor went away");
        }
        if daemon.sandbox(&sandbox).is_ok() && call(&daemon, &sandbox, Request::Ping).await.is_err() {
            lost(&daemon, &sandbox).await;
        }
    });
}

async fn listen(daemon: &Arc<Daemon>, sandbox: &str) -> anyhow::Result<()> {
    let stream = daemon.monitor(sandbox).send(&Request::Subscribe, &[])?.into_stream();
    stream.set_nonblocking(true)?;
    let mut stream = tokio::net::UnixStream::from_std(stream)?;
    loop {
        let length = stream.read_u32_le().await? as usize;
        anyhow::ensure!(length < 1 << 20, "a frame of {length} bytes");
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        if let Answer::Exit { id, record } = serde_json::from_slice(&body)? {
            crate::container::end_told(daemon, id, record);
        }
    }
}

/// The monitor is gone though its sandbox is not: what ran in it cannot be followed any more, so it is ended.
pub async fn lost(daemon: &Arc<Daemon>, sandbox: &str) {
    for container in daemon.containers_of(sandbox) {
        let record = container.record();
        if record.exit.is_some() || !record.complete {
            continue;
        }
        if let Ok(cgroup) = daemon.host.cgroup(&record.cgroup) {
            let _ = cgroup.kill();
        }
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
