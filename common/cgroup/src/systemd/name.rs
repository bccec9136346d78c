//! Names of units and the groups that they stand for. Pure.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A slice or scope of systemd and the place of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The unit's name, with `.slice` or `.scope`.
    name: String,
    /// The slice that it is in, with `.slice`; `-.slice` is the root.
    slice: String,
}

impl Unit {
    /// Reads what `linux.cgroupsPath` holds under the systemd driver: `SLICE:PREFIX:NAME`. The unit is `PREFIX-NAME.scope`,
    /// `NAME.scope` without a prefix, or the slice `NAME` where that ends in `.slice`. Without a slice it is `system.slice`,
    /// for a user's manager `user.slice`.
    ///
    /// # Errors
    /// It has not three parts, or a part is no name of a unit.
    pub fn parse(text: &str, user: bool) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let &[slice, prefix, name] = &parts[..] else {
            return Err(Error::Invalid(format!(
                "cgroup path {text:?}: the systemd driver wants SLICE:PREFIX:NAME, such as system.slice:gantry:web"
            )));
        };
        let slice = match (slice, user) {
            ("", false) => "system.slice",
            ("", true) => "user.slice",
            (slice, _) => slice,
        };
        path_of_slice(slice)?;
        if name.ends_with(".slice") {
            return Self::slice(name);
        }
        let name = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        check(&name)?;
        Ok(Self { name, slice: slice.to_owned() })
    }

    /// The scope for a container without a word on its cgroup: `system.slice:gantry:ID`.
    ///
    /// # Errors
    /// The id is no part of a unit's name.
    pub fn of_container(id: &str, user: bool) -> Result<Self> {
        Self::parse(&format!(":gantry:{id}"), user)
    }

    /// The slice of that name (`kubepods-burstable.slice`).
    ///
    /// # Errors
    /// It is no name of a slice.
    pub fn slice(name: &str) -> Result<Self> {
        path_of_slice(name)?;
        let parent = name.rsplit_once('-').map(|(parent, _)| parent).filter(|p| !p.is_empty());
        Ok(Self { name: name.to_owned(), slice: parent.map_or_else(|| "-.slice".to_owned(), |p| format!("{p}.slice")) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of the slice that it is in.
    pub fn parent(&self) -> &str {
        &self.slice
    }

    /// Whether it is a slice.
    pub fn is_slice(&self) -> bool {
        self.name.ends_with(".slice")
    }

    /// Its group below the manager's own.
    pub fn path(&self) -> PathBuf {
        // Both were read when the unit was made.
        if self.is_slice() {
            return path_of_slice(&self.name).unwrap_or_default();
        }
        path_of_slice(&self.slice).unwrap_or_default().join(&self.name)
    }
}

/// The group of a slice: `a-b-c.slice` is `/a.slice/a-b.slice/a-b-c.slice` (systemd.slice(5)).
///
/// # Errors
/// It is no name of a slice.
pub(crate) fn path_of_slice(name: &str) -> Result<PathBuf> {
    let wrong = |why: &str| Error::Invalid(format!("{name:?} is no name of a systemd slice: {why}"));
    let stem = name.strip_suffix(".slice").ok_or_else(|| wrong("it does not end in .slice"))?;
    if stem == "-" {
        return Ok(PathBuf::from("/"));
    }
    check(name)?;
    if stem.is_empty() || stem.split('-').any(str::is_empty) {
        return Err(wrong("a part between dashes is empty"));
    }
    let mut path = PathBuf::from("/");
    for (at, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
        path.push(Path::new(&format!("{}.slice", &stem[..at])));
    }
    Ok(path)
}

/// systemd.unit(5): letters, digits and `:-_.\@`, 255 characters at most.
fn check(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if name.len() > 255 || name.starts_with('.') || !name.chars().all(allowed) {
        return Err(Error::Invalid(format!(
            "{name:?} is no name of a systemd unit: at most 255 of letters, digits and :-_.\\@"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_name_their_groups() {
        for (text, name, path) in [
            ("system.slice:runc:434234", "runc-434234.scope", "/system.slice/runc-434234.scope"),
            ("::web", "web.scope", "/system.slice/web.scope"),
            ("-.slice:a:b", "a-b.scope", "/a-b.scope"),
            ("a-b.slice:x:y", "x-y.scope", "/a.slice/a-b.slice/x-y.scope"),
            ("a.slice::a-b-c.slice", "a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice"),
        ] {
            let unit = Unit::parse(text, false).unwrap();
            assert_eq!((unit.name(), unit.path().as_path()), (name, Path::new(path)), "{text}");
        }
        assert_eq!(Unit::parse("::a", true).unwrap().parent(), "user.slice");
        let pod = Unit::slice("kubepods-besteffort-pod1_2.slice").unwrap();
        assert_eq!(pod.parent(), "kubepods-besteffort.slice");
        assert_eq!(Unit::slice("kubepods.slice").unwrap().parent(), "-.slice");
    }

    #[test]
    fn what_is_no_unit_is_refused() {
        for wrong in [
            "",
            "/a/b",
            "a:b",
            "a.slice:b:c:d",
            "a:b:c",
            "a--b.slice:b:c",
            "-a.slice:b:c",
            "a.slice:b:c/d",
            "a/b.slice:b:c",
        ] {
            let error = Unit::parse(wrong, false).unwrap_err().to_string();
            assert!(error.contains("systemd"), "{wrong}: {error}");
        }
        assert!(Unit::slice("a.scope").is_err() && Unit::slice(".slice").is_err());
    }
}
