//! Static pods from a web server: asked every `httpCheckFrequency`. While it does not answer, or answers nonsense, the
//! last good answer holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use tokio::sync::mpsc;

use super::manifest::{self, Origin};
use super::{Source, Update};
use crate::shared::Shared;

const LIMIT: Duration = Duration::from_secs(10);
const MOST: usize = 10 << 20;

/// Asks for ever.
pub(crate) async fn run(shared: Arc<Shared>, origin: Origin, updates: mpsc::Sender<Update>) {
    let every = shared.config.http_check_frequency.0.max(Duration::from_secs(1));
    let mut last = None;
    let mut told = None;
    loop {
        let error = match fetch(&origin.place, &shared.config.static_pod_url_header).await {
            Ok(text) if last.as_ref() == Some(&text) => None,
            Ok(text) => match manifest::parse(&text, &origin, jiff::Timestamp::now()) {
                Ok(manifest) => {
                    let pods = manifest::announce(manifest, &origin, &shared.events);
                    if updates.send(Update::All(Source::Url, pods)).await.is_err() {
                        return;
                    }
                    last = Some(text);
                    None
                }
                Err(why) => Some(format!("could not process manifest {}: {why}", origin.place)),
            },
            Err(why) => Some(format!("could not read manifest {}: {why}", origin.place)),
        };
        // The same trouble again is no news.
        if let Some(message) = error.as_ref().filter(|e| told.as_ref() != Some(*e)) {
            shared.events.node(&shared.node_name, true, "FailedManifest", message.clone());
        }
        told = error;
        tokio::time::sleep(every).await;
    }
}

async fn fetch(place: &str, headers: &BTreeMap<String, Vec<String>>) -> Result<String, String> {
    let work = async {
        let whole: http::Uri = place.parse().map_err(|e| format!("it is no URL: {e}"))?;
        let path = whole.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        let mut parts = whole.into_parts();
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
        let base = http::Uri::from_parts(parts).map_err(|e| format!("it is no URL: {e}"))?;
        let client = kube::Client::try_from(kube::Config::new(base)).map_err(|e| e.to_string())?;
        let mut request = Request::get(path);
        for (name, values) in headers {
            for value in values {
                request = request.header(name, value);
            }
        }
        let request = request.body(Body::empty()).map_err(|e| format!("field staticPodURLHeader: {e}"))?;
        let answer = client.send(request).await.map_err(|e| {
            let cause = std::error::Error::source(&e).map(|c| format!(": {c}")).unwrap_or_default();
            format!("{e}{cause}")
        })?;
        if !answer.status().is_success() {
            return Err(format!("the server answers {}", answer.status()));
        }
        let body =
            Limited::new(answer.into_body(), MOST).collect().await.map_err(|e| format!("read the answer: {e}"))?;
        let text = String::from_utf8(body.to_bytes().to_vec()).map_err(|e| format!("it is not text: {e}"))?;
        if text.trim().is_empty() { Err("the answer is empty".to_owned()) } else { Ok(text) }
    };
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| Err(format!("no answer within {} s", LIMIT.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Answers one request and gives it back.
    async fn serve(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = format!("http://{}/pods.yaml?v=1", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let head = format!("{answer}\r\ncontent-length: 6\r\nconnection: close\r\n\r\na: pod");
            stream.write_all(head.as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        (place, asked)
    }

    #[tokio::test]
    async fn a_manifest_is_fetched_with_the_headers() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (place, asked) = serve("HTTP/1.1 200 OK").await;
        let headers = BTreeMap::from([("X-Token".to_owned(), vec!["one".to_owned()])]);
        assert_eq!(fetch(&place, &headers).await.unwrap(), "a: pod");
        let asked = asked.await.unwrap().to_lowercase();
        assert!(asked.starts_with("get /pods.yaml?v=1 ") && asked.contains("x-token: one"), "{asked}");
        let (place, _) = serve("HTTP/1.1 404 Not Found").await;
        assert!(fetch(&place, &BTreeMap::new()).await.unwrap_err().contains("404"));
        assert!(fetch("http://127.0.0.1:1/x", &BTreeMap::new()).await.is_err());
    }
}
