//! kill -9 of the kubelet in a loop while pods come and go: what runs goes on untouched, what is deleted goes, what is
//! made comes once, and at the end nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_tests::command::eventually;
use gantry_tests::node::Node;
use gantry_tests::runner::{Case, Verdict};
use serde_json::Value;

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![Case { name: "churn::pods_come_and_go_while_the_kubelet_is_killed_again_and_again", run: churn }]
}

/// How long the kubelet is killed again and again, and how many pods come and go meanwhile.
const TIME: Duration = Duration::from_secs(40);
const WAVES: usize = 7;
const WAVE: usize = 5;

/// A pod with all kinds of volumes whose loss would be seen, and a readiness that must not flap.
fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{churn: 'yes'}}}}\nspec:\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: c\n    image: gantry.local/busybox:latest\n    \
         imagePullPolicy: Never\n    command: [sh, -c, 'echo begun >>/data/log; trap exit TERM; while :; do sleep 0.2; done']\n    \
         readinessProbe: {{periodSeconds: 1, exec: {{command: [test, -s, /data/log]}}}}\n    \
         volumeMounts: [{{name: data, mountPath: /data, subPath: part}}, {{name: map, mountPath: /map}}]\n  \
         volumes: [{{name: data, emptyDir: {{medium: Memory}}}}, {{name: map, configMap: {{name: churn}}}}]\n---\n"
    )
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|i| format!("{prefix}-{i}")).collect()
}

fn statuses(node: &Node) -> Result<BTreeMap<String, Value>> {
    let all = node.get(&["pods", "-l", "churn=yes"])?;
    let items = all["items"].as_array().context("items")?;
    Ok(items
        .iter()
        .map(|p| (p["metadata"]["name"].as_str().unwrap_or_default().to_owned(), p["status"].clone()))
        .collect())
}

/// What must not change of a pod that nobody touches.
fn identity(status: &Value) -> (Value, Value, Value) {
    let container = &status["containerStatuses"][0];
    let ready = status["conditions"].as_array().and_then(|l| l.iter().find(|c| c["type"] == "Ready"));
    (container["containerID"].clone(), container["restartCount"].clone(), ready.cloned().unwrap_or_default())
}

fn churn(node: &Node) -> Result<Verdict> {
    node.kubectl(&["create", "configmap", "churn", "--from-literal=a=b"])?.ok()?;
    let steady = names("steady", 5);
    node.apply(&steady.iter().map(|n| pod(n)).collect::<String>())?;
    for name in &steady {
        node.wait_pod(name, 90)?;
    }
    let before: BTreeMap<_, _> = statuses(node)?.into_iter().map(|(n, s)| (n, identity(&s))).collect();
    let end = Instant::now() + TIME;
    let mut kills = 0;
    let mut wave = 0;
    let mut doubles = BTreeSet::new();
    // Restarts come at moments that have nothing to do with the work: long, short, in the midst of a start.
    let mut pause = 0x2545_f491_u64;
    while Instant::now() < end || wave < WAVES {
        if wave < WAVES {
            node.apply(&names(&format!("wave-{wave}"), WAVE).iter().map(|n| pod(n)).collect::<String>())?;
        }
        if (2..WAVES + 2).contains(&wave) {
            let old: Vec<String> = names(&format!("wave-{}", wave - 2), WAVE);
            let mut words = vec!["delete", "pod", "--wait=false"];
            words.extend(old.iter().map(String::as_str));
            node.kubectl(&words)?.ok()?;
        }
        wave += 1;
        for _ in 0..3 {
            pause = pause.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            std::thread::sleep(Duration::from_millis(pause >> 33 & 0x3ff));
            node.kill_daemon("kubelet")?;
            kills += 1;
            node.start_daemon("kubelet")?;
        }
        doubles.extend(doubled(node)?);
    }
    node.wait_ready()?;
    // Whatever was made last comes up, whatever was deleted goes.
    let kept: Vec<String> = (WAVES.saturating_sub(2)..WAVES).flat_map(|w| names(&format!("wave-{w}"), WAVE)).collect();
    let left = |s: &BTreeMap<String, Value>| s.keys().filter(|n| n.starts_with("wave-")).cloned().collect::<Vec<_>>();
    if wave < WAVES + 2 {
        for name in &kept {
            node.wait_pod(name, 120).with_context(|| format!("{name} after {kills} kills"))?;
        }
    }
    let after = statuses(node)?;
    for (name, was) in before {
        let now = identity(after.get(&name).with_context(|| format!("{name} is gone"))?);
        ensure!(now == was, "{name} changed over {kills} kills:\n{was:?}\n{now:?}");
        let log = node.exec(&name, "c", &["cat", "/data/log"])?.ok()?;
        ensure!(log == "begun\n", "{name} began more than once: {log:?}");
    }
    ensure!(doubles.is_empty(), "pods that had two containers at once: {doubles:?}");
    let all: Vec<String> = after.keys().map(|n| format!("pod/{n}")).chain(["configmap/churn".to_owned()]).collect();
    node.delete(&all.iter().map(String::as_str).collect::<Vec<_>>())
        .with_context(|| format!("left: {:?}", left(&after)))?;
    eventually("nothing of the pods is left on the node", Duration::from_secs(90), || nothing(node, &after))?;
    println!("    {kills} kills, {} pods", WAVES * WAVE + steady.len());
    Ok(Verdict::Passed)
}

/// Pods with two containers that run, by what the runtime says.
fn doubled(node: &Node) -> Result<BTreeSet<String>> {
    let Some(output) = node.crictl(&["ps", "--state", "running", "-o", "json"])? else { return Ok(BTreeSet::new()) };
    let list: Value = serde_json::from_str(&output.ok()?)?;
    let mut seen = BTreeSet::new();
    let mut twice = BTreeSet::new();
    for container in list["containers"].as_array().context("containers")? {
        let uid = container["labels"]["io.kubernetes.pod.uid"].as_str().unwrap_or_default();
        let name = container["labels"]["io.kubernetes.pod.name"].as_str().unwrap_or_default();
        if name.contains('-') && !seen.insert(uid.to_owned()) {
            twice.insert(name.to_owned());
        }
    }
    Ok(twice)
}

fn nothing(node: &Node, pods: &BTreeMap<String, Value>) -> Result<()> {
    let folders: Vec<_> = fs::read_dir(node.state().join("kubelet/pods"))?.flatten().map(|e| e.path()).collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let below = node.state().join("kubelet/pods");
    let mounts: Vec<&str> = mounts.lines().filter(|l| l.contains(&*below.to_string_lossy())).collect();
    ensure!(mounts.is_empty(), "mounts of pods: {mounts:?}");
    ensure!(folders.is_empty(), "folders of pods: {folders:?}");
    let logs: Vec<_> = fs::read_dir(node.state().join("pod-logs"))?.flatten().map(|e| e.file_name()).collect();
    let logs: Vec<_> =
        logs.into_iter().filter(|l| pods.keys().any(|n| l.to_string_lossy().contains(n.as_str()))).collect();
    ensure!(logs.is_empty(), "logs of pods: {logs:?}");
    if let Some(output) = node.crictl(&["pods", "-q"])? {
        let left = output.ok()?;
        ensure!(left.trim().is_empty(), "sandboxes: {left}");
    }
    Ok(())
}
