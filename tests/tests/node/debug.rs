//! Ephemeral containers: what `kubectl debug` does to a pod that runs.

use anyhow::{Result, ensure};
use gantry_tests::node::Node;
use gantry_tests::runner::{Case, Verdict};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: sick}
spec:
  restartPolicy: Always
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: 'gantry.local/demo:latest', imagePullPolicy: Never, args: [serve, '8080', /tmp]}
";

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![Case { name: "debug::an_ephemeral_container_sees_the_processes_of_its_target", run: debug }]
}

fn debug(node: &Node) -> Result<Verdict> {
    node.apply(POD)?;
    node.wait_pod("sick", 30)?;
    let before = node.field(&["pod", "sick"], ".status.containerStatuses[0].containerID")?;
    let words = ["--image=gantry.local/busybox:latest", "--image-pull-policy=Never", "--target=web", "-c", "doctor"];
    let command = ["--", "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; exit 4"];
    node.kubectl(&[&["debug", "sick"], &words[..], &command[..]].concat())?.ok()?;
    let state = ".status.ephemeralContainerStatuses[0].state.terminated.exitCode";
    node.wait_field(&["pod", "sick"], state, "4", 40)?;
    let log = node.kubectl(&["logs", "sick", "-c", "doctor"])?.ok()?;
    ensure!(log.contains("gantry-demo serve"), "process 1 of the target is {log:?}");
    // Its end is no reason for anything: it is not started again, and the pod goes on.
    let pod = node.get(&["pod", "sick"])?;
    let status = &pod["status"];
    ensure!(status["phase"] == "Running" && status["ephemeralContainerStatuses"][0]["restartCount"] == 0, "{status}");
    ensure!(status["containerStatuses"][0]["containerID"] == before.as_str(), "the main container was restarted");
    node.delete(&["pod/sick"])?;
    Ok(Verdict::Passed)
}
