//! Pods reach each other, the outside, and are reached through host ports.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_tests::command::{eventually, run};
use gantry_tests::node::{NODE_ADDRESS, Node, OUTSIDE_ADDRESS};
use gantry_tests::runner::{Case, Verdict};

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![
        Case { name: "network::pods_reach_each_other_and_the_outside", run: reach },
        Case { name: "network::a_host_port_is_reached_from_outside", run: host_port },
        Case { name: "network::a_host_network_pod_has_the_nodes_addresses", run: host_network },
    ]
}

fn server(name: &str, extra: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{extra}  containers:\n  \
         - {{name: c, image: 'gantry.local/demo:latest', imagePullPolicy: Never, args: [serve, '8080', /tmp], \
         ports: [{{containerPort: 8080{}}}]}}\n---\n",
        if name == "ported" { ", hostPort: 18080" } else { "" }
    )
    // With a grace of 0 the API object goes before the node has acted; with one, only after the sandbox is gone.
    .replace("GracePeriodSeconds: 0", if name == "ported" { "GracePeriodSeconds: 2" } else { "GracePeriodSeconds: 0" })
}

fn reach(node: &Node) -> Result<Verdict> {
    node.apply(&format!("{}{}", server("net-a", ""), server("net-b", "")))?;
    node.wait_pod("net-a", 30)?;
    node.wait_pod("net-b", 30)?;
    let ip = |pod: &str| node.field(&["pod", pod], ".status.podIP");
    let (a, b) = (ip("net-a")?, ip("net-b")?);
    ensure!(a != b, "both pods have {a}");
    for (from, to) in [("net-a", &b), ("net-b", &a), ("net-a", &a)] {
        let url = format!("http://{to}:8080/hostname");
        node.exec(from, "c", &["/bin/gantry-demo", "get", &url])?.ok().with_context(|| format!("{from} to {url}"))?;
    }
    let mut outside = node.outside(&node.programs.join("gantry-demo").to_string_lossy());
    let mut listening = node.background(outside.args(["serve", "9090", "/tmp"]))?;
    let url = format!("http://{OUTSIDE_ADDRESS}:9090/healthz");
    let reached = eventually("a pod reaches the outside", Duration::from_secs(10), || {
        node.exec("net-a", "c", &["/bin/gantry-demo", "get", &url])?.ok()
    });
    listening.kill()?;
    listening.wait()?;
    reached?;
    node.delete(&["pod/net-a", "pod/net-b"])?;
    Ok(Verdict::Passed)
}

fn host_port(node: &Node) -> Result<Verdict> {
    node.apply(&server("ported", ""))?;
    node.wait_pod("ported", 30)?;
    let url = format!("http://{NODE_ADDRESS}:18080/hostname");
    let get = || {
        let mut command = node.outside(&node.programs.join("gantry-demo").to_string_lossy());
        run(command.args(["get", &url]), "", Duration::from_secs(10))
    };
    let answer = eventually("the host port answers", Duration::from_secs(10), || get()?.ok())?;
    ensure!(answer.trim() == "ported", "{answer}");
    node.delete(&["pod/ported"])?;
    ensure!(get()?.code != 0, "the host port still answers after its pod is gone");
    Ok(Verdict::Passed)
}

fn host_network(node: &Node) -> Result<Verdict> {
    node.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: hostnet}\nspec:\n  hostNetwork: true\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {name: c, image: 'gantry.local/busybox:latest', imagePullPolicy: Never, command: [sleep, '1000']}\n",
    )?;
    node.wait_pod("hostnet", 30)?;
    let links = node.exec("hostnet", "c", &["cat", "/proc/net/dev"])?.ok()?;
    ensure!(links.contains("uplink"), "{links}");
    ensure!(node.field(&["pod", "hostnet"], ".status.podIP")? == node.field(&["pod", "hostnet"], ".status.hostIP")?);
    node.delete(&["pod/hostnet"])?;
    Ok(Verdict::Passed)
}
