//! What the OCI runtimes of the RuntimeClass handlers can do: each says so itself, by its command `features`.
//!
//! A kubelet decides by it whether a pod may ask for user ids of its own or for mounts that are read-only all the way down. A
//! runtime that does not know these would pass over them in silence.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde_json::Value;

/// A runtime that does not answer for so long can do nothing of it.
const SLOW: Duration = Duration::from_secs(5);

/// What one runtime can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Mounts that are read-only with all that is mounted below them.
    pub recursive_read_only: bool,
    /// User namespaces, and mounts that map ids for them.
    pub mapped_ids: bool,
}

/// What is known of runtimes, as long as their programs stay what they are.
#[derive(Debug, Default)]
pub struct Handlers(tokio::sync::Mutex<HashMap<PathBuf, (SystemTime, Abilities)>>);

impl Handlers {
    /// Asks a program, or remembers.
    pub async fn of(&self, program: &Path) -> Abilities {
        let Some((path, changed)) = find(program) else { return Abilities::default() };
        let mut known = self.0.lock().await;
        if let Some((when, abilities)) = known.get(&path)
            && *when == changed
        {
            return *abilities;
        }
        let abilities = ask(&path).await;
        tracing::info!(runtime = %path.display(), ?abilities, "OCI runtime asked for its features");
        known.insert(path, (changed, abilities));
        abilities
    }
}

/// Where a program is that may be named without a folder, and when it was changed.
fn find(program: &Path) -> Option<(PathBuf, SystemTime)> {
    let changed = |path: PathBuf| path.metadata().and_then(|m| m.modified()).ok().map(|time| (path, time));
    if program.components().count() > 1 {
        return changed(program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find_map(|folder| changed(folder.join(program)))
}

async fn ask(program: &Path) -> Abilities {
    let mut command = tokio::process::Command::new(program);
    command.arg("features").stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(SLOW, command.output()).await {
        Ok(Ok(output)) if output.status.success() => parse(&output.stdout),
        _ => Abilities::default(),
    }
}

/// Reads the features document of the OCI runtime specification. Pure.
fn parse(text: &[u8]) -> Abilities {
    let said: Value = serde_json::from_slice(text).unwrap_or_default();
    let lists = |list: &Value, word: &str| list.as_array().is_some_and(|all| all.iter().any(|w| w == word));
    let linux = &said["linux"];
    Abilities {
        recursive_read_only: lists(&said["mountOptions"], "rro"),
        mapped_ids: lists(&linux["namespaces"], "user") && linux["mountExtensions"]["idmap"]["enabled"] == true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_can_do_what_it_says() {
        let all = br#"{"mountOptions": ["ro", "rro"],
            "linux": {"namespaces": ["pid", "user"], "mountExtensions": {"idmap": {"enabled": true}}}}"#;
        assert_eq!(parse(all), Abilities { recursive_read_only: true, mapped_ids: true });
        // As runc 1.1 says it.
        let older = br#"{"mountOptions": ["ro", "rro"], "linux": {"namespaces": ["pid", "user"]}}"#;
        assert_eq!(parse(older), Abilities { recursive_read_only: true, mapped_ids: false });
        for nothing in ["", "{}", "[]", "unknown command features"] {
            assert_eq!(parse(nothing.as_bytes()), Abilities::default(), "{nothing}");
        }
    }

    #[tokio::test]
    async fn a_runtime_is_asked_again_when_its_program_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("runtime");
        let write = |script: &str, second: u64| {
            // Written by another process: a child of this one that holds it open just then would make it busy.
            let text = format!("#!/bin/sh\n{script}");
            let shell = "printf '%s\\n' \"$1\" >\"$0\" && chmod 755 \"$0\"";
            let written = std::process::Command::new("/bin/sh").args(["-c", shell]).arg(&program).arg(text).status();
            assert!(written.unwrap().success());
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            std::fs::File::options().write(true).open(&program).unwrap().set_modified(time).unwrap();
        };
        let handlers = Handlers::default();
        assert_eq!(handlers.of(&program).await, Abilities::default());
        write("echo '{\"mountOptions\": [\"rro\"]}'", 1);
        assert!(handlers.of(&program).await.recursive_read_only);
        write("exit 1", 1);
        assert!(handlers.of(&program).await.recursive_read_only, "it is not asked at each call");
        write("exit 1", 2);
        assert!(!handlers.of(&program).await.recursive_read_only);
    }
}
