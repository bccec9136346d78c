//! The managers of devices, CPUs and memory in this kubelet: what the configuration tells them, what containers get of
//! them, and CPUs of running containers when the shared ones change.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gantry_kube::quantity::Quantity;
use k8s_openapi::api::core::v1::Pod;
use kubelet_managers::{CpuOptions, CpuSet, Grant, Lister, Machine, Managers, PodInfo, Policy, Settings};
use proto::cri;

use crate::config::KubeletConfiguration;
use crate::cri::{CONTAINER_LABEL, UID_LABEL};
use crate::kubelet::Pods;
use crate::pod;
use crate::shared::Shared;

/// More NUMA nodes than this are not aligned: the combinations would be too many.
const MOST_NODES: usize = 8;

/// CPUs that are kept from pods, in thousandths.
pub(crate) fn reserved_cpu(config: &KubeletConfiguration) -> i64 {
    // Naming the CPUs counts, not their number elsewhere.
    if let Ok(named) = config.reserved_system_cpus.parse::<CpuSet>()
        && !named.is_empty()
    {
        return i64::try_from(named.len()).unwrap_or(0) * 1000;
    }
    let of = |map: &BTreeMap<String, String>| map.get("cpu").and_then(|q| Quantity::parse(q).ok());
    let both = [of(&config.kube_reserved), of(&config.system_reserved)];
    both.into_iter().flatten().map(|q| q.milli_value()).sum()
}

fn settings(config: &KubeletConfiguration, root: &Path, machine: &Machine) -> Settings {
    let cpu_options = CpuOptions::parse(&config.cpu_manager_policy_options).unwrap_or_else(|e| {
        tracing::error!(error = e, "no options of the CPU manager's policy are heeded");
        CpuOptions::default()
    });
    let option = |name: &str| config.topology_manager_policy_options.get(name).map(String::as_str);
    for name in config.topology_manager_policy_options.keys() {
        if !["prefer-closest-numa-nodes", "max-allowable-numa-nodes"].contains(&name.as_str()) {
            tracing::error!(option = name, "field topologyManagerPolicyOptions: there is no such option");
        }
    }
    let most = option("max-allowable-numa-nodes").and_then(|n| n.parse().ok()).unwrap_or(MOST_NODES);
    let mut policy = Policy::parse(&config.topology_manager_policy).unwrap_or_default();
    if policy != Policy::None && machine.nodes.len() > most {
        tracing::error!(nodes = machine.nodes.len(), most, "too many NUMA nodes; nothing is aligned");
        policy = Policy::None;
    }
    let mut reserved_memory: BTreeMap<u32, BTreeMap<String, u64>> = BTreeMap::new();
    for one in &config.reserved_memory {
        let node = reserved_memory.entry(u32::try_from(one.numa_node).unwrap_or(0)).or_default();
        for (name, amount) in &one.limits {
            let bytes = Quantity::parse(&amount.0).map_or(0, |q| u64::try_from(q.value()).unwrap_or(0));
            *node.entry(name.clone()).or_default() += bytes;
        }
    }
    let milli = reserved_cpu(config);
    let static_cpus = config.cpu_manager_policy == "static";
    if static_cpus && milli == 0 {
        tracing::warn!("cpuManagerPolicy static without reserved CPUs: one is kept for the node itself");
    }
    Settings {
        root: root.to_owned(),
        static_cpus,
        cpu_options,
        reserved_cpus: config.reserved_system_cpus.parse().unwrap_or_default(),
        reserved_count: usize::try_from((milli + 999) / 1000).unwrap_or(0),
        static_memory: config.memory_manager_policy == "Static",
        reserved_memory,
        policy,
        pod_scope: config.topology_manager_scope == "pod",
        closest: option("prefer-closest-numa-nodes") == Some("true"),
    }
}

/// The managers as the configuration wants them, with what an earlier kubelet left on disk.
pub(crate) fn managers(config: &KubeletConfiguration, root: &Path) -> Managers {
    let machine = Machine::read(Path::new("/sys"));
    Managers::new(settings(config, root, &machine), machine)
}

/// The pods that the pod resources API tells of.
pub(crate) fn lister(shared: &Arc<Shared>, pods: Pods) -> Lister {
    let shared = shared.clone();
    Arc::new(move || {
        let over = |pod: &Pod| {
            let status = shared.statuses.get(pod::uid(pod));
            status.and_then(|s| s.phase).is_some_and(|p| p == "Failed" || p == "Succeeded")
        };
        let list = pods.list().into_iter().filter(|p| !over(p));
        list.map(|pod| PodInfo {
            uid: pod::uid(&pod).to_owned(),
            name: pod::name(&pod).to_owned(),
            namespace: pod::namespace(&pod).to_owned(),
            containers: pod::init_containers(&pod)
                .iter()
                .filter(|c| pod::is_sidecar(c))
                .chain(pod::containers(&pod))
                .map(|c| c.name.clone())
                .collect(),
        })
        .collect()
    })
}

/// Adds what a container was granted to its configuration. What the pod says of its environment wins.
pub(crate) fn apply(grant: Grant, config: &mut cri::ContainerConfig) {
    if let Some(resources) = config.linux.as_mut().and_then(|l| l.resources.as_mut()) {
        if grant.exclusive {
            // It could only take from CPUs that are its own.
            (resources.cpu_quota, resources.cpu_period) = (0, 0);
        }
        resources.cpuset_cpus = grant.cpus.map(|c| c.to_string()).unwrap_or_default();
        resources.cpuset_mems = grant.nodes.map(|n| n.to_string()).unwrap_or_default();
    }
    let mut envs: Vec<cri::KeyValue> = grant
        .envs
        .into_iter()
        .filter(|(key, _)| !config.envs.iter().any(|e| e.key == *key))
        .map(|(key, value)| cri::KeyValue { key, value: value.into() })
        .collect();
    envs.append(&mut config.envs);
    config.envs = envs;
    for (key, value) in grant.annotations {
        config.annotations.entry(key).or_insert(value);
    }
    config.mounts.extend(grant.mounts.into_iter().map(|m| cri::Mount {
        container_path: m.container_path,
        host_path: m.host_path,
        readonly: m.read_only,
        ..Default::default()
    }));
    config.devices.extend(grant.devices.into_iter().map(|d| cri::Device {
        container_path: d.container_path,
        host_path: d.host_path,
        permissions: d.permissions,
    }));
    config.cdi_devices.extend(grant.cdi.into_iter().map(|name| cri::CdiDevice { name }));
}

/// Keeps running containers on the CPUs that they shall be on: when CPUs were given to one pod alone or came back, and
/// now and then in case somebody else moved them. Does nothing unless CPUs are given to containers.
pub(crate) async fn keep_cpus(shared: Arc<Shared>) {
    if shared.config.cpu_manager_policy != "static" {
        return;
    }
    let every = shared.config.cpu_manager_reconcile_period.0.max(Duration::from_secs(1));
    let mut changes = shared.managers.changes();
    let mut known: HashMap<String, String> = HashMap::new();
    loop {
        if let Ok(list) = shared.cri.containers(None).await {
            let running = list.into_iter().filter(|c| c.state() == cri::ContainerState::ContainerRunning);
            let mut now = HashMap::new();
            for container in running {
                let (Some(uid), Some(name)) = (container.labels.get(UID_LABEL), container.labels.get(CONTAINER_LABEL))
                else {
                    continue;
                };
                let want = shared.managers.grant(uid, name).cpus.unwrap_or_default().to_string();
                if want.is_empty() || known.get(&container.id) == Some(&want) {
                    now.insert(container.id, want);
                    continue;
                }
                let resources = cri::LinuxContainerResources { cpuset_cpus: want.clone(), ..Default::default() };
                match shared.cri.update_resources(&container.id, resources).await {
                    Ok(()) => {
                        now.insert(container.id, want);
                    }
                    Err(e) => tracing::warn!(container = %container.id, cpus = want, error = %e, "CPUs not set"),
                }
            }
            known = now;
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            _ = changes.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_own_environment_wins() {
        let env = |key: &str, value: &str| cri::KeyValue { key: key.into(), value: value.into() };
        let mut config = cri::ContainerConfig {
            envs: vec![env("A", "pod")],
            linux: Some(cri::LinuxContainerConfig { resources: Some(Default::default()), ..Default::default() }),
            ..Default::default()
        };
        let envs = [("A", "plugin"), ("B", "plugin")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let grant = Grant { envs, cpus: Some("1-2".parse().unwrap()), cdi: vec!["x/y=z".into()], ..Grant::default() };
        apply(grant, &mut config);
        assert_eq!(config.envs, [env("B", "plugin"), env("A", "pod")]);
        assert_eq!(config.linux.unwrap().resources.unwrap().cpuset_cpus, "1-2");
        assert_eq!(config.cdi_devices[0].name, "x/y=z");
    }

    #[test]
    fn named_cpus_count_before_amounts() {
        let amounts = |cpu: &str| BTreeMap::from([("cpu".to_owned(), cpu.to_owned())]);
        let mut config = KubeletConfiguration {
            kube_reserved: amounts("500m"),
            system_reserved: amounts("1"),
            ..Default::default()
        };
        assert_eq!(reserved_cpu(&config), 1500);
        config.reserved_system_cpus = "0-2".into();
        assert_eq!(reserved_cpu(&config), 3000);
    }
}
