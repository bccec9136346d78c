//! CertificateSigningRequests: who may approve, what approves itself, and the three signers of certificates for this
//! server's clients and for kubelets. The rules are kube-controller-manager's.

use std::sync::Arc;
use std::time::Duration;

use api_machinery::csr::{self, has_condition};
use api_machinery::status::{self, Status};
use base64::Engine as _;
use gantry_kube::csr::{Asked, Purposes};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::auth::{self, Attributes, User};
use crate::http_util::now;
use crate::router::{Api, Call};

const BASE64: base64::engine::GeneralPurpose = base64::engine::general_purpose::STANDARD;
const PREFIX: &str = "/certificates.k8s.io/certificatesigningrequests/";
/// Certificates for clients of this server; always approved by a person.
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Client certificates of kubelets.
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Serving certificates of kubelets.
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

/// How requests are looked after.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The longest life of a certificate.
    pub lifetime: Duration,
    /// Whether serving certificates of kubelets are approved when they name only what their node has.
    pub approve_serving: bool,
}

fn usages(object: &Value) -> Vec<&str> {
    object["spec"]["usages"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// What a signer allows of a request; an error says which of its rules is broken. Pure.
fn judge(signer: &str, asked: &Asked, usages: &[&str]) -> Result<Purposes, String> {
    let only = |wanted: &str| {
        let fine = |u: &&str| [wanted, "digital signature", "key encipherment"].contains(u);
        if !usages.contains(&wanted) || !usages.iter().all(fine) {
            return Err(format!(
                "usages did not match [{wanted}, digital signature] with or without key encipherment: [{}]",
                usages.join(", ")
            ));
        }
        Ok(())
    };
    let node = || {
        if asked.organizations != ["system:nodes"] {
            return Err("subject organization is not system:nodes".to_owned());
        }
        if asked.common_name.strip_prefix("system:node:").is_none_or(str::is_empty) {
            return Err("subject common name does not begin with system:node: ".to_owned());
        }
        Ok(())
    };
    match signer {
        CLIENT => only("client auth")?,
        KUBELET_CLIENT => {
            node()?;
            if !asked.dns.is_empty() || !asked.ips.is_empty() || !asked.others.is_empty() {
                return Err("DNS, IP, email and URI subjectAltNames are not allowed".into());
            }
            only("client auth")?;
        }
        _ => {
            node()?;
            if asked.dns.is_empty() && asked.ips.is_empty() {
                return Err("at least one DNS or IP subjectAltName is required".into());
            }
            if !asked.others.is_empty() {
                return Err("email and URI subjectAltNames are not allowed".into());
            }
            only("server auth")?;
        }
    }
    Ok(Purposes {
        digital_signature: usages.contains(&"digital signature"),
        key_encipherment: usages.contains(&"key encipherment"),
        client: signer != KUBELET_SERVING,
        server: signer == KUBELET_SERVING,
    })
}

fn requester(object: &Value) -> User {
    let spec = &object["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    User {
        name: text(&spec["username"]),
        uid: text(&spec["uid"]),
        groups: spec["groups"].as_array().into_iter().flatten().map(text).collect(),
        extra: spec["extra"].clone(),
    }
}

/// Who asks is part of the request, and nobody can make himself a master.
pub(crate) fn admit(call: &Call, object: &mut Value) -> Result<(), Status> {
    let user = call.user.to_value();
    for (field, value) in
        [("username", &user["username"]), ("uid", &user["uid"]), ("groups", &user["groups"]), ("extra", &user["extra"])]
    {
        if let Some(spec) = object["spec"].as_object_mut() {
            if value.is_null() {
                drop(spec.shift_remove(field))
            } else {
                drop(spec.insert(field.into(), value.clone()))
            }
        }
    }
    let masters = || csr::asked(object).is_ok_and(|a| a.organizations.iter().any(|o| o == "system:masters"));
    if object["spec"]["signerName"] == CLIENT && masters() {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let why = format!("use of {CLIENT} signer with system:masters group is not allowed");
        return Err(status::forbidden(call.resource, name, &why));
    }
    Ok(())
}

/// An approval needs the verb `approve` on the signer; a certificate the verb `sign`.
pub(crate) fn may_write_part(api: &Api, call: &Call, object: &Value) -> Result<(), Status> {
    let signer = object["spec"]["signerName"].as_str().unwrap_or_default();
    let verb = if call.part == "approval" { "approve" } else { "sign" };
    let domain = signer.split('/').next().unwrap_or_default();
    let may = |name: String| {
        let ask = Attributes {
            verb: verb.into(),
            group: "certificates.k8s.io".into(),
            resource: "signers".into(),
            name,
            ..Attributes::default()
        };
        auth::allowed(&api.store, &call.user, &ask)
    };
    if may(signer.to_owned()) || may(format!("{domain}/*")) {
        return Ok(());
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(status::forbidden(call.resource, &call.name, &why))
}

/// Why a request is approved without a person: the subresource that its maker must be allowed to create, and the words.
/// Pure.
fn recognize(object: &Value, asked: &Asked) -> Option<(&'static str, &'static str)> {
    if object["spec"]["signerName"] != KUBELET_CLIENT || judge(KUBELET_CLIENT, asked, &usages(object)).is_err() {
        return None;
    }
    if object["spec"]["username"] == asked.common_name.as_str() {
        let words = "Auto approving self kubelet client certificate after SubjectAccessReview.";
        return Some(("selfnodeclient", words));
    }
    Some(("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."))
}

/// Whether a node that asks for itself names only what its Node object has. Pure.
fn names_only_itself(asked: &Asked, requester: &User, node: &Value) -> bool {
    let name = node["metadata"]["name"].as_str().unwrap_or_default();
    let has = |text: &str| {
        text == name || node["status"]["addresses"].as_array().into_iter().flatten().any(|a| a["address"] == text)
    };
    requester.node() == Some(name)
        && requester.name == asked.common_name
        && asked.dns.iter().all(|n| has(n))
        && asked.ips.iter().all(|ip| has(&ip.to_string()))
}

fn approve(api: &Api, policy: Policy, object: &Value) -> Option<&'static str> {
    let asked = csr::asked(object).ok()?;
    let user = requester(object);
    if let Some((subresource, words)) = recognize(object, &asked) {
        let ask = Attributes {
            verb: "create".into(),
            group: "certificates.k8s.io".into(),
            resource: "certificatesigningrequests".into(),
            subresource: subresource.into(),
            ..Attributes::default()
        };
        return auth::allowed(&api.store, &user, &ask).then_some(words);
    }
    let serving = object["spec"]["signerName"] == KUBELET_SERVING;
    if !policy.approve_serving || !serving || judge(KUBELET_SERVING, &asked, &usages(object)).is_err() {
        return None;
    }
    let node = api.store.get(&format!("/core/nodes/{}", user.node()?))?;
    names_only_itself(&asked, &user, &node.value)
        .then_some("Auto approving a serving certificate of a node's own names.")
}

fn condition(kind: &str, reason: &str, message: &str) -> Value {
    json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastUpdateTime": now(),
        "lastTransitionTime": now()})
}

fn add_condition(object: &mut Value, condition: Value) {
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    match object["status"]["conditions"].as_array_mut() {
        Some(list) => list.push(condition),
        None => object["status"]["conditions"] = json!([condition]),
    }
}

/// The next step of a request, if there is one that needs no person.
fn step(api: &Api, policy: Policy, object: &Value) -> Option<Value> {
    let signer = object["spec"]["signerName"].as_str()?;
    let ours = [CLIENT, KUBELET_CLIENT, KUBELET_SERVING].contains(&signer);
    let settled = |kind: &str| has_condition(object, kind);
    if !ours || settled("Denied") || settled("Failed") || object["status"]["certificate"].is_string() {
        return None;
    }
    let mut out = object.clone();
    if !settled("Approved") {
        add_condition(&mut out, condition("Approved", "AutoApproved", approve(api, policy, object)?));
    }
    let signed = || -> Result<String, (&str, String)> {
        let asked = csr::asked(object).map_err(|why| ("SignerValidationFailure", why))?;
        let purposes = judge(signer, &asked, &usages(object)).map_err(|why| ("SignerValidationFailure", why))?;
        let wished = object["spec"]["expirationSeconds"].as_u64().map(Duration::from_secs);
        let lifetime = wished.map_or(policy.lifetime, |w| w.min(policy.lifetime));
        let pem = csr::pem(object).map_err(|why| ("SignerValidationFailure", why))?;
        gantry_kube::csr::sign(&api.authority, &pem, &asked, purposes, lifetime)
            .map_err(|e| ("SigningError", e.to_string()))
    };
    match signed() {
        Ok(certificate) => out["status"]["certificate"] = json!(BASE64.encode(certificate)),
        Err((reason, why)) => add_condition(&mut out, condition("Failed", reason, &why)),
    }
    Some(out)
}

/// When a request is of no more use: decided ones after an hour, forgotten ones after a day. Pure.
fn ends(object: &Value) -> Option<Timestamp> {
    let created: Timestamp = object["metadata"]["creationTimestamp"].as_str()?.parse().ok()?;
    let decided = object["status"]["conditions"].as_array().into_iter().flatten().filter_map(|c| {
        let kept = matches!(c["type"].as_str(), Some("Approved" | "Denied" | "Failed"));
        c["lastUpdateTime"].as_str().filter(|_| kept)?.parse::<Timestamp>().ok()
    });
    let (from, hours) = decided.max().map_or((created, 24), |at| (at, 1));
    // One at the end of time never ends.
    from.checked_add(SignedDuration::from_hours(hours)).ok()
}

/// Approves, signs and cleans up until the server stops.
pub async fn run(api: Arc<Api>, policy: Policy) {
    loop {
        let revision = api.store.revision();
        for (key, entry) in api.store.range(PREFIX, "", 0, 0).map(|page| page.items).unwrap_or_default() {
            let name = entry.value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if ends(&entry.value).is_some_and(|end| end < Timestamp::now()) {
                let _ = api.store.delete(&key, entry.revision).await;
                continue;
            }
            let (work, object) = (Arc::clone(&api), entry.value.clone());
            // Signing is arithmetic that may take some milliseconds.
            let next = tokio::task::spawn_blocking(move || step(&work, policy, &object)).await;
            let Ok(Some(next)) = next else { continue };
            let failed = has_condition(&next, "Failed");
            // Whoever changed the request meanwhile makes another pass.
            if api.store.replace(&key, entry.revision, next).await.is_ok() {
                tracing::info!(request = name, failed, "answered a certificate signing request");
            }
        }
        if !api.changed(PREFIX, revision).await {
            return;
        }
    }
}

#[cfg(test)]
#[path = "certificates_tests.rs"]
mod tests;
