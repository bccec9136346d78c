//! One client's way through a log: from its start over rotated files to the live end. Blocking reads, no waiting.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::{self, Segment};
use super::render::Renderer;
use super::{LogOptions, parse, tail};

const READ: usize = 64 * 1024;
/// Output handed out in one step.
const STEP: usize = 256 * 1024;
/// The longest physical line kept while its newline is missing; a longer one is cut here.
const LINE_MAX: usize = 4 << 20;

/// What a step gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Output; more may follow at once.
    Data(Vec<u8>),
    /// Output (may be empty) up to what is on disk now.
    End(Vec<u8>),
    /// The byte limit is reached after this.
    Full(Vec<u8>),
}

/// The state of one reader.
#[derive(Debug)]
pub(crate) struct Session {
    live: PathBuf,
    /// Names of rotated files that are older than the last piece.
    known: HashSet<String>,
    queue: VecDeque<(Segment, u64)>,
    current: Option<(Segment, u64)>,
    /// A physical line without its newline yet.
    carry: Vec<u8>,
    prefix: Vec<Vec<u8>>,
    renderer: Renderer,
    /// What to go on with, once the current piece has been read again to its end.
    next: Option<files::Chain>,
}

impl Session {
    /// Opens the log and finds the start.
    ///
    /// # Errors
    /// There is neither a live file nor a rotated one, or they cannot be read.
    pub(crate) fn open(path: &Path, options: &LogOptions) -> io::Result<Self> {
        // A symlink (as in /var/log/containers) leads to the folder where rotated files are.
        let live = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let chain = files::chain(&live, |old| !is_older(old, options.since))?;
        let known = chain.known;
        let segments: Vec<Segment> = chain.rotated.into_iter().map(|(_, s)| s).chain(chain.live).collect();
        if segments.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let start = match options.tail_lines {
            Some(lines) => tail::find(&segments, lines, options.stream)?,
            None => tail::Start::default(),
        };
        let queue = segments
            .into_iter()
            .enumerate()
            .skip(start.segment)
            .map(|(index, segment)| (segment, if index == start.segment { start.offset } else { 0 }));
        Ok(Self {
            live,
            known,
            queue: queue.collect(),
            current: None,
            carry: Vec::new(),
            prefix: start.prefix,
            renderer: Renderer::new(options),
            next: None,
        })
    }

    /// The live file's path, symlinks resolved.
    pub(crate) fn live(&self) -> &Path {
        &self.live
    }

    /// Reads on. `exited`: no more is written, so an empty new file is followed, too.
    pub(crate) fn step(&mut self, exited: bool) -> io::Result<Step> {
        let mut out = Vec::new();
        for line in std::mem::take(&mut self.prefix) {
            self.show(&line, &mut out);
        }
        let mut buffer = vec![0; READ];
        loop {
            if self.renderer.is_full() {
                return Ok(Step::Full(out));
            }
            if out.len() >= STEP {
                return Ok(Step::Data(out));
            }
            let Some((segment, offset)) = &mut self.current else {
                self.current = self.queue.pop_front();
                if self.current.is_none() {
                    return Ok(Step::End(out));
                }
                continue;
            };
            let n = segment.read_at(&mut buffer, *offset)?;
            if n > 0 {
                *offset += n as u64;
                self.take(&buffer[..n], &mut out);
                continue;
            }
            if !self.queue.is_empty() {
                self.leave(&mut out);
                continue;
            }
            if let Segment::Plain { file, .. } = segment
                && file.metadata()?.len() < *offset
            {
                // Truncated in place: begin again.
                *offset = 0;
                self.carry.clear();
                continue;
            }
            let Some(next) = self.next.take() else {
                let inode = segment.inode().unwrap_or_default();
                self.next = files::successors(&self.live, inode, &self.known, exited)?;
                if self.next.is_none() {
                    return Ok(Step::End(out));
                }
                // The writer has moved on, so one more read to the end sees its last line here.
                continue;
            };
            if next.rotated.is_empty() && next.live.is_none() {
                return Ok(Step::End(out));
            }
            self.known = next.known;
            self.queue.extend(next.rotated.into_iter().map(|(_, s)| s).chain(next.live).map(|s| (s, 0)));
            self.leave(&mut out);
        }
    }

    /// Output at the end: an unterminated line and text that waits.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let carry = std::mem::take(&mut self.carry);
        self.show(&carry, &mut out);
        self.renderer.finish(&mut out);
        out
    }

    fn leave(&mut self, out: &mut Vec<u8>) {
        self.current = None;
        let carry = std::mem::take(&mut self.carry);
        self.show(&carry, out);
    }

    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let (line, tail) = rest.split_at(end + 1);
            if self.carry.is_empty() {
                self.show(line, out);
            } else {
                let mut whole = std::mem::take(&mut self.carry);
                whole.extend_from_slice(line);
                self.show(&whole, out);
            }
            rest = tail;
        }
        if self.carry.len() < LINE_MAX {
            self.carry.extend_from_slice(rest);
        }
    }

    fn show(&mut self, line: &[u8], out: &mut Vec<u8>) {
        match parse(line) {
            Some(record) => self.renderer.record(&record, out),
            None if line.is_empty() || line == b"\n" => {}
            None => tracing::debug!(path = %self.live.display(), length = line.len(), "log line not in CRI format"),
        }
    }
}

/// Whether all of a rotated file was written before `since`.
fn is_older(path: &Path, since: Option<jiff::Timestamp>) -> bool {
    let written = fs::metadata(path).and_then(|m| m.modified()).ok().and_then(|t| jiff::Timestamp::try_from(t).ok());
    matches!((written, since), (Some(written), Some(since)) if written < since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn line(n: usize) -> String {
        format!("2026-01-01T00:00:00.{n:09}Z stdout F line {n}\n")
    }

    fn read_all(path: &Path, options: &LogOptions) -> String {
        let mut session = Session::open(path, options).unwrap();
        let mut all = Vec::new();
        loop {
            match session.step(true).unwrap() {
                Step::Data(out) => all.extend(out),
                Step::End(out) => {
                    all.extend(out);
                    all.extend(session.finish());
                    break;
                }
                Step::Full(out) => {
                    all.extend(out);
                    break;
                }
            }
        }
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn rotated_and_compressed_files_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("0.log");
        let gz = fs::File::create(dir.path().join("0.log.20260101-000000.gz")).unwrap();
        let mut gz = flate2::write::GzEncoder::new(gz, flate2::Compression::fast());
        gz.write_all(line(1).as_bytes()).unwrap();
        gz.finish().unwrap();
        fs::write(dir.path().join("0.log.20260102-000000"), line(2)).unwrap();
        fs::write(&live, line(3) + &line(4)).unwrap();
        assert_eq!(read_all(&live, &LogOptions::default()), "line 1\nline 2\nline 3\nline 4\n");
        let tail = |n| LogOptions { tail_lines: Some(n), ..LogOptions::default() };
        assert_eq!(read_all(&live, &tail(1)), "line 4\n");
        assert_eq!(read_all(&live, &tail(3)), "line 2\nline 3\nline 4\n");
        assert_eq!(read_all(&live, &tail(9)), "line 1\nline 2\nline 3\nline 4\n");
        assert_eq!(read_all(&live, &tail(0)), "");
        let limited = LogOptions { limit_bytes: Some(9), ..LogOptions::default() };
        assert_eq!(read_all(&live, &limited), "line 1\nli");
    }

    #[test]
    fn bad_lines_are_skipped_and_the_last_needs_no_newline() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("0.log");
        fs::write(&live, format!("garbage\n\n{}{}", line(1), line(2).trim_end())).unwrap();
        assert_eq!(read_all(&live, &LogOptions::default()), "line 1\nline 2\n");
    }

    #[test]
    fn a_symlink_leads_to_the_log() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        fs::write(dir.path().join("real/0.log.1"), line(1)).unwrap();
        fs::write(dir.path().join("real/0.log"), line(2)).unwrap();
        std::os::unix::fs::symlink("real/0.log", dir.path().join("link.log")).unwrap();
        assert_eq!(read_all(&dir.path().join("link.log"), &LogOptions::default()), "line 1\nline 2\n");
    }

    #[test]
    fn a_missing_log_is_an_error() {
        assert!(Session::open(Path::new("/none/0.log"), &LogOptions::default()).is_err());
    }

    #[test]
    fn big_logs_pass_through_in_steps() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("0.log");
        let text: String = (0..50_000).map(line).collect();
        fs::write(&live, &text).unwrap();
        let all = read_all(&live, &LogOptions::default());
        assert_eq!(all.lines().count(), 50_000);
        assert!(all.ends_with("line 49999\n"));
        let tail = LogOptions { tail_lines: Some(7), ..LogOptions::default() };
        assert_eq!(read_all(&live, &tail).lines().next(), Some("line 49993"));
    }
}
