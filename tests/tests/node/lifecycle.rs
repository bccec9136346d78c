//! Restarts, back-off, OOM, completion, probes, termination, static pods.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gantry_tests::command::eventually;
use gantry_tests::node::{GANTRY, Node, runtime};
use gantry_tests::runner::{Case, Verdict};

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![
        Case { name: "lifecycle::a_memory_hog_is_oom_killed", run: oom },
        Case { name: "lifecycle::a_crash_loop_backs_off_ten_then_twenty_seconds", run: crash_loop },
        Case { name: "lifecycle::a_job_like_pod_succeeds_or_fails_by_its_exit_code", run: completion },
        Case { name: "lifecycle::liveness_restarts_and_readiness_does_not", run: probes },
        Case { name: "lifecycle::termination_sends_sigterm_and_runs_prestop", run: termination },
        Case { name: "lifecycle::one_container_begins_all_of_them_anew", run: anew },
        Case { name: "lifecycle::a_static_pod_has_a_mirror_and_follows_its_file", run: static_pod },
    ]
}

fn pod(name: &str, restart: &str, command: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: {restart}\n  \
         terminationGracePeriodSeconds: 2\n  containers:\n  - name: c\n    image: gantry.local/busybox:latest\n    \
         imagePullPolicy: Never\n    command: [sh, -c, {command:?}]\n{more}"
    )
}

fn oom(node: &Node) -> Result<Verdict> {
    node.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: hog}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - {name: c, image: 'gantry.local/demo:latest', imagePullPolicy: Never, args: [hog, '200'], \
         resources: {limits: {memory: 32Mi}}}\n",
    )?;
    node.wait_field(&["pod", "hog"], ".status.phase", "Failed", 60)?;
    let state = ".status.containerStatuses[0].state.terminated";
    let got = (
        node.field(&["pod", "hog"], &format!("{state}.reason"))?,
        node.field(&["pod", "hog"], &format!("{state}.exitCode"))?,
    );
    ensure!(got == ("OOMKilled".to_owned(), "137".to_owned()), "{got:?}");
    node.delete(&["pod/hog"])?;
    Ok(Verdict::Passed)
}

fn crash_loop(node: &Node) -> Result<Verdict> {
    node.apply(&pod("loop", "Always", "exit 3", ""))?;
    let status = ".status.containerStatuses[0]";
    node.wait_field(&["pod", "loop"], &format!("{status}.state.waiting.reason"), "CrashLoopBackOff", 30)?;
    node.wait_field(&["pod", "loop"], &format!("{status}.restartCount"), "2", 45)?;
    let third = Instant::now();
    ensure!(node.field(&["pod", "loop"], &format!("{status}.lastState.terminated.exitCode"))? == "3");
    node.wait_field(&["pod", "loop"], &format!("{status}.restartCount"), "3", 45)?;
    let waited = third.elapsed().as_secs_f32();
    ensure!((15.0..32.0).contains(&waited), "the third restart came after {waited} s, not about 20");
    let events = node
        .kubectl(&[
            "get",
            "events",
            "--field-selector",
            "involvedObject.name=loop",
            "-o",
            "jsonpath={.items[*].reason}",
        ])?
        .ok()?;
    ensure!(events.contains("BackOff"), "{events}");
    node.delete(&["pod/loop"])?;
    Ok(Verdict::Passed)
}

fn completion(node: &Node) -> Result<Verdict> {
    node.apply(&format!(
        "{}---\n{}---\n{}",
        pod("good", "Never", "echo done > /dev/termination-log; exit 0", ""),
        pod("bad", "Never", "exit 7", ""),
        pod("retry", "OnFailure", "exit 0", "")
    ))?;
    for (name, phase) in [("good", "Succeeded"), ("bad", "Failed"), ("retry", "Succeeded")] {
        node.wait_field(&["pod", name], ".status.phase", phase, 30)?;
    }
    let terminated = ".status.containerStatuses[0].state.terminated";
    ensure!(node.field(&["pod", "good"], &format!("{terminated}.message"))?.trim() == "done");
    ensure!(node.field(&["pod", "bad"], &format!("{terminated}.exitCode"))? == "7");
    ensure!(node.field(&["pod", "bad"], ".status.containerStatuses[0].restartCount")? == "0");
    node.delete(&["pod/good", "pod/bad", "pod/retry"])?;
    Ok(Verdict::Passed)
}

fn probes(node: &Node) -> Result<Verdict> {
    let exec = |file: &str| format!("{{exec: {{command: [test, -e, {file}]}}, periodSeconds: 1, failureThreshold: 2}}");
    let more = format!("    readinessProbe: {}\n    livenessProbe: {}\n", exec("/tmp/ready"), exec("/tmp/alive"));
    node.apply(&pod(
        "probed",
        "Always",
        "touch /tmp/alive /tmp/ready; trap 'exit 0' TERM; while :; do sleep 0.1; done",
        &more,
    ))?;
    node.wait_pod("probed", 30)?;
    node.exec("probed", "c", &["rm", "/tmp/ready"])?.ok()?;
    node.wait_field(&["pod", "probed"], ".status.containerStatuses[0].ready", "false", 15)?;
    ensure!(node.field(&["pod", "probed"], ".status.containerStatuses[0].restartCount")? == "0");
    node.exec("probed", "c", &["rm", "/tmp/alive"])?.ok()?;
    node.wait_field(&["pod", "probed"], ".status.containerStatuses[0].restartCount", "1", 40)?;
    node.wait_pod("probed", 30)?;
    node.delete(&["pod/probed"])?;
    ending(node)
}

/// A pod that ends says when it is ready no longer, and no probe of its life hastens its end.
fn ending(node: &Node) -> Result<Verdict> {
    let exec = |file: &str| format!("{{exec: {{command: [test, -e, {file}]}}, periodSeconds: 1, failureThreshold: 2}}");
    let more = format!("    readinessProbe: {}\n    livenessProbe: {}\n", exec("/tmp/ready"), exec("/tmp/alive"));
    let command = "touch /tmp/alive /tmp/ready; trap 'rm /tmp/alive /tmp/ready' TERM; while :; do sleep 0.1; done";
    node.apply(&pod("ending", "Always", command, &more).replace("PeriodSeconds: 2", "PeriodSeconds: 100"))?;
    node.wait_pod("ending", 30)?;
    node.kubectl(&["delete", "pod", "ending", "--wait=false"])?.ok()?;
    node.wait_field(&["pod", "ending"], ".status.containerStatuses[0].ready", "false", 30)?;
    let running = node.field(&["pod", "ending"], ".status.containerStatuses[0].state.running.startedAt")?;
    ensure!(!running.is_empty(), "the container has ended: readiness was not what told it");
    let ready = ".status.conditions[?(@.type==\"Ready\")].status";
    ensure!(node.field(&["pod", "ending"], ready)? == "False");
    let events = node.kubectl(&["describe", "pod", "ending"])?.ok()?;
    ensure!(events.contains("Readiness probe failed") && !events.contains("Liveness probe failed"), "{events}");
    node.kubectl(&["delete", "pod", "ending", "--grace-period=1"])?.ok()?;
    slow(node)
}

/// A probe's command that takes too long fails, and nothing of it is left in the container.
fn slow(node: &Node) -> Result<Verdict> {
    if runtime() != GANTRY {
        // Other runtimes end the command, and leave what it has begun.
        return Ok(Verdict::Passed);
    }
    let more = "    readinessProbe: {exec: {command: [sh, -c, 'echo x >>/tmp/tries; sleep 4242 & sleep 4242']}, \
                timeoutSeconds: 1, periodSeconds: 1}\n";
    node.apply(&pod("slow", "Always", "trap 'exit 0' TERM; while :; do sleep 0.1; done", more))?;
    let shell = |text: &str| -> Result<i32> {
        let output = node.exec("slow", "c", &["sh", "-c", text])?;
        output.stdout.trim().parse().with_context(|| format!("{text}: {output:?}"))
    };
    eventually("the probe was tried some times", Duration::from_secs(60), || {
        let tries = shell("grep -c x /tmp/tries")?;
        ensure!(tries >= 5, "{tries} tries");
        Ok(())
    })?;
    // Each try has three processes, and more than one is never under way.
    eventually("what timed out is gone", Duration::from_secs(20), || {
        let left = shell("ps | grep -c '[s]leep 4242'")?;
        ensure!(left <= 3, "{left} processes");
        Ok(())
    })?;
    let events = node.kubectl(&["describe", "pod", "slow"])?.ok()?;
    ensure!(events.contains("Readiness probe failed: command timed out"), "{events}");
    node.delete(&["pod/slow"])?;
    Ok(Verdict::Passed)
}

/// An exit code that a rule names restarts the init container and the other container, too, in the same sandbox.
fn anew(node: &Node) -> Result<Verdict> {
    let volumes = "volumeMounts: [{name: data, mountPath: /data}]";
    let container = |name: &str, command: &str| {
        format!(
            "  - name: {name}\n    image: gantry.local/busybox:latest\n    imagePullPolicy: Never\n    \
             command: [sh, -c, {command:?}]\n    {volumes}\n"
        )
    };
    node.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: anew}}\nspec:\n  restartPolicy: Never\n  \
         terminationGracePeriodSeconds: 1\n  initContainers:\n{}  containers:\n{}    restartPolicy: Never\n    \
         restartPolicyRules: [{{action: RestartAllContainers, exitCodes: {{operator: In, values: [42]}}}}]\n{}  \
         volumes: [{{name: data, emptyDir: {{}}}}]\n",
        container("i", "echo x >>/data/runs"),
        container("a", "[ $(wc -l </data/runs) -gt 1 ] || { touch /data/go; exit 42; }; exec sleep 600"),
        container("b", "exec sleep 600"),
    ))?;
    let deadline = Instant::now() + Duration::from_secs(120);
    let all = |status: &serde_json::Value| {
        ["initContainerStatuses", "containerStatuses"]
            .map(|list| status[list].clone())
            .iter()
            .all(|list| list.as_array().is_some_and(|l| !l.is_empty() && l.iter().all(|s| s["restartCount"] == 1)))
    };
    let status = loop {
        let status = node.get(&["pod", "anew"])?["status"].clone();
        let ready = status["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Ready" && c["status"] == "True");
        if ready && all(&status) {
            break status;
        }
        ensure!(Instant::now() < deadline, "the containers did not begin anew: {status}");
        std::thread::sleep(Duration::from_millis(300));
    };
    let restarting =
        status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "AllContainersRestarting");
    ensure!(restarting.is_some_and(|c| c["status"] == "False"), "{status}");
    let last = &status["containerStatuses"][0]["lastState"]["terminated"];
    ensure!(last["exitCode"] == 42, "{status}");
    node.delete(&["pod/anew"])?;
    Ok(Verdict::Passed)
}

fn termination(node: &Node) -> Result<Verdict> {
    let folder = node.scratch("termination")?;
    let more = format!(
        "    lifecycle: {{preStop: {{exec: {{command: [sh, -c, 'echo hook >> /out/log']}}}}}}\n    \
         volumeMounts: [{{name: out, mountPath: /out}}]\n  volumes: [{{name: out, hostPath: {{path: {}, type: Directory}}}}]\n",
        folder.display()
    );
    node.apply(&pod(
        "ending",
        "Always",
        "trap 'echo term >> /out/log; exit 0' TERM; while :; do sleep 0.1; done",
        &more,
    ))?;
    node.wait_pod("ending", 30)?;
    node.delete(&["pod/ending"])?;
    let log = fs::read_to_string(folder.join("log"))?;
    ensure!(log == "hook\nterm\n", "{log:?}");
    node.apply(&pod("stubborn", "Always", "trap '' TERM; while :; do sleep 0.1; done", ""))?;
    node.wait_pod("stubborn", 30)?;
    let start = Instant::now();
    node.delete(&["pod/stubborn"])?;
    let took = start.elapsed().as_secs_f32();
    ensure!((1.5..12.0).contains(&took), "deletion took {took} s with a grace period of 2 s");
    Ok(Verdict::Passed)
}

fn static_pod(node: &Node) -> Result<Verdict> {
    let file = node.state().join("manifests/fixed.yaml");
    let put = |word: &str| -> Result<()> {
        let hidden = node.state().join("manifests/.fixed.tmp");
        fs::write(
            &hidden,
            pod("fixed", "Always", &format!("echo {word}; trap 'exit 0' TERM; while :; do sleep 0.1; done"), ""),
        )?;
        Ok(fs::rename(hidden, &file)?)
    };
    put("one")?;
    let name = format!("fixed-{}", node.name());
    eventually("the mirror pod", Duration::from_secs(30), || node.field(&["pod", &name], ".metadata.uid"))?;
    node.wait_pod(&name, 30)?;
    let annotation = node.field(&["pod", &name], ".metadata.annotations.kubernetes\\.io/config\\.source")?;
    ensure!(annotation == "file", "{annotation}");
    let uid = node.field(&["pod", &name], ".metadata.uid")?;
    node.kubectl(&["delete", "pod", &name, "--grace-period=0", "--force", "--wait=false"])?.ok()?;
    eventually("the mirror pod comes back", Duration::from_secs(40), || {
        let now = node.field(&["pod", &name], ".metadata.uid")?;
        if now == uid { bail!("still the old one") } else { Ok(()) }
    })?;
    put("two")?;
    eventually("the new container's log", Duration::from_secs(60), || {
        let log = node.kubectl(&["logs", &name])?.ok()?;
        ensure!(log.trim() == "two", "log {log:?}");
        Ok(())
    })?;
    fs::remove_file(&file)?;
    eventually("the mirror pod is gone", Duration::from_secs(40), || {
        ensure!(node.kubectl(&["get", "pod", &name])?.code != 0, "it is still there");
        Ok(())
    })
    .context("after the manifest was removed")?;
    Ok(Verdict::Passed)
}
