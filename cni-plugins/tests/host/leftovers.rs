//! What crashes, missing calls and others' hands leave behind, and who takes it away or puts it back.

use std::fs;

use serde_json::{Value, json};

use crate::net::{Net, sh, with};

#[test]
fn what_a_crash_left_under_an_address_does_not_harm_who_has_it_next() {
    let Some(mut net) = Net::new(&["a", "b"]) else { return };
    let a = net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    let portmap = json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap", "prevResult": a,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}});
    net.call("portmap", "ADD", "a", &portmap).unwrap();
    net.call("portmap", "ADD", "a", &portmap).unwrap();
    // The addresses are free, the container is gone, only the rules are still there.
    net.delete_namespace("a");
    net.call_in("host-local", "DEL", "a", "", &net.bridge().to_string()).unwrap();
    fs::remove_dir_all(net.data()).unwrap();
    let mut other = net.bridge();
    other["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/25"}], [{"subnet": "fd77::/64"}]]);
    other["forceAddress"] = json!(true);
    let b = net.call("bridge", "ADD", "b", &other).unwrap();
    assert_eq!(b["ips"][0]["address"], "10.77.0.2/25", "the same address in another network");
    let error = net.call("portmap", "ADD", "b", &with(portmap.clone(), "prevResult", b)).unwrap_err();
    let text = error["msg"].as_str().unwrap();
    assert!(text.contains("8080/tcp") && text.contains("container a"), "{error}");
    for plugin in ["portmap", "bridge"] {
        net.call_in(plugin, "DEL", "a", "", &with(portmap.clone(), "ipam", net.bridge()["ipam"].clone()).to_string())
            .unwrap();
    }
    net.serve("out", 81);
    assert_eq!(net.get("b", "192.0.2.2:81").unwrap(), "192.0.2.1", "masqueraded after the late DEL of a");
    net.call("bridge", "DEL", "b", &other).unwrap();
    assert_eq!(net.nft().trim(), "");
}

#[test]
fn gc_frees_what_no_container_has() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    for id in ["a", "b"] {
        net.call("bridge", "ADD", id, &net.bridge()).unwrap();
    }
    let valid = json!([{"containerID": "b", "ifname": "eth0"}]);
    net.call("bridge", "GC", "", &with(net.bridge(), "cni.dev/valid-attachments", valid)).unwrap();
    assert_eq!(net.taken(), ["10.77.0.3", "fd77::3"]);
    assert!(!net.nft().contains("10.77.0.2"));
    let wrong = with(net.bridge(), "cni.dev/valid-attachments", json!("b"));
    let error = net.call("bridge", "GC", "", &wrong).unwrap_err();
    assert_eq!(error["code"], 7);
}

#[test]
fn gc_of_a_network_takes_its_devices_too_and_nothing_of_another_network() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let a = net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    let limits = json!({"cniVersion": "1.1.0", "name": "net", "type": "bandwidth", "prevResult": a,
        "egressRate": 8_000_000, "egressBurst": 400_000});
    net.call("bandwidth", "ADD", "a", &limits).unwrap();
    let mut other = with(net.bridge(), "name", json!("net2"));
    other["bridge"] = json!("br1");
    other["ipam"]["ranges"] = json!([[{"subnet": "10.78.0.0/24"}]]);
    net.call("bridge", "ADD", "b", &other).unwrap();
    // The container's namespace has leaked: its device must be gone before somebody else gets its address. libcni writes an
    // empty list as null.
    for (plugin, config) in [("bridge", net.bridge()), ("bandwidth", limits)] {
        let config = with(config, "cni.dev/valid-attachments", Value::Null);
        net.call(plugin, "GC", "", &config).unwrap();
    }
    assert_eq!(net.taken(), Vec::<String>::new());
    assert!(!net.nft().contains("10.77.") && !net.links().contains("bwp"), "{}{}", net.nft(), net.links());
    assert_eq!(net.links().matches("veth").count(), 1, "{}", net.links());
    net.serve("out", 81);
    assert_eq!(net.get("b", "192.0.2.2:81").unwrap(), "192.0.2.1", "the other network stands");
}

#[test]
fn gc_of_any_network_takes_what_is_kept_of_containers_that_ended_without_a_del() {
    let Some(mut net) = Net::new(&["a", "b"]) else { return };
    let mut gone = with(net.bridge(), "name", json!("gone"));
    gone["ipam"]["ranges"] = json!([[{"subnet": "10.78.0.0/24"}]]);
    for id in ["a", "b"] {
        let result = net.call("bridge", "ADD", id, &gone).unwrap();
        let ports = json!([{"hostPort": if id == "a" { 8080 } else { 8081 }, "containerPort": 80, "protocol": "tcp"}]);
        let mapped = json!({"cniVersion": "1.1.0", "name": "gone", "type": "portmap", "prevResult": result,
            "runtimeConfig": {"portMappings": ports}});
        net.call("portmap", "ADD", id, &mapped).unwrap();
    }
    // Nobody calls DEL, and the network is no longer configured: only other networks' GC is called.
    net.delete_namespace("a");
    let gc = with(net.bridge(), "cni.dev/valid-attachments", json!([]));
    net.call("bridge", "GC", "", &gc).unwrap();
    net.call("portmap", "GC", "", &with(gc, "type", json!("portmap"))).unwrap();
    let after = net.nft();
    assert!(!after.contains("10.78.0.2") && after.contains("10.78.0.3"), "{after}");
    net.serve("b", 80);
    assert!(net.get("out", "192.0.2.1:8081").is_ok());
    // What is kept for a flush is no more than what is there.
    sh(&format!("ip netns exec {} nft flush ruleset", net.name("host")));
    net.call("bridge", "STATUS", "", &net.bridge()).unwrap();
    let after = net.nft();
    assert!(!after.contains("10.78.0.2") && after.contains("10.78.0.3"), "{after}");
}

#[test]
fn everything_comes_back_after_the_whole_ruleset_was_flushed() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let mut checked = Vec::new();
    for (id, port) in [("a", 8080), ("b", 8081)] {
        let config = with(net.bridge(), "macspoofchk", json!(true));
        // The second one comes after the flush; its own elements and those of the first are there then.
        if id == "b" {
            sh(&format!("ip netns exec {} nft flush ruleset", net.name("host")));
        }
        let result = net.call("bridge", "ADD", id, &config).unwrap();
        let portmap = json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap", "prevResult": result,
            "runtimeConfig": {"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]}});
        net.call("portmap", "ADD", id, &portmap).unwrap();
        net.serve(id, 80);
        checked.push((id, port, with(config, "prevResult", result), portmap));
    }
    net.serve("out", 81);
    let whole = |when: &str| {
        for (id, port, bridge, portmap) in &checked {
            net.call("bridge", "CHECK", id, bridge).unwrap_or_else(|e| panic!("{when}: {e}"));
            net.call("portmap", "CHECK", id, portmap).unwrap_or_else(|e| panic!("{when}: {e}"));
            assert_eq!(net.get(id, "192.0.2.2:81").unwrap(), "192.0.2.1", "{when}: masqueraded");
            assert_eq!(net.get("out", &format!("192.0.2.1:{port}")).unwrap(), "192.0.2.2", "{when}: host port");
        }
    };
    whole("after an ADD");
    let before = net.nft();
    for harm in ["flush ruleset", "delete table inet gantry-cni", "delete table bridge gantry-cni"] {
        sh(&format!("ip netns exec {} nft {harm}", net.name("host")));
        net.call("bridge", "STATUS", "", &net.bridge()).unwrap();
        whole(harm);
    }
    assert_eq!(net.nft().lines().count(), before.lines().count(), "{}", net.nft());
    // What a DEL took away while nothing stood does not come back.
    sh(&format!("ip netns exec {} nft flush ruleset", net.name("host")));
    for (id, _, bridge, portmap) in &checked {
        net.call("portmap", "DEL", id, portmap).unwrap();
        net.call("bridge", "DEL", id, bridge).unwrap();
    }
    net.call("bridge", "STATUS", "", &net.bridge()).unwrap();
    assert_eq!(net.nft().trim(), "");
}

#[test]
fn rules_come_back_after_somebody_flushed_them_and_foreign_tables_stay() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let host = net.name("host");
    sh(&format!("ip netns exec {host} nft add table inet foreign"));
    net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    sh(&format!("ip netns exec {host} nft flush table inet gantry-cni"));
    net.call("bridge", "ADD", "b", &net.bridge()).unwrap();
    net.serve("out", 81);
    for from in ["a", "b"] {
        assert_eq!(net.get(from, "192.0.2.2:81").unwrap(), "192.0.2.1", "{from}");
    }
    for id in ["a", "b"] {
        net.call("bridge", "DEL", id, &net.bridge()).unwrap();
    }
    assert_eq!(net.nft().trim(), "table inet foreign {\n}");
}
