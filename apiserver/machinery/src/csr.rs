//! What is particular about CertificateSigningRequests: the request itself never changes, approval and certificate are
//! written apart, and neither can be taken back.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gantry_kube::csr::Asked;
use serde_json::{Value, json};

use crate::validate::FieldError;

/// Conditions that only approvers set.
const DECISIONS: [&str; 2] = ["Approved", "Denied"];
/// The shortest life that may be asked for.
const SHORTEST: i64 = 600;
const USAGES: &[&str] = &[
    "signing",
    "digital signature",
    "content commitment",
    "key encipherment",
    "key agreement",
    "data encipherment",
    "cert sign",
    "crl sign",
    "encipher only",
    "decipher only",
    "any",
    "server auth",
    "client auth",
    "code signing",
    "email protection",
    "s/mime",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "timestamping",
    "ocsp signing",
    "microsoft sgc",
    "netscape sgc",
];

/// The PEM text of the request of an object.
///
/// # Errors
/// It is not base64 of text.
pub fn pem(object: &Value) -> Result<String, String> {
    let bytes = STANDARD.decode(object["spec"]["request"].as_str().unwrap_or_default()).map_err(|e| e.to_string())?;
    String::from_utf8(bytes).map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())
}

/// What the request of an object asks for.
///
/// # Errors
/// It is no request, or not signed by its own key.
pub fn asked(object: &Value) -> Result<Asked, String> {
    gantry_kube::csr::read(&pem(object)?).map_err(|e| e.to_string())
}

/// Whether a condition of a type is set.
pub fn has_condition(object: &Value, kind: &str) -> bool {
    conditions(object).iter().any(|c| c["type"] == kind && c["status"] != "False")
}

fn conditions(object: &Value) -> &[Value] {
    object["status"]["conditions"].as_array().map_or(&[], Vec::as_slice)
}

fn is_decision(condition: &Value) -> bool {
    DECISIONS.iter().any(|kind| condition["type"] == *kind)
}

/// An update of the main resource: only metadata can change.
pub(crate) fn keep_spec(old: &Value, new: &mut Value) {
    new["spec"] = old["spec"].clone();
}

/// An update of `…/approval` or `…/status` (`part`): approvals decide, signers issue, and neither does the other's work.
pub fn prepare_part(part: &str, old: &Value, new: &mut Value, now: &str) {
    let approval = part == "approval";
    let theirs = conditions(new).iter().filter(|c| is_decision(c) == approval);
    let others = conditions(old).iter().filter(|c| is_decision(c) != approval);
    let mut kept: Vec<Value> = Vec::new();
    for condition in others.chain(theirs) {
        let mut condition = condition.clone();
        let before = conditions(old).iter().find(|c| c["type"] == condition["type"]);
        for field in ["lastUpdateTime", "lastTransitionTime"] {
            if condition[field].is_null() {
                condition[field] = before.map_or_else(|| json!(now), |b| b[field].clone());
            }
        }
        kept.push(condition);
    }
    if !new["status"].is_object() {
        new["status"] = json!({});
    }
    if let Some(status) = new["status"].as_object_mut() {
        if kept.is_empty() {
            status.shift_remove("conditions");
        } else {
            status.insert("conditions".into(), kept.into());
        }
        if approval {
            match old["status"].get("certificate") {
                Some(certificate) => drop(status.insert("certificate".into(), certificate.clone())),
                None => drop(status.shift_remove("certificate")),
            }
        }
    }
}

/// What is wrong with a new object.
pub(crate) fn validate(object: &Value, out: &mut Vec<FieldError>) {
    let spec = &object["spec"];
    match spec["request"].as_str().unwrap_or_default() {
        "" => out.push(FieldError::required("spec.request", "")),
        text => {
            if let Err(why) = asked(object) {
                out.push(FieldError::invalid("spec.request", text, why));
            }
        }
    }
    let usages = spec["usages"].as_array().map_or(&[][..], Vec::as_slice);
    if usages.is_empty() {
        out.push(FieldError::required("spec.usages", ""));
    }
    for (i, usage) in usages.iter().filter_map(Value::as_str).enumerate() {
        let path = format!("spec.usages[{i}]");
        if !USAGES.contains(&usage) {
            out.push(FieldError::not_supported(path, usage, USAGES));
        } else if usages[..i].iter().any(|u| u == usage) {
            out.push(FieldError::duplicate(path, usage));
        }
    }
    let signer = spec["signerName"].as_str().unwrap_or_default();
    let whole = signer.split_once('/').is_some_and(|(domain, path)| {
        domain.contains('.') && crate::validate::dns_subdomain(domain).is_empty() && !path.is_empty()
    });
    if signer.is_empty() {
        out.push(FieldError::required("spec.signerName", ""));
    } else if signer == "kubernetes.io/legacy-unknown" {
        let why = "the legacy signerName is not allowed via this API version";
        out.push(FieldError::invalid("spec.signerName", signer, why));
    } else if !whole {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        out.push(FieldError::invalid("spec.signerName", signer, why));
    }
    if let Some(seconds) = spec["expirationSeconds"].as_i64().filter(|s| *s < SHORTEST) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        out.push(FieldError::invalid("spec.expirationSeconds", seconds, why));
    }
}

/// What is wrong with an update of `…/approval` or `…/status`.
pub(crate) fn validate_part(old: &Value, new: &Value, out: &mut Vec<FieldError>) {
    let path = "status.conditions";
    if has_condition(new, "Approved") && has_condition(new, "Denied") {
        out.push(FieldError::invalid(path, "Approved", "Approved and Denied conditions are mutually exclusive"));
    }
    for condition in conditions(new) {
        let kind = condition["type"].as_str().unwrap_or_default();
        if kind.is_empty() {
            out.push(FieldError::required(format!("{path}[].type"), ""));
        }
        let strict = is_decision(condition) || kind == "Failed";
        if strict && condition["status"] != "True" {
            let status = condition["status"].as_str().unwrap_or_default();
            out.push(FieldError::not_supported(format!("{path}[].status"), status, &["True"]));
        }
        if conditions(new).iter().filter(|c| c["type"] == kind).count() > 1 {
            out.push(FieldError::duplicate(format!("{path}[].type"), kind));
            break;
        }
    }
    let gone = |c: &&Value| {
        (is_decision(c) || c["type"] == "Failed") && !conditions(new).iter().any(|n| n["type"] == c["type"])
    };
    for condition in conditions(old).iter().filter(gone) {
        let kind = condition["type"].as_str().unwrap_or_default();
        out.push(FieldError::forbidden(path, format!("updates may not remove a condition of type {kind:?}")));
    }
    let (before, after) = (&old["status"]["certificate"], &new["status"]["certificate"]);
    if !before.is_null() && before != after {
        out.push(FieldError::forbidden("status.certificate", "updates may not modify a set certificate"));
    }
    if let Some(text) = after.as_str().filter(|_| before.is_null()) {
        let pem = STANDARD.decode(text).ok().and_then(|b| String::from_utf8(b).ok()).unwrap_or_default();
        if let Err(why) = gantry_kube::pki::inspect(&pem) {
            out.push(FieldError::invalid("status.certificate", "<certificate data>", why.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(signer: &str, usages: &[&str]) -> Value {
        let key = gantry_kube::csr::new_key().unwrap();
        let pem = gantry_kube::csr::request(&key, "system:node:n1", &["system:nodes".into()], &[]).unwrap();
        json!({"metadata": {"name": "a"}, "spec": {"request": STANDARD.encode(pem), "signerName": signer, "usages": usages}})
    }

    fn wrong(object: &Value) -> Vec<String> {
        let mut out = Vec::new();
        validate(object, &mut out);
        out.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn bad_requests_are_refused_by_field() {
        let good = object("kubernetes.io/kube-apiserver-client-kubelet", &["client auth", "digital signature"]);
        assert_eq!(wrong(&good), Vec::<String>::new());
        for (change, field) in [
            (json!({"request": "aGVsbG8="}), "spec.request"),
            (json!({"request": ""}), "spec.request"),
            (json!({"usages": []}), "spec.usages"),
            (json!({"usages": ["client auth", "to impress"]}), "spec.usages[1]"),
            (json!({"usages": ["client auth", "client auth"]}), "spec.usages[1]"),
            (json!({"signerName": "mine"}), "spec.signerName"),
            (json!({"signerName": "kubernetes.io/legacy-unknown"}), "spec.signerName"),
            (json!({"expirationSeconds": 599}), "spec.expirationSeconds"),
        ] {
            let mut bad = good.clone();
            for (key, value) in change.as_object().unwrap() {
                bad["spec"][key] = value.clone();
            }
            let texts = wrong(&bad);
            assert!(texts.len() == 1 && texts[0].starts_with(field), "{field}: {texts:?}");
        }
    }

    #[test]
    fn approvers_decide_and_signers_issue() {
        let old = json!({"spec": {}, "status": {"conditions": [{"type": "Failed", "status": "True"}]}});
        let mut new = json!({"spec": {}, "status": {"certificate": "eA==", "conditions": [{"type": "Approved", "status": "True", "reason": "Me"}]}});
        prepare_part("approval", &old, &mut new, "2026-01-01T00:00:00Z");
        assert!(new["status"].get("certificate").is_none(), "approvers issue nothing");
        assert!(has_condition(&new, "Failed") && has_condition(&new, "Approved"));
        assert_eq!(new["status"]["conditions"][1]["lastUpdateTime"], "2026-01-01T00:00:00Z");
        let approved = new;
        let mut new = json!({"spec": {}, "status": {"certificate": "eA==", "conditions": [{"type": "Denied", "status": "True"}]}});
        prepare_part("status", &approved, &mut new, "2026-01-01T00:00:01Z");
        assert!(has_condition(&new, "Approved") && !has_condition(&new, "Denied"), "signers decide nothing");
        assert_eq!(new["status"]["certificate"], "eA==");
    }

    #[test]
    fn decisions_exclude_each_other_and_stay() {
        let with = |kinds: &[&str]| {
            let list: Vec<Value> = kinds.iter().map(|k| json!({"type": k, "status": "True"})).collect();
            json!({"status": {"conditions": list}})
        };
        let count = |old: &Value, new: &Value| {
            let mut out = Vec::new();
            validate_part(old, new, &mut out);
            out.len()
        };
        assert_eq!(count(&with(&[]), &with(&["Approved"])), 0);
        assert_eq!(count(&with(&[]), &with(&["Approved", "Denied"])), 1);
        assert_eq!(count(&with(&["Approved"]), &with(&[])), 1);
    }
}
