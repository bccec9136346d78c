//! Small parts of HTTP: bodies, JSON answers, query parameters and what `Accept` asks for.

use std::collections::HashMap;

use api_machinery::resource::Resource;
use api_machinery::status::{self, Status};
use api_machinery::table::IncludeObject;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use serde_json::{Value, json};

/// The body of every answer.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;
/// An answer or the Status that stands for it.
pub type Answer = Result<Response<Body>, Status>;

/// A body of known bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer with a content type.
pub fn reply(code: u16, content_type: &str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut out = Response::new(full(bytes));
    *out.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = content_type.parse() {
        out.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    out.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache, private"));
    out
}

/// A JSON answer.
pub fn json_reply(code: u16, value: &Value) -> Response<Body> {
    reply(code, "application/json", value.to_string())
}

/// The answer that a Status is.
pub fn status_reply(status: &Status) -> Response<Body> {
    let mut out = json_reply(status.code, &status.to_value());
    let seconds = status.details.as_ref().and_then(|details| details["retryAfterSeconds"].as_u64());
    if let Some(seconds) = seconds {
        out.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    out
}

/// Query parameters; of repeated ones the first counts, as upstream does.
#[derive(Debug, Default)]
pub struct Query(HashMap<String, String>);

impl Query {
    /// Parses the text after `?`.
    pub fn parse(text: &str) -> Self {
        let mut out = HashMap::new();
        for (key, value) in url::form_urlencoded::parse(text.as_bytes()) {
            out.entry(key.into_owned()).or_insert_with(|| value.into_owned());
        }
        Self(out)
    }

    /// A parameter, empty when missing.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Whether a parameter is there, with whatever value.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether a parameter says yes.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.0.get(name).map(String::as_str), Some("true" | "1" | "True" | "t"))
    }
}

/// The form in which objects are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The objects themselves.
    Json,
    /// Rows for people.
    Table,
    /// Only metadata.
    Partial,
}

const ACCEPTED: &[&str] = &["application/json"];

/// What the `Accept` header asks for; 406 when nothing of it can be had.
pub fn negotiate(headers: &HeaderMap) -> Result<Form, Status> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    if accept.trim().is_empty() {
        return Ok(Form::Json);
    }
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        if !matches!(media, "application/json" | "application/*" | "*/*") {
            continue;
        }
        let (mut kind, mut group, mut version) = ("", "", "");
        for part in parts {
            match part.split_once('=') {
                Some(("as", value)) => kind = value,
                Some(("g", value)) => group = value,
                Some(("v", value)) => version = value,
                _ => {}
            }
        }
        match kind {
            "" => return Ok(Form::Json),
            _ if group != "meta.k8s.io" || version != "v1" => {}
            "Table" => return Ok(Form::Table),
            "PartialObjectMetadata" | "PartialObjectMetadataList" => return Ok(Form::Partial),
            _ => {}
        }
    }
    Err(status::not_acceptable(ACCEPTED))
}

/// One object in the wanted form.
pub fn shape_one(resource: &Resource, form: Form, query: &Query, object: &Value) -> Value {
    match form {
        Form::Json => object.clone(),
        Form::Partial => api_machinery::parts::partial(object),
        Form::Table => {
            let include = IncludeObject::parse(query.get("includeObject"));
            let mut table = api_machinery::table::render(resource, &[object], jiff::Timestamp::now(), include);
            table["metadata"] = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            table
        }
    }
}

/// Now, as RFC 3339 with seconds.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
