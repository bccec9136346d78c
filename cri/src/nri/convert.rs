//! What plugins see of pods and containers: made from the records and from the OCI configuration. Pure.

use std::collections::HashMap;

use proto::{cri, nri};
use serde_json::Value;

use crate::ledger::{ContainerRecord, SandboxRecord};
use crate::oci::spec;

fn text(v: &Value) -> String {
    v.as_str().unwrap_or_default().to_owned()
}

fn texts(v: &Value) -> Vec<String> {
    v.as_array().into_iter().flatten().map(text).collect()
}

fn map(v: &Value) -> HashMap<String, String> {
    v.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), text(v))).collect()
}

fn list<T>(v: &Value, one: impl Fn(&Value) -> T) -> Vec<T> {
    v.as_array().into_iter().flatten().map(one).collect()
}

fn small(v: &Value) -> u32 {
    v.as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

/// A pod, with the cgroup that it has.
pub(super) fn pod(record: &SandboxRecord, cgroup: &str) -> nri::PodSandbox {
    let config = &record.config.0;
    let metadata = config.metadata.clone().unwrap_or_default();
    let linux = config.linux.clone().unwrap_or_default();
    nri::PodSandbox {
        id: record.id.clone(),
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: record.handler.clone(),
        linux: Some(nri::LinuxPodSandbox {
            pod_overhead: linux.overhead.as_ref().map(of_cri),
            pod_resources: linux.resources.as_ref().map(of_cri),
            cgroup_parent: linux.cgroup_parent,
            cgroups_path: cgroup.to_owned(),
            namespaces: Vec::new(),
            resources: None,
        }),
        pid: record.pid_init.and_then(|p| u32::try_from(p).ok()).unwrap_or(0),
        ips: record.ips.clone(),
    }
}

/// A container with its OCI configuration.
pub(super) fn container(record: &ContainerRecord, oci: &Value, pid: u32) -> nri::Container {
    let config = &record.config.0;
    let state = match crate::container::state(record) {
        cri::ContainerState::ContainerCreated => nri::ContainerState::ContainerCreated,
        cri::ContainerState::ContainerRunning => nri::ContainerState::ContainerRunning,
        cri::ContainerState::ContainerExited => nri::ContainerState::ContainerStopped,
        cri::ContainerState::ContainerUnknown => nri::ContainerState::ContainerUnknown,
    };
    let process = &oci["process"];
    let exit = record.exit.as_ref();
    nri::Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox.clone(),
        name: config.metadata.clone().unwrap_or_default().name,
        state: state.into(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone().into_iter().chain(map(&oci["annotations"])).collect(),
        args: texts(&process["args"]),
        env: texts(&process["env"]),
        mounts: list(&oci["mounts"], mount),
        hooks: Some(hooks(&oci["hooks"])),
        linux: Some(linux(oci)),
        pid,
        rlimits: list(&process["rlimits"], |r| nri::PosixRlimit {
            r#type: text(&r["type"]),
            hard: r["hard"].as_u64().unwrap_or(0),
            soft: r["soft"].as_u64().unwrap_or(0),
        }),
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: exit.map_or(0, |e| e.finished_at),
        exit_code: exit.map_or(0, |e| e.code),
        status_reason: record.reason.clone(),
        status_message: record.message.clone(),
        cdi_devices: config.cdi_devices.iter().map(|d| nri::CdiDevice { name: d.name.clone() }).collect(),
        user: Some(nri::User {
            uid: small(&process["user"]["uid"]),
            gid: small(&process["user"]["gid"]),
            additional_gids: list(&process["user"]["additionalGids"], small),
        }),
        image: Some(nri::Image {
            name: config.image.clone().unwrap_or_default().image,
            digest: record.image_ref.rsplit_once('@').map_or_else(String::new, |(_, d)| d.to_owned()),
            config_digest: record.image_id.clone(),
        }),
    }
}

fn mount(m: &Value) -> nri::Mount {
    nri::Mount {
        destination: text(&m["destination"]),
        r#type: text(&m["type"]),
        source: text(&m["source"]),
        options: texts(&m["options"]),
    }
}

fn hooks(h: &Value) -> nri::Hooks {
    let all = |name: &str| {
        list(&h[name], |h| nri::Hook {
            path: text(&h["path"]),
            args: texts(&h["args"]),
            env: texts(&h["env"]),
            timeout: h["timeout"].as_i64().map(|value| nri::OptionalInt { value }),
        })
    };
    nri::Hooks {
        prestart: all("prestart"),
        create_runtime: all("createRuntime"),
        create_container: all("createContainer"),
        start_container: all("startContainer"),
        poststart: all("poststart"),
        poststop: all("poststop"),
    }
}

fn linux(oci: &Value) -> nri::LinuxContainer {
    let linux = &oci["linux"];
    let device = |d: &Value| nri::LinuxDevice {
        path: text(&d["path"]),
        r#type: text(&d["type"]),
        major: d["major"].as_i64().unwrap_or(0),
        minor: d["minor"].as_i64().unwrap_or(0),
        file_mode: d["fileMode"].as_u64().map(|_| nri::OptionalFileMode { value: small(&d["fileMode"]) }),
        uid: d["uid"].as_u64().map(|_| nri::OptionalUInt32 { value: small(&d["uid"]) }),
        gid: d["gid"].as_u64().map(|_| nri::OptionalUInt32 { value: small(&d["gid"]) }),
    };
    nri::LinuxContainer {
        namespaces: list(&linux["namespaces"], |n| nri::LinuxNamespace {
            r#type: text(&n["type"]),
            path: text(&n["path"]),
        }),
        devices: list(&linux["devices"], device),
        resources: Some(of_oci(&linux["resources"])),
        oom_score_adj: oci["process"]["oomScoreAdj"].as_i64().map(|value| nri::OptionalInt { value }),
        cgroups_path: text(&linux["cgroupsPath"]),
        sysctl: map(&linux["sysctl"]),
        ..Default::default()
    }
}

/// Resources as the kubelet asks for them.
pub(super) fn of_cri(r: &cri::LinuxContainerResources) -> nri::LinuxResources {
    of_oci(&spec::resources(r))
}

/// Resources of an OCI configuration.
pub(super) fn of_oci(r: &Value) -> nri::LinuxResources {
    let signed = |v: &Value| v.as_i64().map(|value| nri::OptionalInt64 { value });
    let unsigned = |v: &Value| v.as_u64().map(|value| nri::OptionalUInt64 { value });
    let truth = |v: &Value| v.as_bool().map(|value| nri::OptionalBool { value });
    let (memory, cpu) = (&r["memory"], &r["cpu"]);
    nri::LinuxResources {
        memory: memory.is_object().then(|| nri::LinuxMemory {
            limit: signed(&memory["limit"]),
            reservation: signed(&memory["reservation"]),
            swap: signed(&memory["swap"]),
            kernel: signed(&memory["kernel"]),
            kernel_tcp: signed(&memory["kernelTCP"]),
            swappiness: unsigned(&memory["swappiness"]),
            disable_oom_killer: truth(&memory["disableOOMKiller"]),
            use_hierarchy: truth(&memory["useHierarchy"]),
        }),
        cpu: cpu.is_object().then(|| nri::LinuxCpu {
            shares: unsigned(&cpu["shares"]),
            quota: signed(&cpu["quota"]),
            period: unsigned(&cpu["period"]),
            realtime_runtime: signed(&cpu["realtimeRuntime"]),
            realtime_period: unsigned(&cpu["realtimePeriod"]),
            cpus: text(&cpu["cpus"]),
            mems: text(&cpu["mems"]),
        }),
        hugepage_limits: list(&r["hugepageLimits"], |h| nri::HugepageLimit {
            page_size: text(&h["pageSize"]),
            limit: h["limit"].as_u64().unwrap_or(0),
        }),
        blockio_class: None,
        rdt_class: None,
        unified: map(&r["unified"]),
        devices: list(&r["devices"], |d| nri::LinuxDeviceCgroup {
            allow: d["allow"].as_bool().unwrap_or(false),
            r#type: text(&d["type"]),
            major: signed(&d["major"]),
            minor: signed(&d["minor"]),
            access: text(&d["access"]),
        }),
        pids: r["pids"]["limit"].as_i64().map(|limit| nri::LinuxPids { limit }),
    }
}

/// Resources as CRI has them, and what it has no field for: the limit of tasks.
pub(super) fn to_cri(r: &nri::LinuxResources) -> (cri::LinuxContainerResources, Option<i64>) {
    let cpu = r.cpu.clone().unwrap_or_default();
    let memory = r.memory.unwrap_or_default();
    let unsigned = |v: Option<nri::OptionalUInt64>| v.map_or(0, |v| i64::try_from(v.value).unwrap_or(i64::MAX));
    let signed = |v: Option<nri::OptionalInt64>| v.map_or(0, |v| v.value);
    let resources = cri::LinuxContainerResources {
        cpu_period: unsigned(cpu.period),
        cpu_quota: signed(cpu.quota),
        cpu_shares: unsigned(cpu.shares),
        memory_limit_in_bytes: signed(memory.limit),
        memory_swap_limit_in_bytes: signed(memory.swap),
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        hugepage_limits: r
            .hugepage_limits
            .iter()
            .map(|h| cri::HugepageLimit { page_size: h.page_size.clone(), limit: h.limit })
            .collect(),
        unified: r.unified.clone(),
        ..Default::default()
    };
    (resources, r.pids.map(|p| p.limit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resources_come_back_as_they_went() {
        let asked = cri::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 20,
            memory_swap_limit_in_bytes: 2 << 20,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 4 }],
            unified: [("memory.high".to_owned(), "5".to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(to_cri(&of_cri(&asked)), (asked, None));
        assert_eq!(to_cri(&of_oci(&json!({"pids": {"limit": 7}}))).1, Some(7));
        assert_eq!(of_oci(&json!({})), nri::LinuxResources::default());
    }
}
