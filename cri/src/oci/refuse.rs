//! What a request says and this runtime cannot do, refused by name: a field is honoured or refused, never passed over in silence.

use proto::cri;
use proto::cri::security_profile::ProfileType;

type Verdict = Result<(), String>;

/// Whether the kernel enforces SELinux. Where it does not, labels say nothing, and other runtimes take them as well.
pub fn selinux() -> bool {
    std::path::Path::new("/sys/fs/selinux/enforce").exists()
}

fn labels(options: Option<&cri::SeLinuxOption>, selinux: bool) -> Verdict {
    match options {
        Some(o) if selinux && [&o.user, &o.role, &o.r#type, &o.level].iter().any(|part| !part.is_empty()) => {
            Err("selinux_options: this runtime sets no SELinux labels".to_owned())
        }
        _ => Ok(()),
    }
}

fn namespaces(options: Option<&cri::NamespaceOption>) -> Verdict {
    let Some(options) = options else { return Ok(()) };
    for (name, mode) in [("network", options.network), ("pid", options.pid), ("ipc", options.ipc)] {
        let known = cri::NamespaceMode::try_from(mode)
            .map_err(|_| format!("namespace_options.{name}: mode {mode} is unknown"))?;
        if known == cri::NamespaceMode::Target && name != "pid" {
            return Err(format!("namespace_options.{name}: TARGET is for the PID namespace"));
        }
    }
    if options.pid() == cri::NamespaceMode::Target && options.target_id.is_empty() {
        return Err("namespace_options.target_id is empty, and pid is TARGET".to_owned());
    }
    Ok(())
}

/// Judges what is asked of a pod. Pure.
///
/// # Errors
/// The field, and why not.
pub fn pod(config: &cri::PodSandboxConfig, selinux: bool) -> Verdict {
    if config.windows.is_some() {
        return Err("windows: this runtime makes Linux pods".to_owned());
    }
    for port in &config.port_mappings {
        let all = [("container_port", port.container_port), ("host_port", port.host_port)];
        if let Some((name, number)) = all.into_iter().find(|(_, n)| !(0..=65535).contains(n)) {
            return Err(format!("port_mappings: {name} {number} is no port"));
        }
        if cri::Protocol::try_from(port.protocol).is_err() {
            return Err(format!("port_mappings: protocol {} is unknown", port.protocol));
        }
    }
    let Some(security) = config.linux.as_ref().and_then(|l| l.security_context.as_ref()) else { return Ok(()) };
    labels(security.selinux_options.as_ref(), selinux)?;
    namespaces(security.namespace_options.as_ref())
}

/// Judges what is asked of a container. Pure.
///
/// # Errors
/// The field, and why not.
pub fn container(config: &cri::ContainerConfig, selinux: bool) -> Verdict {
    if config.windows.is_some() {
        return Err("windows: this runtime makes Linux containers".to_owned());
    }
    if cri::Signal::try_from(config.stop_signal).is_err() {
        return Err(format!("stop_signal: signal {} is unknown", config.stop_signal));
    }
    for device in &config.devices {
        if let Some(other) = device.permissions.chars().find(|c| !"rwm".contains(*c)) {
            return Err(format!("device {}: permission {other:?} is none of r, w and m", device.host_path));
        }
    }
    for mount in &config.mounts {
        let place = format!("mount to {}", mount.container_path);
        if mount.selinux_relabel && selinux {
            return Err(format!("{place}: selinux_relabel: this runtime sets no SELinux labels"));
        }
        if cri::MountPropagation::try_from(mount.propagation).is_err() {
            return Err(format!("{place}: propagation {} is unknown", mount.propagation));
        }
        if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
            return Err(format!("{place}: uidMappings and gidMappings go together"));
        }
        if !mount.image_sub_path.is_empty() && mount.image.as_ref().is_none_or(|i| i.image.is_empty()) {
            return Err(format!("{place}: image_sub_path is set without image"));
        }
    }
    let Some(security) = config.linux.as_ref().and_then(|l| l.security_context.as_ref()) else { return Ok(()) };
    labels(security.selinux_options.as_ref(), selinux)?;
    namespaces(security.namespace_options.as_ref())
}

fn old_profile<'a>(name: &'a str, field: &str) -> Result<Option<(ProfileType, &'a str)>, String> {
    match name {
        "" => Ok(None),
        "unconfined" => Ok(Some((ProfileType::Unconfined, ""))),
        "runtime/default" | "docker/default" => Ok(Some((ProfileType::RuntimeDefault, ""))),
        _ => match name.strip_prefix("localhost/") {
            Some(name) => Ok(Some((ProfileType::Localhost, name))),
            None => Err(format!("{field}: {name:?} is no profile")),
        },
    }
}

/// Profiles as older clients name them (`unconfined`, `runtime/default`, `localhost/NAME`), where they are not said the new way.
#[allow(deprecated)]
pub fn modern(security: &mut cri::LinuxContainerSecurityContext) -> Verdict {
    let profile = |(kind, name): (ProfileType, &str)| cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: name.to_owned(),
    };
    if security.seccomp.is_none() {
        security.seccomp = old_profile(&security.seccomp_profile_path, "seccomp_profile_path")?.map(profile);
    }
    if security.apparmor.is_none() {
        security.apparmor = old_profile(&security.apparmor_profile, "apparmor_profile")?.map(profile);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(change: impl FnOnce(&mut cri::ContainerConfig)) -> Verdict {
        let mut config = cri::ContainerConfig::default();
        config.linux.get_or_insert_default().security_context.get_or_insert_default();
        change(&mut config);
        container(&config, true)
    }

    fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
        config.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_its_name() {
        let options = cri::SeLinuxOption { r#type: "t".into(), ..Default::default() };
        let target = cri::NamespaceOption { network: cri::NamespaceMode::Target.into(), ..Default::default() };
        let alone = cri::NamespaceOption { pid: cri::NamespaceMode::Target.into(), ..Default::default() };
        let mount = |m: cri::Mount| cri::Mount { container_path: "/there".into(), ..m };
        let map = vec![cri::IdMapping::default()];
        let cases = [
            (of(|c| c.windows = Some(Default::default())), "windows"),
            (of(|c| c.stop_signal = 9999), "stop_signal"),
            (
                of(|c| c.devices = vec![cri::Device { permissions: "rx".into(), ..Default::default() }]),
                "permission 'x'",
            ),
            (of(|c| security(c).selinux_options = Some(options.clone())), "selinux_options"),
            (of(|c| security(c).namespace_options = Some(target.clone())), "namespace_options.network"),
            (of(|c| security(c).namespace_options = Some(alone.clone())), "target_id"),
            (
                of(|c| c.mounts = vec![mount(cri::Mount { selinux_relabel: true, ..Default::default() })]),
                "selinux_relabel",
            ),
            (of(|c| c.mounts = vec![mount(cri::Mount { propagation: 77, ..Default::default() })]), "propagation 77"),
            (of(|c| c.mounts = vec![mount(cri::Mount { uid_mappings: map, ..Default::default() })]), "gidMappings"),
            (
                of(|c| c.mounts = vec![mount(cri::Mount { image_sub_path: "a".into(), ..Default::default() })]),
                "image_sub_path",
            ),
        ];
        for (verdict, word) in cases {
            let told = verdict.expect_err(word);
            assert!(told.contains(word), "{told}");
        }
        assert_eq!(of(|_| ()), Ok(()));
        let labelled = cri::LinuxContainerSecurityContext { selinux_options: Some(options), ..Default::default() };
        let config = cri::ContainerConfig {
            linux: Some(cri::LinuxContainerConfig { security_context: Some(labelled), ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(container(&config, false), Ok(()), "without SELinux a label says nothing");
        let port = cri::PortMapping { host_port: 70_000, ..Default::default() };
        let told = pod(&cri::PodSandboxConfig { port_mappings: vec![port], ..Default::default() }, false).unwrap_err();
        assert!(told.contains("host_port 70000"), "{told}");
    }

    #[test]
    #[allow(deprecated)]
    fn profiles_may_be_named_the_old_way() {
        let mut asked = cri::LinuxContainerSecurityContext {
            seccomp_profile_path: "localhost/mine.json".into(),
            apparmor_profile: "runtime/default".into(),
            ..Default::default()
        };
        modern(&mut asked).unwrap();
        let seccomp = asked.seccomp.clone().unwrap();
        assert_eq!((seccomp.profile_type(), seccomp.localhost_ref.as_str()), (ProfileType::Localhost, "mine.json"));
        assert_eq!(asked.apparmor.as_ref().unwrap().profile_type(), ProfileType::RuntimeDefault);
        // What is said the new way counts.
        asked.seccomp_profile_path = "unconfined".into();
        modern(&mut asked).unwrap();
        assert_eq!(asked.seccomp, Some(seccomp));
        asked.apparmor_profile = "mine".into();
        modern(&mut asked).unwrap();
        asked.apparmor = None;
        assert!(modern(&mut asked).unwrap_err().contains("apparmor_profile"));
    }
}
