//! hostPath volumes: the path must be what its type says, or is made so.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Checks (or creates) a hostPath of the given type; upstream's texts.
pub(crate) fn check(path: &Path, kind: &str) -> Result<(), String> {
    let shown = path.display();
    if !path.is_absolute() {
        return Err(format!("hostPath {shown} is not absolute"));
    }
    if path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(format!("hostPath {shown} must not contain '..'"));
    }
    match kind {
        // Runtimes make what is missing; not all of them do, so it is done here.
        "" if exists(path) => return Ok(()),
        "" => return make(path),
        "DirectoryOrCreate" if !exists(path) => return make(path),
        "FileOrCreate" if !exists(path) => {
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(path)
                .and_then(|f| f.set_permissions(fs::Permissions::from_mode(0o644)))
                .map_err(|e| format!("create {shown}: {e}"))?;
            return Ok(());
        }
        _ => {}
    }
    let what = fs::metadata(path).map(|m| m.file_type());
    let is = |test: fn(&fs::FileType) -> bool| what.as_ref().is_ok_and(test);
    let (good, name) = match kind {
        "Directory" | "DirectoryOrCreate" => (is(fs::FileType::is_dir), "directory"),
        "File" | "FileOrCreate" => (is(fs::FileType::is_file), "file"),
        "Socket" => (is(FileTypeExt::is_socket), "socket file"),
        "CharDevice" => (is(FileTypeExt::is_char_device), "character device"),
        "BlockDevice" => (is(FileTypeExt::is_block_device), "block device"),
        _ => return Err(format!("{kind} is an invalid volume type")),
    };
    if good { Ok(()) } else { Err(format!("hostPath type check failed: {shown} is not a {name}")) }
}

fn make(path: &Path) -> Result<(), String> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|e| format!("create {}: {e}", path.display()))
}

fn exists(path: &Path) -> bool {
    path.try_exists().unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("sock")).unwrap();
        for (name, kind, good) in [
            ("anything", "", true),
            ("none", "Directory", false),
            ("none", "File", false),
            ("file", "File", true),
            ("file", "Directory", false),
            ("file", "DirectoryOrCreate", false),
            ("new/deep", "DirectoryOrCreate", true),
            ("new/deep", "Directory", true),
            ("made", "FileOrCreate", true),
            ("made", "FileOrCreate", true),
            ("new", "FileOrCreate", false),
            ("sock", "Socket", true),
            ("file", "Socket", false),
            ("file", "CharDevice", false),
            ("file", "BlockDevice", false),
            ("file", "Nonsense", false),
        ] {
            assert_eq!(check(&at(name), kind).is_ok(), good, "{name} {kind}");
        }
        check(Path::new("/dev/null"), "CharDevice").unwrap();
        assert_eq!(
            check(Path::new("/none/x"), "Directory").unwrap_err(),
            "hostPath type check failed: /none/x is not a directory"
        );
        assert!(check(Path::new("rel"), "").is_err());
        assert!(check(Path::new("/a/../b"), "").is_err());
    }
}
