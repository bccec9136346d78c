//! Gets images onto the node by the container's pull policy.

use std::time::Instant;

use base64::Engine;
use k8s_openapi::api::core::v1::{Container, Pod};
use proto::cri::{AuthConfig, Image, PodSandboxConfig};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::pod::{self, pull_policy};
use crate::shared::Shared;

/// Why a container's image is not there: the reason of its waiting state, and the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageError {
    /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`, `ImageInspectError`.
    pub(crate) reason: &'static str,
    /// Why.
    pub(crate) message: String,
}

/// How many pulls may run at once; `None` in the configuration means as many as upstream's users wish for: a big image
/// must not hold up a small one.
pub(crate) fn permits(serialize: Option<bool>, most: Option<i32>) -> usize {
    match (serialize, most) {
        (Some(true), _) => 1,
        (_, Some(n)) if n > 0 => usize::try_from(n).unwrap_or(8),
        _ => 8,
    }
}

/// Makes sure of the image. Events tell what happened.
///
/// # Errors
/// See [`ImageError`].
pub(crate) async fn ensure(
    shared: &Shared,
    slots: &Semaphore,
    pod: &Pod,
    container: &Container,
    sandbox: &PodSandboxConfig,
) -> Result<Image, ImageError> {
    let image = container.image.as_deref().unwrap_or_default();
    let event = |warning, reason, message| shared.events.pod(pod, Some(&container.name), warning, reason, message);
    if let Err(why) = check_name(image) {
        let message =
            format!("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {why}");
        event(true, "InspectFailed", message.clone());
        return Err(ImageError { reason: "InvalidImageName", message });
    }
    let present = shared.cri.image(image).await.map_err(|e| {
        let message = format!("Failed to inspect image {image:?}: {e}");
        event(true, "InspectFailed", message.clone());
        ImageError { reason: "ImageInspectError", message }
    })?;
    match (pull_policy(container), present) {
        ("Never", None) => {
            let message = format!("Container image {image:?} is not present with pull policy of Never");
            event(true, "ErrImageNeverPull", message.clone());
            return Err(ImageError { reason: "ErrImageNeverPull", message });
        }
        ("Never" | "IfNotPresent", Some(found)) => {
            event(false, "Pulled", format!("Container image {image:?} already present on machine"));
            return Ok(found);
        }
        _ => {}
    }
    let begin = Instant::now();
    let failed = |why: String| {
        event(true, "Failed", format!("Failed to pull image {image:?}: {why}"));
        event(true, "Failed", "Error: ErrImagePull".to_owned());
        ImageError { reason: "ErrImagePull", message: why }
    };
    let _slot = slots.acquire().await.map_err(|e| failed(e.to_string()))?;
    event(false, "Pulling", format!("Pulling image {image:?}"));
    let alone = Instant::now();
    let mut last = None;
    let mut logins = logins(shared, pod, image).await;
    if logins.is_empty() {
        logins.push(None);
    }
    for login in logins {
        match shared.cri.pull(image, login, sandbox.clone()).await {
            Ok(_) => {
                last = None;
                break;
            }
            Err(e) => last = Some(e.to_string()),
        }
    }
    if let Some(why) = last {
        return Err(failed(why));
    }
    let found = shared.cri.image(image).await.map_err(|e| failed(e.to_string()))?;
    let found = found.ok_or_else(|| failed("it was pulled but is not there".to_owned()))?;
    let (took, all) = (alone.elapsed().as_millis(), begin.elapsed().as_millis());
    event(
        false,
        "Pulled",
        format!(
            "Successfully pulled image {image:?} in {took}ms ({all}ms including waiting). Image size: {} bytes.",
            found.size
        ),
    );
    Ok(found)
}

/// Refuses what cannot be an image name; the registry client has the last word.
fn check_name(image: &str) -> Result<(), &'static str> {
    let (name, digest) = image.split_once('@').map_or((image, None), |(n, d)| (n, Some(d)));
    let path_start = name.find('/').map_or(0, |i| i + 1);
    let (path, tag) = match name[path_start..].rsplit_once(':') {
        Some((path, tag)) => (format!("{}{path}", &name[..path_start]), Some(tag)),
        None => (name.to_owned(), None),
    };
    if path.is_empty() {
        return Err("repository name must not be empty");
    }
    let word = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let repository = path.split('/').enumerate().all(|(i, part)| {
        let host = i == 0 && path.contains('/');
        !part.is_empty()
            && part.chars().all(|c| word(c) || (host && ":[]".contains(c)))
            && (host || !part.chars().any(|c| c.is_ascii_uppercase()))
    });
    if !repository {
        return Err("invalid reference format");
    }
    if tag.is_some_and(|t| t.is_empty() || t.len() > 128 || !t.chars().all(word)) {
        return Err("invalid tag format");
    }
    if digest.is_some_and(|d| {
        !d.split_once(':').is_some_and(|(_, hex)| hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit()))
    }) {
        return Err("invalid digest format");
    }
    Ok(())
}

/// Logins from the pod's imagePullSecrets that fit the image's registry.
async fn logins(shared: &Shared, pod: &Pod, image: &str) -> Vec<Option<AuthConfig>> {
    let mut out = Vec::new();
    for reference in pod::spec(pod).image_pull_secrets.into_iter().flatten() {
        match shared.objects.secret(pod::namespace(pod), &reference.name).await {
            Ok(Some(secret)) => {
                let data = secret.data.unwrap_or_default();
                for key in [".dockerconfigjson", ".dockercfg"] {
                    if let Some(text) = data.get(key) {
                        out.extend(from_docker_config(&text.0, image).into_iter().map(Some));
                    }
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

fn from_docker_config(text: &[u8], image: &str) -> Vec<AuthConfig> {
    let Ok(document) = serde_json::from_slice::<Value>(text) else { return Vec::new() };
    let table = document.get("auths").unwrap_or(&document);
    let first = image.split('/').next().unwrap_or_default();
    let explicit = image.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let registry = if explicit { first } else { "docker.io" };
    let mut found: Vec<(usize, AuthConfig)> = Vec::new();
    for (key, entry) in table.as_object().into_iter().flatten() {
        let bare = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        let host = bare.split('/').next().unwrap_or_default();
        let hub = registry == "docker.io" && host.ends_with("docker.io");
        if host != registry && !hub && !image.starts_with(&format!("{bare}/")) {
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
            server_address: host.to_owned(),
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
    fn impossible_names_are_refused() {
        for good in [
            "busybox",
            "a/b:1.2",
            "localhost:5000/x/y",
            "r.io/a@sha256:0123456789abcdef0123456789abcdef",
            "gantry.local/demo:latest",
        ] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "Busy Box", "a//b", "a:b c", "UPPER/x/Y", "a@sha256:xyz"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn logins_fit_the_registry() {
        let config = br#"{"auths": {"r.io": {"auth": "dTpw"}, "https://index.docker.io/v1/": {"username": "h", "password": "x"}}}"#;
        let login = from_docker_config(config, "r.io/a/b");
        assert_eq!((login.len(), login[0].username.as_str(), login[0].password.as_str()), (1, "u", "p"));
        assert_eq!(from_docker_config(config, "busybox")[0].username, "h");
        assert!(from_docker_config(config, "other.io/x").is_empty());
    }

    #[test]
    fn pulls_are_parallel_unless_said_otherwise() {
        assert_eq!((permits(None, None), permits(Some(true), None), permits(Some(false), Some(3))), (8, 1, 3));
    }
}
