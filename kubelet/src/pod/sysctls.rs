//! Which sysctls a pod may set: the safe ones, and those that the configuration allows (pure).

use k8s_openapi::api::core::v1::Pod;

use super::host_network;

/// Safe: they belong to the pod's own namespaces and harm nobody else.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// `net/ipv4/x` is `net.ipv4.x`; with dots first, slashes stand for dots inside a name.
fn normal(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn fits(name: &str, pattern: &str) -> bool {
    let pattern = normal(pattern);
    pattern.strip_suffix('*').map_or(name == pattern, |prefix| name.starts_with(prefix))
}

/// Why a pod's sysctls are forbidden, if they are. `allowed` are the patterns of `allowedUnsafeSysctls`.
pub(crate) fn forbidden(pod: &Pod, allowed: &[String]) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let ipc = |name: &str| {
        name.starts_with("kernel.shm")
            || name.starts_with("kernel.msg")
            || name == "kernel.sem"
            || name.starts_with("fs.mqueue.")
    };
    for sysctl in spec.security_context.as_ref()?.sysctls.iter().flatten() {
        let name = normal(&sysctl.name);
        if host_network(pod) && name.starts_with("net.") {
            return Some(format!("forbidden sysctl: {:?} not allowed with host net enabled", sysctl.name));
        }
        if spec.host_ipc == Some(true) && ipc(&name) {
            return Some(format!("forbidden sysctl: {:?} not allowed with host ipc enabled", sysctl.name));
        }
        if !SAFE.contains(&name.as_str()) && !allowed.iter().any(|pattern| fits(&name, pattern)) {
            return Some(format!("forbidden sysctl: {:?} not allowlisted", sysctl.name));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn safe_sysctls_pass_and_others_need_to_be_allowed() {
        for (name, host, allowed, want) in [
            ("kernel.shm_rmid_forced", false, "", None),
            ("net/ipv4/tcp_syncookies", false, "", None),
            ("net.core.somaxconn", false, "", Some("not allowlisted")),
            ("net.core.somaxconn", false, "net.core.*", None),
            ("net.core.somaxconn", false, "net.core.somaxconn", None),
            ("kernel.msgmax", false, "kernel.shm*", Some("not allowlisted")),
            ("net.ipv4.tcp_syncookies", true, "", Some("host net")),
            ("kernel.shm_rmid_forced", true, "", Some("host ipc")),
        ] {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [],
                "hostNetwork": host, "hostIPC": host, "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}}))
            .unwrap();
            let got = forbidden(&pod, &[allowed.to_owned()]);
            match want {
                None => assert_eq!(got, None, "{name}"),
                Some(text) => assert!(got.unwrap().contains(text), "{name}"),
            }
        }
    }
}
