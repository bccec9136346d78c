//! One pull's conversation with the servers of a registry: authentication, redirects, retries, errors in its words.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, RANGE, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE,
};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde::Deserialize;
use url::Url;

use super::challenge::{self, Challenge};
use super::credentials::{Credentials, lookup};
use super::hosts::{Endpoint, TlsOptions, endpoints, host_of, is_loopback};
use super::transport::{Http, client};
use crate::config::{Config, Timeouts};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::Auth;
use crate::manifest;
use crate::reference::Reference;

/// Redirects followed per request.
const MAX_REDIRECTS: usize = 5;
/// A registry that asks for a longer pause is not waited for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Bytes of an error or token answer.
const MAX_ANSWER: u64 = 1 << 20;

/// The servers that can give one image.
pub(crate) struct Registry {
    pub(crate) servers: Vec<Server>,
    pub(crate) timeouts: Timeouts,
    path: String,
    domain: String,
    /// For token services and redirects to other hosts.
    elsewhere: Http,
    plain_http: Vec<String>,
}

/// One of them.
pub(crate) struct Server {
    pub(crate) endpoint: Endpoint,
    http: Http,
    credentials: Credentials,
    /// The `Authorization` that worked last.
    authorization: Mutex<Option<HeaderValue>>,
}

/// Attempts made and the pause before the next.
pub(crate) struct Tries {
    done: u32,
    allowed: u32,
    pause: Duration,
}

impl Tries {
    /// After failure `e`: waits and says true when it makes sense to try again. A time-out has cost its time already: it
    /// is repeated once only.
    pub(crate) async fn again(&mut self, e: &Error) -> bool {
        self.done += 1;
        let allowed = if matches!(e, Error::Timeout { .. }) { self.allowed.min(2) } else { self.allowed };
        if !e.is_transient() || self.done >= allowed {
            return false;
        }
        let pause = match e.retry_after() {
            // Whoever asked for the image tries again before that.
            Some(wished) if wished > LONGEST_PAUSE => return false,
            Some(wished) => wished.max(self.pause),
            None => self.pause,
        };
        tracing::debug!(error = %e, attempt = self.done, ?pause, "registry request failed, trying again");
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 2).min(Duration::from_secs(10));
        true
    }

    /// Something was achieved: the count starts again.
    pub(crate) fn progressed(&mut self) {
        self.done = 0;
    }
}

/// A manifest as it came.
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
}

impl Registry {
    /// Reads the configuration for the registry of `reference`.
    pub(crate) fn new(config: &Config, reference: &Reference, auth: Option<&Auth>) -> Result<Registry> {
        let domain = reference.domain().to_string();
        let mut servers = Vec::new();
        for endpoint in endpoints(&config.config_path, &domain, &config.plain_http_hosts)? {
            let docker = config.docker_config.as_deref();
            let credentials = lookup(auth, docker, &domain, &endpoint.host(), endpoint.mirror)?;
            let http = client(&endpoint.tls, &config.proxy, config.timeouts.connect)?;
            let token = credentials.registry_token.as_ref().map(|t| header(&format!("Bearer {t}"))).transpose()?;
            servers.push(Server { endpoint, http, credentials, authorization: Mutex::new(token) });
        }
        Ok(Registry {
            servers,
            timeouts: config.timeouts.clone(),
            path: reference.path().to_string(),
            domain,
            elsewhere: client(&TlsOptions::default(), &config.proxy, config.timeouts.connect)?,
            plain_http: config.plain_http_hosts.clone(),
        })
    }

    /// URL of `kind`/`what` (manifests/latest, blobs/sha256:...) at a server.
    pub(crate) fn url(&self, server: &Server, kind: &str, what: &str) -> Result<Url> {
        let mut url = server
            .endpoint
            .base
            .join(&format!("{}/{kind}/{what}", self.path))
            .map_err(|e| Error::Invalid(format!("URL of {kind} {what}: {e}")))?;
        if server.endpoint.mirror {
            url.query_pairs_mut().append_pair("ns", &self.domain);
        }
        Ok(url)
    }

    /// Fetches a manifest or index by tag or digest, from the first server that has it.
    pub(crate) async fn manifest(&self, what: &str, limit: u64) -> Result<Fetched> {
        let digest = Digest::parse(what);
        let mut last = None;
        for server in
            self.servers.iter().filter(|s| if digest.is_some() { s.endpoint.pull } else { s.endpoint.resolve })
        {
            let mut tries = self.tries();
            let found = loop {
                match self.manifest_from(server, what, digest.as_ref(), limit).await {
                    Err(e) if tries.again(&e).await => {}
                    other => break other,
                }
            };
            match found {
                Ok(found) => return Ok(found),
                Err(e) => {
                    tracing::debug!(host = %server.endpoint.host(), error = %e, "manifest not from this host");
                    last = Some(e);
                }
            }
        }
        Err(last.unwrap_or_else(|| Error::Invalid(format!("no host of {} may resolve tags", self.domain))))
    }

    async fn manifest_from(&self, server: &Server, what: &str, want: Option<&Digest>, limit: u64) -> Result<Fetched> {
        let url = self.url(server, "manifests", what)?;
        let response = self.get(server, url, Some(manifest::ACCEPT), None).await?;
        let text = |name: &str| {
            response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_string).unwrap_or_default()
        };
        let media_type = text("content-type");
        let said = Digest::parse(&text("docker-content-digest"));
        let bytes = self.body(response, &server.endpoint.host(), "manifest", limit).await?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = want.or(said.as_ref()).filter(|d| **d != digest) {
            return Err(Error::Digest { what: "manifest", expected: expected.to_string(), actual: digest.to_string() });
        }
        Ok(Fetched { bytes, media_type, digest })
    }

    /// A fresh count of attempts.
    pub(crate) fn tries(&self) -> Tries {
        Tries { done: 0, allowed: self.timeouts.attempts, pause: self.timeouts.backoff }
    }

    /// GET with authentication and redirects; anything but success is an error.
    pub(crate) async fn get(
        &self,
        server: &Server,
        url: Url,
        accept: Option<&str>,
        offset: Option<u64>,
    ) -> Result<Response<Incoming>> {
        let mut asked = false;
        loop {
            let response = self.follow(server, url.clone(), accept, offset).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && !asked {
                asked = true;
                let challenges: Vec<Challenge> = response
                    .headers()
                    .get_all(WWW_AUTHENTICATE)
                    .iter()
                    .filter_map(|v| v.to_str().ok())
                    .flat_map(challenge::parse)
                    .collect();
                if self.authorize(server, &challenges).await? {
                    continue;
                }
            }
            return Err(self.failure(response, &server.endpoint.host()).await);
        }
    }

    /// Sends one request, following redirects; credentials and extra headers stay with the first host.
    async fn follow(
        &self,
        server: &Server,
        mut url: Url,
        accept: Option<&str>,
        offset: Option<u64>,
    ) -> Result<Response<Incoming>> {
        let first = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let home = url.origin() == first.origin();
            let mut request = Request::get(url.as_str()).header(USER_AGENT, "gantry-cri");
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(offset) = offset {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            if home {
                for (name, value) in &server.endpoint.headers {
                    request = request.header(name, value);
                }
                let authorization = server.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(value) = authorization {
                    request = request.header(AUTHORIZATION, value);
                }
            }
            let http = if home { &server.http } else { &self.elsewhere };
            let response = self.send(http, request, Bytes::new(), &url).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let target = response.headers().get(LOCATION).and_then(|v| v.to_str().ok()).unwrap_or("");
            let next = url.join(target).map_err(|e| network(&url, "follow the redirect of", e.to_string()))?;
            if !self.may_follow(&url, &next) {
                return Err(network(
                    &url,
                    "follow the redirect of",
                    format!("it leads from https to {}", next.scheme()),
                ));
            }
            url = next;
        }
        Err(network(&first, "follow the redirects of", format!("more than {MAX_REDIRECTS}")))
    }

    /// https must stay https.
    fn may_follow(&self, from: &Url, to: &Url) -> bool {
        to.scheme() == "https" || (to.scheme() == "http" && (from.scheme() == "http" || self.is_plain(to)))
    }

    fn is_plain(&self, url: &Url) -> bool {
        let host = host_of(url);
        is_loopback(&host) || self.plain_http.contains(&host)
    }

    async fn send(
        &self,
        http: &Http,
        request: http::request::Builder,
        body: Bytes,
        url: &Url,
    ) -> Result<Response<Incoming>> {
        let request = request.body(Full::new(body)).map_err(|e| network(url, "ask", e.to_string()))?;
        let limit = self.timeouts.headers;
        match tokio::time::timeout(limit, http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(e)) if e.is_connect() => {
                let reason = innermost(&e);
                if timed_out(&e) {
                    let seconds = self.timeouts.connect.as_secs();
                    return Err(Error::Timeout { host: host_of(url), doing: "connect to", seconds });
                }
                Err(network(url, "connect to", reason))
            }
            Ok(Err(e)) => Err(network(url, "ask", innermost(&e))),
            Err(_) => {
                Err(Error::Timeout { host: host_of(url), doing: "wait for an answer of", seconds: limit.as_secs() })
            }
        }
    }

    /// Answers a challenge; true when there is a new authorization to try.
    async fn authorize(&self, server: &Server, challenges: &[Challenge]) -> Result<bool> {
        let value = if let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer") {
            if server.credentials.registry_token.is_some() {
                return Ok(false);
            }
            let mut tries = self.tries();
            let token = loop {
                match self.token(server, bearer).await {
                    Err(e) if tries.again(&e).await => {}
                    other => break other?,
                }
            };
            format!("Bearer {token}")
        } else if challenges.iter().any(|c| c.scheme == "basic") {
            match server.credentials.basic_header() {
                Some(value) => value,
                None => return Ok(false),
            }
        } else {
            return Ok(false);
        };
        let value = header(&value)?;
        *server.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(true)
    }

    /// Gets a bearer token from the service that the registry names.
    async fn token(&self, server: &Server, challenge: &Challenge) -> Result<String> {
        let realm = challenge.params.get("realm").map_or("", String::as_str);
        let mut url = Url::parse(realm).ok().filter(|u| matches!(u.scheme(), "http" | "https")).ok_or_else(|| {
            network(&server.endpoint.base, "authenticate at", format!("token realm {realm:?} is no URL"))
        })?;
        let credentials = &server.credentials;
        if url.scheme() == "http"
            && server.endpoint.base.scheme() == "https"
            && !credentials.is_empty()
            && !self.is_plain(&url)
        {
            let reason = format!("token realm {realm:?} would take the credentials in clear text");
            return Err(network(&server.endpoint.base, "authenticate at", reason));
        }
        let service = challenge.params.get("service").cloned().unwrap_or_default();
        let scope = challenge.params.get("scope").cloned().unwrap_or_else(|| format!("repository:{}:pull", self.path));
        let http = if url.origin() == server.endpoint.base.origin() { &server.http } else { &self.elsewhere };
        let response = if let Some(refresh) = &credentials.identity_token {
            let form = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", &service)
                .append_pair("client_id", "gantry-cri")
                .append_pair("scope", &scope)
                .append_pair("refresh_token", refresh)
                .finish();
            let request = Request::post(url.as_str())
                .header(USER_AGENT, "gantry-cri")
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
            self.send(http, request, Bytes::from(form), &url).await?
        } else {
            url.query_pairs_mut().append_pair("service", &service).append_pair("scope", &scope);
            let mut request = Request::get(url.as_str()).header(USER_AGENT, "gantry-cri");
            if let Some(basic) = credentials.basic_header() {
                request = request.header(AUTHORIZATION, header(&basic)?);
            }
            self.send(http, request, Bytes::new(), &url).await?
        };
        if !response.status().is_success() {
            return Err(self.failure(response, &host_of(&url)).await);
        }
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let bytes = self.body(response, &host_of(&url), "token", MAX_ANSWER).await?;
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|e| network(&url, "authenticate at", format!("the token answer is not JSON: {e}")))?;
        let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
        if token.is_empty() {
            Err(network(&url, "authenticate at", "the answer holds no token".into()))
        } else {
            Ok(token)
        }
    }

    /// The registry's own words about a failure.
    async fn failure(&self, response: Response<Incoming>, host: &str) -> Error {
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
    async fn body(&self, response: Response<Incoming>, host: &str, what: &str, limit: u64) -> Result<Bytes> {
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

fn header(value: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| Error::Invalid("registry credentials hold characters that HTTP does not allow".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn network(url: &Url, doing: &'static str, reason: String) -> Error {
    Error::Network { host: host_of(url), doing, reason }
}

/// The last error of a chain says most.
fn innermost(e: &dyn std::error::Error) -> String {
    let mut at = e;
    while let Some(next) = at.source() {
        at = next;
    }
    at.to_string()
}

fn timed_out(e: &(dyn std::error::Error + 'static)) -> bool {
    let mut at = Some(e);
    while let Some(e) = at {
        if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::TimedOut) {
            return true;
        }
        at = e.source();
    }
    false
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
