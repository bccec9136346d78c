//! Names in a layer: cleaned lexically, told apart from whiteouts. Pure.

/// Whiteout prefix and the opaque marker of the OCI layer format.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const META: &[u8] = b".wh..wh.";

/// A path relative to the layer's root, without `.`, `..`, empty or over-long parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    /// Directory part, empty for the root.
    pub(crate) parent: Vec<u8>,
    /// Last part; empty when the name is the root itself.
    pub(crate) base: Vec<u8>,
}

/// What an entry's base name asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    /// An ordinary entry.
    Plain,
    /// Hide what lower layers have in this directory.
    Opaque,
    /// Hide this name of lower layers.
    Whiteout(&'a [u8]),
    /// aufs bookkeeping that means nothing here.
    Ignore,
}

impl Name {
    /// Cleans `path`; a leading slash means the layer's root. An error says why it cannot be in a layer.
    pub(crate) fn parse(path: &[u8]) -> Result<Name, &'static str> {
        let mut parts: Vec<&[u8]> = Vec::new();
        if path.contains(&0) {
            return Err("the name holds a NUL byte");
        }
        for part in path.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    parts.pop().ok_or("the name leaves the layer with '..'")?;
                }
                part if part.len() > 255 => return Err("a part of the name is longer than 255 bytes"),
                part => parts.push(part),
            }
        }
        let base = parts.pop().unwrap_or_default().to_vec();
        let parent = parts.join(&b'/');
        if parent.len() + base.len() > 4000 {
            return Err("the name is longer than 4000 bytes");
        }
        Ok(Name { parent, base })
    }

    /// What the base name means.
    pub(crate) fn meaning(&self) -> Result<Meaning<'_>, &'static str> {
        if self.base == OPAQUE {
            return Ok(Meaning::Opaque);
        }
        if self.base.starts_with(META) {
            return Ok(Meaning::Ignore);
        }
        match self.base.strip_prefix(WHITEOUT) {
            None => Ok(Meaning::Plain),
            Some(b"" | b"." | b"..") => Err("the whiteout names nothing"),
            Some(hidden) => Ok(Meaning::Whiteout(hidden)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_or_refused() {
        let table: &[(&str, Option<(&str, &str)>)] = &[
            ("a/b/c", Some(("a/b", "c"))),
            ("./a//b/", Some(("a", "b"))),
            ("/etc/passwd", Some(("etc", "passwd"))),
            ("a/../b", Some(("", "b"))),
            ("./", Some(("", ""))),
            ("/", Some(("", ""))),
            ("../x", None),
            ("a/../../x", None),
            ("/../x", None),
            ("a\0b", None),
        ];
        for (path, want) in table {
            let got = Name::parse(path.as_bytes()).ok();
            let want = want.map(|(p, b)| Name { parent: p.into(), base: b.into() });
            assert_eq!(got, want, "{path:?}");
        }
        assert!(Name::parse(&b"x".repeat(256)).is_err());
        assert!(Name::parse(&b"y/".repeat(3000)).is_err());
    }

    #[test]
    fn whiteouts_are_recognised() {
        let meaning = |p: &str| Name::parse(p.as_bytes()).unwrap().meaning().map(|m| format!("{m:?}"));
        assert_eq!(meaning("a/b"), Ok("Plain".into()));
        assert_eq!(meaning("a/.wh..wh..opq"), Ok("Opaque".into()));
        assert_eq!(meaning("a/.wh.b"), Ok(format!("{:?}", Meaning::Whiteout(b"b"))));
        assert_eq!(meaning(".wh..wh.plnk"), Ok("Ignore".into()));
        assert!(meaning(".wh.").is_err());
        assert!(meaning(".wh...").is_err(), "a whiteout of '..'");
    }
}
