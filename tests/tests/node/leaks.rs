//! Deleting everything leaves the host as before.

use std::time::Duration;

use anyhow::{Result, ensure};
use gantry_tests::command::eventually;
use gantry_tests::node::{DAEMONS, Node};
use gantry_tests::runner::{Case, Verdict};

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![Case { name: "leaks::without_pods_nothing_of_a_pod_is_held", run: nothing_held }]
}

fn nothing_held(node: &Node) -> Result<Verdict> {
    let pods: String = (0..5)
        .map(|i| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: many-{i}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
                 - {{name: c, image: 'gantry.local/busybox:latest', imagePullPolicy: Never, command: [sleep, '1000'], ports: [{{containerPort: 80, hostPort: 1900{i}}}]}}\n---\n"
            )
        })
        .collect();
    node.apply(&pods)?;
    for i in 0..5 {
        node.wait_pod(&format!("many-{i}"), 60)?;
    }
    node.delete(&["pods", "--all"])?;
    let own = |line: &String| {
        // The daemons themselves, the bridge and the pods' parent cgroups stand as long as the node does.
        let daemon = line.starts_with("process ") && DAEMONS.iter().any(|d| line.contains(&format!("/{d} ")));
        let parent = ["/kubepods", "/kubepods/burstable", "/kubepods/besteffort", "/kubepods/guaranteed"]
            .iter()
            .any(|c| line.ends_with(c));
        daemon
            || parent
            || line.contains("gantry0")
            || line.contains("10.88.0.1")
            || line.contains("10.88.0.0/16")
            || line.contains("route")
    };
    eventually("nothing of a pod is held", Duration::from_secs(30), || {
        let held: Vec<_> = node.beyond_before()?.into_iter().filter(|l| !own(l)).collect();
        ensure!(held.is_empty(), "still held:\n    {}", held.join("\n    "));
        Ok(())
    })?;
    let addresses = std::fs::read_dir(node.state().join("cni/networks/gantry"))?
        .filter_map(|e| e.ok().map(|e| e.file_name().to_string_lossy().into_owned()))
        .filter(|n| n.starts_with("10."))
        .collect::<Vec<_>>();
    ensure!(addresses.is_empty(), "addresses are still taken: {addresses:?}");
    let fsck = node.cri(&["fsck"])?;
    ensure!(fsck.code == 0, "{fsck:?}");
    Ok(Verdict::Passed)
}
