//! Projected volumes with trust bundles and certificates, and what image credential providers get of service accounts. The
//! test is the signer: it does what a signer's controller does.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_tests::command::{eventually, run};
use gantry_tests::node::{Node, TOKEN_PORT};
use gantry_tests::registry::Registry;
use gantry_tests::runner::{Case, Verdict};
use serde_json::{Value, json};

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![
        Case { name: "projected::trust_bundles_are_files_and_follow_their_objects", run: trust },
        Case { name: "projected::a_pod_gets_a_certificate_from_a_signer", run: certificate },
        Case { name: "projected::a_signers_refusal_is_told", run: denied },
        Case { name: "projected::a_credential_provider_sees_the_token_of_the_pods_account", run: token },
    ]
}

const SIGNER: &str = "gantry.test/signer";

fn openssl(folder: &Path, words: &str) -> Result<String> {
    let mut command = Command::new("openssl");
    command.current_dir(folder).args(words.split_whitespace());
    run(&mut command, "", Duration::from_secs(30))?.ok()
}

/// An authority: `NAME.key` and `NAME.crt` in the folder; gives the certificate.
fn authority(folder: &Path, name: &str) -> Result<String> {
    openssl(
        folder,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt"
        ),
    )?;
    Ok(std::fs::read_to_string(folder.join(format!("{name}.crt")))?)
}

fn bundle(node: &Node, name: &str, signer: Option<&str>, label: &str, text: &str) -> Result<()> {
    let mut spec = json!({"trustBundle": text});
    if let Some(signer) = signer {
        spec["signerName"] = json!(signer);
    }
    let object = json!({"apiVersion": "certificates.k8s.io/v1beta1", "kind": "ClusterTrustBundle",
        "metadata": {"name": name, "labels": {"tier": label}}, "spec": spec});
    node.apply(&object.to_string()).map(drop)
}

fn pod(name: &str, sources: &Value) -> String {
    let mut sources = sources.clone();
    if let Some(list) = sources.as_array_mut() {
        list.push(json!({"configMap": {"name": "poke", "optional": true}}));
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "gantry.local/busybox:latest", "imagePullPolicy": "Never",
            "command": ["sleep", "1000"], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "projected": {"sources": sources}}]}})
    .to_string()
}

/// Wakes the pods that have the volume of [`pod`]: their other sources are looked at with the changed one, and the test
/// need not wait for the minute after which that happens anyway.
fn poke(node: &Node) -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis();
    node.apply(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: poke}}\ndata: {{now: '{now}'}}\n"))
        .map(drop)
}

fn read(node: &Node, pod: &str, path: &str) -> Result<String> {
    node.exec(pod, "c", &["cat", path])?.ok()
}

fn trust(node: &Node) -> Result<Verdict> {
    let folder = node.scratch("trust")?;
    let (one, two, three) = (authority(&folder, "one")?, authority(&folder, "two")?, authority(&folder, "three")?);
    bundle(node, "plain", None, "x", &one)?;
    bundle(node, "gantry.test:signer:1", Some(SIGNER), "live", &format!("{one}{two}"))?;
    bundle(node, "gantry.test:signer:2", Some(SIGNER), "live", &two)?;
    bundle(node, "gantry.test:signer:3", Some(SIGNER), "old", &three)?;
    let wrong = bundle(node, "wrong", None, "x", "no certificate").unwrap_err().to_string();
    ensure!(wrong.contains("spec.trustBundle"), "{wrong}");
    node.apply(&pod(
        "trusting",
        &json!([
            {"clusterTrustBundle": {"name": "plain", "path": "one.pem"}},
            {"clusterTrustBundle": {"signerName": SIGNER, "labelSelector": {"matchLabels": {"tier": "live"}}, "path": "live.pem"}},
            {"clusterTrustBundle": {"signerName": SIGNER, "labelSelector": {}, "path": "all/of.pem"}},
            {"clusterTrustBundle": {"name": "none", "optional": true, "path": "none.pem"}},
        ]),
    ))?;
    node.apply(&pod("waiting", &json!([{"clusterTrustBundle": {"name": "later", "path": "later.pem"}}])))?;
    node.wait_pod("trusting", 60)?;
    ensure!(read(node, "trusting", "/v/one.pem")? == one, "the bundle is another one");
    for (file, count) in [("live.pem", 2), ("all/of.pem", 3), ("none.pem", 0)] {
        let text = read(node, "trusting", &format!("/v/{file}"))?;
        ensure!(text.matches("BEGIN CERTIFICATE").count() == count, "{file}: {text}");
    }
    eventually("an event names the missing bundle", Duration::from_secs(30), || {
        let text = node.kubectl(&["describe", "pod", "waiting"])?.ok()?;
        ensure!(text.contains("FailedMount") && text.contains("clustertrustbundle \"later\" not found"), "{text}");
        Ok(())
    })?;
    bundle(node, "later", None, "x", &two)?;
    bundle(node, "plain", None, "x", &three)?;
    node.wait_pod("waiting", 90)?;
    eventually("the file follows the bundle", Duration::from_secs(120), || {
        poke(node)?;
        ensure!(read(node, "trusting", "/v/one.pem")? == three);
        Ok(())
    })?;
    node.delete(&["pod/trusting", "pod/waiting", "configmap/poke"])?;
    node.delete(&["clustertrustbundle", "--all"])?;
    Ok(Verdict::Passed)
}

fn certificate_source() -> Value {
    json!([{"podCertificate": {"signerName": SIGNER, "keyType": "ECDSAP256", "maxExpirationSeconds": 7200,
        "userAnnotations": {"gantry.test/team": "blue"}, "credentialBundlePath": "bundle.pem", "keyPath": "key.pem",
        "certificateChainPath": "chain.pem"}}])
}

/// The request of a pod that is neither issued nor refused.
fn open_request(node: &Node, pod: &str) -> Result<Value> {
    eventually("the kubelet asks for a certificate", Duration::from_secs(60), || find_request(node, pod))
}

fn find_request(node: &Node, pod: &str) -> Result<Value> {
    let list = node.get(&["podcertificaterequests"])?;
    let mut items = list["items"].as_array().into_iter().flatten();
    let open = |r: &&Value| r["spec"]["podName"] == pod && r["status"]["conditions"].is_null();
    items.find(open).cloned().with_context(|| format!("no open request of {pod} in {list}"))
}

fn answer(node: &Node, request: &Value, status: &Value) -> Result<()> {
    let name = request["metadata"]["name"].as_str().context("its name")?;
    let patch = json!({"status": status}).to_string();
    let words = ["patch", "podcertificaterequest", name, "--subresource=status", "--type=merge", "-p", &patch];
    node.kubectl(&words)?.ok().map(drop)
}

fn condition(kind: &str) -> Value {
    json!([{"type": kind, "status": "True", "reason": "Tested", "message": "the test says so",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}])
}

/// Signs the request's key; its renewal begins `renew` seconds from now.
fn issue(node: &Node, folder: &Path, request: &Value, renew: i64) -> Result<String> {
    let stub = request["spec"]["stubPKCS10Request"].as_str().context("a request")?;
    std::fs::write(folder.join("stub.b64"), stub)?;
    openssl(folder, "base64 -d -A -in stub.b64 -out stub.der")?;
    openssl(
        folder,
        "x509 -req -inform DER -in stub.der -CA ca.crt -CAkey ca.key -CAcreateserial -days 1 -out leaf.crt",
    )?;
    let leaf = std::fs::read_to_string(folder.join("leaf.crt"))?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() as i64;
    let at = |seconds: i64| {
        let text =
            run(Command::new("date").args(["-u", "-d", &format!("@{seconds}"), "+%FT%TZ"]), "", Duration::from_secs(5));
        Ok::<_, anyhow::Error>(text?.ok()?.trim().to_owned())
    };
    let status = json!({"conditions": condition("Issued"), "certificateChain": format!("words\n{leaf}"),
        "notBefore": at(now)?, "notAfter": at(now + 86_400)?, "beginRefreshAt": at(now + renew)?});
    answer(node, request, &status)?;
    Ok(leaf)
}

fn certificate(node: &Node) -> Result<Verdict> {
    let folder = node.scratch("certificate")?;
    authority(&folder, "ca")?;
    node.apply(&pod("certified", &certificate_source()))?;
    let request = open_request(node, "certified")?;
    let spec = &request["spec"];
    let uid = |object: &[&str]| node.field(object, ".metadata.uid");
    ensure!(spec["signerName"] == SIGNER && spec["maxExpirationSeconds"] == 7200, "{spec}");
    ensure!(spec["podUID"] == uid(&["pod", "certified"])?.as_str(), "{spec}");
    ensure!(spec["nodeName"] == node.name() && spec["nodeUID"] == uid(&["node", node.name()])?.as_str(), "{spec}");
    ensure!(spec["serviceAccountName"] == "default", "{spec}");
    ensure!(spec["serviceAccountUID"] == uid(&["serviceaccount", "default"])?.as_str(), "{spec}");
    ensure!(spec["unverifiedUserAnnotations"]["gantry.test/team"] == "blue", "{spec}");
    let leaf = issue(node, &folder, &request, 5)?;
    node.wait_pod("certified", 90)?;
    let (key, chain) = (read(node, "certified", "/v/key.pem")?, read(node, "certified", "/v/chain.pem")?);
    ensure!(chain == leaf, "what stands between the blocks is not for the pod: {chain}");
    ensure!(read(node, "certified", "/v/bundle.pem")? == format!("{key}{chain}"));
    std::fs::write(folder.join("pod.key"), &key)?;
    let of_key = openssl(&folder, "pkey -in pod.key -pubout")?;
    ensure!(of_key == openssl(&folder, "x509 -in leaf.crt -noout -pubkey")?, "the certificate is of another key");
    // The renewal comes without a word of the pod, with a new key.
    let second = eventually("a second request, as it is due", Duration::from_secs(120), || {
        poke(node)?;
        find_request(node, "certified")
    })?;
    ensure!(read(node, "certified", "/v/key.pem")? == key, "the old key serves until the new one has its certificate");
    let leaf = issue(node, &folder, &second, 3600)?;
    eventually("the renewed files", Duration::from_secs(120), || {
        poke(node)?;
        ensure!(read(node, "certified", "/v/chain.pem")? == leaf);
        ensure!(read(node, "certified", "/v/key.pem")? != key);
        Ok(())
    })?;
    let restarts = node.field(&["pod", "certified"], ".status.containerStatuses[0].restartCount")?;
    ensure!(restarts == "0", "{restarts}");
    node.delete(&["pod/certified", "configmap/poke"])?;
    node.delete(&["podcertificaterequests", "--all"])?;
    Ok(Verdict::Passed)
}

fn denied(node: &Node) -> Result<Verdict> {
    node.apply(&pod("denied", &certificate_source()))?;
    let request = open_request(node, "denied")?;
    answer(node, &request, &json!({"conditions": condition("Denied")}))?;
    eventually("an event has the signer's words", Duration::from_secs(60), || {
        let text = node.kubectl(&["describe", "pod", "denied"])?.ok()?;
        ensure!(text.contains("permanently denied") && text.contains("the test says so"), "{text}");
        Ok(())
    })?;
    node.delete(&["pod/denied"])?;
    node.delete(&["podcertificaterequests", "--all"])?;
    Ok(Verdict::Passed)
}

fn token(node: &Node) -> Result<Verdict> {
    let registry = Registry::start_private(&node.netns, &node.scratch("registry-token")?, TOKEN_PORT)?;
    registry.push(&node.busybox.layout, "test/private", "1")?;
    node.apply(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: puller, annotations: {gantry.test/role: reader}}\n",
    )?;
    let pod = |name: &str, account: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             serviceAccountName: {account}\n  containers:\n  - {{name: c, image: '{}/test/private:1', \
             imagePullPolicy: IfNotPresent, command: [sleep, '1000']}}\n",
            registry.address
        )
    };
    node.apply(&pod("of-puller", "puller"))?;
    node.wait_pod("of-puller", 60)?;
    let asked = node.logins_asked();
    let request = asked.iter().find(|a| a.contains(&registry.address)).context("the provider was not asked")?;
    let request: Value = serde_json::from_str(request)?;
    ensure!(request["serviceAccountAnnotations"] == json!({"gantry.test/role": "reader"}), "{request}");
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": request["serviceAccountToken"], "audiences": ["gantry.test"]}});
    let mut create = node.kubectl_command(&["create", "--validate=false", "-f", "-", "-ojson"]);
    let reviewed: Value = serde_json::from_str(&run(&mut create, &review.to_string(), Duration::from_secs(30))?.ok()?)?;
    ensure!(reviewed["status"]["user"]["username"] == "system:serviceaccount:default:puller", "{reviewed}");
    // The image is on the node now, and not for pods of an account that the provider is not asked for.
    node.apply(&pod("of-default", "default"))?;
    eventually("the other account may not have it", Duration::from_secs(40), || {
        let status =
            node.get(&["pod", "of-default"])?["status"]["containerStatuses"][0]["state"]["waiting"].to_string();
        ensure!(status.contains("ErrImagePull") || status.contains("ImagePullBackOff"), "{status}");
        Ok(())
    })?;
    node.apply(&pod("of-puller-too", "puller"))?;
    node.wait_pod("of-puller-too", 60)?;
    let events = node.kubectl(&["describe", "pod", "of-puller-too"])?.ok()?;
    ensure!(events.contains("already present on machine"), "pulled again:\n{events}");
    node.delete(&["pod/of-puller", "pod/of-default", "pod/of-puller-too", "serviceaccount/puller"])?;
    Ok(Verdict::Passed)
}
