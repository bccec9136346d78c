//! Which mounts of snapshots are there. Overlays carry the snapshot id as source, copies are mounted from its folder.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Mount points of the snapshot `source`, in mount order.
pub(crate) fn overlays(source: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    Ok(parse(&text, source))
}

fn parse(text: &[u8], source: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for line in text.split(|b| *b == b'\n') {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let Some(dash) = fields.iter().position(|f| *f == b"-") else { continue };
        let (Some(root), Some(point), Some(kind), Some(from)) =
            (fields.get(3), fields.get(4), fields.get(dash + 1), fields.get(dash + 2))
        else {
            continue;
        };
        let named = *kind == b"overlay" && unescape(from) == source.as_bytes();
        if named || unescape(root).ends_with(format!("/snapshots/{source}/fs").as_bytes()) {
            out.push(PathBuf::from(OsString::from_vec(unescape(point))));
        }
    }
    out
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut i = 0;
    while i < field.len() {
        let octal =
            field.get(i + 1..i + 4).filter(|d| field[i] == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        if let Some(d) = octal {
            out.push(d.iter().fold(0u8, |n, b| n.wrapping_mul(8).wrapping_add(b - b'0')));
            i += 4;
        } else {
            out.push(field[i]);
            i += 1;
        }
    }
    out
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
