//! A pod that runs gets other resources, and a container that is restarted by its own rules.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_tests::command::eventually;
use gantry_tests::node::Node;
use gantry_tests::runner::{Case, Verdict};
use serde_json::{Value, json};

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![
        Case { name: "resize::a_pod_that_runs_gets_other_limits", run: resize },
        Case { name: "resize::a_pod_as_a_whole_gets_other_limits", run: whole },
        Case { name: "resize::exit_codes_decide_on_restarts", run: rules },
    ]
}

/// A container's file below its group, on either version of control groups.
fn group_file(pod: &Value, v1: (&str, &str), v2: &str) -> Result<String> {
    let uid = pod["metadata"]["uid"].as_str().context("uid")?;
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().context("id")?;
    let id = id.rsplit('/').next().unwrap_or_default();
    let unified = fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok();
    let (top, file) = if unified { (PathBuf::new(), v2) } else { (PathBuf::from(v1.0), v1.1) };
    let path = PathBuf::from("/sys/fs/cgroup").join(top).join(format!("kubepods/burstable/pod{uid}/{id}/{file}"));
    Ok(fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().to_owned())
}

fn ask(node: &Node, requests: Value, limits: Value) -> Result<()> {
    let patch = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]}});
    node.kubectl(&["patch", "pod", "resized", "--subresource=resize", "-p", &patch.to_string()])?.ok().map(drop)
}

fn condition(pod: &Value, type_: &str) -> Value {
    let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|c| c["type"] == type_).unwrap_or_default()
}

fn resize(node: &Node) -> Result<Verdict> {
    node.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: resized}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - name: c\n    image: gantry.local/busybox:latest\n    imagePullPolicy: Never\n    \
         command: [sh, -c, 'trap exit TERM; while :; do sleep 0.2; done']\n    \
         resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}\n    \
         resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}, {resourceName: memory, restartPolicy: RestartContainer}]\n",
    )?;
    node.wait_pod("resized", 60)?;
    let get = || node.get(&["pod", "resized"]);
    let begun = get()?["status"]["containerStatuses"][0]["containerID"].clone();
    ask(node, json!({"cpu": "150m"}), json!({"cpu": "300m"}))?;
    let limit = Duration::from_secs(60);
    eventually("more CPU without a restart", limit, || {
        let pod = get()?;
        let quota = group_file(&pod, ("cpu", "cpu.cfs_quota_us"), "cpu.max")?;
        ensure!(quota.split(' ').next() == Some("30000"), "quota {quota}");
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["resources"]["limits"]["cpu"] == "300m", "{status}");
        ensure!(status["containerID"] == begun && status["restartCount"] == 0, "{status}");
        ensure!(condition(&pod, "PodResizeInProgress").is_null(), "{}", pod["status"]);
        Ok(())
    })?;
    // More than the node has: refused, and what runs keeps what it was given, also over a restart of the kubelet.
    ask(node, json!({"cpu": "900"}), json!({"cpu": "1000"}))?;
    let refused = || {
        let pod = get()?;
        let pending = condition(&pod, "PodResizePending");
        ensure!(pending["status"] == "True" && pending["reason"] == "Infeasible", "{}", pod["status"]);
        let quota = group_file(&pod, ("cpu", "cpu.cfs_quota_us"), "cpu.max")?;
        ensure!(quota.split(' ').next() == Some("30000"), "quota {quota}");
        Ok(())
    };
    eventually("too much is refused", limit, refused)?;
    node.kill_daemon("kubelet")?;
    node.start_daemon("kubelet")?;
    node.wait_ready()?;
    eventually("too much is refused after a restart, too", limit, refused)?;
    ask(node, json!({"cpu": "150m"}), json!({"cpu": "300m"}))?;
    eventually("nobody asks for too much any more", limit, || {
        let pod = get()?;
        ensure!(condition(&pod, "PodResizePending").is_null(), "{}", pod["status"]);
        ensure!(pod["status"]["containerStatuses"][0]["containerID"] == begun, "it was restarted: {}", pod["status"]);
        Ok(())
    })?;
    ask(node, json!({"memory": "48Mi"}), json!({"memory": "96Mi"}))?;
    eventually("more memory with a restart", limit, || {
        let pod = get()?;
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["restartCount"] == 1 && status["ready"] == true, "{status}");
        ensure!(status["resources"]["limits"]["memory"] == "96Mi", "{status}");
        let bytes = group_file(&pod, ("memory", "memory.limit_in_bytes"), "memory.max")?;
        ensure!(bytes == (96_u64 << 20).to_string(), "{bytes}");
        Ok(())
    })?;
    node.delete(&["pod/resized"])?;
    Ok(Verdict::Passed)
}

fn rules(node: &Node) -> Result<Verdict> {
    node.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: ruled}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - name: c\n    image: gantry.local/busybox:latest\n    imagePullPolicy: Never\n    restartPolicy: Never\n    \
         restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]\n    \
         command: [sh, -c, 'echo x >>/data/runs; [ $(wc -l </data/runs) -gt 1 ] && exit 7; exit 42']\n    \
         volumeMounts: [{name: data, mountPath: /data}]\n  volumes: [{name: data, emptyDir: {}}]\n",
    )?;
    node.wait_field(&["pod", "ruled"], ".status.phase", "Failed", 90)?;
    let status = node.get(&["pod", "ruled"])?["status"]["containerStatuses"][0].clone();
    ensure!(status["restartCount"] == 1 && status["state"]["terminated"]["exitCode"] == 7, "{status}");
    node.delete(&["pod/ruled"])?;
    Ok(Verdict::Passed)
}

/// The quota of the pod's own group, on either version of control groups.
fn pod_quota(pod: &Value) -> Result<String> {
    let uid = pod["metadata"]["uid"].as_str().context("uid")?;
    let unified = fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok();
    let (top, file) = if unified { ("", "cpu.max") } else { ("cpu", "cpu.cfs_quota_us") };
    let path = PathBuf::from("/sys/fs/cgroup").join(top).join(format!("kubepods/burstable/pod{uid}/{file}"));
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

fn whole(node: &Node) -> Result<Verdict> {
    node.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: whole}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}\n  containers:\n  \
         - {name: c, image: 'gantry.local/busybox:latest', imagePullPolicy: Never, command: [sleep, '1000']}\n",
    )?;
    node.wait_pod("whole", 60)?;
    let get = || node.get(&["pod", "whole"]);
    let begun = get()?;
    ensure!(pod_quota(&begun)? == "20000", "quota {}", pod_quota(&begun)?);
    let patch = json!({"spec": {"resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "400m"}}}});
    node.kubectl(&["patch", "pod", "whole", "--subresource=resize", "-p", &patch.to_string()])?.ok()?;
    eventually("more CPU for the whole pod", Duration::from_secs(60), || {
        let pod = get()?;
        ensure!(pod_quota(&pod)? == "40000", "quota {}", pod_quota(&pod)?);
        let status = &pod["status"];
        ensure!(status["resources"]["limits"]["cpu"] == "400m", "{status}");
        ensure!(status["allocatedResources"]["cpu"] == "100m", "{status}");
        ensure!(condition(&pod, "PodResizeInProgress").is_null(), "{status}");
        let (now, before) = (&status["containerStatuses"][0], &begun["status"]["containerStatuses"][0]);
        ensure!(now["containerID"] == before["containerID"], "it was restarted: {status}");
        Ok(())
    })?;
    node.delete(&["pod/whole"])?;
    Ok(Verdict::Passed)
}
