//! Which capabilities a container has.

use std::collections::BTreeSet;

/// Every capability by number, without `CAP_`.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The capabilities (`CAP_X`) for a request; those outside `bounding` are dropped.
///
/// # Errors
/// A name is unknown.
pub fn plan(privileged: bool, add: &[String], drop: &[String], bounding: u64) -> Result<Vec<String>, String> {
    let known = |name: &str| {
        let plain = name.to_uppercase();
        let plain = plain.strip_prefix("CAP_").unwrap_or(&plain).to_owned();
        ALL.iter().position(|c| *c == plain).ok_or_else(|| format!("capability {name:?} is unknown"))
    };
    let all: BTreeSet<usize> = (0..ALL.len()).collect();
    let of = |names: &[&str]| names.iter().filter_map(|n| known(n).ok()).collect::<BTreeSet<usize>>();
    let mut set = if privileged { all.clone() } else { of(&DEFAULT) };
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    if add.iter().any(is_all) {
        set = all;
    }
    if drop.iter().any(is_all) {
        set.clear();
    }
    for name in drop.iter().filter(|n| !is_all(n)) {
        set.remove(&known(name)?);
    }
    for name in add.iter().filter(|n| !is_all(n)) {
        set.insert(known(name)?);
    }
    Ok(set.into_iter().filter(|n| bounding >> n & 1 == 1).map(|n| format!("CAP_{}", ALL[n])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_all_and_add_one_leaves_one() {
        let set = plan(false, &["NET_ADMIN".into()], &["ALL".into()], u64::MAX).unwrap();
        assert_eq!(set, ["CAP_NET_ADMIN"]);
        assert_eq!(plan(false, &[], &[], u64::MAX).unwrap().len(), 14);
        assert_eq!(plan(true, &[], &[], !(1 << 24)).unwrap().len(), 40);
        assert!(plan(false, &["FLY".into()], &[], u64::MAX).is_err());
    }
}
