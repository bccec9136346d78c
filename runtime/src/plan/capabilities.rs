//! Capability names and masks.

use gantry_sys::capability::Sets;

use crate::spec::Capabilities;

/// All capabilities by number, as of Linux 5.9 (the newest is CAP_CHECKPOINT_RESTORE).
pub(crate) const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Masks to set, and what had to be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The bounding set.
    pub(crate) bounding: u64,
    /// Effective, permitted and inheritable.
    pub(crate) sets: Sets,
    /// The ambient set.
    pub(crate) ambient: u64,
    /// Names that this host or kernel cannot give, for a warning.
    pub(crate) missing: Vec<String>,
}

/// What to set where the caller's bounding set is `available`. What is not available, or unknown, is left out: engines ask
/// for more than restricted hosts have, and expect a warning.
pub(crate) fn plan(wanted: Option<&Capabilities>, available: u64) -> Plan {
    let Some(wanted) = wanted else { return Plan::default() };
    let mut missing = Vec::new();
    let mut mask = |names: &[String]| {
        let mut set = 0;
        for name in names {
            match NAMES.iter().position(|n| n == name).map(|n| 1_u64 << n).filter(|bit| available & bit != 0) {
                Some(bit) => set |= bit,
                None if missing.contains(name) => {}
                None => missing.push(name.clone()),
            }
        }
        set
    };
    let (bounding, permitted) = (mask(&wanted.bounding), mask(&wanted.permitted));
    let (effective, inheritable) = (mask(&wanted.effective) & permitted, mask(&wanted.inheritable));
    // Ambient capabilities must be permitted and inheritable, or the kernel refuses them.
    let ambient = mask(&wanted.ambient) & permitted & inheritable;
    Plan { bounding, sets: Sets { effective, permitted, inheritable }, ambient, missing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_cannot_give_is_left_out_and_named() {
        let names = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let all = names(&["CAP_CHOWN", "CAP_SYS_RESOURCE", "CAP_NEW"]);
        let wanted = Capabilities {
            bounding: all.clone(),
            effective: all.clone(),
            permitted: all.clone(),
            inheritable: vec![],
            ambient: names(&["CAP_CHOWN"]),
        };
        let got = plan(Some(&wanted), !(1 << 24));
        assert_eq!((got.bounding, got.sets.effective, got.ambient), (1, 1, 0));
        assert_eq!(got.missing, ["CAP_SYS_RESOURCE", "CAP_NEW"]);
        assert_eq!(plan(None, u64::MAX), Plan::default());
    }

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(NAMES[21], "CAP_SYS_ADMIN");
        assert_eq!(NAMES[40], "CAP_CHECKPOINT_RESTORE");
    }
}
