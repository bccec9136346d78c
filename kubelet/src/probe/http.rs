//! HTTP requests of probes and hooks: redirects on the same host are followed, answers are read up to a limit.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use url::Url;

use super::handler::{connect, port_number};
use crate::tls;

/// As much of an answer as is read.
pub(super) const BODY_LIMIT: usize = 10 << 10;
/// How many redirects are followed.
const REDIRECTS: usize = 10;

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The code.
    pub(crate) status: u16,
    /// The host of a redirect that was not followed, because it is another one.
    pub(crate) elsewhere: Option<String>,
}

/// The address that an action names.
///
/// # Errors
/// The container has no such port, or it makes no URL.
fn target(get: &HTTPGetAction, container: &Container, ip: &str) -> Result<Url, String> {
    let port = port_number(&get.port, container)
        .ok_or_else(|| format!("no port {:?} in container {}", get.port, container.name))?;
    let host = get.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| ip.to_owned());
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host };
    let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let path = get.path.as_deref().unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    let text = format!("{scheme}://{host}:{port}{slash}{path}");
    Url::parse(&text).map_err(|e| format!("{text:?} is not a URL: {e}"))
}

/// The headers of a request: ours, unless the spec names its own; an empty one of the spec takes ours away.
fn headers(get: &HTTPGetAction, agent: &str) -> Vec<(String, String)> {
    let own = || get.http_headers.iter().flatten();
    let named = |name: &str| own().any(|h| h.name.eq_ignore_ascii_case(name));
    let ours = [("User-Agent", agent), ("Accept", "*/*")];
    let mut out: Vec<(String, String)> =
        ours.iter().filter(|(n, _)| !named(n)).map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let removes = |name: &str, value: &str| value.is_empty() && ours.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    out.extend(own().filter(|h| !removes(&h.name, &h.value)).map(|h| (h.name.clone(), h.value.clone())));
    out
}

/// Where a redirect leads, if it is one (pure). `Err` names another host.
fn redirect(from: &Url, status: u16, location: Option<&str>) -> Option<Result<Url, String>> {
    if ![301, 302, 303, 307, 308].contains(&status) {
        return None;
    }
    let to = from.join(location?).ok().filter(|u| u.scheme() == "http" || u.scheme() == "https")?;
    Some(if to.host_str() == from.host_str() { Ok(to) } else { Err(to.host_str().unwrap_or_default().to_owned()) })
}

/// Sends the request; gives the last answer.
///
/// # Errors
/// Nothing answered in time.
pub(crate) async fn http_get(
    get: &HTTPGetAction,
    container: &Container,
    ip: &str,
    agent: &str,
    limit: Duration,
) -> Result<Answer, String> {
    let first = target(get, container, ip)?;
    let headers = headers(get, agent);
    let work = async {
        let mut url = first.clone();
        for _ in 0..=REDIRECTS {
            let (status, location) = once(&url, &headers, limit).await?;
            match redirect(&url, status, location.as_deref()) {
                None => return Ok(Answer { status, elsewhere: None }),
                Some(Err(host)) => return Ok(Answer { status, elsewhere: Some(host) }),
                Some(Ok(next)) => url = next,
            }
        }
        Err(format!("stopped after {REDIRECTS} redirects"))
    };
    match timeout(limit, work).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) => Err(format!("Get \"{first}\": {e}")),
        Err(_) => {
            Err(format!("Get \"{first}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"))
        }
    }
}

async fn once(url: &Url, headers: &[(String, String)], limit: Duration) -> Result<(u16, Option<String>), String> {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(80);
    let stream = connect(host, port, limit).await?;
    let mut path = url.path().to_owned();
    if let Some(query) = url.query() {
        path = format!("{path}?{query}");
    }
    let mut request = http::Request::get(path).header("Connection", "close");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("Host", format!("{host}:{port}"));
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|e| e.to_string())?;
    if url.scheme() == "https" {
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let stream = tls::connect_unverified(stream, name).await.map_err(|e| e.to_string())?;
        exchange(stream, request).await
    } else {
        exchange(stream, request).await
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: http::Request<Empty<bytes::Bytes>>,
) -> Result<(u16, Option<String>), String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let location = response.headers().get("location").and_then(|l| l.to_str().ok()).map(str::to_owned);
        // Read on, so that a server does not log a broken connection; an endless answer is cut.
        let _ = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
        Ok((status, location))
    };
    tokio::pin!(connection);
    tokio::pin!(talk);
    let mut open = true;
    loop {
        tokio::select! {
            answer = &mut talk => return answer,
            _ = &mut connection, if open => open = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::HTTPHeader;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn get(port: u16, path: &str) -> HTTPGetAction {
        HTTPGetAction { port: IntOrString::Int(i32::from(port)), path: Some(path.into()), ..Default::default() }
    }

    /// A server that answers each path by `answer`; gives its port and tells each request on the channel.
    async fn server(
        answer: impl Fn(&str) -> String + Send + 'static,
    ) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, requests) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 4096];
                let n = stream.read(&mut buffer).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&buffer[..n]).to_lowercase();
                let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
                let _ = seen.send(text);
                let _ = stream.write_all(answer(&path).as_bytes()).await;
            }
        });
        (port, requests)
    }

    #[test]
    fn redirects_stay_on_their_host() {
        let from = Url::parse("http://10.0.0.1:8080/a").unwrap();
        let lead = |status, to: Option<&str>| redirect(&from, status, to).map(|r| r.map(|u| u.to_string()));
        assert_eq!(lead(302, Some("/b?x=1")), Some(Ok("http://10.0.0.1:8080/b?x=1".into())));
        assert_eq!(lead(308, Some("https://10.0.0.1:8443/")), Some(Ok("https://10.0.0.1:8443/".into())));
        assert_eq!(lead(301, Some("http://elsewhere/")), Some(Err("elsewhere".into())));
        assert_eq!((lead(302, None), lead(304, Some("/b")), lead(200, Some("/b"))), (None, None, None));
        assert_eq!(lead(302, Some("ftp://10.0.0.1/")), None);
    }

    #[test]
    fn headers_of_the_spec_win_and_empty_ones_take_away() {
        let header = |n: &str, v: &str| HTTPHeader { name: n.into(), value: v.into() };
        let with =
            |list: Vec<HTTPHeader>| headers(&HTTPGetAction { http_headers: Some(list), ..Default::default() }, "k/1");
        assert_eq!(with(vec![]), [("User-Agent".into(), "k/1".into()), ("Accept".into(), "*/*".into())]);
        assert_eq!(
            with(vec![header("accept", ""), header("X-A", "")]),
            [("User-Agent".into(), "k/1".into()), ("X-A".into(), String::new())]
        );
        assert_eq!(with(vec![header("user-agent", "me")])[1], ("user-agent".into(), "me".into()));
    }

    #[tokio::test]
    async fn redirects_are_followed_and_an_endless_chain_is_an_error() {
        let (port, mut requests) = server(|path| match path {
            "/start" => "HTTP/1.1 302 F\r\nlocation: /end\r\ncontent-length: 0\r\n\r\n".into(),
            "/out" => "HTTP/1.1 302 F\r\nlocation: http://example.invalid/\r\ncontent-length: 0\r\n\r\n".into(),
            "/loop" => "HTTP/1.1 302 F\r\nlocation: /loop\r\ncontent-length: 0\r\n\r\n".into(),
            _ => format!("HTTP/1.1 503 No\r\ncontent-length: 1000000\r\n\r\n{}", "x".repeat(1_000_000)),
        })
        .await;
        let container = Container::default();
        let limit = Duration::from_secs(20);
        let ask =
            async |path: &str| http_get(&get(port, path), &container, "127.0.0.1", "kube-probe/1.36", limit).await;
        assert_eq!(ask("/start").await, Ok(Answer { status: 503, elsewhere: None }));
        let first = requests.recv().await.unwrap();
        assert!(first.contains("user-agent: kube-probe/1.36") && first.contains("accept: */*"), "{first}");
        assert_eq!(ask("/out").await, Ok(Answer { status: 302, elsewhere: Some("example.invalid".into()) }));
        assert!(ask("loop").await.unwrap_err().contains("stopped after 10 redirects"));
    }

    #[tokio::test]
    async fn silence_is_a_timeout() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let limit = Duration::from_millis(300);
        let got = http_get(&get(port, "/"), &Container::default(), "127.0.0.1", "a", limit).await;
        assert!(got.unwrap_err().contains("context deadline exceeded"));
    }
}
