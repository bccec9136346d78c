//! Environment files in volumes (`fileKeyRef`): what an init container found out becomes a variable of the next container.
//!
//! The format is upstream's strict part of the shell's: `NAME='value'`, taken literally, over several lines if need be. The
//! file is a container's, so it is opened below its volume only, and read only where it is a plain file of a sane size.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::subpath;

/// What a file may hold; upstream has no limit, and a container could have the kubelet read for ever.
const MOST: u64 = 1 << 20;
/// The longest name of a key, as upstream.
pub(crate) const KEY_MOST: usize = 128;

/// The value of `key` in the file `path` of a volume; `None` where the file or the key is missing.
///
/// # Errors
/// The path leaves the volume, the file cannot be read, or a line on the way to the key is malformed.
pub(crate) fn read(volume: &Path, path: &str, key: &str) -> Result<Option<String>, String> {
    subpath::check(path)?;
    let of = |e: std::io::Error| format!("read environment file {path:?}: {e}");
    let Some(found) = subpath::open_there(volume, path).map_err(of)? else { return Ok(None) };
    let name = format!("/proc/self/fd/{}", found.as_raw_fd());
    let meta = fs::metadata(&name).map_err(of)?;
    if !meta.is_file() || meta.len() > MOST {
        return Err(format!("environment file {path:?} is not a plain file of at most {MOST} bytes"));
    }
    let mut bytes = Vec::new();
    fs::File::open(&name).and_then(|file| file.take(MOST).read_to_end(&mut bytes)).map_err(of)?;
    parse(&String::from_utf8_lossy(&bytes), key).map_err(|e| format!("environment file {path:?}: {e}"))
}

/// The value of a key (pure).
fn parse(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    while let Some((number, line)) = lines.next() {
        let wrong = |why: &str| Err(format!("invalid environment variable format at line {number}: {why}"));
        let line = line.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { return wrong("missing '='") };
        if name.is_empty() {
            return wrong("empty variable name");
        }
        if name.ends_with([' ', '\t']) {
            return wrong("whitespace before '=' is not allowed");
        }
        // As in a shell: what comes after the blank is another word.
        if value.starts_with([' ', '\t']) {
            if name == key {
                return Ok(Some(String::new()));
            }
            continue;
        }
        let Some(mut rest) = value.strip_prefix('\'') else {
            return wrong("value must be enclosed in single quotes");
        };
        let mut content = String::new();
        let behind = loop {
            if let Some((last, behind)) = rest.split_once('\'') {
                content.push_str(last);
                break behind;
            }
            content.push_str(rest);
            content.push('\n');
            let Some((_, next)) = lines.next() else { return wrong("unclosed single quote") };
            rest = next;
        };
        let behind = behind.trim_start_matches([' ', '\t']);
        if !behind.is_empty() && !behind.starts_with('#') {
            return wrong("unexpected content after closing quote");
        }
        if name == key {
            return Ok(Some(content));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_and_literal() {
        let text = "# head\n\n  A='1'\nB='two words $A \\n' # why\nC='first\n  second'\nE=''\nF= 'x'\nA='again'\n";
        for (key, want) in [
            ("A", Some("1")),
            ("B", Some("two words $A \\n")),
            ("C", Some("first\n  second")),
            ("E", Some("")),
            ("F", Some("")),
            ("G", None),
        ] {
            assert_eq!(parse(text, key).unwrap().as_deref(), want, "{key}");
        }
    }

    #[test]
    fn what_is_malformed_names_its_line() {
        for (text, why) in [
            ("A='1'\nnothing\n", "line 2: missing '='"),
            ("='1'", "line 1: empty variable name"),
            ("A ='1'", "line 1: whitespace before '='"),
            ("A=1", "line 1: value must be enclosed in single quotes"),
            ("A=\"1\"", "line 1: value must be enclosed in single quotes"),
            ("A='1' x", "line 1: unexpected content after closing quote"),
            ("\nA='1\n2\n", "line 2: unclosed single quote"),
        ] {
            assert!(parse(text, "Z").unwrap_err().contains(why), "{text:?}");
        }
        assert_eq!(parse("A='1'\nnothing\n", "A").unwrap().as_deref(), Some("1"), "what comes later is not looked at");
    }

    #[test]
    fn only_plain_files_of_the_volume_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("sub")).unwrap();
        fs::write(volume.join("sub/env"), "A='1'\n").unwrap();
        fs::write(dir.path().join("secret"), "A='stolen'\n").unwrap();
        std::os::unix::fs::symlink("../secret", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("sub/env", volume.join("in")).unwrap();
        nix::unistd::mkfifo(&volume.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let get = |path: &str| read(&volume, path, "A");
        assert_eq!(get("sub/env").unwrap().as_deref(), Some("1"));
        assert_eq!(get("in").unwrap().as_deref(), Some("1"));
        assert_eq!(get("sub/none").unwrap(), None);
        assert!(!volume.join("sub/none").exists(), "nothing is made by looking");
        for path in ["out", "fifo", "sub", "../secret", "/etc/passwd"] {
            assert!(get(path).is_err(), "{path}");
        }
    }
}
