//! Which mounts of snapshots are there. Overlays carry the snapshot id as source, copies are mounted from its folder.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use gantry_sys::mountinfo;

use crate::error::{Error, Result};

/// Mount points of the snapshot `source`, in mount order.
pub(crate) fn overlays(source: &str) -> Result<Vec<PathBuf>> {
    let table = mountinfo::read().map_err(|e| Error::io("read", Path::new("/proc/self/mountinfo"), e))?;
    Ok(parse(&table, source))
}

fn parse(table: &[u8], source: &str) -> Vec<PathBuf> {
    let copy = format!("/snapshots/{source}/fs");
    let of_it = |m: &mountinfo::Mount<'_>| {
        (m.kind == "overlay" && &*m.source == source) || m.root.as_bytes().ends_with(copy.as_bytes())
    };
    mountinfo::parse(table).filter(of_it).map(|m| m.path().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_mounts_are_found_by_source() {
        let text = b"22 1 8:1 / / rw - ext4 /dev/sda rw\n\
            40 22 0:50 / /run/a\\040b rw shared:5 - overlay c1 rw,lowerdir=/x\n\
            41 22 0:51 / /run/c rw - overlay c2 rw\n\
            42 22 8:1 /lib/snapshots/c4/fs /run/d rw - ext4 /dev/sda rw\n\
            garbage\n";
        assert_eq!(parse(text, "c1"), [PathBuf::from("/run/a b")]);
        assert_eq!(parse(text, "c3"), Vec::<PathBuf>::new());
        assert_eq!(parse(text, "c4"), [PathBuf::from("/run/d")]);
    }
}
