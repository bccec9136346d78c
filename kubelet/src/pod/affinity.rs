//! Whether a node is one that a pod asks for: node selector, required node affinity, taints (pure).

use std::collections::BTreeMap;

use gantry_kube::selector::Requirement;
use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};

type Labels = BTreeMap<String, String>;

fn requirement(from: &NodeSelectorRequirement) -> Option<Requirement> {
    let key = from.key.clone();
    let values = from.values.clone().unwrap_or_default();
    let number = || values.first().and_then(|v| v.parse().ok());
    Some(match from.operator.as_str() {
        "In" => Requirement::In(key, values),
        "NotIn" => Requirement::NotIn(key, values),
        "Exists" => Requirement::Exists(key),
        "DoesNotExist" => Requirement::DoesNotExist(key),
        "Gt" => Requirement::GreaterThan(key, number()?),
        "Lt" => Requirement::LessThan(key, number()?),
        _ => return None,
    })
}

/// An empty term matches nothing, and so does one that makes no sense.
fn term(of: &NodeSelectorTerm, labels: &Labels, node: &str) -> bool {
    let expressions = of.match_expressions.as_deref().unwrap_or_default();
    let fields = of.match_fields.as_deref().unwrap_or_default();
    let label = |key: &str| labels.get(key).map(String::as_str);
    let field = |key: &str| (key == "metadata.name").then_some(node);
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|e| requirement(e).is_some_and(|r| r.matches(&label)))
        && fields.iter().all(|e| requirement(e).is_some_and(|r| r.matches(&field)))
}

/// Whether selector and required affinity fit the node.
pub(crate) fn fits(pod: &Pod, labels: &Labels, node: &str) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term(t, labels, node)))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let same = |a: &Option<String>, b: &str| a.as_deref().is_none_or(|a| a.is_empty() || a == b);
    let exists = toleration.operator.as_deref() == Some("Exists");
    let value = toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
    let any = toleration.key.as_deref().unwrap_or_default().is_empty();
    same(&toleration.effect, &taint.effect) && same(&toleration.key, &taint.key) && (exists || (value && !any))
}

/// The first taint that drives the pod away (effect `NoExecute`).
pub(crate) fn untolerated<'a>(pod: &Pod, taints: &'a [Taint]) -> Option<&'a Taint> {
    let tolerations: Vec<&Toleration> = pod.spec.iter().flat_map(|s| s.tolerations.iter().flatten()).collect();
    taints.iter().find(|taint| taint.effect == "NoExecute" && !tolerations.iter().any(|t| tolerates(t, taint)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn selectors_and_affinity_choose_nodes() {
        let labels: Labels = [("disk".to_owned(), "ssd".to_owned()), ("cpus".to_owned(), "8".to_owned())].into();
        let affinity = |terms: serde_json::Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
        let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        for (spec, want) in [
            (json!({}), true),
            (json!({"nodeSelector": {"disk": "ssd"}}), true),
            (json!({"nodeSelector": {"disk": "hdd"}}), false),
            (affinity(json!([expression("disk", "In", &["ssd", "hdd"])])), true),
            (affinity(json!([expression("disk", "NotIn", &["ssd"])])), false),
            (affinity(json!([expression("gpu", "DoesNotExist", &[])])), true),
            (affinity(json!([expression("cpus", "Gt", &["4"])])), true),
            (affinity(json!([expression("cpus", "Lt", &["4"])])), false),
            (affinity(json!([expression("cpus", "Lt", &["4"]), expression("disk", "Exists", &[])])), true),
            (affinity(json!([{}])), false),
            (affinity(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}])), true),
            (affinity(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}])), false),
        ] {
            assert_eq!(fits(&pod(spec.clone()), &labels, "n1"), want, "{spec}");
        }
    }

    #[test]
    fn only_no_execute_taints_drive_away() {
        let taint =
            |effect: &str| Taint { key: "k".into(), value: Some("v".into()), effect: effect.into(), time_added: None };
        for (tolerations, effect, away) in [
            (json!([]), "NoExecute", true),
            (json!([]), "NoSchedule", false),
            (json!([{"operator": "Exists"}]), "NoExecute", false),
            (json!([{"key": "k", "operator": "Equal", "value": "v"}]), "NoExecute", false),
            (json!([{"key": "k", "value": "w"}]), "NoExecute", true),
            (json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]), "NoExecute", true),
        ] {
            let pod = pod(json!({"tolerations": tolerations}));
            assert_eq!(untolerated(&pod, &[taint(effect)]).is_some(), away, "{tolerations} {effect}");
        }
    }
}
