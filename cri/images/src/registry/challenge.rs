//! `WWW-Authenticate`: what a registry asks for. Pure.

use std::collections::BTreeMap;

/// One challenge: scheme in lower case and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) scheme: String,
    pub(crate) params: BTreeMap<String, String>,
}

/// Parses one header value, which may hold several challenges. What makes no sense is left out.
pub(crate) fn parse(value: &str) -> Vec<Challenge> {
    let mut out: Vec<Challenge> = Vec::new();
    let mut rest = value.trim();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c == ',' || c.is_whitespace()).unwrap_or(rest.len());
        let word = &rest[..end];
        let after = rest[end..].trim_start();
        if let Some(after) = after.strip_prefix('=') {
            let (text, next) = parameter(after.trim_start());
            if let Some(last) = out.last_mut() {
                last.params.insert(word.to_ascii_lowercase(), text);
            }
            rest = next;
        } else {
            if !word.is_empty() {
                out.push(Challenge { scheme: word.to_ascii_lowercase(), params: BTreeMap::new() });
            }
            rest = after;
        }
        rest = rest.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
    }
    out
}

/// A quoted string or token, and what follows it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(text.len());
        return (text[..end].to_string(), &text[end..]);
    };
    let mut out = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (out, &quoted[at + 1..]),
            '\\' => out.extend(chars.next().map(|(_, c)| c)),
            c => out.push(c),
        }
    }
    (out, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_parsed() {
        let got = parse(r#"Bearer realm="https://auth.x/token",service="reg, x",scope="repository:a/b:pull,push""#);
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].scheme, "bearer");
        assert_eq!(got[0].params["realm"], "https://auth.x/token");
        assert_eq!(got[0].params["service"], "reg, x");
        assert_eq!(got[0].params["scope"], "repository:a/b:pull,push");
        let two = parse(r#"Basic realm=a, Bearer realm="b\"c" , error=invalid"#);
        assert_eq!(two.iter().map(|c| c.scheme.as_str()).collect::<Vec<_>>(), ["basic", "bearer"]);
        assert_eq!(two[1].params["realm"], "b\"c");
        assert_eq!(parse("Negotiate")[0].scheme, "negotiate");
        assert!(parse("").is_empty());
        assert!(parse("=\"x").is_empty());
    }

    proptest::proptest! {
        #[test]
        fn any_text_ends(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
