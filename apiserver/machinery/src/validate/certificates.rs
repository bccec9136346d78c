//! Validation of ClusterTrustBundles and PodCertificateRequests.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{Errors, FieldError, list, text};

/// Shortest and longest life of a pod's certificate that may be asked for, in seconds.
const LIVES: std::ops::RangeInclusive<i64> = 3600..=7_862_400;
/// How a request ends.
const ENDS: [&str; 3] = ["Issued", "Denied", "Failed"];
/// Length of a bundle, in bytes.
const LONGEST_BUNDLE: usize = 1 << 20;

/// A signer's name: a domain, and a path behind it.
pub(super) fn signer_name(value: &Value, path: &str, out: &mut Errors) {
    let name = text(value, "signerName");
    let path = format!("{path}.signerName");
    let whole = name.split_once('/').is_some_and(|(domain, path)| {
        domain.contains('.') && super::dns_subdomain(domain).is_empty() && !path.is_empty() && !path.contains('/')
    });
    if name.is_empty() {
        out.push(FieldError::required(path, ""));
    } else if !whole {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        out.push(FieldError::invalid(path, name, why));
    }
}

/// A ClusterTrustBundle. One of a signer has a name that begins with the signer's.
pub(super) fn trust_bundle(object: &Value, out: &mut Errors) {
    let (name, spec) = (object["metadata"]["name"].as_str().unwrap_or_default(), &object["spec"]);
    let signer = text(spec, "signerName");
    let of_name =
        |rest: &str| super::dns_subdomain(rest).into_iter().map(|why| FieldError::invalid("metadata.name", name, why));
    if signer.is_empty() {
        if !name.contains(':') {
            out.extend(of_name(name));
        } else {
            let why = "ClusterTrustBundle without signer name must not have \":\" in its name";
            out.push(FieldError::invalid("metadata.name", name, why));
        }
    } else {
        signer_name(spec, "spec", out);
        let prefix = format!("{}:", signer.replace('/', ":"));
        match name.strip_prefix(&prefix) {
            Some(rest) => out.extend(of_name(rest)),
            None => {
                let why = format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}");
                out.push(FieldError::invalid("metadata.name", name, why));
            }
        }
    }
    let bundle = text(spec, "trustBundle");
    if bundle.is_empty() {
        out.push(FieldError::required("spec.trustBundle", ""));
        return;
    }
    let mut wrong = |why: String| out.push(FieldError::invalid("spec.trustBundle", "<value omitted>", why));
    if bundle.len() > LONGEST_BUNDLE {
        wrong(format!("must not be longer than {LONGEST_BUNDLE} bytes"));
        return;
    }
    match gantry_kube::pki::blocks(bundle) {
        Err(why) => wrong(why.to_string()),
        Ok(blocks) if blocks.is_empty() => wrong("at least one trust anchor must be provided".into()),
        Ok(blocks) => {
            for (index, block) in blocks.iter().enumerate() {
                if let Err(why) = gantry_kube::pki::facts_of_der(block) {
                    wrong(format!("entry {index}: {why}"));
                } else if blocks[..index].contains(block) {
                    wrong(format!("duplicate trust anchor (index {index})"));
                }
            }
        }
    }
}

/// A PodCertificateRequest.
pub(super) fn pod_request(object: &Value, out: &mut Errors) {
    let spec = &object["spec"];
    signer_name(spec, "spec", out);
    for field in ["podName", "podUID", "serviceAccountName", "serviceAccountUID", "nodeName", "nodeUID"] {
        if text(spec, field).is_empty() {
            out.push(FieldError::required(format!("spec.{field}"), ""));
        }
    }
    life(spec, "spec", out);
    for field in ["pkixPublicKey", "proofOfPossession"] {
        if !text(spec, field).is_empty() {
            out.push(FieldError::forbidden(format!("spec.{field}"), "must be empty if stubPKCS10Request is set"));
        }
    }
    let request = STANDARD.decode(text(spec, "stubPKCS10Request")).unwrap_or_default();
    if let Err(why) = gantry_kube::csr::check_der(&request) {
        out.push(FieldError::invalid("spec.stubPKCS10Request", "<request>", why.to_string()));
    }
}

/// How long a certificate may live (`maxExpirationSeconds`), where it says so.
pub(super) fn life(value: &Value, path: &str, out: &mut Errors) {
    if let Some(seconds) = value["maxExpirationSeconds"].as_i64().filter(|s| !LIVES.contains(s)) {
        let why = format!("must be in the range [{}, {}]", LIVES.start(), LIVES.end());
        out.push(FieldError::invalid(format!("{path}.maxExpirationSeconds"), seconds, why));
    }
}

/// An update of `…/status` of a PodCertificateRequest: it ends once, one way, and with a chain only if it was issued.
pub(super) fn pod_request_status(old: &Value, new: &Value, out: &mut Errors) {
    let ends = |object: &Value| -> Vec<String> {
        let kinds = list(&object["status"], "conditions").iter().map(|c| text(c, "type").to_owned());
        kinds.filter(|kind| ENDS.contains(&kind.as_str())).collect()
    };
    let (before, after) = (ends(old), ends(new));
    if after.len() > 1 {
        let why = "at most one of the conditions Issued, Denied and Failed may be set";
        out.push(FieldError::invalid("status.conditions", after.join(", "), why));
    }
    if !before.is_empty() && (before != after || old["status"] != new["status"]) {
        out.push(FieldError::forbidden("status", "a request that was issued, denied or failed does not change"));
        return;
    }
    let (status, issued) = (&new["status"], after.iter().any(|kind| kind == "Issued"));
    for field in ["certificateChain", "notBefore", "notAfter", "beginRefreshAt"] {
        let path = format!("status.{field}");
        match (issued, text(status, field).is_empty()) {
            (true, true) => out.push(FieldError::required(path, "must be set together with condition Issued")),
            (false, false) => out.push(FieldError::forbidden(path, "may only be set together with condition Issued")),
            _ => {}
        }
    }
    if issued {
        let blocks = gantry_kube::pki::blocks(text(status, "certificateChain")).unwrap_or_default();
        let fine = !blocks.is_empty() && blocks.iter().all(|b| gantry_kube::pki::facts_of_der(b).is_ok());
        if !fine {
            let why = "must consist of one or more PEM-formatted certificates";
            out.push(FieldError::invalid("status.certificateChain", "<certificates>", why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn paths(check: impl Fn(&mut Errors)) -> Vec<String> {
        let mut out = Errors::new();
        check(&mut out);
        out.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn bundles_are_certificates_under_their_signers_name() {
        let ca = gantry_kube::pki::new_ca("one").unwrap().cert;
        let twice = format!("{ca}{ca}");
        for (name, spec, want) in [
            ("plain", json!({"trustBundle": ca}), None),
            ("s.io:a:1", json!({"signerName": "s.io/a", "trustBundle": ca}), None),
            ("plain", json!({"signerName": "s.io/a", "trustBundle": ca}), Some("metadata.name")),
            ("s.io:a:1", json!({"trustBundle": ca}), Some("metadata.name")),
            ("s.io:a:B_1", json!({"signerName": "s.io/a", "trustBundle": ca}), Some("metadata.name")),
            ("Plain", json!({"trustBundle": ca}), Some("metadata.name")),
            ("plain", json!({"trustBundle": ""}), Some("spec.trustBundle")),
            ("plain", json!({"trustBundle": "words"}), Some("spec.trustBundle")),
            ("plain", json!({"trustBundle": twice}), Some("spec.trustBundle")),
        ] {
            let object = json!({"metadata": {"name": name}, "spec": spec});
            let bundles = crate::resource::find("certificates.k8s.io", "v1beta1", "clustertrustbundles").unwrap();
            let found = paths(|out| out.extend(super::super::create(bundles, &object)));
            assert!(found.len() == usize::from(want.is_some()), "{name}: {found:?}");
            assert!(want.is_none_or(|w| found[0].starts_with(w)), "{name}: {found:?}");
        }
    }

    #[test]
    fn requests_name_who_they_are_for_and_prove_the_key() {
        let key = gantry_kube::csr::new_key_of("ED25519").unwrap();
        let stub = STANDARD.encode(gantry_kube::csr::stub_request(&key).unwrap());
        let good = json!({"spec": {"signerName": "s.io/a", "podName": "p", "podUID": "u", "serviceAccountName": "a",
            "serviceAccountUID": "v", "nodeName": "n", "nodeUID": "w", "maxExpirationSeconds": 3600,
            "stubPKCS10Request": stub}});
        assert_eq!(paths(|out| pod_request(&good, out)), Vec::<String>::new());
        for (field, value) in [
            ("signerName", json!("mine")),
            ("podUID", json!("")),
            ("nodeUID", json!("")),
            ("maxExpirationSeconds", json!(3599)),
            ("maxExpirationSeconds", json!(7_862_401)),
            ("stubPKCS10Request", json!("aGVsbG8=")),
            ("pkixPublicKey", json!("aGVsbG8=")),
        ] {
            let mut bad = good.clone();
            bad["spec"][field] = value;
            let found = paths(|out| pod_request(&bad, out));
            assert!(found.len() == 1 && found[0].starts_with(&format!("spec.{field}")), "{field}: {found:?}");
        }
    }

    #[test]
    fn a_request_ends_once() {
        let ended = |kinds: &[&str], chain: &str| {
            let list: Vec<Value> = kinds.iter().map(|k| json!({"type": k, "status": "True"})).collect();
            json!({"status": {"conditions": list, "certificateChain": chain, "notBefore": chain, "notAfter": chain,
                "beginRefreshAt": chain}})
        };
        let ca = gantry_kube::pki::new_ca("one").unwrap().cert;
        let none = json!({"status": {}});
        let check = |old: &Value, new: &Value| paths(|out| pod_request_status(old, new, out)).len();
        assert_eq!(check(&none, &ended(&["Issued"], &ca)), 0);
        assert_eq!(check(&none, &ended(&["Denied"], "")), 0);
        assert_eq!(check(&none, &ended(&["Denied", "Failed"], "")), 1);
        assert_eq!(check(&none, &ended(&["Denied"], &ca)), 4);
        assert_eq!(check(&none, &ended(&["Issued"], "")), 5);
        assert_eq!(check(&ended(&["Denied"], ""), &ended(&["Issued"], &ca)), 1);
    }
}
