//! Field selectors: the few fields that lists and watches can be narrowed by, and upstream's texts for the others.

use serde_json::Value;

use crate::resource::Resource;

/// A parsed `fieldSelector`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldSelector {
    terms: Vec<(String, bool, String)>,
}

/// Why a selector is refused; 400.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SelectorError {
    /// The text is no selector.
    #[error("invalid selector: '{0}'; can't understand '{1}'")]
    Malformed(String, String),
    /// The resource cannot be selected by that field.
    #[error("field label not supported: {0}")]
    Unsupported(String),
}

/// The fields that a resource can be selected by.
pub fn supported(resource: &Resource) -> &'static [&'static str] {
    match (resource.group, resource.plural) {
        ("", "pods") => &[
            "metadata.name",
            "metadata.namespace",
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("" | "events.k8s.io", "events") => &[
            "metadata.name",
            "metadata.namespace",
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "reason",
            "reportingComponent",
            "reportingController",
            "source",
            "type",
        ],
        ("", "secrets") => &["metadata.name", "metadata.namespace", "type"],
        ("", "nodes") => &["metadata.name", "spec.unschedulable"],
        ("", "namespaces") => &["metadata.name", "status.phase"],
        ("", "services") => &["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type"],
        ("", "replicationcontrollers") => &["metadata.name", "metadata.namespace", "status.replicas"],
        ("apps", "replicasets") => &["metadata.name", "metadata.namespace", "status.replicas"],
        ("batch", "jobs") => &["metadata.name", "metadata.namespace", "status.successful"],
        ("certificates.k8s.io", _) => &["metadata.name", "spec.signerName"],
        _ if resource.namespaced => &["metadata.name", "metadata.namespace"],
        _ => &["metadata.name"],
    }
}

impl FieldSelector {
    /// Parse `a=b,c!=d` for a resource; the empty text selects everything.
    pub fn parse(resource: &Resource, text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for part in split(text) {
            if part.is_empty() {
                continue;
            }
            let (field, equal, value) = if let Some((field, value)) = part.split_once("!=") {
                (field, false, value)
            } else if let Some((field, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (field, true, value)
            } else {
                return Err(SelectorError::Malformed(text.to_owned(), part));
            };
            if !supported(resource).contains(&field) {
                return Err(SelectorError::Unsupported(field.to_owned()));
            }
            terms.push((field.to_owned(), equal, unescape(value)));
        }
        Ok(Self { terms })
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The name that the selector asks for, if it asks for exactly one.
    pub fn name(&self) -> Option<&str> {
        self.terms
            .iter()
            .find(|(field, equal, _)| *equal && field == "metadata.name")
            .map(|(_, _, value)| value.as_str())
    }

    /// Whether an object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|(field, equal, wanted)| (value_of(object, field) == *wanted) == *equal)
    }
}

/// Split at commas that no backslash hides.
fn split(text: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            out.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(last) = out.last_mut() {
            last.push(c);
        }
    }
    out
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}

fn value_of(object: &Value, field: &str) -> String {
    let lookup = |path: &str| {
        let mut value = object;
        for step in path.split('.') {
            value = &value[step];
        }
        text(value)
    };
    match field {
        "spec.unschedulable" | "spec.hostNetwork" => match lookup(field).as_str() {
            "" => "false".to_owned(),
            other => other.to_owned(),
        },
        "status.successful" => lookup("status.succeeded"),
        // Both forms of events are stored alike; each form's names find either.
        "source" | "reportingComponent" | "reportingController" => {
            ["source.component", "reportingComponent", "reportingController"]
                .into_iter()
                .map(lookup)
                .find(|found| !found.is_empty())
                .unwrap_or_default()
        }
        _ => {
            let found = lookup(field);
            match (field.strip_prefix("involvedObject."), field.strip_prefix("regarding.")) {
                (Some(rest), _) if found.is_empty() => lookup(&format!("regarding.{rest}")),
                (_, Some(rest)) if found.is_empty() => lookup(&format!("involvedObject.{rest}")),
                _ => found,
            }
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::find;
    use serde_json::json;

    #[test]
    fn fields_select_and_unknown_ones_are_refused() {
        let pods = find("", "v1", "pods").unwrap();
        let pod = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        let cases = [
            ("", true),
            ("spec.nodeName=n", true),
            ("spec.nodeName==n,status.phase!=Failed,status.phase!=Succeeded", true),
            ("spec.nodeName=", false),
            ("metadata.name!=a", false),
            ("spec.hostNetwork=false", true),
        ];
        for (selector, want) in cases {
            assert_eq!(FieldSelector::parse(pods, selector).unwrap().matches(&pod), want, "{selector}");
        }
        assert_eq!(FieldSelector::parse(pods, "metadata.name=a").unwrap().name(), Some("a"));
        let refused = FieldSelector::parse(pods, "spec.foo=1").unwrap_err();
        assert_eq!(refused.to_string(), "field label not supported: spec.foo");
        assert!(FieldSelector::parse(pods, "nonsense").is_err());
    }

    #[test]
    fn events_are_found_by_what_they_are_about() {
        let events = find("", "v1", "events").unwrap();
        let selector = FieldSelector::parse(events, "involvedObject.name=a,involvedObject.uid=u").unwrap();
        assert!(selector.matches(&json!({"involvedObject": {"name": "a", "uid": "u"}})));
        assert!(!selector.matches(&json!({"involvedObject": {"name": "b", "uid": "u"}})));
    }
}
