//! `$(VAR)` expansion in commands, arguments, environment values and sub-paths, by upstream's rules.

use std::collections::HashMap;
use std::hash::BuildHasher;

/// Replaces `$(NAME)` by the variable's value; an unknown name stays as written, `$$` is one `$` (so `$$(NAME)` is the
/// literal `$(NAME)`), any other use of `$` is left alone.
///
/// ```
/// # use std::collections::HashMap;
/// let env = HashMap::from([("A".to_owned(), "x".to_owned())]);
/// assert_eq!(kubelet_volumes::expand("$(A)-$$(A)-$(B)", &env), "x-$(A)-$(B)");
/// ```
pub fn expand<S: BuildHasher>(text: &str, env: &HashMap<String, String, S>) -> String {
    expand_with(text, |name| env.get(name).cloned())
}

/// As [`expand`], with the variables behind a function.
pub(crate) fn expand_with(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|body| body.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&rest[at..at + 3 + name.len()]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_upstreams_syntax() {
        let env: HashMap<String, String> =
            [("A", "1"), ("B", "two"), ("EMPTY", ""), ("NEST", "$(A)")].map(|(k, v)| (k.into(), v.into())).into();
        for (text, want) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "1"),
            ("x$(A)y$(B)z", "x1ytwoz"),
            ("$(EMPTY)|", "|"),
            ("$(NEST)", "$(A)"),
            ("$(MISSING)", "$(MISSING)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$(A)", "$$(A)"),
            ("$A", "$A"),
            ("$", "$"),
            ("a$", "a$"),
            ("$(A", "$(A"),
            ("$(A$(B)", "$(A$(B)"),
            ("$()", "$()"),
            ("ä$(B)ß", "ätwoß"),
        ] {
            assert_eq!(expand(text, &env), want, "{text}");
        }
    }
}
