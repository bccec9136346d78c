//! The labels of `--node-labels`: a node may not call itself what only the cluster may call it (pure).

use std::collections::BTreeMap;

use anyhow::{Result, bail};

/// Labels of Kubernetes' own that a kubelet may set.
const ALLOWED: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Namespaces of labels that a kubelet may set.
const NAMESPACES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

fn within(namespace: &str, of: &str) -> bool {
    namespace == of || namespace.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'))
}

/// Whether only the cluster may set a label.
fn reserved(key: &str) -> bool {
    let Some((namespace, _)) = key.split_once('/') else { return false };
    let kubernetes = within(namespace, "kubernetes.io") || within(namespace, "k8s.io");
    kubernetes && !ALLOWED.contains(&key) && !NAMESPACES.iter().any(|of| within(namespace, of))
}

/// Letters and digits at both ends, `-`, `_` and `.` in between, 63 characters at most.
fn is_name(text: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && end(text.chars().next())
        && end(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((namespace, name)) => {
            let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
            !namespace.is_empty() && namespace.len() <= 253 && namespace.chars().all(fine) && is_name(name)
        }
        None => is_name(key),
    }
}

/// Reads `key=value` pairs.
///
/// # Errors
/// One is no label, or is not the kubelet's to set; the text names it.
pub(crate) fn read(pairs: &[String]) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for pair in pairs.iter().filter(|p| !p.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else { bail!("--node-labels: {pair:?} is not key=value") };
        if !is_key(key) {
            bail!("--node-labels: {key:?} is not the key of a label");
        }
        if !value.is_empty() && !is_name(value) {
            bail!("--node-labels: {value:?} is not the value of a label");
        }
        if reserved(key) {
            bail!(
                "--node-labels: unknown 'kubernetes.io' or 'k8s.io' label {key:?}: such labels must begin with an allowed prefix \
                 ({}) or be one of {}",
                NAMESPACES.join(", "),
                ALLOWED.join(", ")
            );
        }
        out.insert(key.to_owned(), value.to_owned());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_may_not_take_any_label() {
        for (pair, fine) in [
            ("disk=ssd", true),
            ("example.com/rack=r-1", true),
            ("empty=", true),
            ("topology.kubernetes.io/zone=a", true),
            ("node.kubernetes.io/pool=x", true),
            ("team.node.kubernetes.io/pool=x", true),
            ("mykubernetes.io/x=y", true),
            ("node-role.kubernetes.io/control-plane=", false),
            ("kubernetes.io/role=master", false),
            ("x.k8s.io/y=z", false),
            ("noequals", false),
            ("-a=b", false),
            ("a=b c", false),
            ("A/b=c", false),
        ] {
            assert_eq!(read(&[pair.to_owned()]).is_ok(), fine, "{pair}");
        }
    }
}
