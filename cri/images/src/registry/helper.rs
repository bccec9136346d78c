//! Docker's credential helpers: programs that know the password of a server.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;

use super::credentials::Credentials;

/// How long a helper may take.
const SLOW: Duration = Duration::from_secs(30);
/// Longest answer.
const LARGEST: u64 = 1 << 20;

/// The program of the helper `name`, found in `path` (as `PATH` is written).
pub(crate) fn find(name: &str, path: &std::ffi::OsStr) -> Result<PathBuf, String> {
    if name.is_empty() || name.contains('/') {
        return Err(format!("credential helper {name:?}: not a name"));
    }
    let file = format!("docker-credential-{name}");
    let found = std::env::split_paths(path).map(|folder| folder.join(&file)).find(|p| p.is_file());
    found.ok_or_else(|| format!("credential helper {file} is not in PATH"))
}

/// Asks a helper for a server's credentials; none when it knows none. Blocking.
pub(crate) fn ask(program: &Path, server: &str) -> Result<Credentials, String> {
    let failed = |what: &str, e: &dyn std::fmt::Display| format!("{}: {what}: {e}", program.display());
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed("start", &e))?;
    if let Some(mut input) = child.stdin.take() {
        // One that answers without reading is fine.
        let _ = input.write_all(format!("{server}\n").as_bytes());
    }
    let (send, receive) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let read = output.take(LARGEST).read_to_end(&mut text).map(|_| text);
            let _ = send.send(read);
        });
    }
    let answer = receive.recv_timeout(SLOW);
    if answer.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|e| failed("wait", &e))?;
    let Ok(text) = answer else { return Err(failed("get", &format!("no answer after {} s", SLOW.as_secs()))) };
    let text = text.map_err(|e| failed("read its answer", &e))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&text).trim().to_owned();
        // What the protocol prescribes for a server that a helper does not know.
        if said.contains("credentials not found") {
            return Ok(Credentials::default());
        }
        return Err(failed("get", &said));
    }
    parse(&text).map_err(|e| failed("its answer", &e))
}

fn parse(text: &[u8]) -> Result<Credentials, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default)]
        username: String,
        #[serde(default)]
        secret: String,
    }
    let answer: Answer = serde_json::from_slice(text)?;
    Ok(match answer.username.as_str() {
        // A token in place of a password.
        "<token>" => Credentials { identity_token: Some(answer.secret), ..Default::default() },
        "" => Credentials::default(),
        _ => Credentials { basic: Some((answer.username, answer.secret)), ..Default::default() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_helper_answers_tokens_passwords_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let script = "#!/bin/sh\nread server\ncase $server in\n\
            known.io) echo '{\"ServerURL\":\"known.io\",\"Username\":\"u\",\"Secret\":\"p\"}';;\n\
            token.io) echo '{\"Username\":\"<token>\",\"Secret\":\"t\"}';;\n\
            broken.io) echo '{';;\nlocked.io) echo 'the keyring is locked'; exit 1;;\n\
            *) echo 'credentials not found in native keychain'; exit 1;;\nesac\n";
        let program = dir.path().join("docker-credential-test");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find("test", dir.path().as_os_str()), Ok(program.clone()));
        assert!(find("../test", dir.path().as_os_str()).is_err());
        assert!(find("other", dir.path().as_os_str()).unwrap_err().contains("docker-credential-other"));
        assert_eq!(ask(&program, "known.io").unwrap().basic, Some(("u".into(), "p".into())));
        assert_eq!(ask(&program, "token.io").unwrap().identity_token, Some("t".into()));
        assert!(ask(&program, "unknown.io").unwrap().is_empty());
        assert!(ask(&program, "locked.io").unwrap_err().contains("the keyring is locked"));
        assert!(ask(&program, "broken.io").is_err());
    }
}
