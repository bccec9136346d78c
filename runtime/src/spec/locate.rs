//! Reading JSON so that an error names the field: the parser tells only a line and a column, this finds what stands there.

use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::error::{Error, Result};

/// Parses a document.
///
/// # Errors
/// It is no JSON (with the place), or a field has a wrong type, is out of range or missing (with its name).
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let text = error.to_string();
        if error.classify() != Category::Data {
            return Error::new(text);
        }
        let why = text.rsplit_once(" at line ").map_or(text.as_str(), |(why, _)| why);
        let field = field_at(bytes, offset(bytes, error.line(), error.column()));
        Error::new(if field.is_empty() { why.to_owned() } else { format!("{field}: {why}") })
    })
}

/// The number of bytes before a line (counted from 1) and column.
fn offset(bytes: &[u8], line: usize, column: usize) -> usize {
    let mut lines = bytes.split_inclusive(|b| *b == b'\n');
    lines.by_ref().take(line.saturating_sub(1)).map(<[u8]>::len).sum::<usize>() + column
}

/// Where a scan is: in an object (at a key) or in a list (at an index).
enum Frame {
    Object(Option<String>),
    List(usize),
}

fn name(frames: &[Frame]) -> String {
    let mut text = String::new();
    for frame in frames {
        match frame {
            Frame::Object(Some(key)) if text.is_empty() => text.push_str(key),
            Frame::Object(Some(key)) => text.push_str(&format!(".{key}")),
            Frame::List(index) => text.push_str(&format!("[{index}]")),
            Frame::Object(None) => {}
        }
    }
    text
}

/// The field that an error after `offset` bytes of well-formed JSON is about: a list or object that starts there, else the
/// value that ended last. The parser has read the text up to there, so this looks for no faults.
fn field_at(bytes: &[u8], offset: usize) -> String {
    let mut frames: Vec<Frame> = Vec::new();
    let mut last = String::new();
    let mut at = 0;
    while at < offset.min(bytes.len()) {
        match bytes[at] {
            b'{' => frames.push(Frame::Object(None)),
            b'[' => frames.push(Frame::List(0)),
            b'}' | b']' => {
                frames.pop();
                last = name(&frames);
            }
            b',' => match frames.last_mut() {
                Some(Frame::List(index)) => *index += 1,
                Some(Frame::Object(key)) => *key = None,
                None => {}
            },
            b'"' => {
                let end = string_end(bytes, at);
                match frames.last_mut() {
                    Some(Frame::Object(key @ None)) => {
                        *key = Some(String::from_utf8_lossy(&bytes[(at + 1).min(end - 1)..end - 1]).into_owned());
                    }
                    _ => last = name(&frames),
                }
                at = end - 1;
            }
            b':' | b' ' | b'\t' | b'\n' | b'\r' => {}
            // A number or a word; each of its letters tells the same.
            _ => last = name(&frames),
        }
        at += 1;
    }
    match bytes.get(at) {
        Some(b'{' | b'[') => name(&frames),
        _ => last,
    }
}

/// The place behind the string that starts at `start`.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 1,
            b'"' => return at + 1,
            _ => {}
        }
        at += 1;
    }
    bytes.len().max(start + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Spec;
    use proptest::prelude::*;

    #[test]
    fn errors_name_the_field() {
        for (text, field) in [
            (r#"{"ociVersion": 1}"#, "ociVersion: invalid type"),
            ("{\"ociVersion\": \"1.0.0\",\n \"root\": {}}", "root: missing field `path`"),
            (r#"{"ociVersion": "1.0.0", "process": {"cwd": "/", "args": "x"}}"#, "process.args: invalid type"),
            (r#"{"ociVersion": "1", "process": {"cwd": "/", "args": ["a\"}", 7]}}"#, "process.args[1]: invalid type"),
            (r#"{"ociVersion": "1", "process": {"cwd": "/", "user": {"uid": -1}}}"#, "process.user.uid: invalid value"),
            (r#"{"ociVersion": "1", "process": {"cwd": "/", "user": [1, {}]}}"#, "process.user"),
            (r#"{"ociVersion": "1", "mounts": [{"destination": "/"}, {"destination": []}]}"#, "mounts[1].destination:"),
            (
                r#"{"ociVersion": "1", "linux": {"resources": {"rdma": {"a": {"hcaHandles": "x"}}}}}"#,
                "rdma.a.hcaHandles",
            ),
            (r#"{"root": {"path": "x"}}"#, "missing field `ociVersion`"),
            ("[1]", "invalid type"),
        ] {
            let error = parse::<Spec>(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(field), "{text}: {error}");
        }
        assert!(parse::<Spec>(b"{\"ociVersion\": \n x}").unwrap_err().to_string().contains("line 2"));
    }

    proptest! {
        #[test]
        fn no_document_makes_the_search_fail(text in "[\\[\\]{}\",:a\\\\1 \n]{0,40}", offset in 0_usize..60) {
            let _ = field_at(text.as_bytes(), offset);
            let _ = parse::<Spec>(text.as_bytes());
        }
    }
}
