//! With which login an image may be pulled: those of the pod's imagePullSecrets first, then those that the whole node
//! has (credential providers and the node's own docker configuration).

use std::path::{Path, PathBuf};

use base64::Engine;
use k8s_openapi::api::core::v1::Pod;
use proto::cri::AuthConfig;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::name;
use super::providers::{Found, Providers};
use super::records::Owner;
use crate::pod;
use crate::shared::Shared;

/// A login, and whose it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Login {
    /// What the registry gets.
    pub(crate) auth: AuthConfig,
    /// Who may use what was pulled with it.
    pub(crate) owner: Owner,
}

/// Logins that fit the image, the most specific of each source first.
pub(crate) async fn logins(shared: &Shared, providers: &Providers, pod: &Pod, image: &str) -> Vec<Login> {
    let mut out = of_secrets(shared, pod, image).await;
    let node = |auth| Login { auth, owner: Owner::Node };
    out.extend(of_providers(shared, providers, pod, image).await);
    for path in node_files(&shared.root) {
        if let Ok(text) = std::fs::read(&path) {
            out.extend(from_docker_config(&text, image).into_iter().map(node));
        }
    }
    out
}

/// Logins of credential providers: the node's, or the pod's account's where its token was asked for.
pub(crate) async fn of_providers(shared: &Shared, providers: &Providers, pod: &Pod, image: &str) -> Vec<Login> {
    let found = providers.logins(&*shared.objects, pod, image).await;
    let login = |(auth, account): Found| Login { owner: account.map_or(Owner::Node, Owner::Account), auth };
    found.into_iter().map(login).collect()
}

/// Logins from the pod's imagePullSecrets that fit the image's registry.
pub(crate) async fn of_secrets(shared: &Shared, pod: &Pod, image: &str) -> Vec<Login> {
    let mut out = Vec::new();
    for reference in pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()) {
        match shared.objects.secret(pod::namespace(pod), &reference.name).await {
            Ok(Some(secret)) => {
                let meta = &secret.metadata;
                let text = |field: &Option<String>| field.clone().unwrap_or_default();
                for (_, text_of_file) in
                    secret.data.iter().flatten().filter(|(k, _)| *k == ".dockerconfigjson" || *k == ".dockercfg")
                {
                    out.extend(from_docker_config(&text_of_file.0, image).into_iter().map(|auth| Login {
                        owner: Owner::Secret {
                            uid: text(&meta.uid),
                            namespace: pod::namespace(pod).to_owned(),
                            name: text(&meta.name),
                            hash: hash(&auth),
                        },
                        auth,
                    }));
                }
            }
            other => shared.events.pod(
                pod,
                None,
                true,
                "FailedToRetrieveImagePullSecret",
                format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.{}",
                    reference.name,
                    other.err().map(|e| format!(" {e}")).unwrap_or_default()
                ),
            ),
        }
    }
    out
}

/// Where upstream looks for the node's own docker configuration.
fn node_files(root: &Path) -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let docker = home.into_iter().chain([PathBuf::from("/")]).map(|h| h.join(".docker/config.json"));
    let mut all: Vec<PathBuf> = [root.join("config.json")].into_iter().chain(docker).collect();
    all.dedup();
    all
}

/// Names a login without telling it.
fn hash(auth: &AuthConfig) -> String {
    let parts = [&auth.username, &auth.password, &auth.identity_token, &auth.registry_token];
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.len().to_le_bytes());
        hasher.update(part);
    }
    super::records::hex(&hasher.finalize())
}

/// The logins of a docker configuration that fit the image.
pub(crate) fn from_docker_config(text: &[u8], image: &str) -> Vec<AuthConfig> {
    let Ok(document) = serde_json::from_slice::<Value>(text) else { return Vec::new() };
    let table = document.get("auths").unwrap_or(&document);
    let registry = name::registry(image);
    let mut found: Vec<(usize, AuthConfig)> = Vec::new();
    for (key, entry) in table.as_object().into_iter().flatten() {
        let bare = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        let host = bare.split('/').next().unwrap_or_default();
        let hub = registry == "docker.io" && host.ends_with("docker.io");
        let path = bare.contains('/') && image.starts_with(&format!("{bare}/"));
        let whole = !bare.contains('/') && (host == registry || name::matches(bare, image));
        let old = bare.contains('/') && host == registry && matches!(bare.split_once('/'), Some((_, "v1" | "v2")));
        if !(hub || path || whole || old || image.starts_with(&format!("{bare}:")) || image == bare) {
            continue;
        }
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (mut username, mut password) = (text("username"), text("password"));
        if username.is_empty() {
            let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth")).unwrap_or_default();
            let decoded = String::from_utf8_lossy(&decoded).into_owned();
            if let Some((user, pass)) = decoded.split_once(':') {
                (username, password) = (user.to_owned(), pass.trim_end_matches('\0').to_owned());
            }
        }
        let login = AuthConfig {
            username,
            password,
            identity_token: text("identitytoken"),
            registry_token: text("registrytoken"),
            // No server address, as upstream: containerd takes it for a URL and refuses, or drops the login.
            ..Default::default()
        };
        found.push((bare.len(), login));
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, login)| login).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_fit_the_registry() {
        let config =
            br#"{"auths": {"r.io": {"auth": "dTpw"}, "https://index.docker.io/v1/": {"username": "h", "password": "x"},
            "*.wild.io": {"username": "w"}, "r.io/team": {"username": "t"}}}"#;
        let users = |image: &str| from_docker_config(config, image).into_iter().map(|l| l.username).collect::<Vec<_>>();
        assert_eq!(users("r.io/a/b"), ["u"]);
        assert_eq!(users("r.io/team/b"), ["t", "u"], "the more specific one first");
        assert_eq!(users("busybox"), ["h"]);
        assert_eq!(users("eu.wild.io/x"), ["w"]);
        assert!(users("other.io/x").is_empty());
        assert_eq!(from_docker_config(config, "r.io/a")[0].password, "p");
    }

    #[test]
    fn a_login_is_named_by_all_of_it() {
        let login = |u: &str, p: &str| AuthConfig { username: u.into(), password: p.into(), ..Default::default() };
        assert_ne!(hash(&login("ab", "c")), hash(&login("a", "bc")));
        assert_eq!(hash(&login("a", "b")), hash(&login("a", "b")));
    }
}
