//! The rules of signers and approvers as tables.

use super::*;

fn asked(name: &str, organizations: &[&str], dns: &[&str], ips: &[&str]) -> Asked {
    Asked {
        common_name: name.into(),
        organizations: organizations.iter().map(|o| (*o).to_owned()).collect(),
        dns: dns.iter().map(|d| (*d).to_owned()).collect(),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        others: Vec::new(),
    }
}

const NODES: &[&str] = &["system:nodes"];
const FOR_CLIENTS: &[&str] = &["client auth", "digital signature"];
const FOR_SERVERS: &[&str] = &["server auth", "digital signature", "key encipherment"];

#[test]
fn signers_have_their_rules() {
    let node = |dns, ips| asked("system:node:n1", NODES, dns, ips);
    for (signer, asked, usages, fine) in [
        (KUBELET_CLIENT, node(&[], &[]), FOR_CLIENTS, true),
        (KUBELET_CLIENT, node(&["n1"], &[]), FOR_CLIENTS, false),
        (KUBELET_CLIENT, node(&[], &[]), FOR_SERVERS, false),
        (KUBELET_CLIENT, node(&[], &[]), &["digital signature"], false),
        (KUBELET_CLIENT, asked("system:node:", NODES, &[], &[]), FOR_CLIENTS, false),
        (KUBELET_CLIENT, asked("admin", NODES, &[], &[]), FOR_CLIENTS, false),
        (KUBELET_CLIENT, asked("system:node:n1", &["system:masters"], &[], &[]), FOR_CLIENTS, false),
        (KUBELET_CLIENT, asked("system:node:n1", &["system:nodes", "system:masters"], &[], &[]), FOR_CLIENTS, false),
        (KUBELET_SERVING, node(&["n1"], &["192.0.2.1"]), FOR_SERVERS, true),
        (KUBELET_SERVING, node(&[], &[]), FOR_SERVERS, false),
        (KUBELET_SERVING, node(&["n1"], &[]), FOR_CLIENTS, false),
        (CLIENT, asked("jane", &["dev"], &[], &[]), FOR_CLIENTS, true),
        (CLIENT, asked("jane", &["dev"], &[], &[]), &["client auth", "cert sign"], false),
    ] {
        let got = judge(signer, &asked, usages);
        assert_eq!(got.is_ok(), fine, "{signer} {asked:?} {usages:?}: {got:?}");
        if let Ok(purposes) = got {
            assert_eq!(purposes.server, signer == KUBELET_SERVING);
            assert_eq!(purposes.client, signer != KUBELET_SERVING);
        }
    }
}

#[test]
fn kubelets_are_recognized_by_who_asks() {
    let object =
        |user: &str, signer: &str| json!({"spec": {"username": user, "signerName": signer, "usages": FOR_CLIENTS}});
    let node = asked("system:node:n1", NODES, &[], &[]);
    let kind = |object: &Value| recognize(object, &node).map(|(kind, _)| kind);
    assert_eq!(kind(&object("system:bootstrap:abcdef", KUBELET_CLIENT)), Some("nodeclient"));
    assert_eq!(kind(&object("system:node:n1", KUBELET_CLIENT)), Some("selfnodeclient"));
    assert_eq!(kind(&object("system:node:n2", KUBELET_CLIENT)), Some("nodeclient"), "which nodes may not create");
    assert_eq!(kind(&object("system:node:n1", CLIENT)), None);
}

#[test]
fn serving_certificates_name_only_what_the_node_has() {
    let node =
        json!({"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
    let user = |name: &str| User::new(name, &["system:nodes".to_owned()]);
    let ask = |dns: &[&str], ips: &[&str]| asked("system:node:n1", NODES, dns, ips);
    let n1 = user("system:node:n1");
    assert!(names_only_itself(&ask(&["n1"], &["192.0.2.1"]), &n1, &node));
    assert!(!names_only_itself(&ask(&["n1"], &["192.0.2.2"]), &n1, &node), "another's address");
    assert!(!names_only_itself(&ask(&["kubernetes"], &[]), &n1, &node), "the apiserver's name");
    assert!(!names_only_itself(&ask(&["n1"], &[]), &user("system:node:n2"), &node), "another node asks");
}

#[test]
fn requests_end() {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let pending = json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}});
    assert_eq!(ends(&pending), Some(at("2026-01-02T00:00:00Z")));
    let mut denied = pending;
    denied["status"]["conditions"] =
        json!([{"type": "Denied", "status": "True", "lastUpdateTime": "2026-01-01T05:00:00Z"}]);
    assert_eq!(ends(&denied), Some(at("2026-01-01T06:00:00Z")));
    denied["status"]["conditions"][0]["lastUpdateTime"] = json!(Timestamp::MAX.to_string());
    assert_eq!(ends(&denied), None, "a time that somebody wrote for fun");
}
