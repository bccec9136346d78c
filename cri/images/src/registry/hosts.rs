//! Where to ask for an image: containerd's `certs.d/<host>/hosts.toml`, `_default`, and the rules without either.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use url::Url;

use crate::error::{Error, Result};

/// One server to ask, mirrors before the registry itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Base with scheme, host and path, ending in `/`, such as `https://registry-1.docker.io/v2/`.
    pub(crate) base: Url,
    /// Not the registry of the reference: gets `?ns=` and none of its credentials.
    pub(crate) mirror: bool,
    /// May be asked what a tag means.
    pub(crate) resolve: bool,
    /// May be asked for content by digest.
    pub(crate) pull: bool,
    /// How to trust it.
    pub(crate) tls: TlsOptions,
    /// Sent with each request.
    pub(crate) headers: Vec<(String, String)>,
}

/// TLS settings of one server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsOptions {
    /// Believe any certificate.
    pub(crate) skip_verify: bool,
    /// PEM files of further authorities.
    pub(crate) ca: Vec<PathBuf>,
    /// PEM files of a client certificate and its key (which may be in the first file).
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

impl Endpoint {
    /// `host[:port]`.
    pub(crate) fn host(&self) -> String {
        host_of(&self.base)
    }
}

/// `host[:port]` of a URL.
pub(crate) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or("");
    url.port().map_or_else(|| host.to_string(), |p| format!("{host}:{p}"))
}

#[derive(Deserialize, Default)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: HashMap<String, Spanned<HostFile>>,
    #[serde(flatten)]
    own: HostFile,
}

#[derive(Deserialize, Default, Clone)]
struct HostFile {
    capabilities: Option<Vec<String>>,
    skip_verify: Option<bool>,
    #[serde(default)]
    override_path: bool,
    ca: Option<toml::Value>,
    client: Option<toml::Value>,
    header: Option<HashMap<String, toml::Value>>,
}

/// Servers for `domain` in the order in which they are asked; at least one.
pub(crate) fn endpoints(config_path: &Path, domain: &str, plain_http: &[String]) -> Result<Vec<Endpoint>> {
    for folder in [domain.to_string(), domain.replace(':', "_") + "_", "_default".to_string()] {
        let dir = config_path.join(&folder);
        let file = dir.join("hosts.toml");
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                return parse(&text, &dir, domain, plain_http)
                    .map_err(|reason| Error::HostsConfig { path: file, reason });
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::HostsConfig { path: file, reason: e.to_string() }),
        }
        if dir.is_dir() && folder != "_default" {
            let mut endpoint = default_endpoint(domain, plain_http)?;
            endpoint.tls = certificates(&dir);
            return Ok(vec![endpoint]);
        }
    }
    Ok(vec![default_endpoint(domain, plain_http)?])
}

/// Docker's layout: `*.crt` are authorities, `*.cert` with `*.key` a client certificate.
fn certificates(dir: &Path) -> TlsOptions {
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(dir).map(|d| d.flatten().map(|e| e.path()).collect()).unwrap_or_default();
    names.sort();
    let has = |p: &PathBuf, e: &str| p.extension().is_some_and(|x| x == e);
    TlsOptions {
        skip_verify: false,
        ca: names.iter().filter(|p| has(p, "crt")).cloned().collect(),
        client: names
            .iter()
            .find(|p| has(p, "cert") && p.with_extension("key").exists())
            .map(|p| (p.clone(), p.with_extension("key"))),
    }
}

/// Whether `host[:port]` is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback())
}

/// Where the registry of `domain` itself is.
fn default_endpoint(domain: &str, plain_http: &[String]) -> Result<Endpoint> {
    let host = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
    let plain = is_loopback(domain) || plain_http.iter().any(|h| h == domain);
    let url = format!("{}://{host}/v2/", if plain { "http" } else { "https" });
    let base = Url::parse(&url).map_err(|e| Error::Reference {
        reference: domain.to_string(),
        reason: format!("the registry host is malformed: {e}"),
    })?;
    Ok(Endpoint { base, mirror: false, resolve: true, pull: true, tls: TlsOptions::default(), headers: Vec::new() })
}

fn parse(text: &str, dir: &Path, domain: &str, plain_http: &[String]) -> Result<Vec<Endpoint>, String> {
    let file: HostsFile = toml::from_str(text).map_err(|e| e.to_string())?;
    let mut hosts: Vec<(String, Spanned<HostFile>)> = file.host.into_iter().collect();
    // The order in the file is the order of asking.
    hosts.sort_by_key(|(_, h)| h.span().start);
    let mut out = Vec::new();
    let registry = default_endpoint(domain, plain_http).map_err(|e| e.to_string())?;
    for (url, host) in hosts {
        let mut endpoint = endpoint(&url, host.get_ref(), dir, plain_http)?;
        endpoint.mirror = endpoint.host() != registry.host();
        out.push(endpoint);
    }
    let mut last = match &file.server {
        Some(url) => endpoint(url, &file.own, dir, plain_http)?,
        None => {
            let mut e = endpoint(registry.base.as_str(), &file.own, dir, plain_http)?;
            e.base = registry.base.clone();
            e
        }
    };
    last.mirror = false;
    if !out.iter().any(|e| e.base == last.base) {
        out.push(last);
    }
    if !out.iter().any(|e| e.pull) {
        return Err("no host has the capability pull".into());
    }
    Ok(out)
}

fn endpoint(url: &str, host: &HostFile, dir: &Path, plain_http: &[String]) -> Result<Endpoint, String> {
    let whole = if url.contains("://") {
        url.to_string()
    } else {
        let name = url.split('/').next().unwrap_or("");
        let plain = is_loopback(name) || plain_http.iter().any(|h| h == name);
        format!("{}://{url}", if plain { "http" } else { "https" })
    };
    let mut base = Url::parse(&whole).map_err(|e| format!("host {url:?}: {e}"))?;
    if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        return Err(format!("host {url:?}: http:// or https:// and a host name are needed"));
    }
    let path = base.path().trim_end_matches('/').to_string();
    let path = if host.override_path || path.ends_with("/v2") { format!("{path}/") } else { format!("{path}/v2/") };
    base.set_path(&path);
    base.set_query(None);
    let can = |what: &str| host.capabilities.as_ref().is_none_or(|c| c.iter().any(|c| c == what));
    let mut headers = Vec::new();
    for (name, value) in host.header.iter().flatten() {
        headers.extend(strings(value, "header")?.into_iter().map(|v| (name.clone(), v)));
    }
    headers.sort();
    let tls = TlsOptions {
        skip_verify: host.skip_verify.unwrap_or(false),
        ca: host.ca.as_ref().map_or(Ok(Vec::new()), |v| strings(v, "ca"))?.iter().map(|p| dir.join(p)).collect(),
        client: host.client.as_ref().map(|v| client(v, dir)).transpose()?.flatten(),
    };
    Ok(Endpoint { base, mirror: true, resolve: can("resolve"), pull: can("pull"), tls, headers })
}

/// A string or a list of strings.
fn strings(value: &toml::Value, what: &str) -> Result<Vec<String>, String> {
    let text =
        |v: &toml::Value| v.as_str().map(str::to_string).ok_or(format!("{what}: not a string or list of strings"));
    match value {
        toml::Value::Array(list) => list.iter().map(text).collect(),
        one => Ok(vec![text(one)?]),
    }
}

/// `"file"`, `["file"]` or `[["cert", "key"]]`; the first is used.
fn client(value: &toml::Value, dir: &Path) -> Result<Option<(PathBuf, PathBuf)>, String> {
    let first = match value {
        toml::Value::Array(list) => match list.first() {
            Some(first) => first,
            None => return Ok(None),
        },
        one => one,
    };
    let files = strings(first, "client")?;
    match files.as_slice() {
        [] => Ok(None),
        [both] => Ok(Some((dir.join(both), dir.join(both)))),
        [cert, key] => Ok(Some((dir.join(cert), dir.join(if key.is_empty() { cert } else { key })))),
        _ => Err("client: more than a certificate and a key".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(text: &str, domain: &str) -> Vec<String> {
        let list = parse(text, Path::new("/certs.d/x"), domain, &[]).unwrap();
        list.iter().map(|e| format!("{}{}", if e.mirror { "mirror " } else { "" }, e.base)).collect()
    }

    #[test]
    fn hosts_are_asked_in_file_order_and_the_server_last() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."https://zz.example"]
              capabilities = ["pull"]
            [host."http://aa.example:5000/proxy"]
              capabilities = ["pull", "resolve"]
            [host."https://mm.example/api/v2/x"]
              override_path = true
        "#;
        assert_eq!(
            bases(text, "docker.io"),
            [
                "mirror https://zz.example/v2/",
                "mirror http://aa.example:5000/proxy/v2/",
                "mirror https://mm.example/api/v2/x/",
                "https://registry-1.docker.io/v2/",
            ]
        );
        let list = parse(text, Path::new("/"), "docker.io", &[]).unwrap();
        assert_eq!(
            list.iter().map(|e| (e.pull, e.resolve)).collect::<Vec<_>>(),
            [(true, false), (true, true), (true, true), (true, true)]
        );
    }

    #[test]
    fn the_registry_is_asked_without_or_with_an_empty_file() {
        assert_eq!(bases("", "quay.io"), ["https://quay.io/v2/"]);
        assert_eq!(bases("", "127.0.0.1:5000"), ["http://127.0.0.1:5000/v2/"]);
        let e = endpoints(Path::new("/nowhere"), "docker.io", &[]).unwrap();
        assert_eq!(e[0].base.as_str(), "https://registry-1.docker.io/v2/");
        let e = endpoints(Path::new("/nowhere"), "reg.lan:5000", &["reg.lan:5000".into()]).unwrap();
        assert_eq!(e[0].base.as_str(), "http://reg.lan:5000/v2/");
    }

    #[test]
    fn tls_settings_and_headers_are_read() {
        let text = r#"
            [host."https://m.example"]
              skip_verify = true
              ca = ["a.crt", "/abs/b.crt"]
              client = [["c.cert", "c.key"]]
              [host."https://m.example".header]
                X-One = "1"
                X-Two = ["2", "3"]
        "#;
        let e = &parse(text, Path::new("/d"), "x.io", &[]).unwrap()[0];
        assert!(e.tls.skip_verify);
        assert_eq!(e.tls.ca, [PathBuf::from("/d/a.crt"), "/abs/b.crt".into()]);
        assert_eq!(e.tls.client, Some(("/d/c.cert".into(), "/d/c.key".into())));
        assert_eq!(e.headers.len(), 3);
    }

    #[test]
    fn bad_files_say_why() {
        for text in ["server = 5", "[host.\"ftp://x\"]", "x = [", "[host.\"https://x\"]\nca = 7"] {
            assert!(parse(text, Path::new("/"), "x.io", &[]).is_err(), "{text}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("_default")).unwrap();
        std::fs::write(dir.path().join("_default/hosts.toml"), "server = 5").unwrap();
        let error = endpoints(dir.path(), "any.io", &[]).unwrap_err().to_string();
        assert!(error.contains("_default/hosts.toml"), "{error}");
    }

    #[test]
    fn loopback_is_recognised() {
        for (host, yes) in [
            ("localhost:5000", true),
            ("127.0.0.1", true),
            ("127.8.8.8:1", true),
            ("[::1]:5000", true),
            ("10.0.0.1", false),
            ("localhost.example", false),
            ("[fe80::1]:5", false),
        ] {
            assert_eq!(is_loopback(host), yes, "{host}");
        }
    }
}
