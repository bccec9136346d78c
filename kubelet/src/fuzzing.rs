//! What the fuzz targets of this crate run: one function a target, from files and from what other programs answer.
//!
//! Compiled for fuzzing and for tests only. The tests run what `fuzz/corpus` holds, so that an input that once found a fault is
//! tried by everyone; `fuzz/README.md` says how to look for new ones.

use crate::config;
use crate::images::{login, name, providers};
use crate::sources::manifest::{Origin, parse};

/// A manifest of static pods: what is taken is a pod of this node, and a refusal says why.
pub fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let origin = Origin { source: "file", place: "/m/a.yaml".into(), node: "n1".into(), references: false };
    match parse(text, &origin, jiff::Timestamp::UNIX_EPOCH) {
        Err(why) => assert!(!why.is_empty()),
        Ok(manifest) => {
            for pod in manifest.pods {
                let spec = pod.spec.expect("a pod that is taken has a spec");
                assert!(!spec.containers.is_empty() && spec.node_name.as_deref() == Some("n1"));
                let uid = pod.metadata.uid.expect("a pod that is taken has a uid");
                assert!(!uid.is_empty() && !uid.contains('/'));
                assert!(pod.metadata.name.is_some_and(|n| n.ends_with("-n1")));
            }
        }
    }
}

/// A kubelet's configuration: what is taken can be shown and read again.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match config::fuzzed(text) {
        Err(why) => assert!(!format!("{why:#}").is_empty()),
        Ok(loaded) => assert!(config::shown(&loaded.config).is_object()),
    }
}

/// Behind an image's name and a line's end: what a credential provider answers, or a docker configuration.
pub fn logins(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Some((image, answer)) = text.split_once('\n') else { return };
    let taken = name::check(image).is_ok();
    let (full, repository) = (name::full(image), name::repository(image));
    assert!(full.starts_with(name::registry(image)) && repository.starts_with(name::registry(image)));
    if taken {
        assert_eq!(name::full(&full), full, "{image:?}");
    }
    for auth in login::from_docker_config(answer.as_bytes(), image) {
        assert!(auth.server_address.is_empty());
    }
    for pattern in providers::patterns_of(answer.as_bytes()) {
        let _ = name::matches(&pattern, image);
    }
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
#[test]
fn what_fuzzing_found_and_starts_from() {
    replay::corpus(&[
        ("kubelet_manifest", manifest),
        ("kubelet_configuration", configuration),
        ("kubelet_logins", logins),
    ]);
}
