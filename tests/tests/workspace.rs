//! What the workspace promises about itself: which way dependencies point, which licences and TLS providers are in it.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

fn metadata() -> Metadata {
    MetadataCommand::new().exec().expect("cargo metadata")
}

/// For each of our crates, which of our crates it may use (ARCHITECTURE.md). Tests may use anything below them.
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("proto", &[][..]),
        ("gantry-sys", &[]),
        ("gantry-files", &[]),
        ("gantry-dbus", &["gantry-sys"]),
        ("gantry-cgroup", &["gantry-dbus", "gantry-sys"]),
        ("gantry-net", &["gantry-sys"]),
        ("gantry-kube", &["gantry-files"]),
        ("gantry-telemetry", &["gantry-sys"]),
        ("runtime", &["gantry-cgroup", "gantry-files", "gantry-sys"]),
        ("gantry-monitor", &["gantry-cgroup", "gantry-files", "gantry-sys"]),
        ("cri-images", &["gantry-files", "gantry-sys"]),
        ("cri-streaming", &[]),
        ("cni-plugins", &["gantry-dbus", "gantry-files", "gantry-net", "gantry-sys"]),
        ("gantry-overlay", &["gantry-files", "gantry-net", "gantry-sys", "gantry-telemetry"]),
        (
            "cri",
            &[
                "cri-images",
                "cri-streaming",
                "gantry-cgroup",
                "gantry-files",
                "gantry-monitor",
                "gantry-sys",
                "gantry-telemetry",
                "proto",
            ],
        ),
        ("kubelet-managers", &["gantry-files", "gantry-kube", "proto"]),
        ("kubelet-volumes", &["gantry-files", "gantry-kube", "gantry-sys", "proto"]),
        ("kubelet-server", &["gantry-kube", "gantry-telemetry"]),
        (
            "kubelet",
            &[
                "api-machinery",
                "gantry-cgroup",
                "gantry-dbus",
                "gantry-files",
                "gantry-kube",
                "gantry-sys",
                "gantry-telemetry",
                "kubelet-managers",
                "kubelet-server",
                "kubelet-volumes",
                "proto",
            ],
        ),
        ("api-machinery", &["gantry-kube"]),
        ("apiserver", &["api-machinery", "gantry-kube", "gantry-telemetry"]),
        ("gantry-tests", &[]),
        ("gantry-test-csi", &["proto"]),
        ("gantry-demo", &[]),
    ])
}

#[test]
fn dependencies_point_one_way() {
    let metadata = metadata();
    let allowed = allowed();
    let ours: BTreeSet<&str> = metadata.workspace_packages().iter().map(|p| p.name.as_str()).collect();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        let may = allowed.get(name).unwrap_or_else(|| panic!("{name} has no line in this test: say what it may use"));
        for dependency in package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal) {
            let used = dependency.name.as_str();
            let is_ours = dependency.path.is_some() && ours.contains(used);
            assert!(!is_ours || may.contains(&used), "{name} must not depend on {used}");
        }
    }
}

#[test]
fn every_licence_is_one_that_we_accept() {
    const ACCEPTED: [&str; 11] = [
        "MIT",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "ISC",
        "Zlib",
        "Unicode-3.0",
        "CDLA-Permissive-2.0",
        "0BSD",
        "Unlicense",
    ];
    // An expression is accepted when each AND part has an accepted OR branch.
    let accepts = |expression: &str| {
        expression
            .replace('/', " OR ")
            .replace(['(', ')'], " ")
            .split(" AND ")
            .all(|part| part.split(" OR ").any(|licence| ACCEPTED.contains(&licence.trim())))
    };
    let refused: Vec<String> = metadata()
        .packages
        .iter()
        .filter(|p| !p.license.as_deref().is_some_and(accepts))
        .map(|p: &Package| format!("{} {}: {:?}", p.name, p.version, p.license))
        .collect();
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn ring_is_the_only_tls_provider() {
    let names: BTreeSet<String> = metadata().packages.iter().map(|p| p.name.to_string()).collect();
    assert!(names.contains("ring"));
    for other in ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls", "boring"] {
        assert!(
            !names.contains(other),
            "{other} came into the tree: find out by which crate with cargo tree -i {other}"
        );
    }
}

#[test]
fn programs_that_fork_have_no_async_runtime() {
    let metadata = metadata();
    let resolve = metadata.resolve.as_ref().expect("dependency graph");
    let name_of: BTreeMap<_, _> = metadata.packages.iter().map(|p| (&p.id, p.name.as_str())).collect();
    for program in ["runtime", "gantry-monitor", "cni-plugins"] {
        let mut stack: Vec<_> =
            metadata.packages.iter().filter(|p| p.name.as_str() == program).map(|p| &p.id).collect();
        let mut seen = BTreeSet::new();
        while let Some(id) = stack.pop() {
            if !seen.insert(id) {
                continue;
            }
            assert_ne!(name_of[id], "tokio", "{program} has tokio in it");
            let node = resolve.nodes.iter().find(|n| n.id == *id).expect("node");
            let normal = |d: &&cargo_metadata::NodeDep| d.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal);
            stack.extend(node.deps.iter().filter(normal).map(|d| &d.pkg));
        }
    }
}
