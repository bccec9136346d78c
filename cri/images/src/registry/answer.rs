//! Answers of registries: their bodies within bounds of size and time, and their own words about failures.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Response;
use http::header::RETRY_AFTER;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Deserialize;

use super::client::{Registry, innermost};
use crate::error::{Error, Result};

/// Bytes of an error or token answer.
pub(super) const MAX_ANSWER: u64 = 1 << 20;

impl Registry {
    /// The registry's own words about a failure.
    pub(super) async fn failure(&self, response: Response<Incoming>, host: &str) -> Error {
        let status = response.status();
        // Of the two forms only seconds are in use.
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
        let bytes = self.body(response, host, "error", MAX_ANSWER).await.unwrap_or_default();
        let (code, message) = reason(&bytes);
        let standard = status.canonical_reason().unwrap_or("unexpected answer").to_lowercase();
        Error::Registry {
            host: host.to_string(),
            status: status.as_u16(),
            code,
            reason: message.unwrap_or(standard),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    /// A whole small body.
    pub(super) async fn body(&self, response: Response<Incoming>, host: &str, what: &str, limit: u64) -> Result<Bytes> {
        let mut body = response.into_body();
        let mut out = BytesMut::new();
        let whole = async {
            while let Some(chunk) = self.chunk(&mut body, host).await? {
                if out.len() as u64 + chunk.len() as u64 > limit {
                    let actual = out.len() as u64 + chunk.len() as u64;
                    return Err(Error::Size { what: format!("{what} from {host}"), actual, limit });
                }
                out.extend_from_slice(&chunk);
            }
            Ok(())
        };
        let all = self.timeouts.rate_window;
        match tokio::time::timeout(all, whole).await {
            Ok(result) => result?,
            Err(_) => {
                return Err(Error::Timeout { host: host.into(), doing: "read an answer of", seconds: all.as_secs() });
            }
        }
        Ok(out.freeze())
    }

    /// The next piece of a body, `None` at its end.
    pub(crate) async fn chunk(&self, body: &mut Incoming, host: &str) -> Result<Option<Bytes>> {
        let limit = self.timeouts.idle;
        loop {
            return match tokio::time::timeout(limit, body.frame()).await {
                Ok(None) => Ok(None),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(_) => continue,
                },
                Ok(Some(Err(e))) => {
                    Err(Error::Network { host: host.to_string(), doing: "read from", reason: innermost(&e) })
                }
                Err(_) => Err(Error::Timeout { host: host.to_string(), doing: "read from", seconds: limit.as_secs() }),
            };
        }
    }
}

/// Code and message of the distribution API's error document; text that is safe to show.
fn reason(bytes: &[u8]) -> (Option<String>, Option<String>) {
    #[derive(Deserialize)]
    struct Document {
        #[serde(default)]
        errors: Vec<Item>,
        #[serde(default)]
        details: String,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(document) = serde_json::from_slice::<Document>(bytes) else { return (None, None) };
    let clean = |text: &str| {
        let text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
        (!text.is_empty()).then_some(text)
    };
    match document.errors.first() {
        Some(first) => {
            let code = clean(&first.code);
            let message = clean(&first.message).or_else(|| code.as_ref().map(|c| c.to_lowercase().replace('_', " ")));
            (code, message)
        }
        None => (None, clean(&document.details)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registrys_words_are_kept() {
        let text = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}"#;
        assert_eq!(reason(text), (Some("MANIFEST_UNKNOWN".into()), Some("manifest unknown".into())));
        assert_eq!(reason(br#"{"errors":[{"code":"DENIED"}]}"#), (Some("DENIED".into()), Some("denied".into())));
        assert_eq!(
            reason(br#"{"details":"incorrect username or password"}"#).1.unwrap(),
            "incorrect username or password"
        );
        assert_eq!(reason(b"<html>"), (None, None));
        let evil = br#"{"errors":[{"message":"a\u001b[31mb\n"}]}"#;
        assert_eq!(reason(evil).1.unwrap(), "a[31mb");
    }
}
