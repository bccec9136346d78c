//! Image names: what cannot be one, and what one means with all that may be left out (pure).

/// Refuses what cannot be an image name; the registry client has the last word.
pub(crate) fn check(image: &str) -> Result<(), &'static str> {
    let (name, digest) = image.split_once('@').map_or((image, None), |(n, d)| (n, Some(d)));
    let path_start = name.find('/').map_or(0, |i| i + 1);
    let (path, tag) = match name[path_start..].rsplit_once(':') {
        Some((path, tag)) => (format!("{}{path}", &name[..path_start]), Some(tag)),
        None => (name.to_owned(), None),
    };
    if path.is_empty() {
        return Err("repository name must not be empty");
    }
    let word = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let repository = path.split('/').enumerate().all(|(i, part)| {
        let host = i == 0 && path.contains('/');
        !part.is_empty()
            && part.chars().all(|c| word(c) || (host && ":[]".contains(c)))
            && (host || !part.chars().any(|c| c.is_ascii_uppercase()))
    });
    if !repository {
        return Err("invalid reference format");
    }
    if tag.is_some_and(|t| t.is_empty() || t.len() > 128 || !t.chars().all(word)) {
        return Err("invalid tag format");
    }
    if digest.is_some_and(|d| {
        !d.split_once(':').is_some_and(|(_, hex)| hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit()))
    }) {
        return Err("invalid digest format");
    }
    Ok(())
}

/// The registry that an image's name means, and the name behind it.
fn split(image: &str) -> (&str, String) {
    let (first, rest) = image.split_once('/').unwrap_or(("", image));
    let explicit = first.contains(['.', ':']) || first == "localhost";
    match (explicit, first.is_empty()) {
        (true, _) => (first, rest.to_owned()),
        (false, true) => ("docker.io", format!("library/{rest}")),
        (false, false) => ("docker.io", image.to_owned()),
    }
}

/// The image's registry.
pub(crate) fn registry(image: &str) -> &str {
    split(image).0
}

/// `registry/path` without tag and digest: what credentials are about.
pub(crate) fn repository(image: &str) -> String {
    let (host, path) = split(image);
    let path = path.split('@').next().unwrap_or_default();
    let last = path.rfind('/').map_or(0, |i| i + 1);
    let end = path[last..].find(':').map_or(path.len(), |i| last + i);
    format!("{host}/{}", &path[..end])
}

/// The name with registry and tag added where they were left out, so that names can be compared.
pub(crate) fn full(image: &str) -> String {
    let (host, path) = split(image);
    let last = path.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) { format!("{host}/{path}") } else { format!("{host}/{path}:latest") }
}

/// Whether an image's repository is one that a pattern of `matchImages` means: as many parts of the host, each a glob;
/// the same port; and the pattern's path as the beginning of the image's.
pub(crate) fn matches(pattern: &str, image: &str) -> bool {
    let bare = pattern.trim_start_matches("https://").trim_start_matches("http://");
    let (wanted_host, wanted_path) = bare.split_once('/').unwrap_or((bare, ""));
    let repository = repository(image);
    let (host, path) = repository.split_once('/').unwrap_or((&repository, ""));
    let port = |host: &str| host.rsplit_once(':').map(|(h, p)| (h.to_owned(), p.to_owned()));
    let (wanted_name, wanted_port) = port(wanted_host).unwrap_or((wanted_host.to_owned(), String::new()));
    let (name, port) = port(host).unwrap_or((host.to_owned(), String::new()));
    if wanted_port != port || !path.starts_with(wanted_path.trim_end_matches('/')) {
        return false;
    }
    let (wanted, parts): (Vec<&str>, Vec<&str>) = (wanted_name.split('.').collect(), name.split('.').collect());
    wanted.len() == parts.len() && wanted.iter().zip(&parts).all(|(pattern, part)| glob(pattern, part))
}

/// `*` is any text, `?` one character. A pattern's stars cost no more than the text's length each, however many there are.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Behind the last star, and what of the text it was given last.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                p += 1;
                retry = Some((p, t));
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match &mut retry {
                Some((behind, given)) => {
                    *given += 1;
                    (p, t) = (*behind, *given);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_names_are_refused() {
        for good in [
            "busybox",
            "a/b:1.2",
            "localhost:5000/x/y",
            "r.io/a@sha256:0123456789abcdef0123456789abcdef",
            "gantry.local/demo:latest",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", "Busy Box", "a//b", "a:b c", "UPPER/x/Y", "a@sha256:xyz"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_left_out_is_added() {
        for (image, whole, without_tag) in [
            ("busybox", "docker.io/library/busybox:latest", "docker.io/library/busybox"),
            ("a/b:1", "docker.io/a/b:1", "docker.io/a/b"),
            ("r.io:5000/a/b@sha256:0123", "r.io:5000/a/b@sha256:0123", "r.io:5000/a/b"),
            ("localhost/x", "localhost/x:latest", "localhost/x"),
            ("r.io/a:1@sha256:0123", "r.io/a:1@sha256:0123", "r.io/a"),
        ] {
            assert_eq!((full(image).as_str(), repository(image).as_str()), (whole, without_tag));
        }
    }

    #[test]
    fn a_pattern_of_stars_is_no_work() {
        let (stars, text) = ("*a".repeat(40) + "b", "a".repeat(60));
        assert!(!glob(&stars, &text));
        assert!(glob(&("*a".repeat(40) + "*"), &text) && glob("a*c?e*", "abcde") && !glob("a*c?e", "abcdef"));
        assert!(glob("", "") && glob("**", "") && !glob("?", "") && glob("*é", "caféé"));
    }

    #[test]
    fn patterns_match_as_upstreams() {
        for (pattern, image, want) in [
            ("r.io", "r.io/a/b:1", true),
            ("*.r.io", "eu.r.io/a", true),
            ("*.r.io", "r.io/a", false),
            ("*.r.io", "a.b.r.io/a", false),
            ("*.*.r.io", "a.b.r.io/a", true),
            ("prefix*.r.io", "prefix7.r.io/a", true),
            ("123456789.dkr.ecr.*.amazonaws.com", "123456789.dkr.ecr.us-east-1.amazonaws.com/x", true),
            ("r.io:5000", "r.io/a", false),
            ("r.io:5000", "r.io:5000/a", true),
            ("r.io", "r.io:5000/a", false),
            ("r.io/team", "r.io/team/app", true),
            ("r.io/team", "r.io/other/app", false),
            ("docker.io", "busybox", true),
        ] {
            assert_eq!(matches(pattern, image), want, "{pattern} {image}");
        }
    }
}
