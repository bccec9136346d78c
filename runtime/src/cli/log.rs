//! Errors and warnings: on standard error for people, and in the engine's log file in the form it asks for.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use crate::error::{Context, Result};
use crate::fail;
use crate::state::now;

struct Log {
    file: File,
    json: bool,
}

static LOG: OnceLock<Log> = OnceLock::new();
static LEVEL: OnceLock<Level> = OnceLock::new();

/// What is told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// Errors.
    Errors,
    /// Warnings in the log file too.
    Warnings,
    /// Warnings on standard error too.
    All,
}

/// Opens the log file.
pub(crate) fn set_up(path: Option<&str>, format: Option<&str>, level: &str) -> Result<()> {
    let json = match format.unwrap_or("text") {
        "json" => true,
        "text" => false,
        other => fail!("--log-format: unknown format {other:?}, want text or json"),
    };
    // Names as in runc's log library, letter case aside.
    let level = match level.to_ascii_lowercase().as_str() {
        "trace" | "debug" => Level::All,
        "info" | "warn" | "warning" => Level::Warnings,
        "error" | "fatal" | "panic" => Level::Errors,
        other => fail!("--log-level: unknown level {other:?}, want debug, info, warning or error"),
    };
    let _ = LEVEL.set(level);
    let Some(path) = path.filter(|p| !p.is_empty() && *p != "/dev/stderr") else { return Ok(()) };
    let file = OpenOptions::new().create(true).append(true).open(path).context(|| format!("--log: open {path}"))?;
    let _ = LOG.set(Log { file, json });
    Ok(())
}

/// The log file's descriptor, where there is one.
pub(crate) fn log_descriptor() -> Option<BorrowedFd<'static>> {
    LOG.get().map(|log| log.file.as_fd())
}

/// Something went wrong and the command failed.
pub(crate) fn error(text: &str) {
    complain!("gantry-run: {text}");
    write("error", text);
}

/// Something was not done as asked; the command goes on. People see it with --debug, engines find it in the log.
pub(crate) fn warn(text: &str) {
    let level = LEVEL.get().copied().unwrap_or(Level::Warnings);
    if level >= Level::All {
        complain!("gantry-run: warning: {text}");
    }
    if level >= Level::Warnings {
        write("warning", text);
    }
}

fn write(level: &str, text: &str) {
    let Some(log) = LOG.get() else { return };
    let line = if log.json {
        serde_json::json!({"level": level, "msg": text, "time": now()}).to_string()
    } else {
        format!("time={:?} level={level} msg={text:?}", now())
    };
    let _ = writeln!(&log.file, "{line}");
}
