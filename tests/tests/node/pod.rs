//! What a container sees: files, environment, limits, names, addresses; and what the API says of it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use gantry_tests::node::Node;
use gantry_tests::runner::{Case, Verdict};

const POD: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: full}
data: {colour: blue, "app.conf": "mode=fast\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: full}
stringData: {password: s3cret}
---
apiVersion: v1
kind: Pod
metadata: {name: full, labels: {app: full}}
spec:
  terminationGracePeriodSeconds: 1
  hostname: custom
  dnsPolicy: None
  dnsConfig: {nameservers: [192.0.2.53], searches: [example.test], options: [{name: ndots, value: "3"}]}
  hostAliases: [{ip: 192.0.2.77, hostnames: [alias.test]}]
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: config, configMap: {name: full, items: [{key: app.conf, path: etc/app.conf}]}}
  - {name: secret, secret: {secretName: full, defaultMode: 0400}}
  - {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  initContainers:
  - name: first
    image: gantry.local/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "echo from-init > /shared/init; echo \"FOUND='by init'\" > /shared/env"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: web
    image: gantry.local/demo:latest
    imagePullPolicy: Never
    args: [serve, "8080", /srv]
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1}
    volumeMounts: [{name: shared, mountPath: /srv}]
  - name: shell
    image: gantry.local/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 0.1; done"]
    env:
    - {name: PLAIN, value: "plain"}
    - {name: COMPOSED, value: "is-$(PLAIN)"}
    - {name: FOUND, valueFrom: {fileKeyRef: {volumeName: shared, path: env, key: FOUND}}}
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: full, key: colour}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: full, key: password}}}
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 250m, memory: 64Mi}}
    securityContext: {runAsUser: 1000, runAsGroup: 1000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts:
    - {name: shared, mountPath: /shared}
    - {name: memory, mountPath: /memory}
    - {name: config, mountPath: /config}
    - {name: info, mountPath: /info}
    - {name: secret, mountPath: /secret, readOnly: true}
"#;

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![
        Case { name: "pod::runs_and_becomes_ready", run: becomes_ready },
        Case { name: "pod::containers_see_their_files", run: files },
        Case { name: "pod::containers_see_their_environment", run: environment },
        Case { name: "pod::containers_have_their_names_and_addresses", run: names },
        Case { name: "pod::limits_are_in_the_cgroup", run: limits },
        Case { name: "pod::the_security_context_is_applied", run: security },
        Case { name: "pod::a_changed_configmap_reaches_the_files", run: config_change },
        Case { name: "pod::crictl_shows_it_under_its_kubernetes_names", run: crictl_names },
        Case { name: "pod::deletion_honours_the_grace_period_and_removes_everything", run: deletion },
    ]
}

fn becomes_ready(node: &Node) -> Result<Verdict> {
    node.apply(POD)?;
    node.wait_pod("full", 60)?;
    let pod = node.get(&["pod", "full"])?;
    ensure!(pod["status"]["phase"] == "Running", "phase {}", pod["status"]["phase"]);
    ensure!(pod["status"]["qosClass"] == "Burstable", "qos {}", pod["status"]["qosClass"]);
    let first = &pod["status"]["initContainerStatuses"][0]["state"]["terminated"];
    ensure!(first["exitCode"] == 0 && first["reason"] == "Completed", "init container: {first}");
    for status in pod["status"]["containerStatuses"].as_array().context("container statuses")? {
        ensure!(status["ready"] == true && status["restartCount"] == 0, "{status}");
        ensure!(status["state"]["running"]["startedAt"].is_string(), "{status}");
    }
    Ok(Verdict::Passed)
}

fn shell(node: &Node, text: &str) -> Result<String> {
    node.exec("full", "shell", &["sh", "-c", text])?.ok().map(|s| s.trim().to_owned()).context(text.to_owned())
}

fn same(got: &str, want: &str, what: &str) -> Result<()> {
    ensure!(got == want, "{what}: got {got:?}, want {want:?}");
    Ok(())
}

fn files(node: &Node) -> Result<Verdict> {
    same(&shell(node, "cat /shared/init")?, "from-init", "the init container's file")?;
    same(&shell(node, "cat /config/etc/app.conf")?, "mode=fast", "the ConfigMap's file")?;
    same(&shell(node, "cat /info/labels")?, "app=\"full\"", "the downward API's file")?;
    let secret = shell(node, "ls -lL /secret/password; touch /secret/x 2>&1 || true")?;
    ensure!(secret.contains("Read-only file system"), "{secret}");
    same(&shell(node, "grep ' /memory ' /proc/mounts | cut -d' ' -f3")?, "tmpfs", "the memory volume")?;
    shell(node, "test $(df -k /memory | tail -n 1 | awk '{print $2}') = 8192")?;
    shell(node, "test -c /dev/null && test -c /dev/urandom && test -L /dev/fd && test ! -e /dev/sda")?;
    Ok(Verdict::Passed)
}

fn environment(node: &Node) -> Result<Verdict> {
    let got = shell(node, "echo $PLAIN $COMPOSED $COLOUR $PASSWORD $POD_NAME $CPU $FOUND")?;
    same(&got, "plain is-plain blue s3cret full 250 by init", "the environment")?;
    let ip = node.field(&["pod", "full"], ".status.podIP")?;
    same(&shell(node, "echo $POD_IP")?, &ip, "POD_IP")?;
    Ok(Verdict::Passed)
}

fn names(node: &Node) -> Result<Verdict> {
    same(&shell(node, "hostname")?, "custom", "the host name")?;
    let resolv = shell(node, "cat /etc/resolv.conf")?;
    for line in ["nameserver 192.0.2.53", "search example.test", "options ndots:3"] {
        ensure!(resolv.contains(line), "no {line:?} in resolv.conf: {resolv}");
    }
    let ip = node.field(&["pod", "full"], ".status.podIP")?;
    ensure!(ip.starts_with("10.88."), "pod IP {ip}");
    let hosts = shell(node, "cat /etc/hosts")?;
    ensure!(hosts.contains("192.0.2.77") && hosts.contains("alias.test"), "no host alias: {hosts}");
    ensure!(hosts.contains(&ip) && hosts.contains("custom"), "the pod is not in its hosts file: {hosts}");
    let addresses = shell(node, "ip -o -4 addr show eth0 2>/dev/null || ifconfig eth0")?;
    ensure!(addresses.contains(&ip), "{ip} is not on eth0: {addresses}");
    Ok(Verdict::Passed)
}

fn limits(node: &Node) -> Result<Verdict> {
    let pod = node.get(&["pod", "full"])?;
    let uid = pod["metadata"]["uid"].as_str().context("uid")?;
    let statuses = pod["status"]["containerStatuses"].as_array().context("container statuses")?;
    let shell = statuses.iter().find(|s| s["name"] == "shell").context("container shell")?;
    let id = shell["containerID"].as_str().context("container id")?.rsplit('/').next().unwrap_or_default();
    let unified = fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok();
    let read = |controller: &str, file: &str| -> Result<String> {
        let base =
            if unified { PathBuf::from("/sys/fs/cgroup") } else { PathBuf::from("/sys/fs/cgroup").join(controller) };
        let path = base.join("kubepods/burstable").join(format!("pod{uid}")).join(id).join(file);
        Ok(fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().to_owned())
    };
    if unified {
        same(&read("", "memory.max")?, "67108864", "memory.max")?;
        same(&read("", "cpu.max")?, "25000 100000", "cpu.max")?;
    } else {
        same(&read("memory", "memory.limit_in_bytes")?, "67108864", "memory.limit_in_bytes")?;
        same(&read("cpu", "cpu.cfs_quota_us")?, "25000", "cpu.cfs_quota_us")?;
        same(&read("cpu", "cpu.cfs_period_us")?, "100000", "cpu.cfs_period_us")?;
        same(&read("cpu", "cpu.shares")?, "102", "cpu.shares")?;
    }
    Ok(Verdict::Passed)
}

fn security(node: &Node) -> Result<Verdict> {
    same(&shell(node, "id -u; id -g")?, "1000\n1000", "user and group")?;
    let status = shell(node, "cat /proc/self/status")?;
    for line in ["NoNewPrivs:\t1", "CapBnd:\t0000000000000000", "CapEff:\t0000000000000000"] {
        ensure!(status.contains(line), "no {line:?} in {status}");
    }
    ensure!(shell(node, "echo x > /proc/sys/kernel/hostname").is_err(), "/proc/sys can be written");
    let leaked = shell(node, "ls -l /proc/self/fd | grep -c gantry || true")?;
    same(&leaked, "0", "descriptors of the host")?;
    Ok(Verdict::Passed)
}

fn config_change(node: &Node) -> Result<Verdict> {
    node.kubectl(&["patch", "configmap", "full", "-p", r#"{"data":{"app.conf":"mode=slow\n"}}"#])?.ok()?;
    gantry_tests::command::eventually("the new file", std::time::Duration::from_secs(90), || {
        same(&shell(node, "cat /config/etc/app.conf")?, "mode=slow", "the ConfigMap's file")
    })?;
    Ok(Verdict::Passed)
}

fn crictl_names(node: &Node) -> Result<Verdict> {
    let Some(pods) = node.crictl(&["pods", "--name", "full", "-o", "json"])? else {
        return Ok(Verdict::Skipped("no crictl (it is built where Go is found)".to_owned()));
    };
    let pods: serde_json::Value = serde_json::from_str(&pods.ok()?)?;
    ensure!(pods["items"][0]["metadata"]["namespace"] == "default", "{pods}");
    let containers = node.crictl(&["ps", "-o", "json"])?.context("crictl")?.ok()?;
    let containers: serde_json::Value = serde_json::from_str(&containers)?;
    let names: Vec<_> =
        containers["containers"].as_array().into_iter().flatten().map(|c| &c["metadata"]["name"]).collect();
    ensure!(names.iter().any(|n| *n == "web") && names.iter().any(|n| *n == "shell"), "{names:?}");
    let id = containers["containers"][0]["id"].as_str().context("id")?;
    for words in [
        &["inspect", id][..],
        &["stats", "-o", "json"],
        &["version"],
        &["info"],
        &["images"],
        &["statsp"],
        &["imagefsinfo"],
    ] {
        node.crictl(words)?.context("crictl")?.ok().with_context(|| format!("crictl {words:?}"))?;
    }
    Ok(Verdict::Passed)
}

fn deletion(node: &Node) -> Result<Verdict> {
    let uid = node.field(&["pod", "full"], ".metadata.uid")?;
    node.delete(&["pod/full", "configmap/full", "secret/full"])?;
    let volumes = node.state().join("kubelet/pods").join(&uid);
    gantry_tests::command::eventually("the pod's folder is gone", std::time::Duration::from_secs(20), || {
        ensure!(!volumes.exists(), "{} is still there", volumes.display());
        Ok(())
    })?;
    Ok(Verdict::Passed)
}
