//! What the fuzz targets of this crate run: one function a target, from logs of containers and from requests.
//!
//! Compiled for fuzzing and for tests only. The tests run what `fuzz/corpus` holds, so that an input that once found a fault is
//! tried by everyone; `fuzz/README.md` says how to look for new ones.

use http::Method;
use jiff::Timestamp;

use crate::log::{Stream, parse};
use crate::log_query::LogQuery;
use crate::route;

/// Lines of a log, as a runtime that is not ours or a broken disk may leave them.
pub fn log(data: &[u8]) {
    for line in data.split_inclusive(|b| *b == b'\n') {
        let Some(record) = parse(line) else { continue };
        let whole = line.strip_suffix(b"\n").unwrap_or(line);
        assert!(whole.ends_with(record.text), "the text is the line's end");
        assert!(line.starts_with(record.time.as_bytes()));
        let _ = record.timestamp();
        // Written as runtimes write it, it is the same record.
        let stream = if record.stream == Stream::Stdout { "stdout" } else { "stderr" };
        let tag = if record.partial { "P" } else { "F" };
        let again = [format!("{} {stream} {tag} ", record.time).as_bytes(), record.text].concat();
        assert_eq!(parse(&again), Some(record));
    }
}

/// The path of a request, and in the next line its query.
pub fn request(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (path, query) = text.split_once('\n').unwrap_or((&text, ""));
    for method in [Method::GET, Method::POST, Method::DELETE] {
        if let Ok(route) = route::find(&method, path) {
            assert!(!route.label().0.is_empty());
        }
    }
    let pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    if let Err((status, body)) = crate::log::LogOptions::from_query(&pairs, Timestamp::UNIX_EPOCH) {
        assert!(status.is_client_error() && !body.is_empty());
    }
    if let Err(why) = LogQuery::from_query(&pairs) {
        assert!(!why.is_empty());
    }
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
#[test]
fn what_fuzzing_found_and_starts_from() {
    replay::corpus(&[("kubelet_log", log), ("kubelet_request", request)]);
}
