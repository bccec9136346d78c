//! Feature gates: which names and values Kubernetes 1.36 knows, so that a mistyped one is an error and not a surprise.
//!
//! Hardly a gate switches anything in this kubelet ([`SWITCHES`]): what it can do it always does, and what it lacks no gate
//! brings. Setting another gate to its default is therefore silent, and to anything else a warning.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Result, bail};

/// Name, stage, default, locked; one a line, separated by tabs.
const TABLE: &str = include_str!("gates.tsv");
/// Gates that stand for all of a stage.
const GROUPS: &[(&str, &str)] = &[("AllAlpha", "ALPHA"), ("AllBeta", "BETA")];

/// Brings clusterTrustBundle projections.
pub(crate) const TRUST_BUNDLES: &str = "ClusterTrustBundleProjection";
/// Brings podCertificate projections.
pub(crate) const CERTIFICATES: &str = "PodCertificateRequest";
/// Lets credential providers have service account tokens.
pub(crate) const PROVIDER_TOKENS: &str = "KubeletServiceAccountTokenForCredentialProviders";
/// Lets static pods name objects of the apiserver when it is off.
const STATIC_REFERENCES: &str = "PreventStaticPodAPIReferences";
/// Throttles and keeps memory by what pods request.
pub(crate) const MEMORY_QOS: &str = "MemoryQoS";
/// What gates switch here.
const SWITCHES: &[&str] = &[TRUST_BUNDLES, CERTIFICATES, PROVIDER_TOKENS, STATIC_REFERENCES, MEMORY_QOS];

/// A feature gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gate {
    /// The name.
    pub(crate) name: &'static str,
    /// `ALPHA`, `BETA`, `DEPRECATED`, or empty when it is generally available, as the metric has it.
    pub(crate) stage: &'static str,
    /// The default.
    pub(crate) default: bool,
    /// It cannot be set to anything but its default.
    pub(crate) locked: bool,
}

/// All gates by name.
pub(crate) fn all() -> impl Iterator<Item = Gate> {
    TABLE.lines().filter_map(|line| {
        let mut parts = line.split('\t');
        let (name, stage, default, locked) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        Some(Gate { name, stage, default: default == "true", locked: locked == "locked" })
    })
}

/// Checks what was set; gives the names that were set to something that has no effect.
///
/// # Errors
/// A gate is unknown, or locked to the other value.
pub(crate) fn check(set: &BTreeMap<String, bool>) -> Result<Vec<String>> {
    let known: BTreeMap<&str, Gate> = all().map(|g| (g.name, g)).collect();
    let mut idle = Vec::new();
    for (name, value) in set {
        if GROUPS.iter().any(|(group, _)| group == name) {
            if *value != (name == "AllBeta") {
                idle.push(name.clone());
            }
            continue;
        }
        let Some(gate) = known.get(name.as_str()) else {
            bail!("field featureGates: unrecognized feature gate: {name}");
        };
        if *value != gate.default {
            if gate.locked {
                bail!(
                    "field featureGates: cannot set feature gate {name} to {value}, feature is locked to {}",
                    gate.default
                );
            }
            if !SWITCHES.contains(&name.as_str()) {
                idle.push(name.clone());
            }
        }
    }
    Ok(idle)
}

/// Whether the gate of a name is on.
pub(crate) fn is_set(name: &str, set: &BTreeMap<String, bool>) -> bool {
    all().find(|gate| gate.name == name).is_some_and(|gate| is_on(&gate, set))
}

/// `kubernetes_feature_enabled`: each gate with its stage.
pub(crate) fn metric(set: &BTreeMap<String, bool>) -> String {
    let mut out = String::from(
        "# HELP kubernetes_feature_enabled [BETA] 1 for each feature that is on, else 0.\n\
         # TYPE kubernetes_feature_enabled gauge\n",
    );
    for gate in all() {
        let on = u8::from(is_on(&gate, set));
        let _ = writeln!(out, "kubernetes_feature_enabled{{name=\"{}\",stage=\"{}\"}} {on}", gate.name, gate.stage);
    }
    out
}

/// Whether a gate counts as on, as `kubernetes_feature_enabled` tells it.
fn is_on(gate: &Gate, set: &BTreeMap<String, bool>) -> bool {
    let group = GROUPS.iter().find(|(_, stage)| *stage == gate.stage).and_then(|(name, _)| set.get(*name));
    set.get(gate.name).or(group).copied().unwrap_or(gate.default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[(&str, bool)]) -> BTreeMap<String, bool> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect()
    }

    #[test]
    fn each_gate_is_told_once_and_whole() {
        let names: Vec<&str> = all().map(|g| g.name).collect();
        assert_eq!(names.len(), TABLE.lines().count());
        assert!(names.len() > 200 && names.windows(2).all(|w| w[0] < w[1]));
        assert!(all().all(|g| ["", "ALPHA", "BETA", "DEPRECATED"].contains(&g.stage)));
    }

    #[test]
    fn unknown_and_locked_gates_are_errors_that_name_them() {
        let error = |pairs: &[(&str, bool)]| check(&set(pairs)).unwrap_err().to_string();
        assert!(error(&[("NoSuchGate", true)]).contains("unrecognized feature gate: NoSuchGate"));
        assert!(error(&[("NodeSwap", false)]).contains("locked to true"), "{}", error(&[("NodeSwap", false)]));
    }

    #[test]
    fn gates_that_change_nothing_are_told_unless_they_say_the_default() {
        let gate = all().find(|g| g.stage == "ALPHA").unwrap();
        assert_eq!(check(&set(&[(gate.name, false), ("AllAlpha", false), ("AllBeta", true)])).unwrap(), [""; 0]);
        assert_eq!(check(&set(&[(gate.name, true), ("AllAlpha", true)])).unwrap().len(), 2);
        assert!(is_on(&gate, &set(&[("AllAlpha", true)])) && !is_on(&gate, &set(&[])));
        assert_eq!(check(&set(&[(CERTIFICATES, true), (TRUST_BUNDLES, true)])).unwrap(), [""; 0]);
        assert!(is_set(CERTIFICATES, &set(&[(CERTIFICATES, true)])) && !is_set(CERTIFICATES, &set(&[])));
        assert!(is_set(PROVIDER_TOKENS, &set(&[])));
    }
}
