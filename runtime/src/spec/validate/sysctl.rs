//! Which kernel parameters a container may have: those that belong to a namespace of its own.

use gantry_sys::namespaces::sysctl_path;

use crate::error::Result;
use crate::fail;

/// IPC parameters below `kernel`.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// The namespace (as the configuration names it) that a parameter belongs to. `key` is with slashes.
fn namespace(key: &str) -> Option<&'static str> {
    match key {
        _ if IPC.contains(&key) || key.starts_with("fs/mqueue/") => Some("ipc"),
        _ if key.starts_with("net/") => Some("network"),
        "kernel/domainname" | "kernel/hostname" => Some("uts"),
        _ if key.starts_with("user/") => Some("user"),
        _ => None,
    }
}

/// Checks one parameter; `has` tells whether the container has a namespace of a kind, `named` whether it has a host name.
///
/// # Errors
/// It would change the host, or contradicts the host name.
pub(super) fn sysctl(key: &str, has: impl Fn(&str) -> bool, named: bool) -> Result<()> {
    let Some(path) = sysctl_path(key).ok().filter(|_| !key.contains('\0')) else {
        fail!("linux.sysctl: {key:?} is no sysctl")
    };
    let path = path.strip_prefix("/proc/sys").unwrap_or(&path).to_string_lossy();
    match namespace(&path) {
        None => fail!("linux.sysctl: {key} is not in a namespace of the container"),
        Some(kind) if !has(kind) => fail!("linux.sysctl: {key} needs a {kind} namespace"),
        Some(_) if path == "kernel/hostname" && named => fail!("linux.sysctl: {key} contradicts hostname"),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_of_own_namespaces_may_be_set() {
        let all = |_: &str| true;
        for key in
            ["net.ipv4.ip_forward", "net/ipv4/conf/eth0.1/x", "kernel.shmmax", "fs.mqueue.msg_max", "kernel.hostname"]
        {
            assert!(sysctl(key, all, false).is_ok(), "{key}");
            assert!(sysctl(key, |_| false, false).is_err(), "{key}");
        }
        for key in ["kernel.core_pattern", "vm.swappiness", "kernel.shmmax.x", "", "../x", "net", "kernel.modprobe"] {
            assert!(sysctl(key, all, false).is_err(), "{key}");
        }
        assert!(sysctl("kernel.hostname", all, true).is_err());
    }
}
