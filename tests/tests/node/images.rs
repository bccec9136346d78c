//! Pulling from a real registry, and what a user sees when that fails.

use std::time::Duration;

use anyhow::{Result, ensure};
use gantry_tests::command::eventually;
use gantry_tests::images;
use gantry_tests::node::Node;
use gantry_tests::registry::Registry;
use gantry_tests::runner::{Case, Verdict};

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![
        Case { name: "images::a_pod_pulls_from_a_registry", run: pull },
        Case { name: "images::a_wrong_name_shows_the_registrys_reason", run: wrong_name },
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
