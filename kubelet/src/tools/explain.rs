//! `kubelet explain pod`: what the kubelet, the runtime and the kernel hold for one pod.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::host;
use super::local;
use super::reasons::reasons;
use crate::config::{Flags, KubeletConfiguration};
use crate::cri::{CONTAINER_LABEL, Cri, NAME_LABEL, NAMESPACE_LABEL, UID_LABEL};
use crate::pod;

const LIMIT: Duration = Duration::from_secs(10);

/// Everything that is found.
///
/// # Errors
/// Nobody knows such a pod.
pub(crate) async fn explain(
    flags: &Flags,
    config: &KubeletConfiguration,
    namespace: &str,
    name: &str,
) -> Result<Value> {
    let asked = local::get(&flags.root_dir, "/pods").await;
    let mut out = json!({"pod": format!("{namespace}/{name}")});
    let known = match asked {
        Ok(body) => {
            let list: k8s_openapi::List<Pod> = serde_json::from_slice(&body)?;
            out["kubelet"] = json!("running");
            list.items.into_iter().find(|p| pod::namespace(p) == namespace && pod::name(p) == name)
        }
        Err(e) => {
            out["kubelet"] = json!(format!("{e:#}"));
            None
        }
    };
    let cri = Cri::new(&config.container_runtime_endpoint, &config.image_service_endpoint, LIMIT);
    let held = tokio::time::timeout(LIMIT, runtime(&cri, namespace, name)).await;
    let (sandboxes, containers, mut uids) = match held {
        Ok(Ok(found)) => found,
        Ok(Err(e)) => {
            out["runtime"] = json!(e.to_string());
            Default::default()
        }
        Err(_) => {
            out["runtime"] = json!("the container runtime does not answer");
            Default::default()
        }
    };
    if let Some(of) = &known {
        let uid = pod::uid(of).to_owned();
        uids.retain(|u| *u != uid);
        uids.insert(0, uid);
        out["source"] = json!(pod::annotation(of, "kubernetes.io/config.source").unwrap_or("api"));
        let status = of.status.clone().unwrap_or_default();
        out["phase"] = json!(status.phase);
        out["conditions"] = json!(status.conditions);
    }
    if known.is_none() && uids.is_empty() {
        anyhow::bail!(
            "neither the kubelet ({}) nor the runtime knows a pod {namespace}/{name}",
            out["kubelet"].as_str().unwrap_or_default()
        );
    }
    out["why"] = json!(reasons(known.as_ref(), sandboxes.len() + containers.len(), Timestamp::now()));
    out["sandboxes"] = sandboxes.into();
    out["containers"] = containers.into();
    let logs = Path::new(&config.pod_logs_dir);
    out["holds"] = uids.iter().map(|uid| host::holdings(&flags.root_dir, logs, namespace, name, uid)).collect();
    Ok(out)
}

type Held = (Vec<Value>, Vec<Value>, Vec<String>);

/// The runtime's sandboxes and containers of a pod, and the uids that they belong to.
async fn runtime(cri: &Cri, namespace: &str, name: &str) -> Result<Held, crate::cri::CriError> {
    let (mut sandboxes, mut containers) = tokio::try_join!(cri.sandboxes(None), cri.containers(None))?;
    let fits = |labels: &std::collections::HashMap<String, String>| {
        labels.get(NAME_LABEL).is_some_and(|n| n == name) && labels.get(NAMESPACE_LABEL).is_some_and(|n| n == namespace)
    };
    sandboxes.retain(|s| fits(&s.labels));
    containers.retain(|c| fits(&c.labels));
    sandboxes.sort_by_key(|s| std::cmp::Reverse(s.created_at));
    containers.sort_by_key(|c| std::cmp::Reverse(c.created_at));
    let mut uids: Vec<String> = sandboxes
        .iter()
        .map(|s| &s.labels)
        .chain(containers.iter().map(|c| &c.labels))
        .filter_map(|l| l.get(UID_LABEL).cloned())
        .collect();
    let mut seen = std::collections::HashSet::new();
    uids.retain(|u| seen.insert(u.clone()));
    let mut out: Held = (Vec::new(), Vec::new(), uids);
    for sandbox in &sandboxes {
        let status = cri.sandbox_status(&sandbox.id).await.unwrap_or_default().status.unwrap_or_default();
        let network = status.network.unwrap_or_default();
        let ips: Vec<String> = std::iter::once(network.ip)
            .chain(network.additional_ips.into_iter().map(|i| i.ip))
            .filter(|ip| !ip.is_empty())
            .collect();
        out.0.push(json!({"id": sandbox.id, "state": sandbox.state().as_str_name().trim_start_matches("SANDBOX_"),
            "created": time(sandbox.created_at), "ips": ips, "uid": sandbox.labels.get(UID_LABEL)}));
    }
    for container in &containers {
        let status = cri.container_status(&container.id).await.unwrap_or_default();
        let mut value = json!({"name": container.labels.get(CONTAINER_LABEL), "id": container.id,
            "state": container.state().as_str_name().trim_start_matches("CONTAINER_"),
            "restarts": container.metadata.as_ref().map_or(0, |m| m.attempt),
            "image": status.image.map(|i| i.image).unwrap_or_default(), "log": host::log(Path::new(&status.log_path))});
        for (key, at) in [("started", status.started_at), ("finished", status.finished_at)] {
            if at > 0 {
                value[key] = time(at);
            }
        }
        if status.finished_at > 0 {
            value["exitCode"] = json!(status.exit_code);
            value["reason"] = json!(status.reason);
        }
        out.1.push(value);
    }
    Ok(out)
}

fn time(nanos: i64) -> Value {
    let time = Timestamp::from_nanosecond(i128::from(nanos)).ok();
    time.map_or(Value::Null, |t| json!(t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| format!("{k} {}", plain(v)))
            .collect::<Vec<_>>()
            .join(", "),
        other => other.to_string(),
    }
}

/// The same for people.
pub(crate) fn text(found: &Value) -> String {
    let mut out = format!("Pod {}\n", plain(&found["pod"]));
    for (name, field) in [("Kubelet", "kubelet"), ("Runtime", "runtime"), ("Source", "source"), ("Phase", "phase")] {
        if !found[field].is_null() {
            let _ = writeln!(out, "  {name:9} {}", plain(&found[field]));
        }
    }
    out += "Why it is in this state\n";
    for reason in found["why"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "  {}", plain(reason));
    }
    for (title, field) in [("Sandboxes", "sandboxes"), ("Containers", "containers")] {
        let list = found[field].as_array().map_or(&[][..], Vec::as_slice);
        let _ = writeln!(out, "{title}{}", if list.is_empty() { ": none" } else { "" });
        for entry in list {
            let head = entry["name"].as_str().or(entry["id"].as_str()).unwrap_or_default();
            let _ = writeln!(out, "  {head}");
            for (key, value) in entry.as_object().into_iter().flatten().filter(|(k, v)| *k != "name" && !v.is_null()) {
                let _ = writeln!(out, "    {key:10} {}", plain(value));
            }
        }
    }
    for holds in found["holds"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "On the node, of uid {}", plain(&holds["uid"]));
        for (key, value) in holds.as_object().into_iter().flatten().filter(|(k, v)| *k != "uid" && !v.is_null()) {
            let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            for entry in list {
                let _ = writeln!(out, "  {key:9} {}", plain(entry));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_the_same_as_programs() {
        let found = json!({"pod": "ns/web", "kubelet": "running", "phase": "Running", "why": ["it runs and is ready"],
            "sandboxes": [{"id": "s1", "state": "READY", "ips": ["10.0.0.2"]}], "containers": [{"name": "app", "state": "RUNNING"}],
            "holds": [{"uid": "u1", "volumes": [{"name": "data", "path": "/x"}], "cgroup": null}]});
        let text = text(&found);
        for word in ["Pod ns/web", "it runs and is ready", "10.0.0.2", "app", "RUNNING", "uid u1", "name data, path /x"]
        {
            assert!(text.contains(word), "{word} in {text}");
        }
        assert!(!text.contains("cgroup"), "{text}");
    }
}
