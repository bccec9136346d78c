//! Pods whose users are their own (`hostUsers: false`, KEP-127).

use anyhow::{Context, Result, ensure};
use gantry_tests::node::Node;
use gantry_tests::runner::{Case, Verdict};

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![Case { name: "users::pods_with_ids_of_their_own_have_their_volumes", run: volumes }]
}

const CONFIG: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mapped}\ndata: {colour: blue}\n";

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  hostUsers: false\n  \
         terminationGracePeriodSeconds: 1\n  securityContext: {{fsGroup: 2000}}\n  volumes:\n  \
         - {{name: disk, emptyDir: {{}}}}\n  - {{name: memory, emptyDir: {{medium: Memory}}}}\n  \
         - {{name: config, configMap: {{name: mapped}}}}\n  containers:\n  - name: c\n    \
         image: gantry.local/busybox:latest\n    imagePullPolicy: Never\n    command: [sleep, '10000']\n    \
         volumeMounts:\n    - {{name: disk, mountPath: /disk}}\n    - {{name: memory, mountPath: /memory}}\n    \
         - {{name: config, mountPath: /config}}\n"
    )
}

/// The host's id of a pod's root.
fn root_of(node: &Node, pod: &str) -> Result<u32> {
    let map = node.exec(pod, "c", &["cat", "/proc/self/uid_map"])?.stdout;
    let fields: Vec<u32> = map.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    ensure!(fields.len() == 3 && fields[0] == 0 && fields[1] >= 65536 && fields[2] == 65536, "uid_map: {map}");
    Ok(fields[1])
}

fn volumes(node: &Node) -> Result<Verdict> {
    node.apply(CONFIG)?;
    for name in ["own1", "own2"] {
        node.apply(&pod(name))?;
        node.wait_pod(name, 60)?;
    }
    let (first, second) = (root_of(node, "own1")?, root_of(node, "own2")?);
    ensure!(first.abs_diff(second) >= 65536, "the pods share ids: {first} and {second}");
    let script =
        "id -u; cat /config/colour; echo; for v in disk memory; do echo x >/$v/new && stat -c '%u %g' /$v/new; done";
    let seen = node.exec("own1", "c", &["sh", "-c", script])?;
    let seen = seen.stdout + &seen.stderr;
    ensure!(seen == "0\nblue\n0 2000\n0 2000\n", "inside: {seen}");
    // On the host its root is nobody who could do anything; the volume's files have the ids that they have inside.
    let uid = node.field(&["pod", "own1"], ".metadata.uid")?;
    let file = node.state().join(format!("kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/disk/new"));
    let owner = std::os::unix::fs::MetadataExt::uid(&file.metadata().with_context(|| format!("{}", file.display()))?);
    ensure!(owner == 0, "the file on the host is {owner}'s");
    node.delete(&["pod/own1", "pod/own2", "configmap/mapped"])?;
    Ok(Verdict::Passed)
}
