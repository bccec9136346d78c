//! From a Pod to the configurations that CRI takes (pure).

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile};
use kubelet_volumes::{DeviceSpec, MountSpec, Propagation, Recursive, expand};
use proto::cri;

use super::dns::{NodeDns, dns_config};
use super::{host_network, name, namespace, spec, uid};
use crate::cri::{CONTAINER_LABEL, NAME_LABEL, NAMESPACE_LABEL, UID_LABEL, image_spec};
use crate::resources::memory::{HIGH, MemoryQos};
use crate::resources::pages::{PageSizes, Swap};
use crate::resources::qos;

/// Annotation of a container: the hash of its spec; a change restarts it.
pub(crate) const SPEC_HASH: &str = "io.kubernetes.container.hash";
/// Annotation of a container: the resources that it was made with.
pub(crate) const RESOURCES: &str = "gantry.io/container.resources";
/// Annotation of a container: milliseconds to wait before its successor starts, should it end.
pub(crate) const RESTART_DELAY: &str = "io.kubernetes.container.restartDelayMs";
const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
const POD_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/interrupts",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// As many characters as the kernel takes for a host name.
const KERNEL_NAME: usize = 64;
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What the configurations need to know of the node.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeFacts {
    /// The folder of pods' logs.
    pub(crate) log_root: PathBuf,
    /// Folder of Localhost seccomp profiles.
    pub(crate) seccomp_root: PathBuf,
    /// Pods without a seccomp profile get the runtime's.
    pub(crate) seccomp_default: bool,
    /// DNS of the node and the cluster.
    pub(crate) dns: NodeDns,
    /// The period of CPU quotas in microseconds; `None` for no quotas.
    pub(crate) period_us: Option<i64>,
    /// The node's memory in bytes.
    pub(crate) memory: i64,
    /// Sizes of huge pages.
    pub(crate) pages: PageSizes,
    /// How containers may swap.
    pub(crate) swap: Swap,
    /// How memory is throttled and kept; nothing where it is only limited.
    pub(crate) memory_qos: Option<MemoryQos>,
    /// Out of memory ends a whole container, not one of its processes (needs cgroup v2; `singleProcessOOMKill: false`).
    pub(crate) oom_group: bool,
}

/// `<root>/<namespace>_<name>_<uid>`
pub(crate) fn log_dir(root: &Path, pod: &Pod) -> PathBuf {
    root.join(format!("{}_{}_{}", namespace(pod), name(pod), uid(pod)))
}

/// The host name that the kernel shows in the pod: the short one, or the full one where the pod asks for it.
///
/// # Errors
/// The full name is longer than the kernel takes.
pub(crate) fn kernel_hostname(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    let (short, domain) = (hostname(pod), domain(pod, cluster_domain));
    if spec(pod).set_hostname_as_fqdn != Some(true) || domain.is_empty() {
        return Ok(short);
    }
    let full = format!("{short}.{domain}");
    if full.len() > KERNEL_NAME {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long ({KERNEL_NAME} \
             characters is the max, {} characters requested)",
            full.len()
        ));
    }
    Ok(full)
}

/// The short host name of the pod.
pub(crate) fn hostname(pod: &Pod) -> String {
    if let Some(own) = spec(pod).hostname_override.filter(|h| !h.is_empty()) {
        return own;
    }
    let own = spec(pod).hostname.filter(|h| !h.is_empty()).unwrap_or_else(|| name(pod).to_owned());
    let cut: String = own.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// `subdomain.namespace.svc.domain`, or nothing without a subdomain.
pub(crate) fn domain(pod: &Pod, cluster_domain: &str) -> String {
    let overridden = spec(pod).hostname_override.is_some_and(|h| !h.is_empty());
    match spec(pod).subdomain.filter(|s| !s.is_empty() && !overridden) {
        Some(sub) => format!("{sub}.{}.svc.{cluster_domain}", namespace(pod)),
        None => String::new(),
    }
}

/// A number that changes with the container's spec.
pub(crate) fn spec_hash(container: &Container) -> String {
    let mut hasher = DefaultHasher::new();
    (container.name.as_str(), container.image.as_deref()).hash(&mut hasher);
    format!("{:x}", hasher.finish())
}

fn labels(pod: &Pod) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> = pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    for (key, value) in [(UID_LABEL, uid(pod)), (NAME_LABEL, name(pod)), (NAMESPACE_LABEL, namespace(pod))] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

fn namespaces(pod: &Pod) -> cri::NamespaceOption {
    use cri::NamespaceMode::{Container, Node, Pod};
    let spec = spec(pod);
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (Some(true), _) => Node,
        (_, Some(true)) => Pod,
        _ => Container,
    };
    cri::NamespaceOption {
        network: if host_network(pod) { Node } else { Pod } as i32,
        pid: pid as i32,
        ipc: if spec.host_ipc == Some(true) { Node } else { Pod } as i32,
        ..Default::default()
    }
}

/// The sandbox of a pod.
pub(crate) fn sandbox_config(pod: &Pod, attempt: u32, cgroup_parent: &Path, node: &NodeFacts) -> cri::PodSandboxConfig {
    let spec = spec(pod);
    let security = spec.security_context.clone().unwrap_or_default();
    let privileged =
        super::all_containers(pod).any(|c| c.security_context.as_ref().and_then(|s| s.privileged) == Some(true));
    let ports = super::all_containers(pod).flat_map(|c| c.ports.iter().flatten());
    let port_mappings =
        ports.filter(|p| p.host_port.unwrap_or(0) > 0 && !host_network(pod)).map(|p| cri::PortMapping {
            protocol: match p.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp,
                Some("SCTP") => cri::Protocol::Sctp,
                _ => cri::Protocol::Tcp,
            } as i32,
            container_port: p.container_port,
            host_port: p.host_port.unwrap_or(0),
            host_ip: p.host_ip.clone().unwrap_or_default(),
        });
    let amounts = qos::of_pod(pod);
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name(pod).to_owned(),
            uid: uid(pod).to_owned(),
            namespace: namespace(pod).to_owned(),
            attempt,
        }),
        hostname: match kernel_hostname(pod, &node.dns.domain) {
            Ok(name) if !host_network(pod) => name,
            _ => String::new(),
        },
        log_directory: log_dir(&node.log_root, pod).display().to_string(),
        dns_config: Some(dns_config(pod, &node.dns)),
        port_mappings: port_mappings.collect(),
        labels: labels(pod),
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent.display().to_string(),
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(pod)),
                run_as_user: security.run_as_user.map(|value| cri::Int64Value { value }),
                run_as_group: security.run_as_group.map(|value| cri::Int64Value { value }),
                supplemental_groups: groups(&security),
                supplemental_groups_policy: strict(&security),
                selinux_options: security.se_linux_options.clone().map(selinux),
                privileged,
                seccomp: Some(cri::SecurityProfile::default()),
                ..Default::default()
            }),
            sysctls: security.sysctls.into_iter().flatten().map(|s| (s.name, s.value)).collect(),
            resources: Some(cri::LinuxContainerResources {
                cpu_shares: i64::try_from(qos::shares(amounts.cpu_request)).unwrap_or(2),
                memory_limit_in_bytes: amounts.memory_limit.unwrap_or(0),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn strict(security: &PodSecurityContext) -> i32 {
    i32::from(security.supplemental_groups_policy.as_deref() == Some("Strict"))
}

fn selinux(options: SELinuxOptions) -> cri::SeLinuxOption {
    cri::SeLinuxOption {
        user: options.user.unwrap_or_default(),
        role: options.role.unwrap_or_default(),
        r#type: options.type_.unwrap_or_default(),
        level: options.level.unwrap_or_default(),
    }
}

fn groups(security: &PodSecurityContext) -> Vec<i64> {
    let mut groups = security.supplemental_groups.clone().unwrap_or_default();
    groups.extend(security.fs_group);
    groups.dedup();
    groups
}

/// A container that is about to be created.
pub(crate) struct Creation<'a> {
    /// Its pod.
    pub(crate) pod: &'a Pod,
    /// Its spec.
    pub(crate) container: &'a Container,
    /// How often it was started before.
    pub(crate) attempt: u32,
    /// Milliseconds that its successor shall wait.
    pub(crate) restart_delay_ms: u64,
    /// Its environment.
    pub(crate) env: Vec<(String, String)>,
    /// Its mounts.
    pub(crate) mounts: Vec<MountSpec>,
    /// Its raw devices.
    pub(crate) devices: Vec<DeviceSpec>,
    /// Id of the container whose processes it shall see.
    pub(crate) target: Option<String>,
    /// Its image on this node.
    pub(crate) image: &'a cri::Image,
    /// Ids of the images that are volumes, by volume.
    pub(crate) volumes: &'a HashMap<String, String>,
}

/// The container's configuration.
///
/// # Errors
/// The spec demands what cannot be (a non-root user of an image that runs as root).
pub(crate) fn container_config(creation: Creation<'_>, node: &NodeFacts) -> Result<cri::ContainerConfig, String> {
    let Creation { pod, container, attempt, restart_delay_ms, env, mounts, devices, target, image, volumes } = creation;
    let known: HashMap<String, String> = env.iter().cloned().collect();
    let words = |list: &Option<Vec<String>>| list.iter().flatten().map(|w| expand(w, &known)).collect();
    let mut labels = labels(pod);
    labels.insert(CONTAINER_LABEL.to_owned(), container.name.clone());
    let annotations = BTreeMap::from([
        (SPEC_HASH, spec_hash(container)),
        (RESOURCES, crate::sync::resize::text_of(container)),
        (RESTART_DELAY, restart_delay_ms.to_string()),
        (RESTART_COUNT, attempt.to_string()),
        (MESSAGE_PATH, container.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".into())),
        (MESSAGE_POLICY, container.termination_message_policy.clone().unwrap_or_else(|| "File".into())),
        (POD_GRACE, super::grace(pod).to_string()),
    ]);
    let stop_signal = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(cri::ImageSpec {
            image: image.id.clone(),
            ..image_spec(container.image.as_deref().unwrap_or_default())
        }),
        command: words(&container.command),
        args: words(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: env.into_iter().map(|(key, value)| cri::KeyValue { key, value: value.into() }).collect(),
        mounts: mounts.into_iter().map(|spec| mount(spec, volumes)).collect(),
        devices: devices.into_iter().map(device).collect(),
        labels,
        annotations: annotations.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        log_path: format!("{}/{attempt}.log", container.name),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(pod, container, node)),
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(match target {
                    Some(target_id) => {
                        cri::NamespaceOption { pid: cri::NamespaceMode::Target as i32, target_id, ..namespaces(pod) }
                    }
                    None => namespaces(pod),
                }),
                ..security(pod, container, image, node)?
            }),
        }),
        stop_signal: stop_signal.and_then(cri::Signal::from_str_name).map_or(0, |s| s as i32),
        ..Default::default()
    })
}

fn device(spec: DeviceSpec) -> cri::Device {
    cri::Device {
        container_path: spec.container_path,
        host_path: spec.host_path.display().to_string(),
        permissions: if spec.read_only { "r" } else { "mrw" }.to_owned(),
    }
}

fn mount(spec: MountSpec, volumes: &HashMap<String, String>) -> cri::Mount {
    let propagation = match spec.propagation {
        Propagation::Private => cri::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
    };
    cri::Mount {
        container_path: spec.container_path,
        host_path: spec.host_path.display().to_string(),
        readonly: spec.read_only,
        recursive_read_only: spec.recursive_read_only != Recursive::Disabled,
        selinux_relabel: spec.selinux_relabel,
        propagation: propagation as i32,
        image: spec.image.as_ref().and_then(|i| volumes.get(&i.volume)).map(|id| crate::cri::image_spec(id)),
        image_sub_path: spec.image.map(|i| i.sub_path).unwrap_or_default(),
        ..Default::default()
    }
}

/// The resources of a container that runs, to be changed.
pub(crate) fn updated_resources(pod: &Pod, container: &Container, node: &NodeFacts) -> cri::LinuxContainerResources {
    let mut out = resources(pod, container, node);
    if out.cpu_quota == 0 && node.period_us.is_some() {
        // It has no limit any more; leaving the quota out would leave it as it is.
        out.cpu_quota = -1;
    }
    if node.memory_qos.is_some() {
        // So is what is no longer there.
        out.unified.entry(HIGH.to_owned()).or_insert_with(|| "max".to_owned());
    }
    // Pages and the score of the out-of-memory killer are set once, when a container begins.
    out.hugepage_limits.clear();
    out.oom_score_adj = 0;
    out
}

fn resources(pod: &Pod, container: &Container, node: &NodeFacts) -> cri::LinuxContainerResources {
    let amounts = qos::amounts(container);
    let period = node.period_us.filter(|_| amounts.cpu_limit.is_some());
    let swap = node.swap.of(pod, container, node.memory);
    let mut unified: HashMap<String, String> =
        node.oom_group.then(|| ("memory.oom.group".to_owned(), "1".to_owned())).into_iter().collect();
    unified.extend(swap.map(|bytes| ("memory.swap.max".to_owned(), bytes.to_string())));
    let files = node.memory_qos.iter().flat_map(|qos| qos.of_container(pod, container));
    unified.extend(files.map(|(file, bytes)| (file.to_owned(), bytes.to_string())));
    let pages = node.pages.of_container(container).into_iter();
    cri::LinuxContainerResources {
        cpu_period: period.unwrap_or(0),
        cpu_quota: period.zip(amounts.cpu_limit).map_or(0, |(period, limit)| qos::quota(limit, period)),
        cpu_shares: i64::try_from(qos::shares(amounts.cpu_request)).unwrap_or(2),
        memory_limit_in_bytes: amounts.memory_limit.unwrap_or(0),
        memory_swap_limit_in_bytes: amounts.memory_limit.map_or(0, |limit| limit + swap.unwrap_or(0)),
        oom_score_adj: qos::oom_score_adj(pod, container, node.memory),
        unified,
        hugepage_limits: pages.map(|(page_size, limit)| cri::HugepageLimit { page_size, limit }).collect(),
        ..Default::default()
    }
}

fn security(
    pod: &Pod,
    container: &Container,
    image: &cri::Image,
    node: &NodeFacts,
) -> Result<cri::LinuxContainerSecurityContext, String> {
    let whole = spec(pod).security_context.unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let asked = own.run_as_user.or(whole.run_as_user);
    let image_uid = image.uid.map(|u| u.value);
    if own.run_as_non_root.or(whole.run_as_non_root) == Some(true) {
        match (asked, image_uid) {
            (Some(0), _) => {
                return Err(format!(
                    "container's runAsUser breaks non-root policy (pod: {:?}, container: {})",
                    super::full(pod),
                    container.name
                ));
            }
            (Some(_), _) => {}
            (None, Some(0)) => {
                return Err(format!(
                    "container has runAsNonRoot and image will run as root (pod: {:?}, container: {})",
                    super::full(pod),
                    container.name
                ));
            }
            (None, Some(_)) => {}
            (None, None) if image.username.is_empty() => {
                return Err(format!(
                    "container has runAsNonRoot and image will run as root (pod: {:?}, container: {})",
                    super::full(pod),
                    container.name
                ));
            }
            (None, None) => {
                return Err(format!(
                    "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root (pod: {:?}, container: {})",
                    image.username,
                    super::full(pod),
                    container.name
                ));
            }
        }
    }
    let user = asked.or(image_uid);
    let privileged = own.privileged == Some(true);
    let capabilities = own.capabilities.unwrap_or_default();
    let open = own.proc_mount.as_deref() == Some("Unmasked") || privileged;
    let list = |paths: &[&str]| if open { Vec::new() } else { paths.iter().map(|&p| p.to_owned()).collect() };
    let seccomp = match own.seccomp_profile.as_ref().or(whole.seccomp_profile.as_ref()) {
        _ if privileged => profile("Unconfined", None, node),
        Some(SeccompProfile { type_, localhost_profile }) => profile(type_, localhost_profile.as_deref(), node),
        None if node.seccomp_default => profile("RuntimeDefault", None, node),
        None => profile("Unconfined", None, node),
    };
    let apparmor = own.app_armor_profile.as_ref().or(whole.app_armor_profile.as_ref()).map(apparmor);
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        run_as_user: user.map(|value| cri::Int64Value { value }),
        run_as_username: if user.is_none() { image.username.clone() } else { String::new() },
        run_as_group: own.run_as_group.or(whole.run_as_group).map(|value| cri::Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(&whole),
        supplemental_groups_policy: strict(&whole),
        selinux_options: own.se_linux_options.or(whole.se_linux_options).map(selinux),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: list(&MASKED),
        readonly_paths: list(&READ_ONLY),
        seccomp: Some(seccomp),
        apparmor,
        ..Default::default()
    })
}

/// A profile of AppArmor is a name that the node's administrator has loaded, not a file.
fn apparmor(asked: &AppArmorProfile) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let kind = match asked.type_.as_str() {
        "Unconfined" => ProfileType::Unconfined,
        "Localhost" => ProfileType::Localhost,
        _ => ProfileType::RuntimeDefault,
    };
    cri::SecurityProfile {
        profile_type: kind as i32,
        localhost_ref: asked.localhost_profile.clone().unwrap_or_default(),
    }
}

fn profile(kind: &str, local: Option<&str>, node: &NodeFacts) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let (kind, reference) = match kind {
        "Unconfined" => (ProfileType::Unconfined, String::new()),
        "Localhost" => {
            (ProfileType::Localhost, node.seccomp_root.join(local.unwrap_or_default()).display().to_string())
        }
        _ => (ProfileType::RuntimeDefault, String::new()),
    };
    cri::SecurityProfile { profile_type: kind as i32, localhost_ref: reference }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
