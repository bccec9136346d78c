//! Pods that take more disk than they may, and a node that is short of something.

use std::fs;

use anyhow::{Context, Result, ensure};
use gantry_tests::node::Node;
use gantry_tests::runner::{Case, Verdict};

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![
        Case { name: "eviction::a_pod_over_its_limit_of_disk_is_evicted", run: limits },
        Case { name: "eviction::a_node_under_pressure_ends_pods_in_order_and_refuses_new_ones", run: pressure },
    ]
}

fn pod(node: &Node, name: &str, more: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: {}\n  restartPolicy: Never\n  \
         terminationGracePeriodSeconds: 1\n{more}  containers:\n  - name: c\n    image: gantry.local/busybox:latest\n    \
         imagePullPolicy: Never\n{container}---\n",
        node.name()
    )
}

fn evicted(node: &Node, name: &str, message: &str) -> Result<()> {
    node.wait_field(&["pod", name], ".status.phase", "Failed", 90)?;
    let pod = node.get(&["pod", name])?;
    let status = &pod["status"];
    ensure!(status["reason"] == "Evicted", "{name}: {status}");
    ensure!(status["message"].as_str().is_some_and(|m| m.starts_with(message)), "{name}: {status}");
    Ok(())
}

fn limits(node: &Node) -> Result<Verdict> {
    let fill = |file: &str| format!("    command: [sh, -c, 'dd if=/dev/zero of={file} bs=1M count=4; sleep 1000']\n");
    let volume = "  volumes: [{name: cache, emptyDir: {sizeLimit: 1Mi}}]\n";
    let mount = "    volumeMounts: [{name: cache, mountPath: /cache}]\n";
    let limit = "    resources: {limits: {ephemeral-storage: 1Mi}}\n";
    node.apply(&pod(node, "big-volume", volume, &format!("{}{mount}", fill("/cache/f"))))?;
    node.apply(&pod(node, "small-volume", volume, &format!("    command: [sleep, '1000']\n{mount}")))?;
    node.apply(&pod(node, "big-layer", "", &format!("{}{limit}", fill("/f"))))?;
    evicted(node, "big-volume", "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". ")?;
    evicted(node, "big-layer", "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ")?;
    ensure!(node.field(&["pod", "small-volume"], ".status.phase")? == "Running", "the pod within its limit goes on");
    let events =
        node.kubectl(&["get", "events", "--field-selector=involvedObject.name=big-volume,reason=Evicted"])?.ok()?;
    ensure!(events.contains("exceeds the limit"), "{events}");
    node.delete(&["pod/big-volume", "pod/small-volume", "pod/big-layer"])?;
    Ok(Verdict::Passed)
}

fn restart_kubelet(node: &Node, config: &str) -> Result<()> {
    node.script("stop_daemon kubelet 20")?;
    fs::write(node.state().join("kubelet.yaml"), config)?;
    node.start_daemon("kubelet")?;
    node.wait_ready()
}

fn pressure(node: &Node) -> Result<Verdict> {
    let path = node.state().join("kubelet.yaml");
    let before = fs::read_to_string(&path).context("the kubelet's configuration")?;
    let sleep = "    command: [sleep, '1000']\n";
    node.apply(&pod(node, "evict-me", "", sleep))?;
    node.wait_pod("evict-me", 60)?;
    // No machine has so many process ids left, so that the node is short of them whatever it does.
    let short = before.replace("evictionHard: {", "evictionHard: {pid.available: '4194304', ");
    ensure!(short != before, "scripts/node.sh says evictionHard");
    restart_kubelet(node, &short)?;
    let judged = (|| {
        evicted(node, "evict-me", "The node was low on resource: pids. Threshold quantity: ")?;
        let path = ".status.conditions[?(@.type==\"DisruptionTarget\")].reason";
        node.wait_field(&["pod", "evict-me"], path, "TerminationByKubelet", 10)?;
        let name = node.name();
        let condition = |field: &str| format!(".status.conditions[?(@.type==\"PIDPressure\")].{field}");
        node.wait_field(&["node", name], &condition("status"), "True", 30)?;
        node.wait_field(&["node", name], &condition("reason"), "KubeletHasInsufficientPID", 5)?;
        node.apply(&pod(node, "too-late", "", sleep))?;
        evicted(node, "too-late", "Pod was rejected: The node had condition: [PIDPressure]. ")
    })();
    restart_kubelet(node, &before)?;
    judged?;
    let path = ".status.conditions[?(@.type==\"PIDPressure\")].reason";
    node.wait_field(&["node", node.name()], path, "KubeletHasSufficientPID", 60)?;
    node.delete(&["pod/evict-me", "pod/too-late"])?;
    Ok(Verdict::Passed)
}
