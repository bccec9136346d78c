//! Manifests, indexes and configs: what of them matters here, and the choice of a platform. Pure.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::ImageConfig;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Sent with each manifest request.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// A reference from one document to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// What an index entry runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) variant: String,
}

/// An image manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    #[serde(default)]
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// An index or manifest list.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    #[serde(default)]
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) manifests: Vec<Descriptor>,
}

/// Either document.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// An image config.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) created: Option<String>,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) config: Option<ImageConfig>,
    pub(crate) rootfs: RootFs,
}

/// The layers of a config.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default)]
    pub(crate) diff_ids: Option<Vec<Digest>>,
}

impl Document {
    /// Parses `bytes`; `media_type` (from HTTP or a descriptor) decides when the document does not say itself.
    pub(crate) fn parse(bytes: &[u8], media_type: &str, digest: &Digest) -> Result<Document> {
        let bad = |what, reason: String| Error::Malformed { what, digest: digest.to_string(), reason };
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Probe {
            #[serde(default)]
            media_type: String,
            #[serde(default)]
            schema_version: u32,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            config: Option<serde::de::IgnoredAny>,
        }
        let probe: Probe = serde_json::from_slice(bytes).map_err(|e| bad("manifest", format!("not JSON: {e}")))?;
        if probe.schema_version == 1 {
            return Err(bad(
                "manifest",
                "Docker schema 1 is not supported (push the image again with a newer tool)".into(),
            ));
        }
        if probe.manifests.is_some() && probe.config.is_some() {
            return Err(bad("manifest", "it is both an index and a manifest".into()));
        }
        let own = if probe.media_type.is_empty() {
            media_type.split(';').next().unwrap_or("").trim()
        } else {
            &probe.media_type
        };
        match own {
            OCI_INDEX | DOCKER_LIST => {
                serde_json::from_slice(bytes).map(Document::Index).map_err(|e| bad("index", e.to_string()))
            }
            OCI_MANIFEST | DOCKER_MANIFEST => {
                serde_json::from_slice(bytes).map(Document::Manifest).map_err(|e| bad("manifest", e.to_string()))
            }
            _ if probe.manifests.is_some() => {
                serde_json::from_slice(bytes).map(Document::Index).map_err(|e| bad("index", e.to_string()))
            }
            _ if probe.config.is_some() => {
                serde_json::from_slice(bytes).map(Document::Manifest).map_err(|e| bad("manifest", e.to_string()))
            }
            other => Err(bad("manifest", format!("unknown media type {other:?}"))),
        }
    }
}

impl Config {
    /// Parses a config and checks that it fits the manifest.
    pub(crate) fn parse(bytes: &[u8], manifest: &Manifest) -> Result<(Config, Vec<Digest>)> {
        let bad = |reason: String| Error::Malformed {
            what: "image config",
            digest: manifest.config.digest.to_string(),
            reason,
        };
        let config: Config = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        let diff_ids = config.rootfs.diff_ids.clone().unwrap_or_default();
        if diff_ids.len() != manifest.layers.len() {
            return Err(bad(format!("{} diff ids for {} layers", diff_ids.len(), manifest.layers.len())));
        }
        Ok((config, diff_ids))
    }
}

impl Platform {
    /// This machine in Go's words.
    pub(crate) fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Platform { architecture: architecture.into(), os: "linux".into(), variant: variant.into() }
    }

    /// How well an offer fits this machine: 0 not at all, higher is better.
    fn fit(&self, offer: &Platform) -> u32 {
        if offer.os != self.os || offer.architecture != self.architecture {
            return 0;
        }
        let level = |v: &str| v.strip_prefix('v').and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
        match (level(&self.variant), level(&offer.variant)) {
            // amd64 variants (v2, v3) need features that we do not probe: only the base is taken before them.
            (0, 0) => 100,
            (0, n) => {
                if self.architecture == "amd64" && n > 1 {
                    0
                } else {
                    50
                }
            }
            (_, 0) => 50,
            (mine, n) if n <= mine => 50 + n,
            _ => 0,
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// The entry of an index that fits `host` best. An entry without platform is taken when nothing says otherwise.
pub(crate) fn choose<'a>(index: &'a Index, host: &Platform) -> Result<&'a Descriptor> {
    let is_attestation =
        |d: &Descriptor| d.annotations.as_ref().is_some_and(|a| a.contains_key("vnd.docker.reference.type"));
    let candidates = index.manifests.iter().filter(|d| !is_attestation(d));
    let best = candidates
        .clone()
        .map(|d| (d.platform.as_ref().map_or(1, |p| host.fit(p)), d))
        .filter(|(fit, _)| *fit > 0)
        .reduce(|a, b| if b.0 > a.0 { b } else { a });
    best.map(|(_, d)| d).ok_or_else(|| Error::Platform {
        wanted: host.to_string(),
        offered: candidates
            .map(|d| d.platform.as_ref().map_or("unknown".to_string(), Platform::to_string))
            .collect::<Vec<_>>()
            .join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(text: Option<&str>, n: u8) -> Descriptor {
        let platform = text.map(|t| {
            let mut p = t.split('/');
            let mut next = || p.next().unwrap_or("").to_string();
            Platform { os: next(), architecture: next(), variant: next() }
        });
        Descriptor { media_type: String::new(), digest: Digest::of(&[n]), size: 1, platform, annotations: None }
    }

    fn chosen(host: &str, offers: &[Option<&str>]) -> Option<usize> {
        let manifests: Vec<_> = offers.iter().enumerate().map(|(i, o)| offer(*o, i as u8)).collect();
        let index = Index { schema_version: 2, media_type: String::new(), manifests };
        let host = offer(Some(host), 0).platform.unwrap();
        choose(&index, &host).ok().and_then(|d| index.manifests.iter().position(|m| m == d))
    }

    #[test]
    fn the_best_platform_is_chosen() {
        assert_eq!(
            chosen("linux/amd64", &[Some("linux/arm64/v8"), Some("windows/amd64"), Some("linux/amd64")]),
            Some(2)
        );
        assert_eq!(chosen("linux/amd64", &[Some("linux/amd64/v3"), Some("linux/amd64")]), Some(1));
        assert_eq!(
            chosen("linux/arm/v7", &[Some("linux/arm/v5"), Some("linux/arm/v7"), Some("linux/arm/v6")]),
            Some(1)
        );
        assert_eq!(chosen("linux/arm64/v8", &[Some("linux/arm64")]), Some(0));
        assert_eq!(chosen("linux/amd64", &[None, Some("linux/amd64")]), Some(1));
        assert_eq!(chosen("linux/amd64", &[None]), Some(0));
        assert_eq!(chosen("linux/amd64", &[Some("linux/s390x")]), None);
        assert_eq!(chosen("linux/amd64", &[]), None);
    }

    #[test]
    fn documents_are_told_apart() {
        let d = Digest::of(b"");
        let manifest = format!(r#"{{"schemaVersion":2,"config":{{"digest":"{d}","size":1}},"layers":[]}}"#);
        assert!(matches!(Document::parse(manifest.as_bytes(), "", &d), Ok(Document::Manifest(_))));
        let index = r#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(Document::parse(index.as_bytes(), DOCKER_LIST, &d), Ok(Document::Index(_))));
        let both = format!(r#"{{"schemaVersion":2,"manifests":[],"config":{{"digest":"{d}","size":1}},"layers":[]}}"#);
        for bad in
            [r#"{"schemaVersion":1}"#, "[]", "{}", "x", &both, r#"{"manifests":[{"digest":"../../etc","size":1}]}"#]
        {
            assert!(Document::parse(bad.as_bytes(), "", &d).is_err(), "{bad}");
        }
    }
}
