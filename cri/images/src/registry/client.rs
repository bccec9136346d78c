//! One pull's conversation with the servers of a registry: requests, redirects, and which server is asked.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, RANGE, USER_AGENT, WWW_AUTHENTICATE};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use url::Url;

use super::challenge::{self, Challenge};
use super::credentials::{Credentials, lookup};
use super::hosts::{Endpoint, TlsOptions, endpoints, host_of, is_loopback};
use super::transport::{Http, client};
use super::tries::Tries;
use crate::config::{Config, Timeouts};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::Auth;
use crate::manifest;
use crate::reference::Reference;

/// Redirects followed per request.
const MAX_REDIRECTS: usize = 5;

/// The servers that can give one image.
pub(crate) struct Registry {
    pub(crate) servers: Vec<Server>,
    pub(crate) timeouts: Timeouts,
    pub(super) path: String,
    domain: String,
    /// For token services and redirects to other hosts.
    pub(super) elsewhere: Http,
    plain_http: Vec<String>,
}

/// One of them.
pub(crate) struct Server {
    pub(crate) endpoint: Endpoint,
    pub(super) http: Http,
    pub(super) credentials: Credentials,
    /// The `Authorization` that worked last.
    pub(super) authorization: Mutex<Option<HeaderValue>>,
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
        Tries::new(&self.timeouts)
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

    pub(super) fn is_plain(&self, url: &Url) -> bool {
        let host = host_of(url);
        is_loopback(&host) || self.plain_http.contains(&host)
    }

    pub(super) async fn send(
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
}

pub(super) fn header(value: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| Error::Invalid("registry credentials hold characters that HTTP does not allow".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

pub(super) fn network(url: &Url, doing: &'static str, reason: String) -> Error {
    Error::Network { host: host_of(url), doing, reason }
}

/// The last error of a chain says most.
pub(super) fn innermost(e: &dyn std::error::Error) -> String {
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
