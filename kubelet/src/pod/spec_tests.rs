//! What security contexts become in the runtime's terms.

use k8s_openapi::api::core::v1::Pod;
use proto::cri;
use proto::cri::security_profile::ProfileType;
use serde_json::{Value, json};

use super::*;

fn node(default: bool) -> NodeFacts {
    NodeFacts { seccomp_default: default, seccomp_root: "/var/lib/kubelet/seccomp".into(), ..NodeFacts::default() }
}

fn with(whole: &Value, own: &Value, image: &cri::Image, node: &NodeFacts) -> Result<cri::ContainerConfig, String> {
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
        "spec": {"securityContext": whole, "containers": [{"name": "c", "image": "x", "securityContext": own}]}}))
    .unwrap();
    let creation = Creation {
        container: &super::super::containers(&pod)[0],
        pod: &pod,
        attempt: 0,
        restart_delay_ms: 0,
        env: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        target: None,
        image,
        volumes: &HashMap::new(),
    };
    container_config(creation, node)
}

fn of(whole: Value, own: Value) -> cri::LinuxContainerSecurityContext {
    let config = with(&whole, &own, &cri::Image::default(), &node(false)).unwrap();
    config.linux.unwrap().security_context.unwrap()
}

#[test]
fn the_containers_word_counts_before_the_pods() {
    let got = of(
        json!({"runAsUser": 1, "runAsGroup": 2, "supplementalGroups": [5, 6], "fsGroup": 7,
            "supplementalGroupsPolicy": "Strict", "seLinuxOptions": {"level": "s0"}}),
        json!({"runAsUser": 3, "seLinuxOptions": {"type": "t", "level": "s1"}, "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false, "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}),
    );
    assert_eq!((got.run_as_user.unwrap().value, got.run_as_group.unwrap().value), (3, 2));
    assert_eq!((got.supplemental_groups, got.supplemental_groups_policy), (vec![5, 6, 7], 1));
    let selinux = got.selinux_options.unwrap();
    assert_eq!((selinux.r#type.as_str(), selinux.level.as_str()), ("t", "s1"));
    assert!(got.readonly_rootfs && got.no_new_privs && !got.privileged);
    let capabilities = got.capabilities.unwrap();
    assert_eq!(
        (capabilities.add_capabilities, capabilities.drop_capabilities),
        (vec!["NET_ADMIN".into()], vec!["ALL".into()])
    );
    let plain = of(json!({}), json!({}));
    assert!(!plain.no_new_privs && plain.run_as_user.is_none() && plain.supplemental_groups_policy == 0);
}

#[test]
fn seccomp_and_apparmor_are_the_nearest_profile() {
    let local = json!({"type": "Localhost", "localhostProfile": "p/a.json"});
    for (default, whole, own, want) in [
        (false, json!({}), json!({}), (ProfileType::Unconfined, "")),
        (true, json!({}), json!({}), (ProfileType::RuntimeDefault, "")),
        (true, json!({"seccompProfile": {"type": "Unconfined"}}), json!({}), (ProfileType::Unconfined, "")),
        (false, json!({"seccompProfile": {"type": "RuntimeDefault"}}), json!({}), (ProfileType::RuntimeDefault, "")),
        (
            false,
            json!({"seccompProfile": {"type": "RuntimeDefault"}}),
            json!({"seccompProfile": local}),
            (ProfileType::Localhost, "/var/lib/kubelet/seccomp/p/a.json"),
        ),
        (true, json!({}), json!({"privileged": true}), (ProfileType::Unconfined, "")),
    ] {
        let config = with(&whole, &own, &cri::Image::default(), &node(default)).unwrap();
        let got = config.linux.unwrap().security_context.unwrap().seccomp.unwrap();
        assert_eq!((got.profile_type(), got.localhost_ref.as_str()), want, "{default} {whole} {own}");
    }
    let got = of(
        json!({"appArmorProfile": {"type": "Unconfined"}}),
        json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "mine"}}),
    );
    let profile = got.apparmor.unwrap();
    assert_eq!((profile.profile_type(), profile.localhost_ref.as_str()), (ProfileType::Localhost, "mine"));
    assert!(of(json!({}), json!({})).apparmor.is_none());
}

#[test]
fn proc_is_masked_unless_it_is_asked_for_open() {
    let plain = of(json!({}), json!({}));
    for path in ["/proc/kcore", "/proc/keys", "/proc/interrupts", "/sys/firmware", "/sys/devices/virtual/powercap"] {
        assert!(plain.masked_paths.iter().any(|p| p == path), "{path}");
    }
    assert!(plain.readonly_paths.iter().any(|p| p == "/proc/sys"));
    for own in [json!({"procMount": "Unmasked"}), json!({"privileged": true})] {
        let open = of(json!({}), own.clone());
        assert!(open.masked_paths.is_empty() && open.readonly_paths.is_empty(), "{own}");
    }
}

#[test]
fn who_must_not_be_root_is_not() {
    let image = |uid: Option<i64>, name: &str| cri::Image {
        uid: uid.map(|value| cri::Int64Value { value }),
        username: name.to_owned(),
        ..Default::default()
    };
    for (whole, own, image, want) in [
        (json!({}), json!({"runAsNonRoot": true}), image(Some(7), ""), Ok((Some(7), ""))),
        (json!({"runAsNonRoot": true}), json!({"runAsUser": 5}), image(Some(0), ""), Ok((Some(5), ""))),
        (json!({"runAsNonRoot": true}), json!({"runAsNonRoot": false}), image(Some(0), ""), Ok((Some(0), ""))),
        (json!({"runAsNonRoot": true}), json!({}), image(Some(0), ""), Err("image will run as root")),
        (json!({"runAsNonRoot": true}), json!({}), image(None, ""), Err("image will run as root")),
        (json!({"runAsNonRoot": true}), json!({}), image(None, "web"), Err("non-numeric user (web)")),
        (
            json!({"runAsNonRoot": true}),
            json!({"runAsUser": 0}),
            image(None, ""),
            Err("runAsUser breaks non-root policy"),
        ),
        (json!({}), json!({}), image(None, "web"), Ok((None, "web"))),
    ] {
        let got = with(&whole, &own, &image, &node(false));
        match want {
            Ok((user, name)) => {
                let security = got.unwrap().linux.unwrap().security_context.unwrap();
                let seen = (security.run_as_user.map(|u| u.value), security.run_as_username.as_str());
                assert_eq!(seen, (user, name), "{whole} {own}");
            }
            Err(part) => {
                let why = got.unwrap_err();
                assert!(why.contains(part) && why.contains("container: c"), "{why}");
            }
        }
    }
}

#[test]
fn namespaces_are_the_hosts_or_the_pods() {
    use cri::NamespaceMode::{Container, Node, Pod as Shared};
    for (spec, want) in [
        (json!({}), (Shared, Container, Shared)),
        (json!({"shareProcessNamespace": true}), (Shared, Shared, Shared)),
        (json!({"hostNetwork": true, "hostPID": true, "hostIPC": true}), (Node, Node, Node)),
    ] {
        let mut value = json!({"metadata": {"name": "p"}, "spec": {"containers": []}});
        value["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let pod: Pod = serde_json::from_value(value).unwrap();
        let got = namespaces(&pod);
        assert_eq!((got.network(), got.pid(), got.ipc()), want, "{spec}");
        // A sandbox has the runtime's filter whatever its containers have.
        let sandbox = sandbox_config(&pod, 0, Path::new("/kubepods"), &node(false));
        let security = sandbox.linux.unwrap().security_context.unwrap();
        assert_eq!(security.seccomp.unwrap().profile_type(), ProfileType::RuntimeDefault);
    }
}
