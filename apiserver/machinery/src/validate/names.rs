//! The syntaxes of names, with upstream's texts for what breaks them. Each function returns what is wrong.

use std::sync::OnceLock;

use regex::Regex;

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

macro_rules! matches {
    ($pattern:expr, $text:expr) => {{
        static REGEX: OnceLock<Option<Regex>> = OnceLock::new();
        let regex = REGEX.get_or_init(|| Regex::new(&format!("^{}$", $pattern)).ok());
        regex.as_ref().is_some_and(|regex| regex.is_match($text))
    }};
}

fn too_long(text: &str, max: usize) -> Option<String> {
    (text.len() > max).then(|| format!("must be no more than {max} bytes"))
}

fn explain(what: &str, example: &str, pattern: &str) -> String {
    let examples: Vec<String> = example.split('|').map(|example| format!("'{example}'")).collect();
    format!("{what} (e.g. {}, regex used for validation is '{pattern}')", examples.join(", or "))
}

/// A DNS-1123 label, such as a container's name.
pub fn dns_label(text: &str) -> Vec<String> {
    let mut out: Vec<String> = too_long(text, 63).into_iter().collect();
    if !matches!(LABEL, text) {
        let what = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
                    end with an alphanumeric character";
        out.push(explain(what, "my-name|123-abc", LABEL));
    }
    out
}

/// A DNS-1035 label, such as a service's name.
pub(super) fn dns_1035(text: &str) -> Vec<String> {
    let pattern = "[a-z]([-a-z0-9]*[a-z0-9])?";
    let mut out: Vec<String> = too_long(text, 63).into_iter().collect();
    if !matches!(pattern, text) {
        let what = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
                    character, and end with an alphanumeric character";
        out.push(explain(what, "my-name|abc-123", pattern));
    }
    out
}

/// A DNS-1123 subdomain, such as a pod's name.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    let mut out: Vec<String> = too_long(text, 253).into_iter().collect();
    if !matches!(SUBDOMAIN, text) {
        let what = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
                    start and end with an alphanumeric character";
        out.push(explain(what, "example.com", SUBDOMAIN));
    }
    out
}

/// A name that is a path segment (RBAC).
pub(super) fn path_segment(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text == "." || text == ".." {
        out.push(format!("may not be '{text}'"));
    }
    out.extend(["/", "%"].iter().filter(|bad| text.contains(**bad)).map(|bad| format!("may not contain '{bad}'")));
    out
}

/// A key of labels and annotations: `name` or `prefix/name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let name = match text.split_once('/') {
        Some((_, rest)) if rest.contains('/') => {
            let what = "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
                        an alphanumeric character";
            let example = explain(what, "MyName|my.name|123-abc", QUALIFIED);
            return vec![format!(
                "{example} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some(("", name)) => {
            out.push("prefix part must be non-empty".to_owned());
            name
        }
        Some((prefix, name)) => {
            out.extend(dns_subdomain(prefix).into_iter().map(|text| format!("prefix part {text}")));
            name
        }
        None => text,
    };
    if name.is_empty() {
        out.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        out.push("name part must be no more than 63 bytes".into());
    }
    if !matches!(QUALIFIED, name) {
        let what = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                    alphanumeric character";
        out.push(explain(what, "MyName|my.name|123-abc", QUALIFIED));
    }
    out
}

/// A label's value.
pub fn label_value(text: &str) -> Vec<String> {
    let mut out: Vec<String> = too_long(text, 63).into_iter().collect();
    let pattern = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
    if !matches!(pattern, text) {
        let what = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
                    start and end with an alphanumeric character";
        out.push(explain(what, "MyValue|my_value|12345", pattern));
    }
    out
}

/// A key of a ConfigMap or Secret.
pub(super) fn config_key(text: &str) -> Vec<String> {
    let mut out: Vec<String> = too_long(text, 253).into_iter().collect();
    let pattern = "[-._a-zA-Z0-9]+";
    if !matches!(pattern, text) {
        let what = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        out.push(explain(what, "key.name|KEY_NAME|key-name", pattern));
    }
    if text == "." || text == ".." {
        out.push(format!("must not be '{text}'"));
    } else if text.starts_with("..") {
        out.push("must not start with '..'".into());
    }
    out
}

/// An environment variable's name: printable ASCII without `=`.
pub(super) fn env_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

/// The name of a port.
pub(super) fn port_name(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 15 {
        out.push("must be no more than 15 characters".to_owned());
    }
    if !text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}
