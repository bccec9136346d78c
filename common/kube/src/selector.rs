//! Label selectors: the query form (`app=web,tier in (a,b),!old`) and the object form (`matchLabels`).
//!
//! Source of the behaviour: k8s.io/apimachinery labels.Parse and metav1.LabelSelector.

use std::collections::BTreeMap;

use serde_json::Value;

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// The label is there and its value is one of these.
    In(String, Vec<String>),
    /// The label is missing or its value is none of these.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is missing.
    DoesNotExist(String),
    /// The label is there and is an integer above this.
    GreaterThan(String, i64),
    /// The label is there and is an integer below this.
    LessThan(String, i64),
}

/// Conditions that must all hold; none selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

/// Why a selector does not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unable to parse requirement: {0}")]
pub struct ParseError(String);

impl Selector {
    /// Parses the query form. The empty text selects everything.
    ///
    /// # Errors
    /// The text is no selector; the message says where it stops being one.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut requirements = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (requirement, after) = one(rest)?;
            requirements.push(requirement);
            rest = match after.trim_start() {
                "" => "",
                after => after
                    .strip_prefix(',')
                    .map(str::trim)
                    .filter(|r| !r.is_empty())
                    .ok_or_else(|| ParseError(format!("found '{after}', expected: ',' or 'end of string'")))?,
            };
        }
        Ok(Self { requirements })
    }

    /// Reads a `metav1.LabelSelector`. Null selects nothing (`None`), an empty object everything.
    ///
    /// # Errors
    /// An operator is unknown or values are missing.
    pub fn from_object(selector: &Value) -> Result<Option<Self>, ParseError> {
        if selector.is_null() {
            return Ok(None);
        }
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            let value = value.as_str().ok_or_else(|| ParseError(format!("matchLabels[{key}] is not a string")))?;
            requirements.push(Requirement::In(key.clone(), vec![value.to_owned()]));
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            requirements.push(expression_of(expression)?);
        }
        Ok(Some(Self { requirements }))
    }

    /// Adds one condition (node affinity terms are built this way).
    pub fn require(&mut self, requirement: Requirement) {
        self.requirements.push(requirement);
    }

    /// Whether `label` (a look-up) satisfies every condition.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| r.matches(&label))
    }

    /// Whether a map of labels satisfies every condition.
    pub fn matches_map(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches(|key| labels.get(key).map(String::as_str))
    }

    /// Whether `metadata.labels` of a JSON object satisfies every condition.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.requirements.is_empty() || self.matches(|key| object["metadata"]["labels"][key].as_str())
    }

    /// Whether there is no condition.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
}

impl Requirement {
    /// Whether the labels behind `label` satisfy it.
    pub fn matches<'a>(&self, label: &impl Fn(&str) -> Option<&'a str>) -> bool {
        let number = |key: &str| label(key).and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::In(key, values) => label(key).is_some_and(|v| values.iter().any(|x| x == v)),
            Self::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|x| x != v)),
            Self::Exists(key) => label(key).is_some(),
            Self::DoesNotExist(key) => label(key).is_none(),
            Self::GreaterThan(key, n) => number(key).is_some_and(|v| v > *n),
            Self::LessThan(key, n) => number(key).is_some_and(|v| v < *n),
        }
    }
}

/// Reads `{key, operator, values}` as label selectors and node affinity write it.
///
/// # Errors
/// The operator is unknown, or its values are missing or of the wrong type.
pub fn expression_of(expression: &Value) -> Result<Requirement, ParseError> {
    let key = expression["key"].as_str().ok_or_else(|| ParseError("key: Required value".to_owned()))?.to_owned();
    let values: Vec<String> =
        expression["values"].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect();
    let number = || {
        let one = values.first().filter(|_| values.len() == 1);
        one.and_then(|v| v.parse().ok()).ok_or_else(|| ParseError(format!("{key}: values must be one integer")))
    };
    match expression["operator"].as_str().unwrap_or_default() {
        "In" | "NotIn" if values.is_empty() => {
            Err(ParseError(format!("{key}: for 'in', 'notin' operators, values set can't be empty")))
        }
        "In" => Ok(Requirement::In(key, values)),
        "NotIn" => Ok(Requirement::NotIn(key, values)),
        "Exists" => Ok(Requirement::Exists(key)),
        "DoesNotExist" => Ok(Requirement::DoesNotExist(key)),
        "Gt" => Ok(Requirement::GreaterThan(key.clone(), number()?)),
        "Lt" => Ok(Requirement::LessThan(key.clone(), number()?)),
        other => Err(ParseError(format!("{other:?} is not a valid label selector operator"))),
    }
}

fn one(text: &str) -> Result<(Requirement, &str), ParseError> {
    let wrong = |what: &str| ParseError(format!("found '{text}', expected: {what}"));
    if let Some(rest) = text.strip_prefix('!') {
        let (key, rest) = word(rest.trim_start());
        return if key.is_empty() {
            Err(wrong("identifier after '!'"))
        } else {
            Ok((Requirement::DoesNotExist(key.to_owned()), rest))
        };
    }
    let (key, rest) = word(text);
    if key.is_empty() {
        return Err(wrong("!, identifier, or 'end of string'"));
    }
    let key = key.to_owned();
    let rest = rest.trim_start();
    for (operator, negated) in [("!=", true), ("==", false), ("=", false)] {
        if let Some(after) = rest.strip_prefix(operator) {
            let (value, after) = word(after.trim_start());
            let values = vec![value.to_owned()];
            return Ok((if negated { Requirement::NotIn(key, values) } else { Requirement::In(key, values) }, after));
        }
    }
    for operator in ['>', '<'] {
        if let Some(after) = rest.strip_prefix(operator) {
            let (value, after) = word(after.trim_start());
            let n = value.parse().map_err(|_| wrong("an integer"))?;
            let greater = operator == '>';
            return Ok((if greater { Requirement::GreaterThan(key, n) } else { Requirement::LessThan(key, n) }, after));
        }
    }
    let (operator, after) = word(rest);
    match operator {
        "in" | "notin" => {
            let body = after.trim_start().strip_prefix('(').ok_or_else(|| wrong("'('"))?;
            let (inside, after) = body.split_once(')').ok_or_else(|| wrong("')'"))?;
            let values: Vec<String> = inside.split(',').map(|v| v.trim().to_owned()).collect();
            Ok((if operator == "in" { Requirement::In(key, values) } else { Requirement::NotIn(key, values) }, after))
        }
        "" => Ok((Requirement::Exists(key), rest)),
        _ => Err(wrong("in, notin, =, ==, !=, gt, lt")),
    }
}

fn word(text: &str) -> (&str, &str) {
    let end =
        text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn query_selectors_select_as_upstream_does() {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "a", "n": "5", "kubernetes.io/x": ""}}});
        for (selector, want) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=a", true),
            ("app!=web", false),
            ("other!=web", true),
            ("tier in (a, b)", true),
            ("tier notin (a,b)", false),
            ("other notin (a)", true),
            ("app", true),
            ("!app", false),
            ("!other", true),
            ("n>4", true),
            ("n<4", false),
            ("kubernetes.io/x=", true),
            ("app = web , tier", true),
        ] {
            assert_eq!(Selector::parse(selector).unwrap().matches_object(&object), want, "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for text in ["=a", "a in b", "a in (b", "a b", "a,", "n>x", "!", "a=b c"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn object_selectors_select_as_upstream_does() {
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let s = json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]});
        assert!(Selector::from_object(&s).unwrap().unwrap().matches_map(&labels));
        assert_eq!(Selector::from_object(&Value::Null).unwrap(), None);
        assert!(Selector::from_object(&json!({"matchExpressions": [{"key": "x", "operator": "Near"}]})).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,32}") {
            let _ = Selector::parse(&text);
        }
    }
}
