//! Tries what lies in `corpus/` in the tests of each crate that has fuzz targets. Part of their `fuzzing` modules by its path:
//! tests alone use it, and no crate has to be there for it.

use std::fs;
use std::path::Path;

type Target = fn(&[u8]);

/// Runs each target over its folder's files: what fuzzing once found, and what it starts from.
///
/// # Panics
/// A folder is missing or empty, or a target finds a fault.
pub(super) fn corpus(targets: &[(&str, Target)]) {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, run) in targets {
        let folder = own.ancestors().map(|d| d.join("fuzz/corpus").join(name)).find(|d| d.is_dir());
        let folder = folder.unwrap_or_else(|| panic!("there is no fuzz/corpus/{name} above {}", own.display()));
        let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!files.is_empty(), "{} is empty", folder.display());
        for file in files {
            // Seen when it fails.
            println!("{}", file.display());
            run(&fs::read(&file).unwrap());
        }
    }
}
