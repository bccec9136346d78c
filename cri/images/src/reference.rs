//! Image references, parsed and completed the way docker and containerd do.
//!
//! `busybox` is `docker.io/library/busybox:latest`; the part before the first slash is a host only when it has a dot,
//! a colon, an upper-case letter or is `localhost`. Pure text handling: nothing here talks to anyone.

use std::fmt;

use crate::digest::Digest;
use crate::error::{Error, Result};

/// The registry that short names mean.
const DEFAULT_DOMAIN: &str = "docker.io";
/// Longest repository name, as in the distribution specification.
const MAX_NAME: usize = 255;

/// A complete reference: always a domain, and a tag or a digest (a tag beside a digest is dropped, as containerd does).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses and completes `text`.
    pub fn parse(text: &str) -> Result<Reference> {
        let bad = |reason: &str| Error::Reference { reference: shorten(text), reason: reason.to_string() };
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        if text.len() > 1024 {
            return Err(bad("it is too long"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, d)) => (
                rest,
                Some(Digest::parse(d).ok_or_else(|| bad("the digest is not sha256: with 64 lower-case hex digits"))?),
            ),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad(
                "the tag may hold letters, digits, '_', '.', '-', at most 128 and not start with '.' or '-'",
            ));
        }
        if name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(bad("64 hex digits are an image id, not a name"));
        }
        let (domain, path) = split_domain(name);
        if !is_domain(&domain) {
            return Err(bad("the registry host is malformed"));
        }
        if path.is_empty() {
            return Err(bad("the repository name is missing"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad("the repository name must be lower case"));
        }
        if !path.split('/').all(is_component) {
            return Err(bad("the repository name is malformed"));
        }
        if domain.len() + 1 + path.len() > MAX_NAME {
            return Err(bad("the repository name is too long"));
        }
        let tag = match (&digest, tag) {
            (Some(_), _) => None,
            (None, Some(tag)) => Some(tag.to_string()),
            (None, None) => Some("latest".to_string()),
        };
        Ok(Reference { domain, path, tag, digest })
    }

    /// `host[:port]`, as written (docker.io for short names).
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Repository below the domain, such as `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, absent when there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, when the reference names one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `domain/path`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// `domain/path@digest`.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        match (&self.digest, &self.tag) {
            (Some(d), _) => write!(f, "@{d}"),
            (None, Some(t)) => write!(f, ":{t}"),
            (None, None) => Ok(()),
        }
    }
}

/// Splits host and repository and adds what short names leave out.
fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first.to_string(), rest.to_string())
        }
        _ => (DEFAULT_DOMAIN.to_string(), name.to_string()),
    };
    let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN.to_string() } else { domain };
    if domain == DEFAULT_DOMAIN && !path.contains('/') && !path.is_empty() {
        return (domain, format!("library/{path}"));
    }
    (domain, path)
}

fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    bytes.next().is_some_and(word) && tag.len() <= 128 && bytes.all(|b| word(b) || b == b'.' || b == b'-')
}

/// Lower-case letters and digits, separated by one dot, one or two underscores or any number of dashes.
fn is_component(part: &str) -> bool {
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    if !bytes.first().is_some_and(alnum) || !bytes.last().is_some_and(alnum) {
        return false;
    }
    bytes
        .split(alnum)
        .all(|sep| sep.is_empty() || sep == b"." || sep == b"_" || sep == b"__" || sep.iter().all(|b| *b == b'-'))
}

/// `name.name[:port]` or `[v6][:port]`.
fn is_domain(domain: &str) -> bool {
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let Some((v6, after)) = rest.split_once(']') else { return false };
        if v6.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match after.strip_prefix(':') {
            Some(port) => ("v6", Some(port)),
            None if after.is_empty() => ("v6", None),
            None => return false,
        }
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        }
    };
    let port_ok =
        port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok());
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    port_ok && !host.is_empty() && host.split('.').all(label)
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_complete_like_docker() {
        let table = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.35", "docker.io/library/busybox:1.35"),
            ("a/b", "docker.io/a/b:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("127.0.0.1:5000/a/b/c:t-1.2_3", "127.0.0.1:5000/a/b/c:t-1.2_3"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("[::1]:5000/x:1", "[::1]:5000/x:1"),
            ("Host/x", "Host/x:latest"),
            ("quay.io/a__b/c---d/e.f", "quay.io/a__b/c---d/e.f:latest"),
        ];
        for (text, full) in table {
            assert_eq!(Reference::parse(text).map(|r| r.to_string()).ok().as_deref(), Some(full), "{text}");
        }
        let r = Reference::parse(&format!("busybox:1@{D}")).unwrap();
        assert_eq!(r.to_string(), format!("docker.io/library/busybox@{D}"));
        assert_eq!(r.tag(), None);
    }

    #[test]
    fn malformed_references_are_refused() {
        let hex = "a".repeat(64);
        let long = format!("x.io/{}", "a".repeat(260));
        for text in [
            "",
            ":",
            "x:",
            "/x",
            "x//y",
            "x/",
            "-x",
            "x:-t",
            "x@sha256:12",
            "x@md5:00",
            "A",
            "x.io/Abc",
            "x.io:99999/a",
            "x.io:/a",
            "a..b/c..d",
            "x y",
            "http://x/y",
            "x___y",
            "[::g]/x",
            "x.io/../y",
            "x\n",
            &hex,
            &long,
        ] {
            let got = Reference::parse(text);
            assert!(matches!(got, Err(Error::Reference { .. })), "{text:?} gave {got:?}");
        }
    }
}
