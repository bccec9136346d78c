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
    vec![
        Case { name: "churn::pods_come_and_go_while_the_kubelet_is_killed_again_and_again", run: churn },
        Case { name: "churn::pods_run_on_without_the_apiserver_and_statuses_catch_up", run: away },
    ]
}

/// How long the kubelet is killed again and again at least.
const TIME: Duration = Duration::from_secs(40);
/// How many pods come and go meanwhile, unless `GANTRY_CHURN_PODS` says so.
const PODS: usize = 40;
const WAVE: usize = 5;
/// For how many seconds the apiserver is gone, unless `GANTRY_AWAY_SECONDS` says so.
const AWAY: usize = 15;

/// A number from the environment.
fn option(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

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
    let waves = (option("GANTRY_CHURN_PODS", PODS).saturating_sub(steady.len()) / WAVE).max(2);
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
    while Instant::now() < end || wave < waves {
        if wave < waves {
            node.apply(&names(&format!("wave-{wave}"), WAVE).iter().map(|n| pod(n)).collect::<String>())?;
        }
        if (2..waves + 2).contains(&wave) {
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
    let kept: Vec<String> = (waves.saturating_sub(2)..waves).flat_map(|w| names(&format!("wave-{w}"), WAVE)).collect();
    let left = |s: &BTreeMap<String, Value>| s.keys().filter(|n| n.starts_with("wave-")).cloned().collect::<Vec<_>>();
    if wave < waves + 2 {
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
    println!("    {kills} kills, {} pods", waves * WAVE + steady.len());
    Ok(Verdict::Passed)
}

/// Pods that do something while nobody can be told: one restarts, one finishes, one stops being ready, one does nothing.
fn away(node: &Node) -> Result<Verdict> {
    if gantry_tests::node::crictl().is_none() {
        return Ok(Verdict::Skipped("there is no crictl".to_owned()));
    }
    let line = |name: &str, policy: &str, command: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: away-{name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
             restartPolicy: {policy}\n  containers:\n  - name: c\n    image: gantry.local/busybox:latest\n    \
             imagePullPolicy: Never\n    command: [sh, -c, '{command}']\n{more}---\n"
        )
    };
    let probe =
        "    readinessProbe: {periodSeconds: 1, failureThreshold: 1, exec: {command: [test, '!', -e, /tmp/sick]}}\n";
    // All of them wait for a sign, so that nothing happens before the apiserver is gone.
    let sign = "while ! [ -e /tmp/go ]; do sleep 0.2; done";
    node.apply(
        &[
            line("calm", "Always", "trap exit TERM; while :; do sleep 0.2; done", probe),
            line("sick", "Always", "trap exit TERM; while :; do sleep 0.2; done", probe),
            line("done", "Never", &format!("{sign}; exit 3"), ""),
            line("again", "Always", &format!("{sign}; exit 4"), ""),
        ]
        .concat(),
    )?;
    let pods = ["away-calm", "away-sick", "away-done", "away-again"];
    for name in pods {
        node.wait_pod(name, 60)?;
    }
    let of = |name: &str| Ok::<_, anyhow::Error>(identity(&node.get(&["pod", name])?["status"]));
    let (calm, sick) = (of("away-calm")?, of("away-sick")?);
    let signs = [(sick.0.clone(), "/tmp/sick"), (of("away-done")?.0, "/tmp/go"), (of("away-again")?.0, "/tmp/go")];
    let begin = Instant::now();
    node.kill_daemon("gantry-apiserver")?;
    for (id, file) in signs {
        let id = id.as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
        node.crictl(&["exec", "-s", &id, "touch", file])?.context("crictl")?.ok()?;
    }
    // The kubelet begins anew in the middle of it, and knows its pods only once the apiserver is there again.
    let gone = Duration::from_secs(u64::try_from(option("GANTRY_AWAY_SECONDS", AWAY))?);
    std::thread::sleep((gone / 2).saturating_sub(begin.elapsed()));
    node.kill_daemon("kubelet")?;
    node.start_daemon("kubelet")?;
    std::thread::sleep(gone.saturating_sub(begin.elapsed()));
    node.start_daemon("gantry-apiserver")?;
    node.wait_ready()?;
    let limit = Duration::from_secs(90);
    eventually("what happened meanwhile is told", limit, || {
        let done = node.get(&["pod", "away-done"])?;
        ensure!(done["status"]["phase"] == "Failed", "{}", done["status"]);
        let ended = &done["status"]["containerStatuses"][0]["state"]["terminated"];
        ensure!(ended["exitCode"] == 3, "{ended}");
        let again = node.get(&["pod", "away-again"])?["status"]["containerStatuses"][0].clone();
        ensure!(
            again["restartCount"].as_u64() >= Some(1) && again["lastState"]["terminated"]["exitCode"] == 4,
            "{again}"
        );
        let ill = of("away-sick")?;
        ensure!(ill.2["status"] == "False" && (&ill.0, &ill.1) == (&sick.0, &sick.1), "{ill:?}");
        Ok(())
    })?;
    ensure!(of("away-calm")? == calm, "a pod that did nothing changed: {calm:?} {:?}", of("away-calm")?);
    let all: Vec<String> = pods.iter().map(|n| format!("pod/{n}")).collect();
    node.delete(&all.iter().map(String::as_str).collect::<Vec<_>>())?;
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
