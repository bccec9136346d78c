//! Which name and password go to which server.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::helper;
use crate::error::{Error, Result};
use crate::image::Auth;

/// What may be said to one server.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// User and password.
    pub(crate) basic: Option<(String, String)>,
    /// OAuth2 refresh token.
    pub(crate) identity_token: Option<String>,
    /// Sent as it is.
    pub(crate) registry_token: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.basic.as_ref().map(|(u, _)| u)).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Nothing to say.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Credentials::default()
    }

    /// `Basic ...` of user and password.
    pub(crate) fn basic_header(&self) -> Option<String> {
        self.basic.as_ref().map(|(u, p)| format!("Basic {}", STANDARD.encode(format!("{u}:{p}"))))
    }
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_string())
}

/// The caller's credentials in usable form.
fn from_auth(auth: &Auth) -> Result<Credentials> {
    let basic = if !auth.username.is_empty() {
        Some((auth.username.clone(), auth.password.clone()))
    } else if !auth.auth.is_empty() {
        Some(
            decode(&auth.auth)
                .ok_or_else(|| Error::Invalid("registry credentials: auth is not base64 of user:password".into()))?,
        )
    } else {
        None
    };
    Ok(Credentials {
        basic,
        identity_token: filled(&auth.identity_token),
        registry_token: filled(&auth.registry_token),
    })
}

/// base64 of `user:password`, with or without padding.
fn decode(text: &str) -> Option<(String, String)> {
    let bytes = STANDARD
        .decode(text.trim())
        .or_else(|_| base64::engine::general_purpose::STANDARD_NO_PAD.decode(text.trim()))
        .ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_string(), password.trim_end_matches('\0').to_string()))
}

/// `host[:port]` of what people write as server address: with scheme, path, `index.docker.io`.
fn normalise(address: &str) -> String {
    let host = address.trim_start_matches("https://").trim_start_matches("http://");
    match host.split('/').next().unwrap_or("") {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
        other => other.to_string(),
    }
}

/// Credentials for the server `host` when pulling from `domain`. The caller's go to the registry of the reference (or
/// the one they name), never to a mirror that merely stands in for it.
pub(crate) fn lookup(
    auth: Option<&Auth>,
    docker: Option<&Path>,
    domain: &str,
    host: &str,
    mirror: bool,
) -> Result<Credentials> {
    if let Some(auth) = auth {
        let own = !mirror && (auth.server_address.is_empty() || normalise(&auth.server_address) == normalise(domain));
        let named = !auth.server_address.is_empty() && normalise(&auth.server_address) == normalise(host);
        if own || named {
            let found = from_auth(auth)?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }
    let Some(path) = docker else { return Ok(Credentials::default()) };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Credentials::default()),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    from_docker(&bytes, host).map_err(|reason| Error::HostsConfig { path: path.to_path_buf(), reason })
}

fn from_docker(bytes: &[u8], host: &str) -> Result<Credentials, String> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        auths: std::collections::BTreeMap<String, Entry>,
        #[serde(default, rename = "credHelpers")]
        helpers: std::collections::BTreeMap<String, String>,
        #[serde(default, rename = "credsStore")]
        store: String,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Entry {
        auth: String,
        username: String,
        password: String,
        identitytoken: String,
        registrytoken: String,
    }
    let file: File = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let want = normalise(host);
    // As docker does: a server's own helper, then the store for all, then what stands in the file.
    let helper = file.helpers.iter().find(|(key, _)| normalise(key) == want);
    let helper = helper.map(|(server, name)| (server.as_str(), name.as_str()));
    let general = if want == "docker.io" { "https://index.docker.io/v1/" } else { want.as_str() };
    if let Some((server, name)) = helper.or((!file.store.is_empty()).then_some((general, file.store.as_str()))) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = helper::ask(&helper::find(name, &path)?, server)?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let Some((_, e)) = file.auths.into_iter().find(|(key, _)| normalise(key) == want) else {
        return Ok(Credentials::default());
    };
    let auth = Auth {
        username: e.username,
        password: e.password,
        auth: e.auth,
        identity_token: e.identitytoken,
        registry_token: e.registrytoken,
        server_address: String::new(),
    };
    from_auth(&auth).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(u: &str, p: &str) -> Credentials {
        Credentials { basic: Some((u.into(), p.into())), ..Default::default() }
    }

    #[test]
    fn the_callers_credentials_go_to_the_registry_only() {
        let auth = Auth { username: "u".into(), password: "p".into(), ..Default::default() };
        let get = |auth: &Auth, host, mirror| lookup(Some(auth), None, "docker.io", host, mirror).unwrap();
        assert_eq!(get(&auth, "registry-1.docker.io", false), basic("u", "p"));
        assert_eq!(get(&auth, "mirror.lan", true), Credentials::default());
        let named = Auth { server_address: "https://index.docker.io/v1/".into(), ..auth.clone() };
        assert_eq!(get(&named, "registry-1.docker.io", false), basic("u", "p"));
        let other = Auth { server_address: "quay.io".into(), ..auth.clone() };
        assert_eq!(get(&other, "registry-1.docker.io", false), Credentials::default());
        let for_mirror = Auth { server_address: "mirror.lan".into(), ..auth };
        assert_eq!(get(&for_mirror, "mirror.lan", true), basic("u", "p"));
        let packed = Auth { auth: STANDARD.encode("a:b:c"), ..Default::default() };
        assert_eq!(get(&packed, "registry-1.docker.io", false), basic("a", "b:c"));
        let broken = Auth { auth: "***".into(), ..Default::default() };
        assert!(lookup(Some(&broken), None, "x.io", "x.io", false).is_err());
    }

    #[test]
    fn docker_config_is_read_by_host() {
        let json = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{}"}},"quay.io":{{"identitytoken":"t"}}}}}}"#,
            STANDARD.encode("u:p")
        );
        assert_eq!(from_docker(json.as_bytes(), "registry-1.docker.io"), Ok(basic("u", "p")));
        assert_eq!(from_docker(json.as_bytes(), "quay.io").map(|c| c.identity_token), Ok(Some("t".into())));
        assert_eq!(from_docker(json.as_bytes(), "other.io"), Ok(Credentials::default()));
        assert!(from_docker(b"[", "x").is_err());
        let helped = br#"{"credHelpers":{"quay.io":"there-is-no-such-helper"}}"#;
        assert!(from_docker(helped, "quay.io").unwrap_err().contains("docker-credential-there-is-no-such-helper"));
        assert_eq!(from_docker(helped, "other.io"), Ok(Credentials::default()));
    }
}
