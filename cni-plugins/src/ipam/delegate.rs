//! Calling the address plugin that a configuration names.

use std::io::Write;
use std::process::{Command as Process, Stdio};

use serde_json::Value;

use crate::plugins;
use crate::spec::{CniResult, Code, Command, Error, Request, Result};

/// The type of the address plugin; none when the configuration has no `ipam`.
pub fn kind(request: &Request) -> Option<&str> {
    request.config.value["ipam"]["type"].as_str().filter(|t| !t.is_empty())
}

/// Gets addresses.
///
/// # Errors
/// The plugin is missing, or fails (in its own words).
pub fn add(request: &Request) -> Result<CniResult> {
    let name = kind(request).unwrap_or_default();
    if let Some(own) = own(name) {
        return own.add(request);
    }
    let output = call(name, Command::Add, request)?;
    CniResult::from_value(&output.unwrap_or(Value::Null))
}

/// Gives addresses back, checks them, or passes STATUS and GC on.
///
/// # Errors
/// The plugin is missing, or fails (in its own words).
pub fn pass(command: Command, request: &Request) -> Result<()> {
    let Some(name) = kind(request) else { return Ok(()) };
    match (own(name), command) {
        (Some(own), Command::Del) => own.del(request),
        (Some(own), Command::Check) => own.check(request),
        (Some(own), Command::Status) => own.status(request),
        (Some(own), Command::Gc) => own.gc(request),
        (Some(_), _) => Ok(()),
        (None, _) => call(name, command, request).map(drop),
    }
}

/// The address plugins of this program are called without another process.
fn own(name: &str) -> Option<&'static dyn plugins::Plugin> {
    matches!(name, "host-local" | "static").then(|| plugins::find(name)).flatten()
}

fn verb(command: Command) -> &'static str {
    match command {
        Command::Add => "ADD",
        Command::Del => "DEL",
        Command::Check => "CHECK",
        Command::Version => "VERSION",
        Command::Status => "STATUS",
        Command::Gc => "GC",
    }
}

/// Runs another plugin with the same input.
fn call(name: &str, command: Command, request: &Request) -> Result<Option<Value>> {
    if name.contains('/') {
        return Err(Error::config(format!("ipam.type: {name:?} is not a plugin's name")));
    }
    let program = request.path.iter().map(|folder| folder.join(name)).find(|p| p.is_file()).ok_or_else(|| {
        let folders: Vec<_> = request.path.iter().map(|p| p.display().to_string()).collect();
        Error::internal(format!("failed to find plugin \"{name}\" in path [{}]", folders.join(" ")))
    })?;
    let failed = |what: &str, e: std::io::Error| Error::internal(format!("{what} {}: {e}", program.display()));
    // The variables are inherited: they are those of this request.
    let mut child = Process::new(&program)
        .env("CNI_COMMAND", verb(command))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| failed("start", e))?;
    if let Some(mut stdin) = child.stdin.take() {
        let sent = stdin.write_all(request.config.value.to_string().as_bytes());
        // A plugin that does not read its input says why on its output.
        drop((sent, stdin));
    }
    let output = child.wait_with_output().map_err(|e| failed("wait for", e))?;
    let value = serde_json::from_slice::<Value>(&output.stdout).ok();
    if output.status.success() {
        return Ok(value);
    }
    let mut error = Error::new(Code::Internal, format!("netplugin {name} failed with {}", output.status));
    error.foreign = value.filter(|v| v["code"].is_u64()).map(Box::new);
    Err(error)
}
