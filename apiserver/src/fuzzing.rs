//! What the fuzz targets of this crate run: one function a target, from bytes that a client sends.
//!
//! Compiled for fuzzing and for tests only. The tests run what `fuzz/corpus` holds, so that an input that once found a fault is
//! tried by everyone; `fuzz/README.md` says how to look for new ones.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use serde_json::Value;

use crate::http_util::{Query, negotiate};
use crate::{protobuf, write};

/// A body; its first byte says what it is: protobuf (with or without its magic number), YAML or JSON.
pub fn body(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let read = match kind % 4 {
        0 => protobuf::to_json(protobuf::MEDIA_TYPE, rest)
            .map(|json| write::parse(&Bytes::copy_from_slice(&json), false)),
        1 => {
            let whole = [b"k8s\0", rest].concat();
            protobuf::to_json(protobuf::MEDIA_TYPE, &whole)
                .map(|json| write::parse(&Bytes::copy_from_slice(&json), false))
        }
        2 => Ok(write::parse(&Bytes::copy_from_slice(rest), true)),
        _ => Ok(write::parse(&Bytes::copy_from_slice(rest), false)),
    };
    match read {
        Err(status) => assert!(status.code >= 400),
        Ok(Err(status)) => assert!(status.code == 400 && kind % 4 > 1, "what is written as JSON is read as JSON"),
        Ok(Ok(value)) => {
            if kind % 4 < 2 {
                assert!(value["kind"].is_string(), "{value}");
            }
            // What is taken is kept as text, and read again.
            if api_machinery::schema::too_deep(&value).is_none() {
                let text = value.to_string();
                let again: Value = serde_json::from_str(&text).expect("it is read again");
                assert_eq!(again.to_string(), text);
            }
        }
    }
}

/// A query, and in the lines after it the header Accept.
pub fn query(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (line, accept) = text.split_once('\n').unwrap_or((&text, ""));
    let query = Query::parse(line);
    for name in ["watch", "labelSelector", "fieldSelector", "limit", "continue", "dryRun", ""] {
        let _ = (query.has(name), query.flag(name));
        assert!(query.has(name) || query.get(name).is_empty());
    }
    let mut headers = HeaderMap::new();
    for value in accept.lines().filter_map(|value| HeaderValue::from_str(value).ok()) {
        headers.append(header::ACCEPT, value);
    }
    if let Err(status) = negotiate(&headers) {
        assert!(status.code >= 400);
    }
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
#[test]
fn what_fuzzing_found_and_starts_from() {
    replay::corpus(&[("server_body", body), ("server_query", query)]);
}
