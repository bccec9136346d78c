//! What a client asks of a log, from the query string, with upstream's checks.

use jiff::{SignedDuration, Timestamp};

/// Which outputs are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamFilter {
    /// Both.
    #[default]
    All,
    /// Only this one.
    Only(super::Stream),
}

/// A log request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on with new lines until the container exits.
    pub follow: bool,
    /// The previous instance's log.
    pub previous: bool,
    /// Only so many lines from the end.
    pub tail_lines: Option<u64>,
    /// Stop after so many bytes of output.
    pub limit_bytes: Option<u64>,
    /// Only records at or after this time.
    pub since: Option<Timestamp>,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Which outputs.
    pub stream: StreamFilter,
}

/// Why a query is refused: the status and upstream's body.
pub(crate) type Refusal = (http::StatusCode, &'static str);

const UNDECODABLE: Refusal = (http::StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#);
const INVALID: Refusal = (http::StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#);

impl LogOptions {
    /// Reads the query's parameters; unknown ones are ignored.
    pub(crate) fn from_query(query: &[(String, String)], now: Timestamp) -> Result<Self, Refusal> {
        let get = |name: &str| query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty());
        let flag = |name: &str| match query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str()) {
            None | Some("false" | "0" | "f" | "F" | "False" | "FALSE") => Ok(false),
            Some("" | "true" | "1" | "t" | "T" | "True" | "TRUE") => Ok(true),
            Some(_) => Err(UNDECODABLE),
        };
        let number = |name: &str| get(name).map(str::parse::<i64>).transpose().map_err(|_| UNDECODABLE);
        let tail = match get("tailLines").or_else(|| get("tail")) {
            None | Some("all") => None,
            Some(text) => Some(text.parse::<i64>().map_err(|_| UNDECODABLE)?),
        };
        let limit = number("limitBytes")?;
        let since_seconds = number("sinceSeconds")?;
        let since_time = get("sinceTime").map(str::parse::<Timestamp>).transpose().map_err(|_| UNDECODABLE)?;
        let stream = match get("stream") {
            None | Some("All") => StreamFilter::All,
            Some("Stdout") => StreamFilter::Only(super::Stream::Stdout),
            Some("Stderr") => StreamFilter::Only(super::Stream::Stderr),
            Some(_) => return Err(INVALID),
        };
        let bad_limit = limit.is_some_and(|v| v < 1);
        let bad_since = since_seconds.is_some_and(|v| v < 1) || (since_seconds.is_some() && since_time.is_some());
        if tail.is_some_and(|v| v < 0) || bad_limit || bad_since {
            return Err(INVALID);
        }
        let ago = |seconds: i64| now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
        Ok(Self {
            follow: flag("follow")?,
            previous: flag("previous")?,
            tail_lines: tail.and_then(|v| u64::try_from(v).ok()),
            limit_bytes: limit.and_then(|v| u64::try_from(v).ok()),
            since: since_time.or(since_seconds.map(ago)),
            timestamps: flag("timestamps")?,
            stream,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<LogOptions, u16> {
        let pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        LogOptions::from_query(&pairs, "2026-01-01T00:01:00Z".parse().unwrap()).map_err(|(status, _)| status.as_u16())
    }

    #[test]
    fn queries_are_read() {
        assert_eq!(read(""), Ok(LogOptions::default()));
        let all = read("follow=true&previous=1&tailLines=5&limitBytes=7&sinceSeconds=60&timestamps=true&stream=Stderr");
        assert_eq!(
            all,
            Ok(LogOptions {
                follow: true,
                previous: true,
                tail_lines: Some(5),
                limit_bytes: Some(7),
                since: Some("2026-01-01T00:00:00Z".parse().unwrap()),
                timestamps: true,
                stream: StreamFilter::Only(super::super::Stream::Stderr),
            })
        );
        assert_eq!(read("tail=all&x=y").unwrap().tail_lines, None);
        assert_eq!(read("sinceTime=2025-01-01T00:00:00%2B02:00").unwrap().since, "2024-12-31T22:00:00Z".parse().ok());
    }

    #[test]
    fn bad_queries_have_upstreams_status() {
        for (query, status) in [
            ("tailLines=x", 400),
            ("follow=maybe", 400),
            ("sinceTime=yesterday", 400),
            ("tailLines=-1", 422),
            ("limitBytes=0", 422),
            ("sinceSeconds=0", 422),
            ("sinceSeconds=5&sinceTime=2025-01-01T00:00:00Z", 422),
            ("stream=Both", 422),
        ] {
            assert_eq!(read(query), Err(status), "{query}");
        }
    }
}
