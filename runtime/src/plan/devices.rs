//! The devices every container has, and the rules that let it use them.

use gantry_cgroup::{Access, DeviceKind, DeviceRule};

use crate::error::{Error, Result};
use crate::spec::{Device, DeviceCgroup};

/// The device nodes that the specification asks for: (path, major, minor).
pub(crate) const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The links that the specification asks for: (path, target).
pub(crate) const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// The device rules of a container: those of the configuration, then those without which nothing runs.
///
/// # Errors
/// A rule's type or access is unknown, by index.
pub(crate) fn rules(asked: &[DeviceCgroup]) -> Result<Vec<DeviceRule>> {
    let mut rules = Vec::new();
    for (i, rule) in asked.iter().enumerate() {
        let wrong = |why: String| Error::new(format!("linux.resources.devices[{i}]: {why}"));
        let kind = match rule.kind.as_deref().unwrap_or("a") {
            "a" | "" => DeviceKind::All,
            "c" | "u" => DeviceKind::Char,
            "b" => DeviceKind::Block,
            other => return Err(wrong(format!("type {other:?} is none of a, c, b"))),
        };
        let number = |n: Option<i64>| match n {
            None | Some(-1) => Ok(None),
            Some(n) => u32::try_from(n).map(Some).map_err(|_| wrong(format!("device number {n} is out of range"))),
        };
        rules.push(DeviceRule {
            allow: rule.allow,
            kind,
            major: number(rule.major)?,
            minor: number(rule.minor)?,
            access: Access::parse(rule.access.as_deref().unwrap_or("")).map_err(wrong)?,
        });
    }
    let node =
        |major, minor: Option<u32>, access| DeviceRule { allow: true, kind: DeviceKind::Char, major, minor, access };
    // Making any node is harmless where using it is denied, and images make them when they are unpacked.
    let mknod = Access { mknod: true, ..Access::default() };
    rules.push(node(None, None, mknod));
    rules.push(DeviceRule { kind: DeviceKind::Block, ..node(None, None, mknod) });
    rules.extend(DEFAULT.iter().map(|(_, major, minor)| node(Some(*major), Some(*minor), Access::ALL)));
    // Terminals: the multiplexer and every pseudo terminal.
    rules.push(node(Some(5), Some(2), Access::ALL));
    rules.push(node(Some(136), None, Access::ALL));
    Ok(rules)
}

/// Whether two nodes are for the same place.
pub(crate) fn is_default(device: &Device) -> bool {
    DEFAULT.iter().any(|(path, _, _)| device.path == std::path::Path::new(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_rule_is_named_by_its_index() {
        let rule = |kind: &str| DeviceCgroup { kind: Some(kind.to_owned()), ..DeviceCgroup::default() };
        assert!(rules(&[rule("c"), rule("z")]).unwrap_err().to_string().contains("devices[1]"));
        let number = DeviceCgroup { major: Some(-7), ..DeviceCgroup::default() };
        assert!(rules(&[number]).is_err());
    }
}
