//! Hooks: programs of the engine that run at points of the life cycle, with the container's state on standard input.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::error::{Context, Result};
use crate::fail;
use crate::spec::Hook;

/// Runs hooks in order; `state` is the JSON they get. The first that fails ends it.
///
/// # Errors
/// A hook cannot be started, leaves with another code than 0, or takes longer than its time-out.
pub(crate) fn run(kind: &str, hooks: &[Hook], state: &str) -> Result<()> {
    for (i, hook) in hooks.iter().enumerate() {
        one(hook, state).context(|| format!("{kind} hook #{i} ({})", hook.path.display()))?;
    }
    Ok(())
}

fn one(hook: &Hook, state: &str) -> Result<()> {
    let mut command = Command::new(&hook.path);
    if let Some((name, arguments)) = hook.args.split_first() {
        command.arg0(name).args(arguments);
    }
    command.env_clear();
    command.envs(hook.env.iter().filter_map(|v| v.split_once('=')));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context(|| "start".to_owned())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook that does not read its state is not wrong: the pipe takes a state, or breaks.
        let _ = stdin.write_all(state.as_bytes());
    }
    let pidfd = gantry_sys::process::pidfd_open(child.id() as i32).context(|| "watch".to_owned())?;
    let deadline = hook.timeout.and_then(|s| Instant::now().checked_add(Duration::from_secs(s)));
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|l| rustix::event::Timespec::try_from(l).ok());
        let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => {
                let _ = child.kill();
                let _ = child.wait();
                fail!("did not end within {} s", hook.timeout.unwrap_or(0));
            }
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context(|| "wait".to_owned()),
        }
    }
    let status = child.wait().context(|| "wait".to_owned())?;
    if status.success() {
        return Ok(());
    }
    let mut words = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut words);
    }
    fail!("{status}: {}", words.trim())
}
