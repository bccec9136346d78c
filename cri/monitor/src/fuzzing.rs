//! What the fuzz targets of this crate run: one function a target, from bytes that another version's program, a container, or
//! a disk that lost a part of a file may give.
//!
//! Compiled for fuzzing and for tests only. The tests run what `fuzz/corpus` holds, so that an input that once found a fault is
//! tried by everyone; `fuzz/README.md` says how to look for new ones.

use std::fs;
use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frame;
use crate::log::{LONGEST, Splitter};
use crate::protocol::{Answer, Request};
use crate::record::ExitRecord;

/// Frames on the monitor's socket, read as requests and as answers.
pub fn frames(data: &[u8]) {
    listen::<Request>(data);
    listen::<Answer>(data);
}

fn listen<T: DeserializeOwned + Serialize>(data: &[u8]) {
    let (mut theirs, ours) = UnixStream::pair().expect("a socket pair");
    // What does not fit the socket's buffer would wait for a reader.
    theirs.write_all(&data[..data.len().min(65_536)]).expect("send it");
    theirs.shutdown(Shutdown::Write).expect("end it");
    loop {
        match frame::receive::<T>(&ours) {
            Ok(Some((message, fds))) => {
                assert!(fds.is_empty());
                let text = serde_json::to_string(&message).expect("it can be sent on");
                let again: T = serde_json::from_str(&text).expect("it is understood again");
                assert_eq!(serde_json::to_string(&again).expect("as text"), text);
            }
            Ok(None) => return,
            Err(error) => return assert!(!error.to_string().is_empty()),
        }
    }
}

/// An exit record.
pub fn record(data: &[u8]) {
    let thread = std::thread::current().id();
    let path = std::env::temp_dir().join(format!("gantry-fuzz-{}-{thread:?}-record", std::process::id()));
    fs::write(&path, data).expect("write there");
    if let Some(record) = ExitRecord::read(&path) {
        fs::write(&path, serde_json::to_vec(&record).expect("JSON")).expect("write there");
        assert_eq!(ExitRecord::read(&path), Some(record));
    }
    let _ = fs::remove_file(path);
}

/// A container's output, in the pieces that its first byte says, as lines of a log.
pub fn log(data: &[u8]) {
    let Some((piece, text)) = data.split_first() else { return };
    // Long lines are what is cut: each byte of the input stands for many of the output.
    let text: Vec<u8> =
        text.iter().take(600).flat_map(|b| std::iter::repeat_n(*b, if *b == b'\n' { 1 } else { 97 })).collect();
    let written = |size: usize| {
        let (mut splitter, mut out) = (Splitter::new("stdout"), Vec::new());
        text.chunks(size).for_each(|bytes| splitter.push(bytes, "T", &mut out));
        splitter.finish("T", &mut out);
        out
    };
    let out = written(usize::from(*piece) * 61 + 1);
    // However it came, the log is the same, and nothing of it is lost.
    assert!(out == written(text.len().max(1)));
    let mut back = Vec::new();
    for line in out.split_inclusive(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\n").expect("whole lines");
        let (tag, rest) = line.strip_prefix(b"T stdout ").and_then(|l| l.split_first()).expect("a log line");
        let rest = rest.strip_prefix(b" ").expect("a log line");
        assert!(rest.len() <= LONGEST);
        back.extend_from_slice(rest);
        back.extend_from_slice(if *tag == b'F' { b"\n" } else { b"" });
    }
    assert!(back == text);
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
#[test]
fn what_fuzzing_found_and_starts_from() {
    replay::corpus(&[("monitor_frames", frames), ("monitor_record", record), ("monitor_log", log)]);
}
