//! Volumes of a CSI driver: a real process with a real socket, found by the kubelet, asked for volumes, and asked to take
//! them away again, through crashes of the kubelet and of the driver.

use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use gantry_test_csi::Driver;
use gantry_tests::command::{eventually, run};
use gantry_tests::node::Node;
use gantry_tests::runner::{Case, Verdict};

/// The word that makes the test program be the driver.
pub(crate) const PROGRAM: &str = "csi-driver";
const NAME: &str = "csi.test.gantry";

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![
        Case { name: "csi::a_claims_volume_is_staged_once_and_outlives_the_kubelet", run: persistent },
        Case { name: "csi::inline_and_generic_ephemeral_volumes_live_with_their_pod", run: ephemeral },
        Case { name: "csi::what_a_driver_refuses_is_told_and_tried_again", run: refused },
    ]
}

/// The driver's process, killed at the end of the test.
struct Running {
    driver: Driver,
    process: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(node: &Node, driver: &Driver) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([PROGRAM, NAME]).arg(&*driver.folder).arg(node.state().join("kubelet/plugins_registry"));
    Ok(command.spawn()?)
}

/// Starts the driver in a folder of its own and waits until the kubelet has it.
fn start(node: &Node, folder: &str) -> Result<Running> {
    let driver = Driver::new(NAME, &node.scratch(folder)?)?;
    let running = Running { process: spawn(node, &driver)?, driver };
    node.apply(&format!(
        "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {{name: {NAME}}}\nspec:\n  attachRequired: false\n  \
         podInfoOnMount: true\n  fsGroupPolicy: File\n  volumeLifecycleModes: [Persistent, Ephemeral]\n"
    ))?;
    registered(node, true)?;
    Ok(running)
}

fn registered(node: &Node, wanted: bool) -> Result<()> {
    eventually("the CSINode tells of the driver, or not", Duration::from_secs(40), || {
        let object = node.get(&["csinode", node.name()])?;
        let listed = object["spec"]["drivers"].as_array().is_some_and(|l| l.iter().any(|d| d["name"] == NAME));
        ensure!(listed == wanted, "{object}");
        Ok(())
    })
}

/// A volume and a claim, bound as a controller would bind them.
fn claim(node: &Node, name: &str, size: &str, owner: &str) -> Result<()> {
    node.apply(&format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: csi-key}}\nstringData: {{key: s3cret}}\n---\n\
         apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: pv-{name}}}\nspec:\n  capacity: {{storage: {size}}}\n  \
         accessModes: [ReadWriteOnce]\n  claimRef: {{name: {name}, namespace: default}}\n  csi:\n    driver: {NAME}\n    \
         volumeHandle: handle-{name}\n    nodeStageSecretRef: {{name: csi-key, namespace: default}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}{owner}}}\nspec:\n  \
         accessModes: [ReadWriteOnce]\n  storageClassName: ''\n  volumeName: pv-{name}\n  resources: {{requests: {{storage: 1Gi}}}}\n"
    ))?;
    let status = r#"{"status":{"phase":"Bound","accessModes":["ReadWriteOnce"],"capacity":{"storage":"1Gi"}}}"#;
    node.kubectl(&["patch", "pvc", name, "--subresource=status", "--type=merge", "-p", status])?.ok().map(drop)
}

fn pod(name: &str, volume: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         securityContext: {{fsGroup: 4242}}\n  containers:\n  - name: c\n    image: gantry.local/busybox:latest\n    \
         imagePullPolicy: Never\n    command: [sleep, '1000']\n    volumeMounts: [{{name: v, mountPath: /v}}]\n  \
         volumes:\n  - name: p\n    configMap: {{name: poke, optional: true}}\n  - name: v\n    {volume}\n---\n"
    )
}

fn count(driver: &Driver, prefix: &str) -> usize {
    driver.calls().iter().filter(|c| c.starts_with(prefix)).count()
}

fn shell(node: &Node, pod: &str, script: &str) -> Result<String> {
    node.exec(pod, "c", &["sh", "-c", script])?.ok()
}

fn persistent(node: &Node) -> Result<Verdict> {
    let running = start(node, "csi-persistent")?;
    let driver = &running.driver;
    ensure!(driver.calls().iter().any(|c| c.starts_with("Registered true")), "{:?}", driver.calls());
    let ids = node.field(&["node", node.name()], ".metadata.annotations.csi\\.volume\\.kubernetes\\.io/nodeid")?;
    ensure!(ids.contains("test-node"), "node ids {ids:?}");
    let zone = node.field(&["node", node.name()], ".metadata.labels.topology\\.test\\.gantry/zone")?;
    ensure!(zone == "z1", "zone {zone:?}");
    // The volume is larger than its file system: it grows when it is mounted.
    claim(node, "shared", "2Gi", "")?;
    let volume = "persistentVolumeClaim: {claimName: shared}";
    node.apply(&(pod("one", volume) + &pod("two", volume)))?;
    node.wait_pod("one", 60)?;
    node.wait_pod("two", 60)?;
    node.wait_field(&["pvc", "shared"], ".status.capacity.storage", "2Gi", 20)?;
    ensure!(count(driver, "NodeExpandVolume handle-shared 2147483648") >= 1, "{:?}", driver.calls());
    ensure!(count(driver, "NodeStageVolume handle-shared s3cret") >= 1, "{:?}", driver.calls());
    ensure!(count(driver, "NodePublishVolume handle-shared one false") >= 1, "{:?}", driver.calls());
    shell(node, "one", "echo from one >/v/file")?;
    let seen = shell(node, "two", "cat /v/file; stat -c %g /v")?;
    ensure!(seen == "from one\n4242\n", "{seen:?}");
    ill(node, driver)?;
    grow(node, driver)?;
    // What a kubelet knows after kill -9 it reads from the disk.
    node.kill_daemon("kubelet")?;
    node.start_daemon("kubelet")?;
    node.wait_ready()?;
    node.delete(&["pod/one"])?;
    ensure!(count(driver, "NodeUnpublishVolume handle-shared") == 1, "{:?}", driver.calls());
    ensure!(count(driver, "NodeUnstageVolume") == 0, "pod two still uses it: {:?}", driver.calls());
    ensure!(shell(node, "two", "cat /v/file")? == "from one\n");
    node.delete(&["pod/two"])?;
    ensure!(count(driver, "NodeUnpublishVolume handle-shared") == 2, "{:?}", driver.calls());
    ensure!(count(driver, "NodeUnstageVolume handle-shared") == 1, "{:?}", driver.calls());
    ensure!(driver.volume("handle-shared").join("file").exists(), "the volume's files outlive its pods");
    let staged = node.state().join("kubelet/plugins/kubernetes.io/csi").join(NAME);
    let left: Vec<_> = std::fs::read_dir(&staged)?.flatten().map(|e| e.path()).collect();
    ensure!(left.is_empty(), "left of the staged volume: {left:?}");
    node.delete(&["pvc/shared", "pv/pv-shared"])?;
    drop(running);
    std::fs::remove_file(node.state().join(format!("kubelet/plugins_registry/{NAME}-reg.sock")))?;
    registered(node, false)?;
    Ok(Verdict::Passed)
}

/// What the driver says of the volume's health reaches those who watch the node.
fn ill(node: &Node, driver: &Driver) -> Result<()> {
    driver.sicken("handle-shared", "two disks are missing")?;
    // The kubelet's socket for tools on its own machine, where root needs no certificate.
    let socket = node.state().join("kubelet/kubelet.sock");
    let raw = |path: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-sf", "--max-time", "10", "--unix-socket"]).arg(&socket).arg(format!("http://localhost/{path}"));
        run(&mut curl, "", Duration::from_secs(20))?.ok()
    };
    // An older answer of the driver holds for a minute, should somebody have asked before the test.
    eventually("the metric tells of the volume", Duration::from_secs(90), || {
        let text = raw("metrics")?;
        let line =
            "kubelet_volume_stats_health_status_abnormal{namespace=\"default\",persistentvolumeclaim=\"shared\"} 1";
        ensure!(text.lines().any(|l| l == line), "{line} is missing");
        Ok(())
    })?;
    let summary = raw("stats/summary")?;
    ensure!(summary.replace(' ', "").contains("\"volumeHealthStats\":{\"abnormal\":true}"), "{summary}");
    told(node, &["one", "two"], &["VolumeConditionAbnormal", "Volume v: two disks are missing"])
}

/// The events of one of the pods come to have all these words.
fn told(node: &Node, pods: &[&str], words: &[&str]) -> Result<()> {
    eventually("the events tell it", Duration::from_secs(30), || {
        let texts: Result<Vec<String>> = pods.iter().map(|pod| node.kubectl(&["describe", "pod", pod])?.ok()).collect();
        let texts = texts?;
        ensure!(texts.iter().any(|text| words.iter().all(|w| text.contains(w))), "{words:?} in {texts:?}");
        Ok(())
    })
}

/// The volume grows while pods run; the change of another volume of theirs makes the kubelet look at once.
fn grow(node: &Node, driver: &Driver) -> Result<()> {
    driver.fail("NodeExpandVolume", Some("no room in the rack"))?;
    let size = r#"{"spec":{"capacity":{"storage":"3Gi"}}}"#;
    node.kubectl(&["patch", "pv", "pv-shared", "--type=merge", "-p", size])?.ok()?;
    let pending = r#"{"status":{"conditions":[{"type":"FileSystemResizePending","status":"True"}],
        "allocatedResourceStatuses":{"storage":"NodeResizePending"},"allocatedResources":{"storage":"3Gi"}}}"#;
    node.kubectl(&["patch", "pvc", "shared", "--subresource=status", "--type=merge", "-p", pending])?.ok()?;
    let poke = |now: &str| {
        node.apply(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: poke}}\ndata: {{now: '{now}'}}\n"))
    };
    poke("1")?;
    // A look that came before the test has the next one wait a minute.
    eventually("the claim tells of the failure", Duration::from_secs(150), || {
        let status = &node.get(&["pvc", "shared"])?["status"];
        let conditions = status["conditions"].to_string();
        ensure!(conditions.contains("NodeResizeError") && conditions.contains("no room in the rack"), "{status}");
        Ok(())
    })?;
    // The claim is both pods'; who looked first is told.
    told(node, &["one", "two"], &["VolumeResizeFailed", "no room in the rack"])?;
    driver.fail("NodeExpandVolume", None)?;
    poke("2")?;
    node.wait_field(&["pvc", "shared"], ".status.capacity.storage", "3Gi", 150)?;
    ensure!(count(driver, "NodeExpandVolume handle-shared 3221225472") >= 2, "{:?}", driver.calls());
    let status = &node.get(&["pvc", "shared"])?["status"];
    ensure!(status["conditions"].as_array().is_none_or(Vec::is_empty), "{status}");
    ensure!(status["allocatedResourceStatuses"]["storage"].is_null(), "{status}");
    let restarts = node.field(&["pod", "one"], ".status.containerStatuses[0].restartCount")?;
    ensure!(restarts == "0", "{restarts}");
    node.delete(&["configmap/poke"])
}

fn ephemeral(node: &Node) -> Result<Verdict> {
    let running = start(node, "csi-ephemeral")?;
    let driver = &running.driver;
    let inline = format!("csi: {{driver: {NAME}, readOnly: true, volumeAttributes: {{colour: green}}}}");
    node.apply(&pod("inline", &inline))?;
    node.wait_pod("inline", 60)?;
    ensure!(shell(node, "inline", "cat /v/colour")? == "green", "the driver was not told the attributes");
    ensure!(node.exec("inline", "c", &["touch", "/v/x"])?.code != 0, "a read-only volume was written");
    ensure!(count(driver, "NodeStageVolume") == 0, "{:?}", driver.calls());
    node.delete(&["pod/inline"])?;
    ensure!(std::fs::read_dir(driver.volume(""))?.next().is_none(), "the inline volume outlives its pod");
    // A pod's own claim is made by a controller after the pod; until then the pod waits and says for what.
    let template = "ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}}";
    node.apply(&pod("generic", template))?;
    eventually("an event names the claim", Duration::from_secs(30), || {
        let text = node.kubectl(&["describe", "pod", "generic"])?.ok()?;
        ensure!(
            text.contains("FailedMount") && text.contains("persistentvolumeclaim \"generic-v\" not found"),
            "{text}"
        );
        Ok(())
    })?;
    let uid = node.field(&["pod", "generic"], ".metadata.uid")?;
    let owner =
        format!(", ownerReferences: [{{apiVersion: v1, kind: Pod, name: generic, uid: {uid}, controller: true}}]");
    claim(node, "generic-v", "1Gi", &owner)?;
    node.wait_pod("generic", 90)?;
    shell(node, "generic", "echo x >/v/x")?;
    node.delete(&["pod/generic", "pvc/generic-v", "pv/pv-generic-v", "secret/csi-key"])?;
    ensure!(count(driver, "NodeUnstageVolume handle-generic-v") == 1, "{:?}", driver.calls());
    Ok(Verdict::Passed)
}

fn refused(node: &Node) -> Result<Verdict> {
    let mut running = start(node, "csi-refused")?;
    running.driver.fail("NodePublishVolume", Some("the array is on fire"))?;
    let inline = format!("csi: {{driver: {NAME}}}");
    node.apply(&pod("unlucky", &inline))?;
    eventually("an event has the driver's words", Duration::from_secs(30), || {
        let text = node.kubectl(&["describe", "pod", "unlucky"])?.ok()?;
        ensure!(text.contains("FailedMount") && text.contains("the array is on fire"), "{text}");
        Ok(())
    })?;
    running.driver.fail("NodePublishVolume", None)?;
    node.wait_pod("unlucky", 90)?;
    // A pod is not gone before its driver has taken the volume away, even if the driver has to come back for that.
    running.process.kill()?;
    running.process.wait()?;
    node.kubectl(&["delete", "pod", "unlucky", "--wait=false"])?.ok()?;
    eventually("an event names the driver", Duration::from_secs(40), || {
        let text = node.kubectl(&["describe", "pod", "unlucky"])?.ok()?;
        ensure!(text.contains("FailedKillPod") && text.contains(NAME), "{text}");
        Ok(())
    })?;
    ensure!(running.driver.volume("").read_dir()?.next().is_some(), "the volume was taken away without its driver");
    running.process = spawn(node, &running.driver)?;
    let gone = node.kubectl(&["wait", "--for=delete", "pod/unlucky", "--timeout=60s"])?;
    ensure!(gone.code == 0, "{gone:?}");
    let left = running.driver.volume("").read_dir()?.next();
    left.map_or(Ok(Verdict::Passed), |left| Err(anyhow!("left in the driver: {left:?}")))
}
