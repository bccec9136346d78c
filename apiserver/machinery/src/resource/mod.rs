//! The one table of resources that the apiserver serves: what discovery, OpenAPI, storage and tables all read.

mod builtin;

use std::fmt;

/// The verbs of an ordinary stored resource.
pub const STORED: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// The verb of a kind that is answered and never stored (reviews).
pub const CREATE: &[&str] = &["create"];

/// The name of a kind. `group` is empty for the core group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gvk<'a> {
    /// API group, empty for core.
    pub group: &'a str,
    /// API version, such as `v1`.
    pub version: &'a str,
    /// Kind, such as `Pod`.
    pub kind: &'a str,
}

impl<'a> Gvk<'a> {
    /// A kind by its three names.
    pub fn new(group: &'a str, version: &'a str, kind: &'a str) -> Self {
        Self { group, version, kind }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }
}

impl fmt::Display for Gvk<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}, Kind={}", self.api_version(), self.kind)
    }
}

/// `apps/v1` to its group and version; `v1` has the empty group.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// Group and version as an object's `apiVersion` writes them.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// A part of a resource with its own path, such as `pods/status`.
#[derive(Debug, PartialEq, Eq)]
pub struct Subresource {
    /// Last path segment, such as `status`.
    pub name: &'static str,
    /// Group of `kind` where it is not the resource's own.
    pub group: &'static str,
    /// Version of `kind`; empty where it is the resource's own.
    pub version: &'static str,
    /// Kind that requests and answers carry.
    pub kind: &'static str,
    /// Verbs that it answers.
    pub verbs: &'static [&'static str],
}

/// One served resource.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// API group, empty for core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Path segment, such as `pods`.
    pub plural: &'static str,
    /// Name of one, such as `pod`.
    pub singular: &'static str,
    /// Kind, such as `Pod`.
    pub kind: &'static str,
    /// Kind of a list, such as `PodList`.
    pub list_kind: &'static str,
    /// Abbreviations for people.
    pub short_names: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs that it answers.
    pub verbs: &'static [&'static str],
    /// Groups of resources for people, such as `all`.
    pub categories: &'static [&'static str],
    /// Parts with their own path.
    pub subresources: &'static [Subresource],
    /// Whether objects have a status that only `…/status` writes.
    pub has_status: bool,
    /// Whether a change of the spec increments `metadata.generation`.
    pub has_generation: bool,
    /// Storage group, for resources that two groups serve (`events`); otherwise `group`.
    pub storage_group: &'static str,
}

impl Resource {
    /// Every resource, core first, then by group in the order of discovery.
    pub fn all() -> &'static [Resource] {
        builtin::TABLE
    }

    /// Its kind.
    pub fn gvk(&self) -> Gvk<'static> {
        Gvk { group: self.group, version: self.version, kind: self.kind }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// `pods` or `deployments.apps`, as messages name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Whether objects are kept (reviews are only answered).
    pub fn stored(&self) -> bool {
        self.verbs.contains(&"get")
    }

    /// Whether it answers a verb.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// One of its parts.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|part| part.name == name)
    }
}

/// The resource at a path.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    Resource::all().iter().find(|r| r.plural == plural && r.group == group && r.version == version)
}

/// The resource of a kind.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    Resource::all().iter().find(|r| r.kind == kind && r.group == group && r.version == version)
}

/// Group and versions in the order of discovery; core (empty group) first.
pub fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut out: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    for resource in Resource::all() {
        match out.iter_mut().find(|(group, _)| *group == resource.group) {
            None => out.push((resource.group, vec![resource.version])),
            Some((_, versions)) if !versions.contains(&resource.version) => versions.push(resource.version),
            Some(_) => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for (index, resource) in Resource::all().iter().enumerate() {
            for other in &Resource::all()[index + 1..] {
                assert!((resource.group, resource.plural) != (other.group, other.plural), "{}", resource.qualified());
            }
            assert_eq!(find(resource.group, resource.version, resource.plural), Some(resource));
            assert_eq!(find_kind(resource.group, resource.version, resource.kind), Some(resource));
            assert_eq!(resource.list_kind, format!("{}List", resource.kind));
            assert_eq!(resource.has_status, resource.subresource("status").is_some(), "{}", resource.plural);
        }
        assert_eq!(groups()[0], ("", vec!["v1"]));
        assert!(find("", "v1", "nothing").is_none());
    }

    #[test]
    fn api_versions_split_and_join() {
        assert_eq!(split_api_version("v1"), ("", "v1"));
        assert_eq!(split_api_version("apps/v1"), ("apps", "v1"));
        assert_eq!(Gvk::new("apps", "v1", "Deployment").to_string(), "apps/v1, Kind=Deployment");
    }
}
