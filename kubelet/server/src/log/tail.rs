//! Finding the last lines of a log from its end, reading no more than needed.

use std::io;

use super::files::Segment;
use super::{Record, StreamFilter, parse};

const BLOCK: usize = 64 * 1024;
/// How far before the wanted lines the beginning of a split line is looked for.
const SEARCH_MAX: u64 = 1 << 20;

/// Where the wanted lines begin.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Start {
    /// Index of the segment to go on from.
    pub(crate) segment: usize,
    /// Offset in it.
    pub(crate) offset: u64,
    /// Records from before that place which begin wanted lines, in order.
    pub(crate) prefix: Vec<Vec<u8>>,
}

/// The start of the last `lines` whole lines over `segments` (oldest first).
pub(crate) fn find(segments: &[Segment], lines: u64, filter: StreamFilter) -> io::Result<Start> {
    let Some(last) = segments.len().checked_sub(1) else { return Ok(Start::default()) };
    let mut search =
        Search { lines, filter, counted: 0, start: None, open: [false; 2], prefix: Vec::new(), searched: 0 };
    if lines == 0 {
        return Ok(Start { segment: last, offset: segments[last].len()?, prefix: Vec::new() });
    }
    for (index, segment) in segments.iter().enumerate().rev() {
        let mut lines = Backward::new(segment)?;
        while let Some((offset, line)) = lines.next()? {
            if search.line(index, offset, &line) {
                return Ok(search.done());
            }
        }
    }
    Ok(search.done())
}

struct Search {
    lines: u64,
    filter: StreamFilter,
    /// Ends of wanted lines seen.
    counted: u64,
    /// Just after the record that ends the last unwanted line.
    start: Option<(usize, u64)>,
    /// Streams of which the wanted part may begin in the middle of a line.
    open: [bool; 2],
    prefix: Vec<Vec<u8>>,
    searched: u64,
}

impl Search {
    /// Takes the next line towards the beginning; true when all is known.
    fn line(&mut self, segment: usize, offset: u64, line: &[u8]) -> bool {
        let record = parse(line).filter(|r| self.wanted(r));
        if self.start.is_none() {
            match record {
                Some(r) if !r.partial => {
                    if self.counted == self.lines {
                        self.start = Some((segment, offset + line.len() as u64));
                        self.open[r.stream.index()] = false;
                    } else {
                        self.counted += 1;
                        self.open[r.stream.index()] = true;
                    }
                }
                Some(r) => {
                    // A line that has no end yet is shown, too.
                    self.open[r.stream.index()] = true;
                }
                None => {}
            }
        } else {
            self.searched += line.len() as u64;
            if let Some(r) = record.filter(|r| self.open[r.stream.index()]) {
                if r.partial {
                    self.prefix.push(line.to_vec());
                } else {
                    self.open[r.stream.index()] = false;
                }
            }
        }
        self.start.is_some() && (self.open == [false; 2] || self.searched > SEARCH_MAX)
    }

    fn wanted(&self, record: &Record<'_>) -> bool {
        match self.filter {
            StreamFilter::All => true,
            StreamFilter::Only(stream) => stream == record.stream,
        }
    }

    fn done(mut self) -> Start {
        self.prefix.reverse();
        let (segment, offset) = self.start.unwrap_or((0, 0));
        Start { segment, offset, prefix: self.prefix }
    }
}

/// Complete lines of a segment from its end; what follows the last newline is left out.
struct Backward<'a> {
    segment: &'a Segment,
    /// Bytes of the segment from `at` on which are not handed out yet.
    held: Vec<u8>,
    at: u64,
}

impl<'a> Backward<'a> {
    fn new(segment: &'a Segment) -> io::Result<Self> {
        let at = segment.len()?;
        let mut lines = Self { segment, held: Vec::new(), at };
        // Drop the unfinished line at the end.
        loop {
            if let Some(end) = lines.held.iter().rposition(|b| *b == b'\n') {
                lines.held.truncate(end + 1);
                return Ok(lines);
            }
            if !lines.load()? {
                lines.held.clear();
                return Ok(lines);
            }
        }
    }

    fn next(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        if self.held.is_empty() && !self.load()? {
            return Ok(None);
        }
        let mut searched_to = self.held.len() - 1;
        loop {
            // The byte at the end is this line's own newline.
            if let Some(before) = self.held[..searched_to].iter().rposition(|b| *b == b'\n') {
                let line = self.held.split_off(before + 1);
                return Ok(Some((self.at + before as u64 + 1, line)));
            }
            let had = self.held.len();
            if !self.load()? {
                let line = std::mem::take(&mut self.held);
                return Ok(if line.is_empty() { None } else { Some((self.at, line)) });
            }
            searched_to = self.held.len() - had;
        }
    }

    /// Reads one block before what is held; false at the beginning.
    fn load(&mut self) -> io::Result<bool> {
        if self.at == 0 {
            return Ok(false);
        }
        let size = usize::try_from(self.at).unwrap_or(usize::MAX).min(BLOCK);
        let from = self.at - size as u64;
        let mut block = vec![0; size];
        let mut filled = 0;
        while filled < size {
            match self.segment.read_at(&mut block[filled..], from + filled as u64)? {
                0 => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the log was truncated while it was read",
                    ));
                }
                n => filled += n,
            }
        }
        block.append(&mut self.held);
        self.held = block;
        self.at = from;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "2026-01-01T00:00:00.000000000Z";

    fn segment(records: &[&str]) -> Segment {
        Segment::of_bytes(records.iter().map(|r| format!("{T} {r}\n")).collect::<String>().into_bytes())
    }

    /// What would be shown: the prefix and all from the start on, as texts.
    fn shown(segments: &[Segment], lines: u64, filter: StreamFilter) -> Vec<String> {
        let start = find(segments, lines, filter).unwrap();
        let mut raw: Vec<u8> = start.prefix.concat();
        for (index, segment) in segments.iter().enumerate().skip(start.segment) {
            let mut bytes = vec![0; usize::try_from(segment.len().unwrap()).unwrap()];
            segment.read_at(&mut bytes, 0).unwrap();
            raw.extend(&bytes[if index == start.segment { usize::try_from(start.offset).unwrap() } else { 0 }..]);
        }
        raw.split(|b| *b == b'\n').filter_map(parse).map(|r| String::from_utf8_lossy(r.text).into_owned()).collect()
    }

    #[test]
    fn the_last_lines_are_found() {
        let plain = ["stdout F 1", "stderr F 2", "stdout F 3"];
        for (lines, want) in [(0, &[][..]), (1, &["3"]), (2, &["2", "3"]), (3, &["1", "2", "3"]), (9, &["1", "2", "3"])]
        {
            assert_eq!(shown(&[segment(&plain)], lines, StreamFilter::All), want, "{lines}");
        }
        assert!(shown(&[segment(&[])], 5, StreamFilter::All).is_empty());
        assert!(shown(&[], 5, StreamFilter::All).is_empty());
    }

    #[test]
    fn split_lines_count_once_and_are_shown_whole() {
        let all = StreamFilter::All;
        let split = ["stdout F 1", "stdout P a", "stdout P b", "stdout F c", "stdout F 2"];
        assert_eq!(shown(&[segment(&split)], 2, all), ["a", "b", "c", "2"]);
        let mixed = ["stderr P e1", "stdout F 1", "stdout F 2", "stderr F e2"];
        assert_eq!(shown(&[segment(&mixed)], 1, all), ["e1", "e2"]);
        assert_eq!(shown(&[segment(&mixed)], 2, all), ["e1", "2", "e2"]);
        let unfinished = ["stdout F 1", "stdout F 2", "stdout P open"];
        assert_eq!(shown(&[segment(&unfinished)], 1, all), ["2", "open"]);
    }

    #[test]
    fn only_the_asked_stream_counts() {
        let lines = ["stdout F 1", "stderr F 2", "stdout F 3", "stderr F 4", "stderr F 5"];
        let only = StreamFilter::Only(super::super::Stream::Stdout);
        assert_eq!(find(&[segment(&lines)], 1, only).unwrap().offset, T.len() as u64 + 12);
        assert_eq!(shown(&[segment(&lines)], 2, only)[0], "1");
    }

    #[test]
    fn older_files_are_used_when_needed() {
        let files = [segment(&["stdout F 1", "stdout P 2"]), segment(&["stdout F b", "stdout F 3"])];
        assert_eq!(shown(&files, 1, StreamFilter::All), ["3"]);
        assert_eq!(shown(&files, 2, StreamFilter::All), ["2", "b", "3"]);
        assert_eq!(shown(&files, 3, StreamFilter::All), ["1", "2", "b", "3"]);
    }

    #[test]
    fn block_borders_do_not_matter() {
        for length in [BLOCK - 60, BLOCK - 45, BLOCK - 44, BLOCK - 43, BLOCK, 3 * BLOCK + 7] {
            let big = format!("stdout F {}", "x".repeat(length));
            let files = [segment(&["stdout F first", &big, "stdout F last"])];
            assert_eq!(shown(&files, 1, StreamFilter::All), ["last"], "{length}");
            assert_eq!(shown(&files, 2, StreamFilter::All).len(), 2, "{length}");
            assert_eq!(shown(&files, 3, StreamFilter::All)[0], "first", "{length}");
        }
    }

    #[test]
    fn an_unterminated_line_does_not_count() {
        let mut bytes = format!("{T} stdout F 1\n{T} stdout F 2\n").into_bytes();
        bytes.extend(format!("{T} stdout F half").bytes());
        assert_eq!(shown(&[Segment::of_bytes(bytes)], 1, StreamFilter::All), ["2", "half"]);
    }
}
