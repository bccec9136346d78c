//! kill -9 of each daemon, and of all at once, while pods run.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_tests::command::eventually;
use gantry_tests::node::{DAEMONS, Node};
use gantry_tests::runner::{Case, Verdict};
use serde_json::Value;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: steady}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: gantry.local/demo:latest
    imagePullPolicy: Never
    args: [serve, '8080', /tmp]
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
  - {name: count, image: 'gantry.local/demo:latest', imagePullPolicy: Never, args: [count, '100000', '20']}
";

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![
        Case { name: "crash::each_daemon_in_turn", run: each },
        Case { name: "crash::all_daemons_at_once", run: all },
        Case { name: "crash::a_pod_deleted_while_the_node_was_down_is_cleaned", run: deleted_meanwhile },
        Case { name: "crash::an_exit_while_the_cri_daemon_was_down_is_seen", run: exit_meanwhile },
    ]
}

/// What must not change: container ids, start times, restart counts, readiness.
fn identity(node: &Node) -> Result<Vec<(Value, Value, Value)>> {
    let pod = node.get(&["pod", "steady"])?;
    let statuses = pod["status"]["containerStatuses"].as_array().context("statuses")?;
    Ok(statuses.iter().map(|s| (s["containerID"].clone(), s["restartCount"].clone(), s["state"].clone())).collect())
}

fn since_ready(node: &Node) -> Result<String> {
    node.field(&["pod", "steady"], ".status.conditions[?(@.type==\"Ready\")].lastTransitionTime")
}

fn unbroken_log(node: &Node) -> Result<usize> {
    let log = node.kubectl(&["logs", "steady", "-c", "count"])?.ok()?;
    for (i, line) in log.lines().enumerate() {
        ensure!(line == (i + 1).to_string(), "log line {} is {line:?}", i + 1);
    }
    Ok(log.lines().count())
}

fn survives(node: &Node, daemons: &[&str]) -> Result<()> {
    let (before, ready, lines) = (identity(node)?, since_ready(node)?, unbroken_log(node)?);
    for daemon in daemons {
        node.kill_daemon(daemon)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    for daemon in DAEMONS.iter().filter(|d| daemons.contains(d)) {
        node.start_daemon(daemon)?;
    }
    node.wait_ready()?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(identity(node)? == before, "containers changed:\n{before:?}\n{:?}", identity(node)?);
    ensure!(since_ready(node)? == ready, "readiness flapped");
    let now = eventually("the log goes on", Duration::from_secs(20), || {
        let now = unbroken_log(node)?;
        ensure!(now > lines + 100, "{now} lines after {lines}");
        Ok(now)
    })?;
    ensure!(now > lines);
    let output = node.exec("steady", "web", &["/bin/gantry-demo", "echo", "alive"])?.ok()?;
    ensure!(output.trim() == "alive");
    Ok(())
}

fn each(node: &Node) -> Result<Verdict> {
    node.apply(POD)?;
    node.wait_pod("steady", 30)?;
    for daemon in DAEMONS {
        survives(node, &[daemon]).with_context(|| format!("after kill -9 of {daemon}"))?;
    }
    Ok(Verdict::Passed)
}

fn all(node: &Node) -> Result<Verdict> {
    survives(node, &DAEMONS)?;
    node.delete(&["pod/steady"])?;
    Ok(Verdict::Passed)
}

fn deleted_meanwhile(node: &Node) -> Result<Verdict> {
    node.apply(&POD.replace("steady", "doomed"))?;
    node.wait_pod("doomed", 30)?;
    let id = node.field(&["pod", "doomed"], ".status.containerStatuses[0].containerID")?;
    let id = id.rsplit('/').next().unwrap_or_default().to_owned();
    node.kill_daemon("kubelet")?;
    node.kubectl(&["delete", "pod", "doomed", "--grace-period=0", "--force", "--wait=false"])?.ok()?;
    node.start_daemon("kubelet")?;
    eventually("its container is gone", Duration::from_secs(60), || {
        ensure!(node.cri(&["explain", &id])?.code != 0, "container {id} is still held");
        Ok(())
    })?;
    Ok(Verdict::Passed)
}

fn exit_meanwhile(node: &Node) -> Result<Verdict> {
    node.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: short}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - {name: c, image: 'gantry.local/busybox:latest', imagePullPolicy: Never, command: [sh, -c, 'sleep 3; exit 9']}\n",
    )?;
    node.wait_field(&["pod", "short"], ".status.phase", "Running", 30)?;
    node.kill_daemon("gantry-cri")?;
    std::thread::sleep(Duration::from_secs(4));
    node.start_daemon("gantry-cri")?;
    node.wait_field(&["pod", "short"], ".status.phase", "Failed", 60)?;
    let code = node.field(&["pod", "short"], ".status.containerStatuses[0].state.terminated.exitCode")?;
    ensure!(code == "9", "exit code {code}");
    node.delete(&["pod/short"])?;
    Ok(Verdict::Passed)
}
