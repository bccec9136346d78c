//! CRI log files: `<time> <stream> F|P <text>` lines, long lines cut into partial ones.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

/// Longest text in one log line, bytes.
pub const LONGEST: usize = 16 * 1024;

/// Cuts one stream into log lines.
#[derive(Debug)]
pub struct Splitter {
    name: &'static str,
    rest: Vec<u8>,
}

impl Splitter {
    /// For the stream `name` (`stdout`, `stderr`).
    pub fn new(name: &'static str) -> Self {
        Self { name, rest: Vec::new() }
    }

    /// Takes bytes of the stream and appends the log lines they finish to `out`.
    pub fn push(&mut self, mut bytes: &[u8], now: &str, out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let room = LONGEST - self.rest.len();
            let newline = bytes.iter().take(room + 1).position(|b| *b == b'\n');
            match newline {
                Some(at) => {
                    self.rest.extend_from_slice(&bytes[..at]);
                    self.line(now, 'F', out);
                    bytes = &bytes[at + 1..];
                }
                None => {
                    let take = room.min(bytes.len());
                    self.rest.extend_from_slice(&bytes[..take]);
                    bytes = &bytes[take..];
                    if self.rest.len() == LONGEST && !bytes.is_empty() {
                        self.line(now, 'P', out);
                    }
                }
            }
        }
    }

    /// The stream has ended: what has no newline is written as a partial line.
    pub fn finish(&mut self, now: &str, out: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            self.line(now, 'P', out);
        }
    }

    fn line(&mut self, now: &str, tag: char, out: &mut Vec<u8>) {
        let _ = write!(out, "{now} {} {tag} ", self.name);
        out.append(&mut self.rest);
        out.push(b'\n');
    }
}

/// The present as RFC 3339 with nanoseconds.
pub fn now() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

/// A log file that keeps what it could not write yet.
#[derive(Debug)]
pub struct LogFile {
    path: Option<PathBuf>,
    file: Option<File>,
    pending: Vec<u8>,
}

impl LogFile {
    /// Opens the file for appending, with its folder; no path drops all.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let file = path.as_ref().map(open).transpose()?;
        Ok(Self { path, file, pending: Vec::new() })
    }

    /// Opens the path anew; the old file stays in use when that fails.
    ///
    /// # Errors
    /// The file system's.
    pub fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            self.file = Some(open(path)?);
        }
        Ok(())
    }

    /// Lines to write; call [`LogFile::flush`] after.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.pending
    }

    /// Writes what is pending; false when something remains (the disk is full), to try again later.
    pub fn flush(&mut self) -> bool {
        let Some(file) = &mut self.file else {
            self.pending.clear();
            return true;
        };
        let mut written = 0;
        while written < self.pending.len() {
            match file.write(&self.pending[written..]) {
                Ok(0) => break,
                Ok(n) => written += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.pending.drain(..written);
        if self.pending.is_empty() && self.pending.capacity() > 64 * 1024 {
            self.pending.shrink_to(0);
        }
        self.pending.is_empty()
    }

    /// Lines wait for the disk.
    pub fn is_blocked(&self) -> bool {
        !self.pending.is_empty()
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> String {
        let (mut splitter, mut out) = (Splitter::new("stdout"), Vec::new());
        for piece in pieces {
            splitter.push(piece, "T", &mut out);
        }
        splitter.finish("T", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_whole_whatever_the_pieces() {
        assert_eq!(split(&[b"a\nb", b"c\n\n"]), "T stdout F a\nT stdout F bc\nT stdout F \n");
    }

    #[test]
    fn text_without_a_newline_is_a_partial_line() {
        assert_eq!(split(&[b"prompt"]), "T stdout P prompt\n");
    }

    #[test]
    fn long_lines_are_cut_and_ended() {
        let long = vec![b'x'; LONGEST * 2 + 3];
        let out = split(&[&long, b"\n"]);
        let tags: Vec<&str> = out.lines().map(|l| &l[9..10]).collect();
        assert_eq!(tags, ["P", "P", "F"]);
        assert_eq!(split(&[&long[..LONGEST], b"\n"]).lines().count(), 1);
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_lost(text in proptest::collection::vec(proptest::num::u8::ANY, 0..5000), cut in 1usize..700) {
            let (mut splitter, mut out) = (Splitter::new("stderr"), Vec::new());
            for piece in text.chunks(cut) {
                splitter.push(piece, "T", &mut out);
            }
            splitter.finish("T", &mut out);
            let mut joined = Vec::new();
            for line in out.split_inclusive(|b| *b == b'\n') {
                let body = &line["T stderr F ".len()..];
                joined.extend_from_slice(if line[9] == b'P' { &body[..body.len() - 1] } else { body });
            }
            proptest::prop_assert_eq!(joined, text);
        }
    }
}
