//! Unmodified kubectl, verb by verb.

use std::fs;
use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_tests::command::{eventually, run};
use gantry_tests::node::Node;
use gantry_tests::runner::{Case, Verdict};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: k, labels: {app: k}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, image: 'gantry.local/demo:latest', imagePullPolicy: Never, args: [serve, '8080', /tmp]}
  - {name: shell, image: 'gantry.local/busybox:latest', imagePullPolicy: Never, command: [sh, -c, 'i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done']}
";

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![
        Case { name: "kubectl::get_in_all_output_forms", run: get },
        Case { name: "kubectl::describe_explain_and_api_resources", run: describe },
        Case { name: "kubectl::create_patch_edit_label_and_apply", run: change },
        Case { name: "kubectl::watch_and_wait", run: watch },
        Case { name: "kubectl::logs_follow_and_tail", run: logs },
        Case { name: "kubectl::exec_with_terminal_input_and_exit_code", run: exec },
        Case { name: "kubectl::attach_streams_output", run: attach },
        Case { name: "kubectl::cp_both_ways", run: copy },
        Case { name: "kubectl::port_forward", run: forward },
        Case { name: "kubectl::delete_removes_what_was_made", run: delete },
    ]
}

fn get(node: &Node) -> Result<Verdict> {
    node.apply(POD)?;
    node.wait_pod("k", 30)?;
    for (words, want) in [
        (&["get", "pods"][..], "NAME"),
        (&["get", "pods", "-o", "wide"], "NOMINATED NODE"),
        (&["get", "pod", "k", "-o", "yaml"], "kind: Pod"),
        (&["get", "pod", "k", "-o", "json"], "\"kind\": \"Pod\""),
        (&["get", "pod", "k", "-o", "name"], "pod/k"),
        (&["get", "pod", "k", "-o", "jsonpath={.metadata.name}"], "k"),
        (&["get", "pod", "k", "-o", "custom-columns=N:.metadata.name"], "N\nk"),
        (&["get", "pod", "k", "-o", "go-template={{.metadata.name}}"], "k"),
        (&["get", "pods", "-l", "app=k", "--show-labels"], "app=k"),
        (&["get", "pods", "-A", "--field-selector", "metadata.name=k"], "default"),
        (&["get", "po,cm"], "pod/k"),
        (&["get", "nodes", "-o", "wide"], "CONTAINER-RUNTIME"),
        (&["get", "ns"], "kube-system"),
        (&["get", "leases", "-n", "kube-node-lease"], "node-1"),
        (&["get", "sa"], "default"),
        (&["get", "events"], "Started"),
        (&["version"], "Server Version"),
        (&["cluster-info"], "running at"),
        (&["auth", "can-i", "create", "pods"], "yes"),
    ] {
        let got = node.kubectl(words)?.ok().with_context(|| words.join(" "))?;
        ensure!(got.contains(want), "{words:?}: no {want:?} in\n{got}");
    }
    let table = node.kubectl(&["get", "pod", "k", "--no-headers"])?.ok()?;
    let cells: Vec<_> = table.split_whitespace().collect();
    ensure!(cells[..4] == ["k", "2/2", "Running", "0"], "{table}");
    let missing = node.kubectl(&["get", "pod", "nope"])?;
    ensure!(missing.code == 1 && missing.stderr.contains("pods \"nope\" not found"), "{missing:?}");
    Ok(Verdict::Passed)
}

fn describe(node: &Node) -> Result<Verdict> {
    let text = node.kubectl(&["describe", "pod", "k"])?.ok()?;
    for want in ["Status:           Running", "gantry.local/demo:latest", "Scheduled", "Pulled", "Created", "Started"] {
        ensure!(text.contains(want), "no {want:?} in\n{text}");
    }
    let text = node.kubectl(&["describe", "node", node.name()])?.ok()?;
    ensure!(text.contains("Allocatable:") && text.contains("KubeletReady"), "{text}");
    let text = node.kubectl(&["api-resources"])?.ok()?;
    for want in ["pods", "configmaps", "leases", "serviceaccounts"] {
        ensure!(text.contains(want), "no {want} in {text}");
    }
    let text = node.kubectl(&["explain", "pod.spec.containers"])?.ok()?;
    ensure!(text.contains("imagePullPolicy"), "{text}");
    Ok(Verdict::Passed)
}

fn change(node: &Node) -> Result<Verdict> {
    node.kubectl(&["create", "configmap", "made", "--from-literal=a=1"])?.ok()?;
    node.kubectl(&["patch", "configmap", "made", "-p", r#"{"data":{"b":"2"}}"#])?.ok()?;
    node.kubectl(&["patch", "configmap", "made", "--type=merge", "-p", r#"{"data":{"c":"3"}}"#])?.ok()?;
    node.kubectl(&["patch", "configmap", "made", "--type=json", "-p", r#"[{"op":"remove","path":"/data/a"}]"#])?
        .ok()?;
    node.kubectl(&["label", "configmap", "made", "x=y"])?.ok()?;
    node.kubectl(&["annotate", "configmap", "made", "note=hello"])?.ok()?;
    let mut edit = node.kubectl_command(&["edit", "configmap", "made"]);
    run(edit.env("EDITOR", "sed -i s/\\\"3\\\"/\\\"33\\\"/"), "", Duration::from_secs(20))?.ok()?;
    let made = node.get(&["configmap", "made"])?;
    ensure!(made["data"] == serde_json::json!({"b": "2", "c": "33"}), "{}", made["data"]);
    ensure!(made["metadata"]["labels"]["x"] == "y" && made["metadata"]["annotations"]["note"] == "hello");
    let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: applied}\ndata: {a: '1', b: '2'}\n";
    node.apply(manifest)?;
    ensure!(node.apply(manifest)?.contains("unchanged"));
    node.apply(&manifest.replace(", b: '2'", ""))?;
    ensure!(node.get(&["configmap", "applied"])?["data"] == serde_json::json!({"a": "1"}));
    let mut ssa = node.kubectl_command(&["apply", "--server-side", "--force-conflicts", "-f", "-"]);
    run(&mut ssa, &manifest.replace("'1'", "'9'"), Duration::from_secs(20))?.ok()?;
    ensure!(node.get(&["configmap", "applied"])?["data"]["a"] == "9");
    let wrong = run(
        &mut node.kubectl_command(&["apply", "-f", "-"]),
        "apiVersion: v1\nkind: Pod\nmetadata: {name: Wrong_Name}\nspec: {containers: [{name: c, imagee: x}]}\n",
        Duration::from_secs(20),
    )?;
    ensure!(wrong.code != 0 && wrong.stderr.contains("imagee"), "{wrong:?}");
    node.delete(&["configmap/made", "configmap/applied"])?;
    Ok(Verdict::Passed)
}

fn watch(node: &Node) -> Result<Verdict> {
    let mut watching = node
        .kubectl_command(&["get", "configmaps", "-w", "--output-watch-events", "-o", "name"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    std::thread::sleep(Duration::from_secs(2));
    node.kubectl(&["create", "configmap", "watched"])?.ok()?;
    node.delete(&["configmap/watched"])?;
    std::thread::sleep(Duration::from_secs(1));
    watching.kill()?;
    let mut seen = String::new();
    watching.stdout.take().context("output")?.read_to_string(&mut seen)?;
    watching.wait()?;
    ensure!(seen.matches("configmap/watched").count() == 2, "{seen}");
    node.kubectl(&["wait", "--for=condition=Ready", "pod/k", "--timeout=20s"])?.ok()?;
    Ok(Verdict::Passed)
}

fn logs(node: &Node) -> Result<Verdict> {
    let all = node.kubectl(&["logs", "k", "-c", "shell"])?.ok()?;
    ensure!(all.starts_with("line 1\nline 2\n"), "{all}");
    let tail = node.kubectl(&["logs", "k", "-c", "shell", "--tail=2"])?.ok()?;
    ensure!(tail.lines().count() == 2, "{tail}");
    let stamped = node.kubectl(&["logs", "k", "-c", "shell", "--tail=1", "--timestamps"])?.ok()?;
    ensure!(stamped.contains('T') && stamped.contains("Z line"), "{stamped}");
    let mut follow = node
        .kubectl_command(&["logs", "-f", "k", "-c", "shell"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    std::thread::sleep(Duration::from_secs(3));
    follow.kill()?;
    let mut seen = String::new();
    follow.stdout.take().context("output")?.read_to_string(&mut seen)?;
    follow.wait()?;
    ensure!(
        seen.lines().count() > all.lines().count() + 4,
        "followed {} lines after {}",
        seen.lines().count(),
        all.lines().count()
    );
    for (i, line) in seen.lines().enumerate() {
        ensure!(line == format!("line {}", i + 1), "line {} is {line:?}", i + 1);
    }
    Ok(Verdict::Passed)
}

fn exec(node: &Node) -> Result<Verdict> {
    let failed = node.exec("k", "shell", &["sh", "-c", "echo out; echo err >&2; exit 5"])?;
    ensure!(failed.code == 5 && failed.stdout == "out\n" && failed.stderr.contains("err"), "{failed:?}");
    let echoed = run(
        &mut node.kubectl_command(&["exec", "-i", "k", "-c", "shell", "--", "cat"]),
        "typed\n",
        Duration::from_secs(20),
    )?;
    ensure!(echoed.stdout == "typed\n", "{echoed:?}");
    let mut script = node.inside("script");
    script.env("KUBECONFIG", node.state().join("apiserver/admin.kubeconfig"));
    script.args(["-qec", "kubectl exec -it k -c shell -- sh -c 'tty; stty size; exit 3'", "/dev/null"]);
    let terminal = run(&mut script, "", Duration::from_secs(20))?;
    ensure!(terminal.code == 3 && terminal.stdout.contains("/dev/pts/"), "{terminal:?}");
    let none = node.exec("k", "shell", &["/no/such/program"])?;
    ensure!(none.code != 0 && none.stderr.contains("no such file or directory"), "{none:?}");
    let large = node.exec("k", "shell", &["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"])?;
    ensure!(large.stdout.len() == 3_000_000, "{} bytes", large.stdout.len());
    Ok(Verdict::Passed)
}

fn attach(node: &Node) -> Result<Verdict> {
    let mut attached = node
        .kubectl_command(&["attach", "k", "-c", "shell"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    std::thread::sleep(Duration::from_secs(3));
    attached.kill()?;
    let mut seen = String::new();
    attached.stdout.take().context("output")?.read_to_string(&mut seen)?;
    attached.wait()?;
    ensure!(seen.lines().count() >= 3 && seen.starts_with("line "), "{seen:?}");
    Ok(Verdict::Passed)
}

fn copy(node: &Node) -> Result<Verdict> {
    let folder = node.scratch("cp")?;
    let (there, back) = (folder.join("there"), folder.join("back"));
    let content: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&there, &content)?;
    node.kubectl(&["cp", "-c", "shell", &there.to_string_lossy(), "k:/tmp/copied"])?.ok()?;
    node.kubectl(&["cp", "-c", "shell", "k:/tmp/copied", &back.to_string_lossy()])?.ok()?;
    ensure!(fs::read(&back)? == content, "the file came back different");
    Ok(Verdict::Passed)
}

fn forward(node: &Node) -> Result<Verdict> {
    let mut forwarding = node.background(&mut node.kubectl_command(&["port-forward", "pod/k", "28080:8080"]))?;
    let get = || {
        let mut command = node.inside(&node.programs.join("gantry-demo").to_string_lossy());
        run(command.args(["get", "http://127.0.0.1:28080/hostname"]), "", Duration::from_secs(10))?.ok()
    };
    let answers =
        eventually("the forwarded port answers", Duration::from_secs(15), get).and_then(|first| Ok((first, get()?)));
    forwarding.kill()?;
    forwarding.wait()?;
    let (first, second) = answers?;
    ensure!(first.trim() == "k" && second.trim() == "k", "{first:?} {second:?}");
    Ok(Verdict::Passed)
}

fn delete(node: &Node) -> Result<Verdict> {
    node.kubectl(&["create", "namespace", "passing"])?.ok()?;
    node.kubectl(&["create", "configmap", "inside", "-n", "passing"])?.ok()?;
    node.delete(&["namespace/passing"])?;
    ensure!(node.kubectl(&["get", "configmap", "inside", "-n", "passing"])?.code != 0);
    let deleted = node.kubectl(&["delete", "pod", "k"])?.ok()?;
    ensure!(deleted.contains("pod \"k\"") && deleted.contains("deleted"), "{deleted}");
    Ok(Verdict::Passed)
}
