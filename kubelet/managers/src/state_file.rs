//! State that must survive the kubelet: JSON files that are there whole or not at all.

use std::fs;
use std::io;
use std::path::Path;

use gantry_files::{Access, Outlives};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads a file; nothing when there is none. What cannot be read is set aside and reported: a broken file must not keep
/// the node down.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(e) => {
            tracing::error!(path = %path.display(), error = %e, "state not read; beginning without it");
            return None;
        }
    };
    match serde_json::from_slice(&text) {
        Ok(state) => Some(state),
        Err(e) => {
            let mut aside = path.as_os_str().to_owned();
            aside.push(".broken");
            tracing::error!(path = %path.display(), error = %e, "state is broken; set aside, beginning without it");
            let _ = fs::rename(path, &aside);
            None
        }
    }
}

/// Writes a file.
///
/// # Errors
/// The disk refuses.
pub(crate) fn save<T: Serialize>(path: &Path, state: &T) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    gantry_files::replace(path, &serde_json::to_vec(state)?, Access::Umask, Outlives::Crash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_what_is_broken_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        assert_eq!(load::<Vec<u32>>(&path), None);
        save(&path, &vec![1, 2]).unwrap();
        assert_eq!(load::<Vec<u32>>(&path), Some(vec![1, 2]));
        fs::write(&path, "{").unwrap();
        assert_eq!(load::<Vec<u32>>(&path), None);
        assert!(dir.path().join("state.broken").exists() && !path.exists());
    }
}
