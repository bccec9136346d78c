//! The kernel's table of mounts as a process sees it: `/proc/self/mountinfo`, see proc(5).

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// The folder of the file system that is mounted.
    pub root: Cow<'a, OsStr>,
    /// Where.
    pub point: Cow<'a, OsStr>,
    /// The kind of file system.
    pub kind: &'a str,
    /// What is mounted, in the words of that file system.
    pub source: Cow<'a, OsStr>,
    /// The file system's own options.
    pub options: &'a str,
}

impl Mount<'_> {
    /// Where, as a path.
    pub fn path(&self) -> &Path {
        Path::new(&self.point)
    }
}

/// The table of this process.
///
/// # Errors
/// There is no /proc.
pub fn read() -> io::Result<Vec<u8>> {
    // Room for a usual table: procfs tells no size, and growing from nothing would read it in many pieces.
    let mut table = Vec::with_capacity(16 * 1024);
    File::open("/proc/self/mountinfo")?.read_to_end(&mut table)?;
    Ok(table)
}

/// The mounts in a table, in the order they were made (a path can appear more than once). What is no line of it is left out.
pub fn parse(table: &[u8]) -> impl Iterator<Item = Mount<'_>> {
    table.split(|b| *b == b'\n').filter_map(mount)
}

fn mount(line: &[u8]) -> Option<Mount<'_>> {
    let mut fields = line.split(|b| *b == b' ');
    let (root, point) = (fields.nth(3)?, fields.next()?);
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, source, options) = (after.next()?, after.next()?, after.next().unwrap_or_default());
    let text = |field| std::str::from_utf8(field).unwrap_or_default();
    Some(Mount {
        root: unescape(root),
        point: unescape(point),
        kind: text(kind),
        source: unescape(source),
        options: text(options),
    })
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> Cow<'_, OsStr> {
    if !field.contains(&b'\\') {
        return Cow::Borrowed(OsStr::from_bytes(field));
    }
    let mut out = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = field.get(at + 1..at + 4).filter(|d| d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal.filter(|_| field[at] == b'\\') {
            Some(digits) => {
                out.push(digits.iter().fold(0_u8, |n, b| n.wrapping_mul(8).wrapping_add(b - b'0')));
                at += 4;
            }
            None => {
                out.push(field[at]);
                at += 1;
            }
        }
    }
    Cow::Owned(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_their_optional_fields_and_escapes() {
        let table = b"22 1 8:1 / / rw - ext4 /dev/sda rw\n\
            40 22 0:50 /x\\134y /run/a\\040b rw shared:5 master:1 - overlay c\\0111 rw,lowerdir=/x\n\
            garbage\n\
            41 22 0:51 / /c\\04 rw - tmpfs tmpfs\n";
        let mounts: Vec<_> = parse(table).collect();
        let said: Vec<_> = mounts.iter().map(|m| (m.path().to_str().unwrap(), m.kind, m.options)).collect();
        assert_eq!(
            said,
            [("/", "ext4", "rw"), ("/run/a b", "overlay", "rw,lowerdir=/x"), ("/c\\04", "tmpfs", "")],
            "what is no escape stays"
        );
        assert_eq!((&*mounts[1].root, &*mounts[1].source), (OsStr::new("/x\\y"), OsStr::new("c\t1")));
    }

    #[test]
    fn this_process_sees_proc() {
        let table = read().unwrap();
        assert!(parse(&table).any(|m| m.path() == Path::new("/proc") && m.kind == "proc"));
    }
}
