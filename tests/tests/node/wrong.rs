//! Pods and manifests that cannot work: each says what is wrong where people look, and none holds up another.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use gantry_tests::command::eventually;
use gantry_tests::node::Node;
use gantry_tests::runner::{Case, Verdict};

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![
        Case { name: "wrong::every_wrong_pod_names_what_is_wrong", run: pods },
        Case { name: "wrong::every_wrong_manifest_names_its_field", run: manifests },
    ]
}

const CLASS: &str = "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: odd}\nhandler: no-such-handler\n";

/// What is added to the container and to the pod's spec, and what people must be able to read.
const PODS: [(&str, &str, &str, &[&str]); 18] = [
    ("image-name", "image: 'Not/An:Image!'", "", &["InvalidImageName", "Not/An:Image!"]),
    ("image-absent", "image: 'gantry.local/absent:1'", "", &["ErrImageNeverPull", "gantry.local/absent:1"]),
    ("non-root", "securityContext: {runAsNonRoot: true}", "", &["CreateContainerConfigError", "runAsNonRoot"]),
    (
        "secret-key",
        "env: [{name: A, valueFrom: {secretKeyRef: {name: absent, key: k}}}]",
        "",
        &["secret \"absent\" not found"],
    ),
    ("no-command", "command: [/no/such/program]", "", &["/no/such/program"]),
    (
        "no-profile",
        "securityContext: {seccompProfile: {type: Localhost, localhostProfile: no/such.json}}",
        "",
        &["seccomp", "no/such.json"],
    ),
    ("capability", "securityContext: {capabilities: {add: [NO_SUCH_THING]}}", "", &["NO_SUCH_THING"]),
    ("probe-port", "readinessProbe: {periodSeconds: 1, httpGet: {port: nowhere}}", "", &["Unhealthy", "nowhere"]),
    ("hook", "lifecycle: {postStart: {exec: {command: [/no/hook]}}}", "", &["FailedPostStartHook", "/no/hook"]),
    (
        "secret-volume",
        "",
        "volumes: [{name: v, secret: {secretName: absent}}]",
        &["FailedMount", "\"v\"", "secret \"absent\" not found"],
    ),
    (
        "host-path",
        "",
        "volumes: [{name: v, hostPath: {path: /etc, type: File}}]",
        &["FailedMount", "hostPath type check failed: /etc is not a file"],
    ),
    (
        "claim",
        "",
        "volumes: [{name: v, persistentVolumeClaim: {claimName: absent}}]",
        &["FailedMount", "persistentvolumeclaim \"absent\" not found"],
    ),
    ("kind", "", "volumes: [{name: v, nfs: {server: s, path: /}}]", &["FailedMount", "nfs"]),
    ("driver", "", "volumes: [{name: v, csi: {driver: no.such.driver}}]", &["FailedMount", "no.such.driver"]),
    (
        "sub-path",
        "volumeMounts: [{name: v, mountPath: /v, subPathExpr: a/$(NOPE)}]",
        "volumes: [{name: v, emptyDir: {}}]",
        &["subPathExpr", "\"NOPE\" is not set"],
    ),
    (
        "devices",
        "resources: {claims: [{name: gpu}]}",
        "resourceClaims: [{name: gpu, resourceClaimName: absent}]",
        &["FailedPrepareDynamicResources", "\"gpu\""],
    ),
    ("handler", "", "runtimeClassName: odd", &["FailedCreatePodSandBox", "no-such-handler"]),
    (
        "token",
        "",
        "volumes: [{name: v, projected: {sources: [{configMap: {name: gone}}, {secret: {name: gone-too}}]}}]",
        &["configmap \"gone\" not found", "secret \"gone-too\" not found"],
    ),
];

fn pod(name: &str, container: &str, spec: &str) -> String {
    let image = if container.starts_with("image:") { "" } else { "    image: gantry.local/busybox:latest\n" };
    let command = if container.starts_with("command:") { "" } else { "    command: [sleep, '1000']\n" };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: wrong-{name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         {spec}\n  containers:\n  - name: c\n    imagePullPolicy: Never\n{image}{command}    {container}\n"
    )
}

fn pods(node: &Node) -> Result<Verdict> {
    node.apply(CLASS)?;
    for (name, container, spec, _) in PODS {
        node.apply(&pod(name, container, spec))?;
    }
    node.apply(&pod("not", "", ""))?;
    let outcome = PODS.iter().try_for_each(|(name, _, _, words)| {
        eventually(&format!("what is wrong with {name} is told"), Duration::from_secs(60), || {
            let text = node.kubectl(&["describe", "pod", &format!("wrong-{name}")])?.ok()?;
            let missing: Vec<_> = words.iter().filter(|w| !text.contains(**w)).collect();
            ensure!(missing.is_empty(), "{missing:?} is not in\n{text}");
            Ok(())
        })
    });
    // The one in the midst of them that is right runs.
    let right = node.wait_pod("wrong-not", 60);
    let mut names: Vec<String> = PODS.iter().map(|(name, ..)| format!("pod/wrong-{name}")).collect();
    names.extend(["pod/wrong-not".to_owned(), "runtimeclass/odd".to_owned()]);
    node.delete(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    outcome.and(right).map(|()| Verdict::Passed)
}

fn manifests(node: &Node) -> Result<Verdict> {
    let cases = [
        (
            "procmount",
            "securityContext: {procMount: Open}",
            "spec.containers[0].securityContext.procMount: Unsupported value",
        ),
        ("port", "ports: [{containerPort: 70000}]", "spec.containers[0].ports[0].containerPort: Invalid value"),
        ("mount", "volumeMounts: [{name: v, mountPath: /v}]", "spec.containers[0].volumeMounts[0].name: Not found"),
        (
            "object",
            "env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]",
            "spec.containers[0].env[0].valueFrom: static pods",
        ),
        ("type", "stdin: 5", "spec.containers[0].stdin: invalid type"),
        (
            "misspelled",
            "imagePullPolicies: Never, command: [sleep, '1000']",
            "has unknown fields: spec.containers[0].imagePullPolicies",
        ),
    ];
    let file = |name: &str| node.state().join(format!("manifests/wrong-{name}.yaml"));
    for (name, fields, _) in &cases {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: wrong-{name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
             containers: [{{name: c, image: 'gantry.local/busybox:latest', imagePullPolicy: Never, {fields}}}]\n"
        );
        fs::write(file(name), text)?;
    }
    let outcome = eventually("the node's events name each field", Duration::from_secs(60), || {
        let text =
            node.kubectl(&["get", "events", "-A", "-o", "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}"])?.ok()?;
        let log = fs::read_to_string(node.state().join("logs/kubelet.log"))?;
        for (name, _, want) in &cases {
            let named = |l: &&str| l.contains(&format!("wrong-{name}.yaml")) && l.contains(want);
            ensure!(text.lines().any(|l| named(&l)), "no event of wrong-{name}.yaml with {want:?} in\n{text}");
            ensure!(log.lines().any(|l| named(&l)), "the log has nothing of wrong-{name}.yaml with {want:?}");
        }
        Ok(())
    });
    for (name, ..) in &cases {
        fs::remove_file(file(name))?;
    }
    eventually("the pod with an unknown field has run and is gone", Duration::from_secs(60), || {
        let text = node.kubectl(&["get", "pods", "--no-headers"])?.text();
        ensure!(!text.contains("wrong-"), "{text}");
        Ok(())
    })?;
    outcome.map(|()| Verdict::Passed)
}
