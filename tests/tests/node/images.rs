//! Pulling from a real registry, and what a user sees when that fails.

use std::time::Duration;

use anyhow::{Result, ensure};
use gantry_tests::command::eventually;
use gantry_tests::images;
use gantry_tests::node::Node;
use gantry_tests::registry::{LOGIN, Registry};
use gantry_tests::runner::{Case, Verdict};

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![
        Case { name: "images::a_pod_pulls_from_a_registry", run: pull },
        Case { name: "images::a_wrong_name_shows_the_registrys_reason", run: wrong_name },
        Case { name: "images::a_credential_provider_gives_the_login", run: provider },
        Case { name: "images::an_image_pulled_with_a_secret_is_not_for_pods_without_it", run: private },
        Case { name: "images::an_image_is_a_volume", run: volume },
        Case { name: "images::a_corrupt_layer_is_refused_and_nothing_is_kept", run: corrupt },
    ]
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {{name: c, image: '{image}', imagePullPolicy: Always, command: [sleep, '1000']}}\n"
    )
}

fn pull(node: &Node) -> Result<Verdict> {
    let registry = Registry::start(&node.netns, &node.scratch("registry-pull")?, 5001)?;
    registry.push(&node.busybox.layout, "test/busybox", "1")?;
    node.apply(&pod("pulled", &format!("{}/test/busybox:1", registry.address)))?;
    node.wait_pod("pulled", 40)?;
    let id = node.field(&["pod", "pulled"], ".status.containerStatuses[0].imageID")?;
    ensure!(id.contains("sha256:"), "{id}");
    let events = node.kubectl(&["describe", "pod", "pulled"])?.ok()?;
    ensure!(events.contains("Pulling image") && events.contains("Successfully pulled image"), "{events}");
    node.delete(&["pod/pulled"])?;
    Ok(Verdict::Passed)
}

fn wrong_name(node: &Node) -> Result<Verdict> {
    let registry = Registry::start(&node.netns, &node.scratch("registry-wrong")?, 5002)?;
    node.apply(&pod("unpullable", &format!("{}/test/nothing:1", registry.address)))?;
    let reason = || node.field(&["pod", "unpullable"], ".status.containerStatuses[0].state.waiting.reason");
    let mut seen = Vec::new();
    eventually("ErrImagePull, then ImagePullBackOff", Duration::from_secs(60), || {
        let now = reason()?;
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        ensure!(seen.iter().any(|r| r == "ErrImagePull") && seen.iter().any(|r| r == "ImagePullBackOff"), "{seen:?}");
        Ok(())
    })?;
    let text = node.kubectl(&["describe", "pod", "unpullable"])?.ok()?;
    ensure!(text.contains("manifest unknown") || text.contains("not found"), "no reason of the registry in\n{text}");
    node.delete(&["pod/unpullable"])?;
    Ok(Verdict::Passed)
}

fn provider(node: &Node) -> Result<Verdict> {
    let registry = Registry::start_private(&node.netns, &node.scratch("registry-provider")?, 5011)?;
    for tag in ["1", "2"] {
        registry.push(&node.busybox.layout, "test/private", tag)?;
    }
    for tag in ["1", "2"] {
        let name = format!("provided-{tag}");
        node.apply(&pod(&name, &format!("{}/test/private:{tag}", registry.address)))?;
        node.wait_pod(&name, 40)?;
    }
    let of_registry = |request: &String| request.contains(&registry.address);
    let asked: Vec<String> = node.logins_asked().into_iter().filter(of_registry).collect();
    ensure!(asked.len() == 1 && asked[0].contains("/test/private:1"), "asked for once for a registry, not {asked:?}");
    node.delete(&["pod/provided-1", "pod/provided-2"])?;
    Ok(Verdict::Passed)
}

fn private(node: &Node) -> Result<Verdict> {
    let registry = Registry::start_private(&node.netns, &node.scratch("registry-private")?, 5012)?;
    registry.push(&node.busybox.layout, "test/private", "1")?;
    let (user, password) = LOGIN.split_once(':').unwrap_or_default();
    let words = ["--docker-username", user, "--docker-password", password, "--docker-server", &registry.address];
    node.kubectl(&[&["create", "secret", "docker-registry", "login"], &words[..]].concat())?.ok()?;
    let image = format!("{}/test/private:1", registry.address);
    let if_missing = |name: &str| pod(name, &image).replace("Always", "IfNotPresent");
    let with_secret = |name: &str| if_missing(name).replace("spec:\n", "spec:\n  imagePullSecrets: [{name: login}]\n");
    node.apply(&with_secret("owner"))?;
    node.wait_pod("owner", 40)?;
    node.apply(&if_missing("stranger"))?;
    let text = eventually("the stranger may not have it", Duration::from_secs(40), || {
        let status = node.get(&["pod", "stranger"])?["status"]["containerStatuses"][0]["state"]["waiting"].to_string();
        ensure!(status.contains("ErrImagePull") || status.contains("ImagePullBackOff"), "{status}");
        Ok(status)
    })?;
    ensure!(text.to_lowercase().contains("auth") || text.contains("401"), "no word of a login in {text}");
    node.apply(&with_secret("friend"))?;
    node.wait_pod("friend", 40)?;
    let events = node.kubectl(&["describe", "pod", "friend"])?.ok()?;
    ensure!(events.contains("already present on machine"), "pulled again:\n{events}");
    node.delete(&["pod/owner", "pod/stranger", "pod/friend", "secret/login"])?;
    Ok(Verdict::Passed)
}

fn volume(node: &Node) -> Result<Verdict> {
    node.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: image-volume}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - name: c\n    image: gantry.local/busybox:latest\n    imagePullPolicy: Never\n    command: [sleep, '1000']\n    \
         volumeMounts: [{name: all, mountPath: /all}, {name: all, mountPath: /part, subPath: etc}]\n  \
         volumes: [{name: all, image: {reference: 'gantry.local/busybox:latest', pullPolicy: Never}}]\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: no-image-volume}\nspec:\n  containers:\n  \
         - name: c\n    image: gantry.local/busybox:latest\n    imagePullPolicy: Never\n    command: [sleep, '1000']\n    \
         volumeMounts: [{name: v, mountPath: /v}]\n  volumes: [{name: v, image: {reference: 'gantry.local/none:1', pullPolicy: Never}}]\n",
    )?;
    node.wait_pod("image-volume", 40)?;
    let passwd = node.exec("image-volume", "c", &["cat", "/part/passwd"])?.ok()?;
    ensure!(passwd.contains("user:x:1000"), "{passwd}");
    ensure!(
        node.exec("image-volume", "c", &["/all/bin/busybox", "true"])?.code == 0,
        "the volume's program does not run"
    );
    let written = node.exec("image-volume", "c", &["touch", "/all/etc/new"])?;
    ensure!(written.code != 0 && written.text().contains("Read-only"), "{written:?}");
    node.wait_field(
        &["pod", "no-image-volume"],
        ".status.containerStatuses[0].state.waiting.reason",
        "ErrImageNeverPull",
        40,
    )?;
    node.delete(&["pod/image-volume", "pod/no-image-volume"])?;
    Ok(Verdict::Passed)
}

/// The layer is in no other image, so that it must be fetched.
fn corrupt(node: &Node) -> Result<Verdict> {
    let folder = node.scratch("registry-corrupt")?;
    let registry = Registry::start(&node.netns, &folder, 5003)?;
    let image = images::noise(&node.programs, &folder)?;
    registry.push(&image.layout, "test/corrupt", "1")?;
    let before = node.cri(&["image", "ls"])?.ok()?;
    registry.corrupt(|bytes| bytes.len() > 100_000)?;
    let reference = format!("{}/test/corrupt:1", registry.address);
    let pulled = node.cri(&["image", "pull", &reference])?;
    ensure!(pulled.code != 0 && pulled.stderr.contains("digest"), "{pulled:?}");
    ensure!(node.cri(&["image", "ls"])?.ok()? == before, "something of the image was kept");
    ensure!(node.cri(&["fsck"])?.code == 0, "fsck finds something");
    Ok(Verdict::Passed)
}
