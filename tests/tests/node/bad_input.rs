//! Wrong input gives an error that names it, where a user looks, and leaves nothing half-made.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_tests::command::{eventually, run};
use gantry_tests::node::Node;
use gantry_tests::runner::{Case, Verdict};

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![
        Case { name: "bad_input::a_malformed_manifest_is_logged_by_name", run: manifest },
        Case { name: "bad_input::an_unknown_kubelet_configuration_field_is_an_error", run: kubelet_configuration },
        Case { name: "bad_input::an_unknown_cri_configuration_key_is_an_error", run: cri_configuration },
        Case { name: "bad_input::a_wrong_certificate_is_refused", run: certificate },
        Case { name: "bad_input::an_image_that_escapes_is_harmless", run: escape },
        Case { name: "bad_input::a_missing_cni_plugin_is_named", run: plugin },
        Case { name: "bad_input::a_missing_configmap_is_named", run: configmap },
        Case { name: "bad_input::a_full_disk_is_named_and_leaves_nothing", run: full_disk },
    ]
}

fn manifest(node: &Node) -> Result<Verdict> {
    let file = node.state().join("manifests/broken.yaml");
    fs::write(
        &file,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: broken}\nspec: {containers: [{name: c, image: 5}]}\n",
    )?;
    let seen = eventually("the kubelet's log names the file", Duration::from_secs(30), || {
        let log = fs::read_to_string(node.state().join("logs/kubelet.log"))?;
        ensure!(log.contains("broken.yaml"), "no broken.yaml in the log");
        Ok(())
    });
    fs::remove_file(&file)?;
    seen.map(|()| Verdict::Passed)
}

fn kubelet_configuration(node: &Node) -> Result<Verdict> {
    let good = fs::read_to_string(node.state().join("kubelet.yaml"))?;
    let file = node.scratch("kubelet-config")?.join("kubelet.yaml");
    fs::write(&file, format!("{good}syncFrequency: soon\n"))?;
    let program = node.programs.join("kubelet");
    let mut kubelet = node.inside(&program.to_string_lossy());
    let output = run(kubelet.arg("--config").arg(&file), "", Duration::from_secs(10))?;
    ensure!(output.code != 0 && output.text().contains("syncFrequency"), "{output:?}");
    // A field that only a newer kubelet knows keeps nobody down, but is told.
    fs::write(&file, format!("{good}noSuchField: 1\n"))?;
    let mut check = node.inside(&program.to_string_lossy());
    let output = run(check.arg("check").arg("--config").arg(&file), "", Duration::from_secs(60))?;
    ensure!(output.text().contains("noSuchField changes nothing"), "{output:?}");
    Ok(Verdict::Passed)
}

fn cri_configuration(node: &Node) -> Result<Verdict> {
    let file = node.scratch("cri-config")?.join("cri.toml");
    fs::write(&file, "no_such_key = 1\n")?;
    let mut cri = node.inside(&node.programs.join("gantry-cri").to_string_lossy());
    let output = run(cri.arg("--config").arg(&file), "", Duration::from_secs(10))?;
    ensure!(output.code != 0 && output.text().contains("no_such_key"), "{output:?}");
    Ok(Verdict::Passed)
}

fn certificate(node: &Node) -> Result<Verdict> {
    let folder = node.scratch("certificate")?;
    let (cert, key) = (folder.join("c.pem"), folder.join("k.pem"));
    let mut openssl = node.inside("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/O=system:masters/CN=evil",
        "-keyout",
    ]);
    run(openssl.arg(&key).arg("-out").arg(&cert), "", Duration::from_secs(30))?.ok()?;
    for url in ["https://127.0.0.1:6443/api/v1/pods", "https://127.0.0.1:10250/pods"] {
        let mut curl = node.inside("curl");
        curl.args(["-sk", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", "--cert"])
            .arg(&cert)
            .arg("--key")
            .arg(&key);
        let with = run(curl.arg(url), "", Duration::from_secs(10))?;
        ensure!(["000", "401", "403"].contains(&with.stdout.as_str()), "{url} with a foreign certificate: {with:?}");
        let mut curl = node.inside("curl");
        curl.args(["-sk", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", url]);
        let without = run(&mut curl, "", Duration::from_secs(10))?;
        ensure!(["401", "403"].contains(&without.stdout.as_str()), "{url} without a certificate: {without:?}");
    }
    Ok(Verdict::Passed)
}

/// An archive whose layer tries to write outside: `../`, absolute names, a symlink to / and a file through it.
fn hostile_archive(node: &Node) -> Result<std::path::PathBuf> {
    let folder = node.scratch("hostile")?;
    let script = r#"
import hashlib, io, json, os, sys, tarfile
out = sys.argv[1]
layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode='w') as t:
    def put(name, data=b'owned', **kw):
        i = tarfile.TarInfo(name); i.size = len(data)
        for k, v in kw.items(): setattr(i, k, v)
        t.addfile(i, io.BytesIO(data))
    put('bin/ok')
    put('../../../../../../../../tmp/gantry-escape-1')
    put('/tmp/gantry-escape-2')
    put('way', b'', type=tarfile.SYMTYPE, linkname='/')
    put('way/tmp/gantry-escape-3')
    put('up', b'', type=tarfile.SYMTYPE, linkname='../../../../../../../..')
    put('up/tmp/gantry-escape-4')
    put('hard', b'', type=tarfile.LNKTYPE, linkname='../../../../../../../../etc/hostname')
blobs = {}
def blob(data):
    d = hashlib.sha256(data).hexdigest(); blobs[d] = data
    return {'digest': 'sha256:' + d, 'size': len(data)}
l = layer.getvalue(); ld = blob(l)
config = json.dumps({'architecture': 'amd64', 'os': 'linux', 'config': {}, 'rootfs': {'type': 'layers', 'diff_ids': [ld['digest']]}}).encode()
manifest = json.dumps({'schemaVersion': 2, 'mediaType': 'application/vnd.oci.image.manifest.v1+json',
  'config': {'mediaType': 'application/vnd.oci.image.config.v1+json', **blob(config)},
  'layers': [{'mediaType': 'application/vnd.oci.image.layer.v1.tar', **ld}]}).encode()
index = json.dumps({'schemaVersion': 2, 'manifests': [{'mediaType': 'application/vnd.oci.image.manifest.v1+json', **blob(manifest),
  'annotations': {'org.opencontainers.image.ref.name': 'gantry.local/hostile:latest', 'io.containerd.image.name': 'gantry.local/hostile:latest'}}]}).encode()
with tarfile.open(out, 'w') as t:
    for name, data in [('oci-layout', b'{"imageLayoutVersion":"1.0.0"}'), ('index.json', index)] + [('blobs/sha256/' + d, b) for d, b in blobs.items()]:
        i = tarfile.TarInfo(name); i.size = len(data); t.addfile(i, io.BytesIO(data))
"#;
    let archive = folder.join("hostile.tar");
    let mut python = node.inside("python3");
    run(python.args(["-c", script]).arg(&archive), "", Duration::from_secs(20))?.ok().context("make the archive")?;
    Ok(archive)
}

fn escape(node: &Node) -> Result<Verdict> {
    let archive = hostile_archive(node)?;
    let output = node.cri(&["image", "import", &archive.to_string_lossy()])?;
    for n in 1..=4 {
        let path = format!("/tmp/gantry-escape-{n}");
        let escaped = fs::metadata(&path).is_ok();
        let _ = fs::remove_file(&path);
        ensure!(!escaped, "the image wrote {path} on the host: {output:?}");
    }
    if output.code == 0 {
        node.cri(&["image", "rm", "gantry.local/hostile:latest"])?.ok()?;
    } else {
        ensure!(!output.stderr.trim().is_empty(), "refused without a reason");
    }
    Ok(Verdict::Passed)
}

const SLEEPER: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: NAME}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
    - {name: c, image: 'gantry.local/busybox:latest', imagePullPolicy: Never, command: [sleep, '1000']}\n";

fn plugin(node: &Node) -> Result<Verdict> {
    let conflist = node.state().join("cni/net.d/10-gantry.conflist");
    let good = fs::read_to_string(&conflist)?;
    fs::write(&conflist, good.replace("\"bridge\",", "\"no-such-plugin\","))?;
    node.apply(&SLEEPER.replace("NAME", "unplugged"))?;
    let seen = eventually("an event names the plugin", Duration::from_secs(40), || {
        let text = node.kubectl(&["describe", "pod", "unplugged"])?.ok()?;
        ensure!(text.contains("FailedCreatePodSandBox") && text.contains("no-such-plugin"), "{text}");
        Ok(())
    });
    fs::write(&conflist, good)?;
    seen?;
    node.wait_pod("unplugged", 60).context("after the configuration was mended")?;
    node.delete(&["pod/unplugged"])?;
    Ok(Verdict::Passed)
}

fn configmap(node: &Node) -> Result<Verdict> {
    let spec = SLEEPER
        .replace("NAME", "unconfigured")
        .replace("command:", "envFrom: [{configMapRef: {name: absent}}], command:");
    node.apply(&spec)?;
    let waiting = ".status.containerStatuses[0].state.waiting";
    node.wait_field(&["pod", "unconfigured"], &format!("{waiting}.reason"), "CreateContainerConfigError", 30)?;
    let message = node.field(&["pod", "unconfigured"], &format!("{waiting}.message"))?;
    ensure!(message.contains("configmap \"absent\" not found"), "{message}");
    node.kubectl(&["create", "configmap", "absent"])?.ok()?;
    node.wait_pod("unconfigured", 90)?;
    node.delete(&["pod/unconfigured", "configmap/absent"])?;
    Ok(Verdict::Passed)
}

/// A second CRI daemon whose store is on a disk of 1 MiB.
fn full_disk(node: &Node) -> Result<Verdict> {
    let folder = node.scratch("full-disk")?;
    let disk = folder.join("disk");
    fs::create_dir_all(&disk)?;
    let mut mount = node.inside("mount");
    run(mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&disk), "", Duration::from_secs(5))?.ok()?;
    let config = folder.join("cri.toml");
    let good = fs::read_to_string(node.state().join("cri.toml"))?;
    let rest: String = good.lines().filter(|l| l.starts_with("cni_")).map(|l| format!("{l}\n")).collect();
    let own = format!(
        "socket = \"{0}/cri.sock\"\nroot = \"{0}/disk/root\"\nstate = \"{0}/state\"\nruntime_root = \"{0}/run\"\n{rest}",
        folder.display()
    );
    fs::write(&config, own)?;
    let mut daemon = node.inside(&node.programs.join("gantry-cri").to_string_lossy());
    let mut running = node.background(daemon.arg("--config").arg(&config))?;
    let client = |words: &[&str]| {
        let mut command = node.inside(&node.programs.join("gantry-cri").to_string_lossy());
        run(command.arg("--config").arg(&config).args(words), "", Duration::from_secs(30))
    };
    let outcome = (|| {
        eventually("the second daemon", Duration::from_secs(15), || client(&["image", "ls"])?.ok())?;
        let output = client(&["image", "import", &node.busybox.archive.to_string_lossy()])?;
        ensure!(output.code != 0 && output.stderr.to_lowercase().contains("no space left"), "{output:?}");
        let listed = client(&["image", "ls", "-q"])?.ok()?;
        ensure!(listed.trim().is_empty(), "an image was kept: {listed}");
        let fsck = client(&["fsck"])?;
        ensure!(fsck.code == 0, "{fsck:?}");
        Ok(Verdict::Passed)
    })();
    running.kill()?;
    running.wait()?;
    let mut umount = node.inside("umount");
    run(umount.arg(&disk), "", Duration::from_secs(5))?.ok()?;
    outcome
}
