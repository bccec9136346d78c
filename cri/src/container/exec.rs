//! One more process in a container.

use std::fs;
use std::io::pipe;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use gantry_monitor::client::Connection;
use gantry_monitor::protocol::{Answer, Request};
use proto::cri;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::monitors;

/// Most output that ExecSync keeps of each stream.
const LARGEST: usize = 16 << 20;

/// How long a killed command may take to be gone.
const KILLED: Duration = Duration::from_secs(10);

/// A running exec. Hanging up (or dropping) the connection kills it.
pub struct Exec {
    /// The monitor tells the exit code here.
    pub connection: Connection,
    /// Writing end of standard input.
    pub input: Option<OwnedFd>,
    /// Reading end of standard output.
    pub output: Option<OwnedFd>,
    /// Reading end of standard error.
    pub error: Option<OwnedFd>,
    /// The terminal, instead of the streams.
    pub terminal: Option<OwnedFd>,
}

/// Starts `command` with the container's own environment, user and limits.
///
/// # Errors
/// The container does not run, or the runtime refuses.
pub async fn exec(daemon: &Arc<Daemon>, id: &str, command: Vec<String>, tty: bool, stdin: bool) -> Result<Exec> {
    let container = daemon.container(id)?;
    if container.state() != cri::ContainerState::ContainerRunning {
        return Err(Error::State(format!("container {} is not running", container.id)));
    }
    if command.is_empty() {
        return Err(Error::Invalid("no command".to_owned()));
    }
    let file = daemon.bundle(&container.id).join("config.json");
    let text = fs::read(&file).map_err(Error::failed(format!("read {}", file.display())))?;
    let config: Value = serde_json::from_slice(&text).map_err(|e| Error::Failed(format!("{}: {e}", file.display())))?;
    let mut process = config["process"].clone();
    process["args"] = json!(command);
    process["terminal"] = json!(tty);
    let has_term =
        process["env"].as_array().is_some_and(|e| e.iter().any(|v| v.as_str().is_some_and(|s| s.starts_with("TERM="))));
    if let (true, false, Some(env)) = (tty, has_term, process["env"].as_array_mut()) {
        env.push(json!("TERM=xterm"));
    }
    let client = daemon.monitor(&container.sandbox);
    let id = container.id.clone();
    tokio::task::spawn_blocking(move || {
        let failed = Error::failed("pipes for an exec");
        if tty {
            let request = Request::Exec { id, process, terminal: true, streams: [false; 3] };
            let (connection, _, mut fds) = client.open(&request, &[])?;
            return Ok(Exec { connection, input: None, output: None, error: None, terminal: fds.pop() });
        }
        let made = (|| Ok::<_, std::io::Error>((pipe()?, pipe()?, pipe()?)))();
        let ((in_far, input), (output, out_far), (error, err_far)) = made.map_err(failed)?;
        let request = Request::Exec { id, process, terminal: false, streams: [stdin, true, true] };
        let mut fds = vec![out_far.as_fd(), err_far.as_fd()];
        if stdin {
            fds.insert(0, in_far.as_fd());
        }
        let (connection, answer, _) = client.open(&request, &fds)?;
        debug_assert!(matches!(answer, Answer::Started { .. }));
        let input = stdin.then(|| OwnedFd::from(input));
        Ok(Exec { connection, input, output: Some(output.into()), error: Some(error.into()), terminal: None })
    })
    .await?
}

/// Waits for an exec's exit code.
///
/// # Errors
/// The monitor went away.
pub async fn exit_code(connection: Connection) -> Result<i32> {
    let mut stream = monitors::listening(connection).map_err(Error::failed("follow an exec"))?;
    match monitors::next(&mut stream).await {
        Ok(Answer::Exited { code }) => Ok(code),
        Ok(_) => Err(Error::Failed("the pod's monitor gave an unexpected answer during exec".to_owned())),
        Err(error) => Err(Error::Failed(format!("the pod's monitor went away during exec: {error}"))),
    }
}

async fn read(fd: Option<OwnedFd>) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    if let Some(fd) = fd {
        let mut stream = Receiver::from_owned_fd(fd)?;
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let n = stream.read(&mut buffer).await?;
            if n == 0 {
                break;
            }
            all.extend_from_slice(&buffer[..n.min(LARGEST - all.len().min(LARGEST))]);
        }
    }
    Ok(all)
}

/// How long a command may run that was given so many seconds: none is a year, and so is what no clock can count.
fn limit_of(seconds: i64) -> Duration {
    const YEAR: u64 = 365 * 86400;
    Duration::from_secs(u64::try_from(seconds).ok().filter(|s| (1..YEAR).contains(s)).unwrap_or(YEAR))
}

/// Runs a command to its end; after `limit` seconds (0: none) it is killed with all its descendants.
///
/// # Errors
/// As [`exec`], or the time is over.
pub async fn exec_sync(
    daemon: &Arc<Daemon>,
    id: &str,
    command: Vec<String>,
    limit: i64,
) -> Result<cri::ExecSyncResponse> {
    let words = command.join(" ");
    let begun = tokio::time::Instant::now();
    let limit = limit_of(limit);
    let late = || Error::Timeout(format!("command {words:?} timed out after {} s", limit.as_secs()));
    // A start that comes too late hangs up when it is done, which ends what it has started.
    let started = tokio::time::timeout(limit, exec(daemon, id, command, false, false));
    let exec = started.await.map_err(|_| late())??;
    let killer = exec.connection.try_clone().map_err(Error::failed("exec"))?;
    let output = tokio::spawn(read(exec.output));
    let error = tokio::spawn(read(exec.error));
    let mut run = std::pin::pin!(exit_code(exec.connection));
    let Ok(code) = tokio::time::timeout_at(begun + limit, &mut run).await else {
        // The answer is given when the processes are gone, not when they were told to go.
        killer.no_more_requests();
        let _ = tokio::time::timeout(KILLED, run).await;
        killer.hang_up();
        output.abort();
        error.abort();
        return Err(late());
    };
    let code = code?;
    // A descendant in the background may hold the pipes open: what is there is what is answered.
    let drain = Duration::from_secs(2);
    let text = |done: Result<Result<std::io::Result<Vec<u8>>, ()>, ()>| match done {
        Ok(Ok(Ok(bytes))) => bytes,
        _ => Vec::new(),
    };
    let stdout = text(
        tokio::time::timeout(drain, output)
            .await
            .map_err(|_: tokio::time::error::Elapsed| ())
            .map(|r| r.map_err(|_| ())),
    );
    let stderr = text(
        tokio::time::timeout(drain, error)
            .await
            .map_err(|_: tokio::time::error::Elapsed| ())
            .map(|r| r.map_err(|_| ())),
    );
    Ok(cri::ExecSyncResponse { stdout, stderr, exit_code: code })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_can_be_waited_for() {
        const YEAR: u64 = 365 * 86400;
        for (asked, seconds) in [(0, YEAR), (-1, YEAR), (1, 1), (3600, 3600), (i64::MAX, YEAR)] {
            assert_eq!(limit_of(asked), Duration::from_secs(seconds), "{asked}");
        }
    }
}
