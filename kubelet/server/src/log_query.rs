//! `/logs/?query=SERVICE`: lines of the journal, or of a file below the log folder that is named after the service.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::StreamExt;
use http::StatusCode;
use jiff::Timestamp;
use tokio::io::AsyncReadExt;

use crate::reply::{Reply, stream_of_text, text};

/// How long journalctl may take in all.
const LIMIT: Duration = Duration::from_secs(30);

/// What is asked of the logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogQuery {
    services: Vec<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    tail: Option<u64>,
    boot: Option<i64>,
    pattern: String,
}

fn is_service(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.:@\\".contains(c);
    !name.is_empty() && name.len() < 256 && !name.starts_with('-') && !name.contains("..") && name.chars().all(good)
}

impl LogQuery {
    /// Reads a query string; `None` when it names no service and so asks for files.
    ///
    /// # Errors
    /// Which parameter is wrong, and why.
    pub(crate) fn from_query(query: &[(String, String)]) -> Result<Option<Self>, String> {
        let get = |name: &str| query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty());
        let services: Vec<String> =
            query.iter().filter(|(k, v)| k == "query" && !v.is_empty()).map(|(_, v)| v.clone()).collect();
        if services.is_empty() {
            return Ok(None);
        }
        if let Some(bad) = services.iter().find(|s| !is_service(s) && !is_path(s)) {
            return Err(format!("query: {bad:?} is not the name of a service or of a file"));
        }
        let time = |name: &str| -> Result<Option<Timestamp>, String> {
            get(name)
                .map(str::parse)
                .transpose()
                .map_err(|_| format!("{name}: it is not a time such as 2026-01-31T12:00:00Z"))
        };
        let out = Self {
            since: time("sinceTime")?,
            until: time("untilTime")?,
            tail: get("tailLines")
                .map(str::parse)
                .transpose()
                .map_err(|_| "tailLines: it is not a number".to_owned())?,
            boot: get("boot").map(str::parse).transpose().map_err(|_| "boot: it is not a number".to_owned())?,
            pattern: get("pattern").unwrap_or_default().to_owned(),
            services,
        };
        if out.boot.is_some_and(|b| b > 0) {
            return Err("boot: it must be less than 1".into());
        }
        if out.since.zip(out.until).is_some_and(|(a, b)| b < a) {
            return Err("untilTime: it must be after sinceTime".into());
        }
        Ok(Some(out))
    }

    /// journalctl's arguments.
    fn arguments(&self) -> Vec<String> {
        let mut out: Vec<String> = ["--utc", "--no-pager", "--output=short-precise"].map(str::to_owned).into();
        let mut put = |name: &str, value: Option<String>| out.extend(value.map(|v| format!("--{name}={v}")));
        // The seconds since 1970 leave no doubt about time zones.
        put("since", self.since.map(|t| format!("@{}", t.as_second())));
        put("until", self.until.map(|t| format!("@{}", t.as_second())));
        put("lines", self.tail.map(|n| n.to_string()));
        put("boot", self.boot.map(|n| n.to_string()));
        put("grep", Some(self.pattern.clone()).filter(|p| !p.is_empty()));
        for service in &self.services {
            out.push(format!("--unit={service}"));
        }
        out
    }
}

fn is_path(name: &str) -> bool {
    name.contains('/')
        && !name.starts_with('-')
        && !name.split('/').any(|p| p == "..")
        && name.chars().all(|c| c.is_ascii_graphic())
}

/// The file of a service below the log folder, as upstream looks for it.
fn file_of(root: &Path, service: &str) -> Option<PathBuf> {
    let root = std::fs::canonicalize(root).ok()?;
    let names = [service.to_owned(), format!("{service}.log"), format!("{service}/{service}.log")];
    let paths = names.iter().map(|n| root.join(n.trim_start_matches('/')));
    { paths }.find_map(|p| std::fs::canonicalize(p).ok().filter(|p| p.starts_with(&root) && p.is_file()))
}

/// The answer.
pub(crate) async fn serve(root: &Path, query: LogQuery) -> Reply {
    if let [one] = query.services.as_slice()
        && let Some(path) = file_of(root, one)
    {
        let read = tokio::fs::read(&path).await;
        return match read {
            Ok(bytes) => text(StatusCode::OK, last_lines(bytes, query.tail)),
            Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("read {}: {e}\n", path.display())),
        };
    }
    if let Some(missing) = query.services.iter().find(|s| is_path(s)) {
        return text(StatusCode::NOT_FOUND, format!("no log file {missing} in {}\n", root.display()));
    }
    let child = tokio::process::Command::new("journalctl")
        .args(query.arguments())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) => {
            let names = query.services.join(", ");
            return text(StatusCode::NOT_FOUND, format!("no log file of {names}, and journalctl cannot be run: {e}\n"));
        }
    };
    let end = tokio::time::Instant::now() + LIMIT;
    let output = child.stdout.take();
    let chunks = futures::stream::unfold((output, child), move |(output, child)| async move {
        let mut output = output?;
        let mut chunk = vec![0; 64 * 1024];
        match tokio::time::timeout_at(end, output.read(&mut chunk)).await {
            Ok(Ok(0)) => None,
            Ok(Ok(n)) => {
                chunk.truncate(n);
                Some((Ok(Bytes::from(chunk)), (Some(output), child)))
            }
            Ok(Err(e)) => Some((Err(e), (None, child))),
            Err(_) => Some((Ok(Bytes::from("journalctl took too long\n")), (None, child))),
        }
    });
    stream_of_text(chunks.boxed())
}

fn last_lines(bytes: Vec<u8>, tail: Option<u64>) -> Vec<u8> {
    let Some(tail) = tail.and_then(|n| usize::try_from(n).ok()) else { return bytes };
    let body = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let from = body
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, b)| **b == b'\n')
        .nth(tail.saturating_sub(1))
        .map_or(0, |(i, _)| i + 1);
    if tail == 0 { Vec::new() } else { bytes[from..].to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<LogQuery>, String> {
        let pairs: Vec<_> = url::form_urlencoded::parse(text.as_bytes()).into_owned().collect();
        LogQuery::from_query(&pairs)
    }

    #[test]
    fn queries_become_arguments() {
        let query =
            read("query=kubelet&query=gantry-cri&sinceTime=2026-01-01T00:00:00Z&tailLines=5&boot=-1&pattern=a b")
                .unwrap()
                .unwrap();
        let want = [
            "--utc",
            "--no-pager",
            "--output=short-precise",
            "--since=@1767225600",
            "--lines=5",
            "--boot=-1",
            "--grep=a b",
            "--unit=kubelet",
            "--unit=gantry-cri",
        ];
        assert_eq!(query.arguments(), want);
        assert_eq!(read("tailLines=5").unwrap(), None);
    }

    #[test]
    fn wrong_queries_are_named() {
        for (text, name) in [
            ("query=--file=/etc/shadow", "query"),
            ("query=../shadow", "query"),
            ("query=a&boot=1", "boot"),
            ("query=a&tailLines=x", "tailLines"),
            ("query=a&sinceTime=today", "sinceTime"),
            ("query=a&sinceTime=2026-01-02T00:00:00Z&untilTime=2026-01-01T00:00:00Z", "untilTime"),
        ] {
            assert!(read(text).unwrap_err().starts_with(name), "{text}");
        }
    }

    #[tokio::test]
    async fn a_services_file_is_found_and_cut() {
        use http_body_util::BodyExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("app.log"), "1\n2\n3\n").unwrap();
        let reply = serve(dir.path(), read("query=app&tailLines=2").unwrap().unwrap()).await;
        assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), "2\n3\n");
        assert_eq!(file_of(dir.path(), "/../etc/passwd"), None);
    }
}
