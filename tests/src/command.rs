//! Running other programs with a time-out, and saying what they printed when they fail.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output when the program succeeded, otherwise an error with both outputs.
    ///
    /// # Errors
    /// The exit code is not 0.
    pub fn ok(self) -> Result<String> {
        if self.code == 0 {
            return Ok(self.stdout);
        }
        bail!("exit code {}\nstdout: {}\nstderr: {}", self.code, self.stdout.trim(), self.stderr.trim())
    }

    /// Both outputs, for a look at what a person would have seen.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs `command` with `input` on its standard input; kills it after `limit`.
///
/// # Errors
/// It cannot be started, or it does not end in time.
pub fn run(command: &mut Command, input: &str, limit: Duration) -> Result<Output> {
    use std::os::unix::process::ExitStatusExt;
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {shown}"))?;
    let mut stdin = child.stdin.take().context("standard input")?;
    let input = input.to_owned();
    thread::spawn(move || stdin.write_all(input.as_bytes()));
    let stdout = reader(child.stdout.take().context("standard output")?);
    let stderr = reader(child.stderr.take().context("standard error")?);
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("{shown} did not end within {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(10));
    };
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(-1);
    let text = |t: thread::JoinHandle<Vec<u8>>| String::from_utf8_lossy(&t.join().unwrap_or_default()).into_owned();
    Ok(Output { code, stdout: text(stdout), stderr: text(stderr) })
}

fn reader(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

/// Asks `probe` until it answers with a value; the last error is part of the failure.
///
/// # Errors
/// `probe` never succeeded within `limit`.
pub fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > limit => {
                return Err(error.context(format!("{what}: not within {} s", limit.as_secs())));
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}
