//! Bootstrap tokens: secrets in kube-system with which a new node asks for its first certificate.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::auth::User;
use crate::store::Store;

const BASE64: base64::engine::GeneralPurpose = base64::engine::general_purpose::STANDARD;
/// The group of everyone with such a token.
pub const GROUP: &str = "system:bootstrappers";

/// `abcdef.0123456789abcdef`: id and secret.
fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let fine = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (fine(id, 6) && fine(secret, 16)).then_some((id, secret))
}

fn field(secret: &Value, name: &str) -> String {
    let bytes = BASE64.decode(secret["data"][name].as_str().unwrap_or_default()).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

/// The same work for every wrong secret, so that time tells nothing.
fn equal(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// Who a token stands for, if it is a bootstrap token that is valid now.
pub fn user(store: &Store, token: &str) -> Option<User> {
    let (id, secret) = split(token)?;
    let entry = store.get(&format!("/core/secrets/kube-system/bootstrap-token-{id}"))?;
    user_of(&entry.value, id, secret, jiff::Timestamp::now())
}

fn user_of(stored: &Value, id: &str, secret: &str, now: jiff::Timestamp) -> Option<User> {
    let deleted = stored["metadata"]["deletionTimestamp"].is_string();
    let kind = stored["type"] == "bootstrap.kubernetes.io/token";
    let expiration = field(stored, "expiration");
    let lives = expiration.is_empty() || expiration.parse::<jiff::Timestamp>().is_ok_and(|end| end > now);
    let known = field(stored, "token-id") == id && equal(&field(stored, "token-secret"), secret);
    if deleted || !kind || !lives || !known || field(stored, "usage-bootstrap-authentication") != "true" {
        return None;
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in field(stored, "auth-extra-groups").split(',').map(str::trim).filter(|g| !g.is_empty()) {
        // A token with a group of another kind would be more than a bootstrap token.
        if !group.starts_with("system:bootstrappers:") {
            return None;
        }
        groups.push(group.to_owned());
    }
    Some(User::new(&format!("system:bootstrap:{id}"), &groups))
}

/// The roles and bindings with which nodes join and renew their certificates, as kubeadm makes them.
pub fn roles() -> Vec<(String, Value)> {
    const RBAC: &str = "rbac.authorization.k8s.io";
    let requests = |part: &str, verbs: &[&str]| json!([{"apiGroups": ["certificates.k8s.io"], "resources": [format!("certificatesigningrequests{part}")], "verbs": verbs}]);
    let labels = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
    let nodeclient = "system:certificates.k8s.io:certificatesigningrequests:nodeclient";
    let selfnodeclient = "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient";
    let mut out = Vec::new();
    for (name, rules) in [
        ("system:node-bootstrapper", requests("", &["create", "get", "list", "watch"])),
        (nodeclient, requests("/nodeclient", &["create"])),
        (selfnodeclient, requests("/selfnodeclient", &["create"])),
    ] {
        let role = json!({"apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRole", "metadata": {"name": name, "labels": labels}, "rules": rules});
        out.push((format!("/{RBAC}/clusterroles/{name}"), role));
    }
    for (name, role, group) in [
        ("gantry:kubelet-bootstrap", "system:node-bootstrapper", GROUP),
        ("gantry:node-autoapprove-bootstrap", nodeclient, GROUP),
        ("gantry:node-autoapprove-certificate-rotation", selfnodeclient, "system:nodes"),
    ] {
        let binding = json!({"apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": RBAC, "kind": "Group", "name": group}]});
        out.push((format!("/{RBAC}/clusterrolebindings/{name}"), binding));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(changes: &[(&str, &str)]) -> Value {
        let mut out = json!({"type": "bootstrap.kubernetes.io/token", "data": {}});
        let base = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("expiration", "2026-01-02T00:00:00Z"),
            ("auth-extra-groups", "system:bootstrappers:workers"),
        ];
        for (key, value) in base.iter().chain(changes) {
            out["data"][*key] = json!(BASE64.encode(value));
        }
        out
    }

    #[test]
    fn a_valid_token_is_a_bootstrapper() {
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let user = |secret: &Value| user_of(secret, "abcdef", "0123456789abcdef", now);
        let found = user(&stored(&[])).unwrap();
        assert_eq!(found.name, "system:bootstrap:abcdef");
        assert!(found.is_in(GROUP) && found.is_in("system:bootstrappers:workers"));
        for change in [
            ("token-secret", "0123456789abcdee"),
            ("usage-bootstrap-authentication", "false"),
            ("expiration", "2025-12-31T00:00:00Z"),
            ("expiration", "some day"),
            ("auth-extra-groups", "system:masters"),
        ] {
            assert_eq!(user(&stored(&[change])), None, "{change:?}");
        }
        let mut other = stored(&[]);
        other["type"] = json!("Opaque");
        assert_eq!(user(&other), None);
        assert_eq!(split("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        assert_eq!((split("Abcdef.0123456789abcdef"), split("abcdef.short")), (None, None));
    }
}
