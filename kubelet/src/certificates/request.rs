//! Asking the apiserver for a certificate, and waiting for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::runtime::wait::await_condition;
use sha2::{Digest, Sha256};

/// How long an approval may take before the question is asked anew.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How long one request to the apiserver may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A client certificate of this node.
    Client,
    /// A serving certificate with these names and addresses.
    Serving(Vec<String>),
}

impl Wanted {
    fn signer(&self) -> &'static str {
        match self {
            Self::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::Serving(_) => "kubernetes.io/kubelet-serving",
        }
    }

    fn usages(&self) -> Vec<String> {
        let own = if *self == Self::Client { "client auth" } else { "server auth" };
        vec!["digital signature".into(), own.into()]
    }
}

/// The name of a node's request that is the same for the same key, so that a restarted kubelet finds it again.
///
/// # Errors
/// The key does not parse.
pub(crate) fn lasting_name(node: &str, key: &str) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(gantry_kube::csr::public_key(key)?);
    hash.update(node);
    let short = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(hash.finalize());
    // Names are lower case letters, digits, dashes.
    let plain: String = short.to_lowercase().replace('_', "-");
    Ok(format!("node-csr-{}", plain.trim_matches('-')))
}

/// Puts a request. `name` none: the apiserver names it. Gives the name.
///
/// # Errors
/// The apiserver refuses it or does not answer, or a request of that name is another's.
pub(crate) async fn put(
    client: &kube::Client,
    node: &str,
    key: &str,
    wanted: &Wanted,
    name: Option<&str>,
) -> Result<String> {
    let names = match wanted {
        Wanted::Client => &[][..],
        Wanted::Serving(names) => names,
    };
    let subject = format!("system:node:{node}");
    let pem = gantry_kube::csr::request(key, &subject, &["system:nodes".to_owned()], names)?;
    let object = CertificateSigningRequest {
        metadata: ObjectMeta {
            name: name.map(str::to_owned),
            generate_name: name.is_none().then(|| "csr-".to_owned()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: wanted.signer().into(),
            usages: Some(wanted.usages()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let api = Api::<CertificateSigningRequest>::all(client.clone());
    let answer = tokio::time::timeout(LIMIT, api.create(&PostParams::default(), &object)).await;
    match (answer.context("ask for a certificate: the apiserver does not answer")?, name) {
        (Ok(made), _) => Ok(made.metadata.name.unwrap_or_default()),
        (Err(kube::Error::Api(status)), Some(name)) if status.code == 409 => {
            let found = tokio::time::timeout(LIMIT, api.get(name)).await;
            let found = found.context("read the certificate signing request again: no answer")??;
            if found.spec.signer_name != wanted.signer() {
                bail!("the certificate signing request {name} is for the signer {}", found.spec.signer_name);
            }
            Ok(name.to_owned())
        }
        (Err(e), _) => Err(e).context("ask for a certificate"),
    }
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The certificate, PEM.
    Issued(String),
    /// Somebody said no, or it could not be signed; the text says which and why.
    Refused(String),
}

fn outcome(object: &CertificateSigningRequest) -> Option<Outcome> {
    let status = object.status.as_ref()?;
    let name = object.metadata.name.as_deref().unwrap_or_default();
    for condition in status.conditions.iter().flatten() {
        if matches!(condition.type_.as_str(), "Denied" | "Failed") {
            let reason = condition.reason.as_deref().unwrap_or("no reason given");
            let message = condition.message.as_deref().unwrap_or_default();
            let word = condition.type_.to_lowercase();
            return Some(Outcome::Refused(format!(
                "the certificate signing request {name} is {word}: {reason} {message}"
            )));
        }
    }
    let certificate = status.certificate.as_ref().filter(|c| !c.0.is_empty())?;
    Some(Outcome::Issued(String::from_utf8_lossy(&certificate.0).into_owned()))
}

/// Waits until a request is answered, at most [`PATIENCE`].
///
/// # Errors
/// Nobody answered it, or it is gone.
pub(crate) async fn wait(client: &kube::Client, name: &str) -> Result<Outcome> {
    let api = Api::<CertificateSigningRequest>::all(client.clone());
    let seen = AtomicBool::new(false);
    let answered = move |object: Option<&CertificateSigningRequest>| match object {
        Some(object) => {
            seen.store(true, Ordering::Relaxed);
            outcome(object).is_some()
        }
        // One that was there and is deleted will never be answered.
        None => seen.load(Ordering::Relaxed),
    };
    let object = tokio::time::timeout(PATIENCE, await_condition(api, name, answered)).await;
    let object = object
        .with_context(|| {
            format!("the certificate signing request {name} was not approved in {} s", PATIENCE.as_secs())
        })?
        .with_context(|| format!("watch the certificate signing request {name}"))?;
    object
        .as_ref()
        .and_then(outcome)
        .with_context(|| format!("the certificate signing request {name} was deleted before it was answered"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_ends_in_a_certificate_or_a_no() {
        let object = |status: serde_json::Value| -> CertificateSigningRequest {
            serde_json::from_value(
                json!({"metadata": {"name": "a"}, "spec": {"request": "", "signerName": "x/y"}, "status": status}),
            )
            .unwrap()
        };
        let condition =
            |kind: &str| json!({"conditions": [{"type": kind, "status": "True", "reason": "Why", "message": "so"}]});
        assert_eq!(outcome(&object(json!({}))), None);
        assert_eq!(outcome(&object(condition("Approved"))), None, "approved is not yet signed");
        let issued = json!({"conditions": [{"type": "Approved", "status": "True"}], "certificate": "cGVt"});
        assert_eq!(outcome(&object(issued)), Some(Outcome::Issued("pem".into())));
        for kind in ["Denied", "Failed"] {
            let Some(Outcome::Refused(text)) = outcome(&object(condition(kind))) else { panic!("{kind}") };
            assert!(text.contains(&kind.to_lowercase()) && text.contains("Why so"), "{text}");
        }
    }

    #[test]
    fn the_same_key_gives_the_same_name() {
        let key = gantry_kube::csr::new_key().unwrap();
        let name = lasting_name("n1", &key).unwrap();
        assert_eq!(lasting_name("n1", &key).unwrap(), name);
        assert_ne!(lasting_name("n2", &key).unwrap(), name);
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(name.chars().all(fine) && name.len() <= 63 && !name.ends_with('-'), "{name}");
    }
}
