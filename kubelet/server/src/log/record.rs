//! One physical line of a CRI log: `<RFC 3339 time> stdout|stderr P|F[:tag...] <text>`.

/// Which output of the process wrote a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Stdout => 0,
            Self::Stderr => 1,
        }
    }
}

/// A parsed record, borrowing from the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The time as written.
    pub time: &'a str,
    /// The output.
    pub stream: Stream,
    /// The text goes on in the stream's next record (no newline follows).
    pub partial: bool,
    /// The text, without the newline.
    pub text: &'a [u8],
}

impl Record<'_> {
    /// The time as a number; `None` when it is not RFC 3339.
    pub fn timestamp(&self) -> Option<jiff::Timestamp> {
        self.time.parse().ok()
    }
}

/// Parses a line (with or without its newline); `None` when it is not in CRI format.
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let (time, rest) = word(line)?;
    let (stream, rest) = word(rest)?;
    // The text may be empty, with or without the blank before it.
    let (tags, text) = word(rest).unwrap_or((rest, &[]));
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let partial = match tags.split(|b| *b == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    let time = std::str::from_utf8(time).ok().filter(|t| t.len() >= 20 && t.as_bytes()[0].is_ascii_digit())?;
    Some(Record { time, stream, partial, text })
}

fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|b| *b == b' ')?;
    Some((&text[..at], &text[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "2016-10-06T00:17:09.669794202Z";

    #[test]
    fn records_are_taken_apart() {
        for (rest, stream, partial, text) in [
            ("stdout F hello", Stream::Stdout, false, "hello"),
            ("stderr P part", Stream::Stderr, true, "part"),
            ("stdout F:TAG:X  two  blanks ", Stream::Stdout, false, " two  blanks "),
            ("stdout F ", Stream::Stdout, false, ""),
            ("stdout F", Stream::Stdout, false, ""),
            ("stdout P a b c", Stream::Stdout, true, "a b c"),
        ] {
            for end in ["", "\n"] {
                let line = format!("{T} {rest}{end}");
                let got = parse(line.as_bytes()).unwrap_or_else(|| panic!("{line}"));
                assert_eq!(got, Record { time: T, stream, partial, text: text.as_bytes() }, "{line}");
                assert!(got.timestamp().is_some());
            }
        }
    }

    #[test]
    fn other_lines_are_refused() {
        for line in [
            "",
            "\n",
            "hello world",
            "2016-10-06T00:17:09.669794202Z",
            "2016-10-06T00:17:09.669794202Z stdout",
            "2016-10-06T00:17:09.669794202Z nowhere F x",
            "2016-10-06T00:17:09.669794202Z stdout X x",
            "short stdout F x",
            r#"{"log":"x\n","stream":"stdout","time":"2016-10-06T00:17:09.669794202Z"}"#,
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_pass() {
        let mut line = format!("{T} stdout F ").into_bytes();
        line.extend([0xff, 0xfe, b'\n']);
        assert_eq!(parse(&line).unwrap().text, [0xff, 0xfe]);
    }
}
