//! Putting the program under every plugin's name.

use std::fs;
use std::io;
use std::path::Path;

use crate::plugins;

/// Copies this program to `gantry-cni` in `folder` and links every plugin's name to it. Each name changes in one step, so
/// that a runtime never finds half a plugin. Returns how many names there are.
///
/// # Errors
/// The folder cannot be written.
pub fn into(folder: &Path) -> io::Result<usize> {
    fs::create_dir_all(folder)?;
    let own = folder.join("gantry-cni");
    let program = fs::canonicalize("/proc/self/exe")?;
    if fs::canonicalize(&own).ok().as_deref() != Some(program.as_path()) {
        let fresh = folder.join(".gantry-cni.new");
        fs::copy(&program, &fresh)?;
        fs::rename(&fresh, &own)?;
    }
    for name in plugins::names() {
        let fresh = folder.join(format!(".{name}.new"));
        let _ = fs::remove_file(&fresh);
        std::os::unix::fs::symlink("gantry-cni", &fresh)?;
        fs::rename(&fresh, folder.join(name))?;
    }
    Ok(plugins::names().count())
}
