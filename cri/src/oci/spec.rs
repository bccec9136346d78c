//! The OCI configuration file of a container.

use std::path::Path;

use cri_images::ImageConfig;
use proto::cri;
use serde_json::{Value, json};

use super::user::User;
use crate::sandbox::users::Ids;

/// Facts that the configuration is made from.
pub struct Facts<'a> {
    /// Container id.
    pub id: &'a str,
    /// Sandbox id.
    pub sandbox_id: &'a str,
    /// Sandbox request.
    pub sandbox: &'a cri::PodSandboxConfig,
    /// Volatile folder of the sandbox.
    pub sandbox_dir: &'a Path,
    /// Container request.
    pub container: &'a cri::ContainerConfig,
    /// The image's settings.
    pub image: &'a ImageConfig,
    /// Mounted root file system.
    pub rootfs: &'a Path,
    /// Cgroup path.
    pub cgroup: &'a str,
    /// Resolved user.
    pub user: &'a User,
    /// Capabilities, `CAP_X`.
    pub capabilities: &'a [String],
    /// Seccomp profile, null for none.
    pub seccomp: Value,
    /// Profile of AppArmor, empty for none.
    pub apparmor: String,
    /// PID namespace to join; none makes one; empty means the host's.
    pub pid_namespace: Option<String>,
    /// The daemon's own oom_score_adj: lower is not allowed to everyone.
    pub lowest_oom_score: i64,
    /// Device nodes as OCI wants them.
    pub devices: Vec<Value>,
    /// The pod's own user ids, with the place of their namespace.
    pub users: Option<(&'a Ids, &'a Path)>,
    /// Mounts of the request with image volumes resolved to folders.
    pub mounts: &'a [cri::Mount],
}

/// `NODE` for a mode as protobuf has it.
pub fn is_node(mode: i32) -> bool {
    mode == cri::NamespaceMode::Node as i32
}

/// Namespace options of a pod. Network, IPC and UTS are the pod's: what a container says about them changes nothing.
pub fn pod_options(pod: &cri::PodSandboxConfig) -> cri::NamespaceOption {
    let security = pod.linux.as_ref().and_then(|l| l.security_context.as_ref());
    security.and_then(|s| s.namespace_options.clone()).unwrap_or_default()
}

/// Recursive read-only mounts must be read-only and must not get mounts from elsewhere.
fn check_mount(mount: &cri::Mount) -> Result<(), String> {
    let place = format!("mount {} to {}", mount.host_path, mount.container_path);
    if !mount.container_path.starts_with('/') || !mount.host_path.starts_with('/') {
        return Err(format!("{place}: not absolute"));
    }
    if mount.recursive_read_only && !mount.readonly {
        return Err(format!("{place}: recursive_read_only needs readonly"));
    }
    if mount.recursive_read_only && mount.propagation() != cri::MountPropagation::PropagationPrivate {
        return Err(format!("{place}: recursive_read_only needs private propagation"));
    }
    Ok(())
}

/// Command line of a container: the request's, else the image's.
///
/// # Errors
/// Neither says one.
pub fn arguments(container: &cri::ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, String> {
    let (mut line, mut rest) = (container.command.clone(), container.args.clone());
    if line.is_empty() {
        line = image.entrypoint.clone();
        if rest.is_empty() {
            rest = image.cmd.clone();
        }
    }
    line.extend(rest);
    if line.is_empty() { Err("no command: neither the container nor its image names one".to_owned()) } else { Ok(line) }
}

/// Whose container it is, under the names by which OCI runtimes and hooks look for it.
fn annotations(sandbox: &str, pod: &cri::PodSandboxConfig, container: &cri::ContainerConfig) -> Value {
    let whose = pod.metadata.clone().unwrap_or_default();
    let image = container.image.clone().unwrap_or_default();
    let image = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
    json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": container.metadata.clone().unwrap_or_default().name,
        "io.kubernetes.cri.image-name": image,
        "io.kubernetes.cri.sandbox-id": sandbox,
        "io.kubernetes.cri.sandbox-name": whose.name,
        "io.kubernetes.cri.sandbox-namespace": whose.namespace,
        "io.kubernetes.cri.sandbox-uid": whose.uid,
    })
}

fn environment(f: &Facts<'_>) -> Vec<String> {
    let mut all: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match all.iter_mut().find(|(n, _)| n == name) {
        Some((_, v)) => *v = value.to_owned(),
        None => all.push((name.to_owned(), value.to_owned())),
    };
    set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    set("HOSTNAME", &f.sandbox.hostname);
    if f.container.tty {
        set("TERM", "xterm");
    }
    for (name, value) in f.image.env.iter().filter_map(|e| e.split_once('=')) {
        set(name, value);
    }
    for env in &f.container.envs {
        set(&env.key, &String::from_utf8_lossy(&env.value));
    }
    if !f.user.home.is_empty() && !all.iter().any(|(n, _)| n == "HOME") {
        all.push(("HOME".to_owned(), f.user.home.clone()));
    }
    all.into_iter().filter(|(n, v)| n != "HOSTNAME" || !v.is_empty()).map(|(n, v)| format!("{n}={v}")).collect()
}

fn mounts(f: &Facts<'_>, privileged: bool) -> Vec<Value> {
    let entry = |to: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": source, "options": options});
    let access = if privileged { "rw" } else { "ro" };
    let mut all = vec![
        entry("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        entry("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        entry(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        entry("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        entry("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        entry("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ];
    let asked = |path: &str| f.mounts.iter().any(|m| m.container_path.trim_end_matches('/') == path);
    all.retain(|m| !asked(m["destination"].as_str().unwrap_or_default()));
    let read_only =
        f.container.linux.as_ref().and_then(|l| l.security_context.as_ref()).is_some_and(|s| s.readonly_rootfs);
    for (to, file) in [("/etc/resolv.conf", "resolv.conf"), ("/etc/hostname", "hostname"), ("/etc/hosts", "hosts")] {
        let source = f.sandbox_dir.join(file);
        if !asked(to) {
            all.push(entry(
                to,
                "bind",
                &source.to_string_lossy(),
                &["rbind", "rprivate", if read_only { "ro" } else { "rw" }],
            ));
        }
    }
    if !asked("/dev/shm") {
        let shm = f.sandbox_dir.join("shm");
        let source = if is_node(pod_options(f.sandbox).ipc) { Path::new("/dev/shm") } else { &shm };
        all.push(entry("/dev/shm", "bind", &source.to_string_lossy(), &["rbind", "rprivate", "rw"]));
    }
    let mut wanted: Vec<&cri::Mount> = f.mounts.iter().collect();
    wanted.sort_by_key(|m| m.container_path.matches('/').count());
    for mount in wanted {
        let mut options = vec!["rbind"];
        options.push(match mount.propagation() {
            cri::MountPropagation::PropagationPrivate => "rprivate",
            cri::MountPropagation::PropagationHostToContainer => "rslave",
            cri::MountPropagation::PropagationBidirectional => "rshared",
        });
        options.push(if mount.recursive_read_only {
            "rro"
        } else if mount.readonly {
            "ro"
        } else {
            "rw"
        });
        let mut bind = entry(&mount.container_path, "bind", &mount.host_path, &options);
        if !mount.uid_mappings.is_empty() {
            bind["uidMappings"] = json!(mount.uid_mappings.iter().map(mapping).collect::<Vec<_>>());
            bind["gidMappings"] = json!(mount.gid_mappings.iter().map(mapping).collect::<Vec<_>>());
        }
        all.push(bind);
    }
    all
}

fn mapping(map: &cri::IdMapping) -> Value {
    json!({"containerID": map.container_id, "hostID": map.host_id, "size": map.length})
}

/// OCI resources for CRI ones.
pub fn resources(r: &cri::LinuxContainerResources) -> Value {
    let mut cpu = json!({});
    let mut memory = json!({});
    for (key, value) in [("shares", r.cpu_shares), ("quota", r.cpu_quota), ("period", r.cpu_period)] {
        if value != 0 {
            cpu[key] = json!(value);
        }
    }
    for (key, value) in [("cpus", &r.cpuset_cpus), ("mems", &r.cpuset_mems)] {
        if !value.is_empty() {
            cpu[key] = json!(value);
        }
    }
    for (key, value) in [("limit", r.memory_limit_in_bytes), ("swap", r.memory_swap_limit_in_bytes)] {
        if value != 0 {
            memory[key] = json!(value);
        }
    }
    let mut all = json!({});
    for (key, value) in [("cpu", cpu), ("memory", memory)] {
        if value.as_object().is_some_and(|o| !o.is_empty()) {
            all[key] = value;
        }
    }
    if !r.hugepage_limits.is_empty() {
        let limits: Vec<Value> =
            r.hugepage_limits.iter().map(|h| json!({"pageSize": h.page_size, "limit": h.limit})).collect();
        all["hugepageLimits"] = json!(limits);
    }
    if !r.unified.is_empty() {
        all["unified"] = json!(r.unified);
    }
    all
}

/// Sets the limits that `new` says, and that of tasks, in a configuration; what it does not say stays.
pub fn limit(config: &mut Value, new: &cri::LinuxContainerResources, tasks: Option<i64>) {
    let mut wanted = resources(new);
    if let Some(tasks) = tasks {
        wanted["pids"] = json!({"limit": tasks});
    }
    let Value::Object(wanted) = wanted else { return };
    for (kind, value) in wanted {
        let now = &mut config["linux"]["resources"][&kind];
        match (now, value) {
            (Value::Object(now), Value::Object(value)) => now.extend(value),
            (Value::Array(now), Value::Array(value)) => {
                now.retain(|old| !value.iter().any(|new| new["pageSize"] == old["pageSize"]));
                now.extend(value);
            }
            (now, value) => *now = value,
        }
    }
}

/// The whole configuration.
///
/// # Errors
/// There is no command, or a mount contradicts itself.
pub fn generate(f: &Facts<'_>) -> Result<Value, String> {
    let linux = f.container.linux.clone().unwrap_or_default();
    let security = linux.security_context.clone().unwrap_or_default();
    let options = pod_options(f.sandbox);
    f.mounts.iter().try_for_each(check_mount)?;
    let cwd = [&f.container.working_dir, &f.image.working_dir].into_iter().find(|d| !d.is_empty());
    let mut namespaces = vec![json!({"type": "mount"})];
    let pinned = |kind: &str, file: &str| json!({"type": kind, "path": f.sandbox_dir.join("ns").join(file)});
    if !is_node(options.network) {
        namespaces.push(pinned("network", "net"));
        namespaces.push(pinned("uts", "uts"));
    }
    if !is_node(options.ipc) {
        namespaces.push(pinned("ipc", "ipc"));
    }
    match &f.pid_namespace {
        None => namespaces.push(json!({"type": "pid"})),
        Some(path) if path.is_empty() => {}
        Some(path) => namespaces.push(json!({"type": "pid", "path": path})),
    }
    let mut given = resources(&linux.resources.clone().unwrap_or_default());
    let mut device_rules = vec![json!({"allow": security.privileged, "access": "rwm"})];
    if !security.privileged {
        for (kind, major, minor) in
            [("c", 1, 3), ("c", 1, 5), ("c", 1, 7), ("c", 1, 8), ("c", 1, 9), ("c", 5, 0), ("c", 5, 2)]
        {
            device_rules.push(json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": "rwm"}));
        }
        device_rules.push(json!({"allow": true, "type": "c", "major": 136, "access": "rwm"}));
        device_rules.push(json!({"allow": true, "type": "c", "access": "m"}));
        device_rules.push(json!({"allow": true, "type": "b", "access": "m"}));
        for device in &f.devices {
            device_rules.push(json!({"allow": true, "type": device["type"], "major": device["major"],
                "minor": device["minor"], "access": device["access"]}));
        }
    }
    given["devices"] = json!(device_rules);
    let devices: Vec<Value> = f
        .devices
        .iter()
        .map(|d| json!({"path": d["path"], "type": d["type"], "major": d["major"], "minor": d["minor"], "fileMode": d["fileMode"], "uid": 0, "gid": 0}))
        .collect();
    let (mut masked, mut read_only) = (security.masked_paths.clone(), security.readonly_paths.clone());
    if security.privileged {
        masked.clear();
        read_only.clear();
    }
    let oom = linux.resources.as_ref().map_or(0, |r| r.oom_score_adj).max(f.lowest_oom_score).min(1000);
    let ambient = security.capabilities.as_ref().map(|c| c.add_ambient_capabilities.clone()).unwrap_or_default();
    let mut config = json!({
        // What is newer in it is found by those that know it; some runtimes in use refuse any later version.
        "ociVersion": "1.0.2",
        "root": {"path": f.rootfs, "readonly": security.readonly_rootfs},
        "process": {
            "terminal": f.container.tty,
            "user": {"uid": f.user.uid, "gid": f.user.gid, "additionalGids": f.user.groups},
            "args": arguments(f.container, f.image)?,
            "env": environment(f),
            "cwd": cwd.map_or("/", String::as_str),
            "capabilities": {"bounding": f.capabilities, "permitted": f.capabilities, "effective": f.capabilities},
            "noNewPrivileges": security.no_new_privs,
            "oomScoreAdj": oom,
        },
        "mounts": mounts(f, security.privileged),
        "annotations": annotations(f.sandbox_id, f.sandbox, f.container),
        "linux": {
            "cgroupsPath": f.cgroup,
            "namespaces": namespaces,
            "resources": given,
            "devices": devices,
            "maskedPaths": masked,
            "readonlyPaths": read_only,
        },
    });
    if let Some((ids, place)) = f.users {
        if let Some(all) = config["linux"]["namespaces"].as_array_mut() {
            all.push(json!({"type": "user", "path": place}));
        }
        config["linux"]["uidMappings"] = json!([mapping(&ids.uids)]);
        config["linux"]["gidMappings"] = json!([mapping(&ids.gids)]);
    }
    if !ambient.is_empty() {
        config["process"]["capabilities"]["ambient"] = json!(ambient);
        config["process"]["capabilities"]["inheritable"] = json!(ambient);
    }
    if !f.apparmor.is_empty() {
        config["process"]["apparmorProfile"] = json!(f.apparmor);
    }
    if !f.seccomp.is_null() {
        config["linux"]["seccomp"] = f.seccomp.clone();
    }
    let shared = f.mounts.iter().any(|m| m.propagation() == cri::MountPropagation::PropagationBidirectional);
    let slave = f.mounts.iter().any(|m| m.propagation() == cri::MountPropagation::PropagationHostToContainer);
    if shared || slave {
        config["linux"]["rootfsPropagation"] = json!(if shared { "rshared" } else { "rslave" });
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_told_whose_container_it_is() {
        let pod = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "p".into(),
                uid: "u".into(),
                namespace: "n".into(),
                attempt: 0,
            }),
            ..Default::default()
        };
        let image = |image: &str, named: &str| cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt: 1 }),
            image: Some(cri::ImageSpec {
                image: image.into(),
                user_specified_image: named.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let all = annotations("s", &pod, &image("sha256:1", "nginx:1"));
        let of = |name: &str| all[format!("io.kubernetes.cri.{name}")].as_str().unwrap().to_owned();
        let names = ["sandbox-id", "sandbox-name", "sandbox-namespace", "sandbox-uid", "container-name", "image-name"];
        assert_eq!(names.map(of), ["s", "p", "n", "u", "main", "nginx:1"]);
        assert_eq!(annotations("s", &pod, &image("a:1", ""))["io.kubernetes.cri.image-name"], "a:1");
    }

    #[test]
    fn the_request_overrides_the_image_command() {
        let image = ImageConfig { entrypoint: vec!["e".into()], cmd: vec!["c".into()], ..Default::default() };
        let line = |command: &[&str], args: &[&str]| {
            let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
            let container = cri::ContainerConfig { command: own(command), args: own(args), ..Default::default() };
            arguments(&container, &image).unwrap().join(" ")
        };
        assert_eq!(line(&[], &[]), "e c");
        assert_eq!(line(&["x"], &[]), "x");
        assert_eq!(line(&[], &["a"]), "e a");
        assert!(arguments(&cri::ContainerConfig::default(), &ImageConfig::default()).is_err());
    }

    #[test]
    fn recursive_read_only_mounts_are_read_only_and_private() {
        let mount = |readonly, propagation: cri::MountPropagation| cri::Mount {
            container_path: "/a".into(),
            host_path: "/b".into(),
            readonly,
            recursive_read_only: true,
            propagation: propagation.into(),
            ..Default::default()
        };
        assert_eq!(check_mount(&mount(true, cri::MountPropagation::PropagationPrivate)), Ok(()));
        assert!(check_mount(&mount(false, cri::MountPropagation::PropagationPrivate)).is_err());
        assert!(check_mount(&mount(true, cri::MountPropagation::PropagationBidirectional)).is_err());
        assert!(check_mount(&mount(true, cri::MountPropagation::PropagationHostToContainer)).is_err());
    }

    #[test]
    fn limits_change_in_a_configuration_one_by_one() {
        let mut config = json!({"linux": {"resources": {
            "cpu": {"shares": 2, "quota": 10}, "devices": [], "hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 1}]}}});
        let new = cri::LinuxContainerResources {
            cpu_shares: 5,
            memory_limit_in_bytes: 6,
            hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 7 }],
            ..Default::default()
        };
        limit(&mut config, &new, Some(8));
        let wanted = json!({"cpu": {"shares": 5, "quota": 10}, "devices": [], "memory": {"limit": 6}, "pids": {"limit": 8},
            "hugepageLimits": [{"pageSize": "1GB", "limit": 1}, {"pageSize": "2MB", "limit": 7}]});
        assert_eq!(config["linux"]["resources"], wanted);
    }

    #[test]
    fn unset_resources_are_left_out() {
        let r = cri::LinuxContainerResources { memory_limit_in_bytes: 5, ..Default::default() };
        assert_eq!(resources(&r), json!({"memory": {"limit": 5}}));
    }
}
