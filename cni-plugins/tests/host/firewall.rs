//! Who may send to whom: firewall, macspoofchk, conditions of host ports, source based routing.

use std::time::Duration;

use serde_json::{Value, json};

use crate::net::{Net, sh, with};

/// A bridge of its own for a container.
fn on_bridge(net: &Net, number: u8) -> Value {
    let mut config = net.bridge();
    config["bridge"] = json!(format!("br{number}"));
    config["name"] = json!(format!("net{number}"));
    config["ipam"]["ranges"] =
        json!([[{"subnet": format!("10.77.{number}.0/24")}], [{"subnet": format!("fd77:{number}::/64")}]]);
    config["ipMasq"] = json!(false);
    config
}

fn firewall(policy: &str, previous: &Value) -> Value {
    json!({"cniVersion": "1.1.0", "name": "net", "type": "firewall", "ingressPolicy": policy, "prevResult": previous})
}

#[test]
fn bridges_are_kept_apart_where_the_policy_says_so() {
    let Some(net) = Net::new(&["a", "b", "c"]) else { return };
    let mut results = Vec::new();
    for (id, bridge) in [("a", 1), ("b", 1), ("c", 2)] {
        let result = net.call("bridge", "ADD", id, &on_bridge(&net, bridge)).unwrap();
        let config = firewall("same-bridge", &result);
        assert_eq!(net.call("firewall", "ADD", id, &config).unwrap(), result, "the result is passed on");
        net.call("firewall", "CHECK", id, &config).unwrap();
        net.serve(id, 80);
        results.push(config);
    }
    assert!(net.get("b", "10.77.1.2:80").is_ok(), "same bridge");
    assert!(net.get("b", "[fd77:1::2]:80").is_ok(), "same bridge");
    sh(&format!("ip -n {} route add 10.77.0.0/16 via 192.0.2.1", net.name("out")));
    sh(&format!("ip -n {} route add fd77::/16 via 2001:db8::1", net.name("out")));
    assert!(net.get("out", "10.77.1.2:80").is_ok(), "from outside");
    assert!(net.get("out", "[fd77:1::2]:80").is_ok(), "from outside");
    assert!(net.get_within("c", "10.77.1.2:80", Duration::from_millis(500)).is_err(), "another bridge");
    assert!(net.get_within("c", "[fd77:1::2]:80", Duration::from_millis(500)).is_err(), "another bridge");
    let without = net.call("firewall", "CHECK", "a", &firewall("isolated", &results[0]["prevResult"])).unwrap_err();
    assert!(without["msg"].as_str().unwrap().contains("ingress4"), "{without}");

    // With one end's policy gone, the other's still stands; with both gone, nothing does.
    net.call("firewall", "DEL", "a", &results[0]).unwrap();
    net.call("firewall", "DEL", "a", &results[0]).unwrap();
    assert!(net.get_within("c", "10.77.1.3:80", Duration::from_millis(500)).is_err());
    for (id, config) in [("b", &results[1]), ("c", &results[2])] {
        net.call("firewall", "DEL", id, config).unwrap();
    }
    assert_eq!(net.nft().trim(), "");
    assert!(net.get("c", "10.77.1.3:80").is_ok());
}

#[test]
fn an_isolated_container_hears_no_other() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let mut configs = Vec::new();
    for id in ["a", "b"] {
        let result = net.call("bridge", "ADD", id, &on_bridge(&net, 1)).unwrap();
        net.serve(id, 80);
        configs.push(firewall("isolated", &result));
    }
    assert!(net.get("b", "10.77.1.2:80").is_ok());
    for (id, config) in ["a", "b"].into_iter().zip(&configs) {
        net.call("firewall", "ADD", id, config).unwrap();
        net.call("firewall", "CHECK", id, config).unwrap();
    }
    assert!(net.get_within("b", "10.77.1.2:80", Duration::from_millis(500)).is_err());
    assert!(net.get("host", "10.77.1.2:80").is_ok(), "the node itself");
    let valid = json!([{"containerID": "b", "ifname": "eth0"}]);
    net.call("firewall", "GC", "", &with(configs[0].clone(), "cni.dev/valid-attachments", valid)).unwrap();
    assert!(!net.nft().contains("\"a eth0 net\"") && net.nft().contains("\"b eth0 net\""), "{}", net.nft());
    net.call("firewall", "DEL", "b", &configs[1]).unwrap();
    assert_eq!(net.nft().trim(), "");
}

#[test]
fn the_administrators_chain_is_asked_and_kept() {
    let Some(net) = Net::new(&["a"]) else { return };
    let host = net.name("host");
    let result = net.call("bridge", "ADD", "a", &on_bridge(&net, 1)).unwrap();
    let config = with(firewall("open", &result), "iptablesAdminChainName", json!("OWN-RULES"));
    net.call("firewall", "ADD", "a", &config).unwrap();
    net.serve("a", 80);
    sh(&format!("ip -n {} route add 10.77.0.0/16 via 192.0.2.1", net.name("out")));
    assert!(net.get("out", "10.77.1.2:80").is_ok());
    sh(&format!("ip netns exec {host} nft add rule inet gantry-cni OWN-RULES tcp dport 80 drop"));
    assert!(net.get_within("out", "10.77.1.2:80", Duration::from_millis(500)).is_err());
    net.call("firewall", "DEL", "a", &config).unwrap();
    assert!(net.nft().contains("tcp dport 80 drop"), "{}", net.nft());
    net.call("firewall", "ADD", "a", &config).unwrap();
    assert!(net.get_within("out", "10.77.1.2:80", Duration::from_millis(500)).is_err());
    for (key, value) in [
        ("ingressPolicy", "odd"),
        ("backend", "odd"),
        ("iptablesAdminChainName", "a b"),
        ("iptablesAdminChainName", "forward"),
    ] {
        let error = net.call("firewall", "ADD", "a", &with(config.clone(), key, json!(value))).unwrap_err();
        assert_eq!(error["code"], 7, "{error}");
    }
}

#[test]
fn traffic_passes_a_forward_chain_of_iptables_that_drops() {
    let Some(net) = Net::new(&["a"]) else { return };
    let host = net.name("host");
    // The older iptables writes to tables that are not nf_tables.
    let version = sh("iptables -V 2>&1 || true");
    if !version.contains("nf_tables") {
        println!("skipped: no iptables on nf_tables: {version}");
        return;
    }
    sh(&format!("ip netns exec {host} iptables -P FORWARD DROP"));
    let result = net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    net.serve("out", 81);
    assert!(net.get_within("a", "192.0.2.2:81", Duration::from_millis(500)).is_err());
    let config = firewall("open", &result);
    net.call("firewall", "ADD", "a", &config).unwrap();
    assert!(net.get("a", "192.0.2.2:81").is_ok());
    let listed = sh(&format!("ip netns exec {host} iptables -S"));
    for rule in ["-A FORWARD -j GANTRY-FORWARD", "-A GANTRY-FORWARD -s 10.77.0.2/32", "--ctstate RELATED,ESTABLISHED"] {
        assert!(listed.contains(rule), "iptables cannot read {rule}: {listed}");
    }
    net.call("firewall", "CHECK", "a", &config).unwrap();
    sh(&format!("ip netns exec {host} iptables -F"));
    assert!(net.call("firewall", "CHECK", "a", &config).is_err());
    net.call("firewall", "ADD", "a", &config).unwrap();
    net.call("firewall", "DEL", "a", &config).unwrap();
    let listed = sh(&format!("ip netns exec {host} iptables -S"));
    assert_eq!(listed.trim(), "-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT");
}

#[test]
fn a_container_cannot_send_under_anothers_hardware_address() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let config = with(net.bridge(), "macspoofchk", json!(true));
    let a = net.call("bridge", "ADD", "a", &config).unwrap();
    net.call("bridge", "ADD", "b", &config).unwrap();
    net.serve("b", 80);
    assert!(net.get("a", "10.77.0.3:80").is_ok());
    net.call("bridge", "CHECK", "a", &with(config.clone(), "prevResult", a)).unwrap();
    sh(&format!("ip -n {} link set eth0 address 02:00:00:00:00:99", net.name("a")));
    assert!(net.get_within("a", "10.77.0.3:80", Duration::from_millis(500)).is_err());
    for id in ["a", "b"] {
        net.call("bridge", "DEL", id, &config).unwrap();
    }
    assert_eq!(net.nft().trim(), "");
}

#[test]
fn conditions_say_for_whom_a_host_port_is() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let a = net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap", "prevResult": a,
        "conditionsV4": ["!", "-s", "192.0.2.3/32", "-i", "up+"], "conditionsV6": ["-s", "2001:db8::2"],
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}});
    net.call("portmap", "ADD", "a", &config).unwrap();
    net.call("portmap", "CHECK", "a", &config).unwrap();
    net.serve("a", 80);
    assert_eq!(net.get("out", "192.0.2.1:8080").unwrap(), "192.0.2.2");
    assert_eq!(net.get("out", "[2001:db8::1]:8080").unwrap(), "2001:db8::2");
    let out = net.name("out");
    sh(&format!("ip -n {out} addr add 192.0.2.3/24 dev up0 && ip -n {out} route add 192.0.2.1 dev up0 src 192.0.2.3"));
    sh(&format!(
        "ip -n {out} -6 addr add 2001:db8::3/64 dev up0 nodad && ip -n {out} -6 route add 2001:db8::1 dev up0 src 2001:db8::3"
    ));
    assert!(net.get_within("out", "192.0.2.1:8080", Duration::from_millis(500)).is_err());
    assert!(net.get_within("out", "[2001:db8::1]:8080", Duration::from_millis(500)).is_err());
    for (wrong, part) in [(json!(["-m", "set", "--match-set", "x", "src"]), "-m set"), (json!(["ip saddr @x"]), "@x")] {
        let error = net.call("portmap", "ADD", "b", &with(config.clone(), "conditionsV4", wrong)).unwrap_err();
        assert!(error["code"] == 7 && error["msg"].as_str().unwrap().contains(part), "{error}");
    }
    net.call("portmap", "DEL", "a", &config).unwrap();
    let mut config = with(config, "backend", json!("nftables"));
    config["conditionsV4"] = json!(["ip saddr { 192.0.2.3, 198.51.100.1-198.51.100.9 }", "iifname", "up*"]);
    config["conditionsV6"] = json!(["ip6 saddr != 2001:db8::3/128 tcp sport 1-65535"]);
    net.call("portmap", "ADD", "a", &config).unwrap();
    net.call("portmap", "CHECK", "a", &config).unwrap();
    // As nft itself reads them.
    for rule in
        ["ip saddr 198.51.100.1-198.51.100.9", "iifname \"up*\"", "ip6 saddr != 2001:db8::3", "th sport 1-65535"]
    {
        let there = net.nft().replace("tcp sport", "th sport");
        assert!(there.contains(rule), "{rule}: {there}");
    }
    assert_eq!(net.get("out", "192.0.2.1:8080").unwrap(), "192.0.2.3");
    assert!(net.get_within("out", "[2001:db8::1]:8080", Duration::from_millis(500)).is_err());
    sh(&format!("ip -n {out} addr del 192.0.2.3/24 dev up0 && ip -n {out} -6 addr del 2001:db8::3/64 dev up0"));
    assert!(net.get_within("out", "192.0.2.1:8080", Duration::from_millis(500)).is_err());
    assert_eq!(net.get("out", "[2001:db8::1]:8080").unwrap(), "2001:db8::2");
    net.call("portmap", "DEL", "a", &config).unwrap();
    assert!(!net.nft().contains("8080") && !net.nft().contains("hairpin-"), "{}", net.nft());
    net.call("bridge", "DEL", "a", &net.bridge()).unwrap();
    assert_eq!(net.nft().trim(), "");
}

#[test]
fn answers_leave_by_the_device_of_their_address() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let a = net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    let inside = net.name("a");
    sh(&format!(
        "ip -n {inside} link add other type bridge && ip -n {inside} addr add 198.51.100.9/24 dev other && ip -n {inside} link set other up"
    ));
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "sbr", "prevResult": a});
    assert_eq!(net.call("sbr", "ADD", "a", &config).unwrap(), a);
    let rules = sh(&format!("ip -n {inside} rule; ip -n {inside} -6 rule"));
    assert!(rules.contains("from 10.77.0.2 lookup 100") && rules.contains("from fd77::2 lookup 101"), "{rules}");
    let main = sh(&format!("ip -n {inside} route"));
    assert!(!main.contains("eth0") && main.contains("other"), "{main}");
    let own = sh(&format!("ip -n {inside} route show table 100; ip -n {inside} -6 route show table 101"));
    assert!(own.contains("default via 10.77.0.1") && own.contains("default via fd77::1"), "{own}");
    assert!(own.contains("10.77.0.0/24 dev eth0"), "{own}");
    net.serve("a", 80);
    sh(&format!("ip -n {} route add 10.77.0.0/16 via 192.0.2.1", net.name("out")));
    assert!(net.get("out", "10.77.0.2:80").is_ok());
    net.call("sbr", "CHECK", "a", &config).unwrap();
    net.call("bridge", "CHECK", "a", &with(net.bridge(), "prevResult", a)).unwrap();
    let b = net.call("bridge", "ADD", "b", &net.bridge()).unwrap();
    let mut other = with(with(config.clone(), "prevResult", b), "table", json!(77));
    other["addSourceHints"] = json!(true);
    net.call("sbr", "ADD", "b", &other).unwrap();
    let hinted = sh(&format!("ip -n {} route show table 77", net.name("b")));
    let default = hinted.lines().find(|l| l.starts_with("default via 10.77.0.1 dev eth0"));
    assert!(default.is_some_and(|l| l.contains("src 10.77.0.3")), "{hinted}");
    net.call("sbr", "DEL", "a", &config).unwrap();
    net.call("sbr", "DEL", "a", &config).unwrap();
    assert!(!sh(&format!("ip -n {inside} rule; ip -n {inside} -6 rule")).contains("lookup 10"));
    let error = net.call("sbr", "ADD", "a", &with(config, "prevResult", json!({"ips": []}))).unwrap_err();
    assert_eq!(error["code"], 7);
}
