//! Pods that the node cannot take end as Failed with the reason that controllers and people know.

use anyhow::{Result, ensure};
use gantry_tests::node::Node;
use gantry_tests::runner::{Case, Verdict};

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![
        Case { name: "admission::a_pod_that_does_not_fit_fails_with_its_reason", run: rejected },
        Case { name: "admission::a_critical_pod_gets_the_room_that_others_have", run: preempted },
    ]
}

/// A pod that is bound to the node beside any scheduler.
fn pod(node: &Node, name: &str, more: &str, resources: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: {}\n  restartPolicy: Never\n{more}  \
         containers:\n  - {{name: c, image: 'gantry.local/busybox:latest', imagePullPolicy: Never, command: ['true']{resources}}}\n---\n",
        node.name()
    )
}

fn rejected(node: &Node) -> Result<Verdict> {
    let requests = |what: &str| format!(", resources: {{requests: {{{what}}}}}");
    let cases = [
        ("OutOfcpu", "", requests("cpu: '100000'")),
        ("OutOfmemory", "", requests("memory: 1000Ti")),
        ("NodeAffinity", "  nodeSelector: {no-such: label}\n", String::new()),
        ("SysctlForbidden", "  securityContext: {sysctls: [{name: kernel.sem, value: '1'}]}\n", String::new()),
        ("PodOSNotSupported", "  os: {name: windows}\n", String::new()),
    ];
    let name = |reason: &str| reason.to_lowercase();
    let all: String = cases.iter().map(|(reason, more, what)| pod(node, &name(reason), more, what)).collect();
    node.apply(&all)?;
    for (reason, ..) in &cases {
        let name = name(reason);
        node.wait_field(&["pod", &name], ".status.phase", "Failed", 30)?;
        let pod = node.get(&["pod", &name])?;
        let status = &pod["status"];
        ensure!(status["reason"] == *reason, "{name}: {status}");
        ensure!(status["message"].as_str().is_some_and(|m| m.starts_with("Pod was rejected: ")), "{name}: {status}");
        let table = node.kubectl(&["get", "pod", &name, "--no-headers"])?.ok()?;
        ensure!(table.contains(reason), "{table}");
        node.delete(&[&format!("pod/{name}")])?;
    }
    // The neighbour that fits runs.
    node.apply(&pod(node, "fitting", "", &requests("cpu: 10m")))?;
    node.wait_field(&["pod", "fitting"], ".status.phase", "Succeeded", 30)?;
    node.delete(&["pod/fitting"])?;
    Ok(Verdict::Passed)
}

fn preempted(node: &Node) -> Result<Verdict> {
    let cpu = node.get(&["node", node.name()])?["status"]["allocatable"]["cpu"].clone();
    let cpu = cpu.as_str().unwrap_or_default();
    let milli = match cpu.strip_suffix('m') {
        Some(milli) => milli.parse::<u64>()?,
        None => cpu.parse::<u64>()? * 1000,
    };
    // Two of them do not fit side by side.
    let long = |name: &str, more: &str| {
        let resources = format!(", resources: {{requests: {{cpu: {}m}}}}", milli * 6 / 10);
        let all = pod(node, name, &format!("  terminationGracePeriodSeconds: 1\n{more}"), &resources);
        all.replace("command: ['true']", "command: [sleep, '1000']")
    };
    node.apply(&long("ordinary", ""))?;
    node.wait_field(&["pod", "ordinary"], ".status.phase", "Running", 60)?;
    node.apply(&long("critical", "  priorityClassName: system-node-critical\n"))?;
    node.wait_field(&["pod", "critical"], ".status.phase", "Running", 60)?;
    // Statuses of different pods arrive in any order.
    node.wait_field(&["pod", "ordinary"], ".status.phase", "Failed", 60)?;
    let status = node.get(&["pod", "ordinary"])?["status"].clone();
    ensure!(status["reason"] == "Preempting", "{status}");
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget");
    ensure!(target.is_some_and(|c| c["reason"] == "TerminationByKubelet"), "{status}");
    // Another ordinary one has to do without.
    node.apply(&long("late", ""))?;
    node.wait_field(&["pod", "late"], ".status.reason", "OutOfcpu", 60)?;
    node.delete(&["pod/ordinary", "pod/critical", "pod/late"])?;
    Ok(Verdict::Passed)
}
