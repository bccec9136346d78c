//! From records to the bytes that a client sees: joined lines, filters, limits.

use super::{LogOptions, Record, Stream, StreamFilter};

/// Text of the stream that has to wait while the other one is in the middle of a line, at most.
const WAITING_MAX: usize = 1 << 20;

/// Turns records into output. Partial records are written at once; while one stream's line is open, the other's text
/// waits, so that lines never mix.
#[derive(Debug)]
pub(crate) struct Renderer {
    since: Option<jiff::Timestamp>,
    timestamps: bool,
    stream: StreamFilter,
    left: Option<u64>,
    open: Option<Stream>,
    waiting: Vec<u8>,
    /// The waiting text ends in the middle of a line.
    waiting_open: bool,
}

impl Renderer {
    pub(crate) fn new(options: &LogOptions) -> Self {
        Self {
            since: options.since,
            timestamps: options.timestamps,
            stream: options.stream,
            left: options.limit_bytes,
            open: None,
            waiting: Vec::new(),
            waiting_open: false,
        }
    }

    /// Whether the byte limit is used up.
    pub(crate) fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Adds what a record shows to `out`.
    pub(crate) fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        if let StreamFilter::Only(only) = self.stream
            && only != record.stream
        {
            return;
        }
        if let (Some(since), Some(time)) = (self.since, record.timestamp())
            && time < since
        {
            return;
        }
        match self.open {
            Some(open) if open != record.stream => {
                let begins = !self.waiting_open;
                let mut waiting = std::mem::take(&mut self.waiting);
                self.append(record, begins, &mut waiting);
                self.waiting = waiting;
                self.waiting_open = record.partial;
                if self.waiting.len() > WAITING_MAX {
                    // An endless line must not hold the other stream for ever.
                    self.emit(b"\n", out);
                    self.open = None;
                    self.release(record.stream, out);
                }
            }
            open => {
                let mut text = Vec::with_capacity(record.text.len() + 40);
                self.append(record, open.is_none(), &mut text);
                self.emit(&text, out);
                self.open = record.partial.then_some(record.stream);
                if self.open.is_none() {
                    let other = if record.stream == Stream::Stdout { Stream::Stderr } else { Stream::Stdout };
                    self.release(other, out);
                }
            }
        }
    }

    /// Writes what still waits, at the end of the log.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.waiting.is_empty() {
            self.emit(b"\n", out);
            let waiting = std::mem::take(&mut self.waiting);
            self.emit(&waiting, out);
        }
    }

    fn append(&self, record: &Record<'_>, begins: bool, to: &mut Vec<u8>) {
        if self.timestamps && begins {
            to.extend_from_slice(record.time.as_bytes());
            to.push(b' ');
        }
        to.extend_from_slice(record.text);
        if !record.partial {
            to.push(b'\n');
        }
    }

    fn release(&mut self, stream: Stream, out: &mut Vec<u8>) {
        if !self.waiting.is_empty() {
            let waiting = std::mem::take(&mut self.waiting);
            self.emit(&waiting, out);
            self.open = self.waiting_open.then_some(stream);
            self.waiting_open = false;
        }
    }

    fn emit(&mut self, text: &[u8], out: &mut Vec<u8>) {
        let n = self.left.map_or(text.len(), |left| usize::try_from(left).unwrap_or(usize::MAX).min(text.len()));
        out.extend_from_slice(&text[..n]);
        if let Some(left) = &mut self.left {
            *left -= n as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn run(options: &LogOptions, lines: &[&str]) -> String {
        let mut renderer = Renderer::new(options);
        let mut out = Vec::new();
        for (n, line) in lines.iter().enumerate() {
            let line = format!("2026-01-01T00:00:{n:02}.000000001Z {line}");
            renderer.record(&parse(line.as_bytes()).unwrap(), &mut out);
        }
        renderer.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_joined_and_never_mixed() {
        let plain = LogOptions::default();
        for (lines, want) in [
            (&["stdout F a", "stderr F b"][..], "a\nb\n"),
            (&["stdout P a", "stdout P b", "stdout F c", "stdout F d"], "abc\nd\n"),
            (&["stdout P a", "stderr F err", "stdout F b"], "ab\nerr\n"),
            (&["stdout P a", "stderr P e1", "stdout F b", "stderr F e2"], "ab\ne1e2\n"),
            (
                &["stdout P a", "stderr F e1", "stderr P e2", "stdout F b", "stdout F c", "stderr F !"],
                "ab\ne1\ne2!\nc\n",
            ),
            (&["stdout P a"], "a"),
            (&["stdout P a", "stderr F e"], "a\ne\n"),
            (&["stdout F "], "\n"),
        ] {
            assert_eq!(run(&plain, lines), want, "{lines:?}");
        }
    }

    #[test]
    fn times_stand_at_the_beginning_of_lines_only() {
        let options = LogOptions { timestamps: true, ..LogOptions::default() };
        assert_eq!(
            run(&options, &["stdout P a", "stdout F b", "stderr F c"]),
            "2026-01-01T00:00:00.000000001Z ab\n2026-01-01T00:00:02.000000001Z c\n"
        );
    }

    #[test]
    fn filters_and_limits_hold() {
        let lines = ["stdout F one", "stderr F two", "stdout F three"];
        let only = |stream| LogOptions { stream: StreamFilter::Only(stream), ..LogOptions::default() };
        assert_eq!(run(&only(Stream::Stderr), &lines), "two\n");
        assert_eq!(run(&only(Stream::Stdout), &lines), "one\nthree\n");
        let since = LogOptions { since: "2026-01-01T00:00:01.000000001Z".parse().ok(), ..LogOptions::default() };
        assert_eq!(run(&since, &lines), "two\nthree\n");
        for (limit, want) in [(1, "o"), (4, "one\n"), (6, "one\ntw"), (100, "one\ntwo\nthree\n")] {
            assert_eq!(run(&LogOptions { limit_bytes: Some(limit), ..LogOptions::default() }, &lines), want);
        }
    }

    #[test]
    fn an_endless_line_does_not_hold_the_other_stream() {
        let big = format!("stderr F {}", "x".repeat(WAITING_MAX));
        let out = run(&LogOptions::default(), &["stdout P a", &big, "stdout F b"]);
        assert!(out.starts_with("a\nxxx") && out.ends_with("x\nb\n"));
    }
}
